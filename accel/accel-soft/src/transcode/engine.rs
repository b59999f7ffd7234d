//! The loop that runs translated code, translates more, and has the interpreter do the rest.

use std::io;
use std::sync::Arc;

use iced_x86::{FlowControl, Instruction};
use x86::state::{Activity, Cr0, Cr4, Rflags, SegReg};
use x86::{Cpu, View};

use super::cache::{Block, Cache, Emitted, Fill, Key, Set};
use super::context::{
    Context, ContextCell, JUMP_CACHES, MIRRORED_JUMPS, SECOND_ENTRIES, SECOND_JUMPS, SecondEntry,
    SecondJump, VIEWS, jump_hash, places_of_page,
};
use super::far_links::FarLinks;
use super::journal::{self, has_global};
use super::lockstep::{self, Lockstep};
use super::lost_flags;
use super::mirror::{self, Mirror, Shown};
use super::proof::Proof;
use super::translate::{Departure, Exit, MAX_INSTRUCTIONS, Offer, Setting, Status, Translator};
use super::watch::Became;
use super::{entry, flat};
use crate::env::{Shared, SoftEnv};
use crate::ram::{Page, Ram};

/// Entries of the table that counts how often code was entered.
const HEAT: usize = 1 << 16;
/// A block covers at most this many bytes of guest code.
const MAX_BYTES: usize = 512;
/// The longest instruction (SDM Vol. 2, 2.3.11).
const MAX_INSTRUCTION_BYTES: usize = 15;

/// What the transcoder did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub translated: u64,
    pub entered: u64,
    pub misses: u64,
    pub filled: u64,
    pub branches: u64,
    pub chains: u64,
    pub interpreted: u64,
    pub resumed: u64,
    pub attention: u64,
    pub invalidated: u64,
    pub flushed: u64,
    pub cold: u64,
    pub unsettled: u64,
    pub jumps_forgotten: u64,
    /// Blocks that the checker refused.
    pub refused: u64,
    /// Accesses to memory that was not mirrored yet, and such as never are.
    pub mirrored: u64,
    pub not_mirrored: u64,
}

/// One processor's transcoder.
pub struct Transcoder {
    context: Arc<ContextCell>,
    cache: Cache,
    translator: Translator,
    /// The instructions of one block; kept for their memory.
    insns: Vec<Instruction>,
    /// Checks what the translator made, if that is wanted.
    proof: Option<Proof>,
    /// How often code was entered, by hash of its key.
    heat: Box<[u8]>,
    /// Code is translated when it was entered this often.
    threshold: u8,
    /// Vector registers as the host has them: 0 is XMM, 1 is YMM, 2 is ZMM.
    width: u32,
    /// The second level of the soft TLB, by view; the context points at it.
    second: [Box<[SecondEntry]>; VIEWS],
    is_second_empty: [bool; VIEWS],
    /// The second level of each view's jump cache; the context points at it, and has that of
    /// [`MIRRORED_JUMPS`] itself.
    second_jumps: [Box<[SecondJump]>; VIEWS],
    /// Linear pages that jump caches lead to.
    code_pages: Set<u64>,
    /// What each jump cache leads to.
    settings: [Option<Setting>; JUMP_CACHES],
    far_links: FarLinks,
    /// The memory of the program that runs most, at its own addresses; if the host can do that.
    mirror: Option<Mirror>,
    /// Compares translated code with the interpreter, if that is wanted.
    pub(super) lockstep: Option<Box<Lockstep>>,
    pub counters: Counters,
}

/// Where the second level of a view's soft TLB has the page at `linear`.
fn second_index(view: usize, linear: u64) -> usize {
    (linear >> 12) as usize % SECOND_ENTRIES[view]
}

/// Vector registers as wide as the host has them, as [`Context::width`] counts.
pub fn host_width() -> u32 {
    if is_x86_feature_detected!("avx512bw") {
        2
    } else if is_x86_feature_detected!("avx") {
        1
    } else {
        0
    }
}

/// What follows an exit from translated code.
pub(super) enum Next {
    /// Enter translated code at this address; with vector registers loaded first if they were
    /// live before.
    Enter { at: u64, vectors: bool },
    /// Repeat the access to mirrored memory that faulted.
    Repeat,
    /// The state of the processor is whole; look anew.
    Look,
    /// The same behind an instruction that was interpreted: the jump cache may know how to go on.
    LookUp,
}

impl Transcoder {
    /// A transcoder that works on `context`. Fails if the host gives no executable memory;
    /// `None` if it lacks what translated code needs. With `check`, translations are checked
    /// before they run; with `lockstep`, what they do is compared with the interpreter.
    pub fn new(
        context: Arc<ContextCell>,
        threshold: u8,
        check: bool,
        lockstep: Option<Lockstep>,
        mirror: Option<Mirror>,
    ) -> io::Result<Option<Self>> {
        if !entry::is_possible() {
            return Ok(None);
        }
        let mut second =
            SECOND_ENTRIES.map(|entries| vec![SecondEntry::EMPTY; entries].into_boxed_slice());
        let mut second_jumps: [Box<[SecondJump]>; VIEWS] = std::array::from_fn(|view| {
            vec![SecondJump::EMPTY; SECOND_JUMPS[view]].into_boxed_slice()
        });
        // SAFETY: nobody else has the context yet.
        let tables = unsafe { &mut *context.get() };
        for view in 0..VIEWS {
            tables.second[view] = second[view].as_mut_ptr();
            tables.second_jumps[view] = second_jumps[view].as_mut_ptr();
        }
        tables.mirrored_jumps.fill(SecondJump::EMPTY);
        let lockstep = lockstep.map(Box::new);
        let mirror = mirror.filter(|_| lockstep.is_none());
        Ok(Some(Self {
            second,
            second_jumps,
            is_second_empty: [true; VIEWS],
            context,
            cache: Cache::new()?,
            translator: Translator::new(),
            insns: Vec::new(),
            proof: check.then(Proof::new),
            heat: vec![0; HEAT].into_boxed_slice(),
            threshold,
            width: host_width(),
            code_pages: Set::default(),
            settings: [None; JUMP_CACHES],
            far_links: FarLinks::default(),
            mirror,
            lockstep,
            counters: Counters::default(),
        }))
    }

    /// The context. Not to be called while another reference to it is in use.
    pub(super) fn context(&mut self) -> &mut Context {
        // SAFETY: the context belongs to this processor, whose thread has `self` exclusively;
        // others touch `attention` alone, which is atomic.
        unsafe { &mut *self.context.get() }
    }

    /// Executes until the processor is not active, or something else is to be done.
    pub fn run(&mut self, cpu: &mut Cpu<SoftEnv>) {
        match &self.mirror {
            Some(mirror) => mirror.prepare_thread(self.cache.range()),
            None => mirror::release_thread(),
        }
        while cpu.state.activity == Activity::Active {
            self.catch_up(cpu);
            if cpu.wants_attention() {
                return;
            }
            self.context().deferred = (!cpu.env.slot().pending().is_empty()).into();
            let mode = cpu.mode();
            if mode.careful && cpu.is_debug_stopped() {
                return;
            }
            if mode.view == View::User
                && let Some(mirror) = &mut self.mirror
                && let Some(shown) = mirror.consider(cpu)
            {
                self.context().clear_jumps(MIRRORED_JUMPS);
                self.prove_far_links(cpu, shown);
            }
            let Some(setting) = self.setting(cpu) else {
                cpu.execute(usize::MAX);
                continue;
            };
            let Some((gpa, page)) = code_place(cpu, setting) else {
                cpu.execute(1);
                continue;
            };
            if self.settings[setting.jumps()] != Some(setting) {
                // The first level of jump caches knows nothing of settings but the view.
                self.settings[setting.jumps()] = Some(setting);
                self.context().clear_jumps(setting.jumps());
                self.tag_jumps();
            }
            let key = Key::new(gpa, setting);
            match self.find_or_translate(cpu, key, page, setting) {
                Some(Block::Code { near, .. }) if self.lockstep.is_some() => {
                    if !self.execute_in_lockstep(cpu, setting, near) {
                        return;
                    }
                }
                Some(Block::Code { near, far }) => {
                    self.remember_jump(cpu, setting, key, far);
                    self.execute(cpu, setting, near);
                }
                Some(Block::Interpret | Block::Crossing) => {
                    self.counters.interpreted += 1;
                    cpu.execute(1);
                }
                None => {
                    self.counters.cold += 1;
                    cpu.execute(usize::MAX);
                }
            }
        }
    }

    /// What was found in lockstep, once.
    pub fn take_difference(&mut self) -> Option<String> {
        self.lockstep.as_mut()?.take_difference()
    }

    /// How much there is in the cache.
    pub fn cache_fill(&self) -> Fill {
        self.cache.fill()
    }

    /// Learns of what happened outside: code that changed, translations that are void.
    fn catch_up(&mut self, cpu: &mut Cpu<SoftEnv>) {
        let index = cpu.env.index;
        if self.context.is_rung() {
            self.context.answer();
            self.counters.attention += 1;
        }
        let shared = cpu.env.shared.clone();
        shared.watch.look(index, |pages| self.forget_writes(&shared.ram, pages));
        if cpu.env.shared.watch.has_changed(index) {
            for page in cpu.env.shared.watch.take_changed(index) {
                if let Some(gpa) = cpu.env.shared.ram.address(page) {
                    self.counters.invalidated += 1;
                    self.cache.forget_page(gpa);
                }
            }
        }
        if cpu.has_forgotten_nothing() {
            return;
        }
        let forgotten = cpu.take_forgotten();
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.forget(&forgotten);
        }
        if forgotten.all {
            (0..VIEWS).for_each(|view| self.context().clear_tlb(view));
            (0..JUMP_CACHES).for_each(|cache| self.context().clear_jumps(cache));
            self.forget_second_jumps();
            if let Some(mirror) = &mut self.mirror {
                mirror.doubt();
            }
            for (entries, is_empty) in self.second.iter_mut().zip(&mut self.is_second_empty) {
                if !std::mem::replace(is_empty, true) {
                    entries.fill(SecondEntry::EMPTY);
                }
            }
        }
        if forgotten.all || forgotten.space {
            let space = u64::from(cpu.address_space());
            let context = self.context();
            if context.spaces[0] != space {
                context.spaces = [space; VIEWS];
                (0..VIEWS).for_each(|view| context.leave_space(view));
                self.tag_jumps();
            }
        }
        for &linear in forgotten.pages() {
            self.context().clear_page(linear);
            if let Some(mirror) = &mut self.mirror {
                mirror.forget_page(linear);
            }
            for view in 0..3 {
                self.second[view][second_index(view, linear)] = SecondEntry::EMPTY;
            }
            if self.far_links.lead_to(linear & !0xfff) {
                self.unlink_far();
            }
            if self.code_pages.remove(&(linear & !0xfff)) {
                self.forget_jumps_to(linear);
            }
        }
    }

    /// Forgets what the soft TLBs allow to store to, and what the mirror does of these pages.
    fn forget_writes(&mut self, ram: &Ram, pages: Became) {
        if let Some(mirror) = &mut self.mirror {
            mirror.forget_writes(ram, pages);
        }
        let context = self.context();
        context.clear_writes();
        context.write_epoch += 1;
    }

    fn forget_jumps(&mut self) {
        self.counters.jumps_forgotten += 1;
        self.code_pages.clear();
        (0..JUMP_CACHES).for_each(|cache| self.context().clear_jumps(cache));
        self.forget_second_jumps();
    }

    /// Forgets where jump caches lead for the page at `linear`.
    fn forget_jumps_to(&mut self, linear: u64) {
        self.counters.jumps_forgotten += 1;
        self.context().clear_jumps_to(linear);
        for cache in 0..JUMP_CACHES {
            let entries = self.second_jumps(cache);
            for guest in places_of_page(linear) {
                let index = jump_hash(guest) % entries.len();
                for index in [index, index ^ 1] {
                    let entry = &mut entries[index];
                    if entry.guest & !1 == guest {
                        *entry = SecondJump::EMPTY;
                    }
                }
            }
        }
    }

    /// Says by what the second levels of jump caches tell branches apart from now on.
    fn tag_jumps(&mut self) {
        let settings = self.settings.map(|setting| setting.map_or(0, Setting::number) << 32);
        let context = self.context();
        // All views are of the same one.
        let space = context.spaces[0];
        context.jump_spaces = settings.map(|setting| setting | space);
        context.global_jump_spaces = settings.map(|setting| setting | journal::GLOBAL);
    }

    fn forget_second_jumps(&mut self) {
        for cache in 0..JUMP_CACHES {
            self.second_jumps(cache).fill(SecondJump::EMPTY);
        }
    }

    /// The second level of a jump cache.
    fn second_jumps(&mut self, cache: usize) -> &mut [SecondJump] {
        match cache {
            MIRRORED_JUMPS => &mut self.context().mirrored_jumps,
            view => &mut self.second_jumps[view],
        }
    }

    /// What code that runs now is translated for; `None` if it is not.
    fn setting(&self, cpu: &Cpu<SoftEnv>) -> Option<Setting> {
        let (mode, state) = (cpu.mode(), &cpu.state);
        let is_32bit = match mode.code_bits {
            64 => false,
            32 if flat::is_flat(state) => true,
            _ => return None,
        };
        // Between kernels and programs, some instructions are allowed to nobody knows whom.
        if mode.careful || mode.fast_view == View::Checked || !matches!(mode.cpl, 0 | 3) {
            return None;
        }
        const MASKS: u32 = 0x1f80;
        const AVX: u64 = 0x6;
        const AVX512: u64 = 0xe6;
        let has_sse = state.cr4.contains(Cr4::OSFXSR)
            && !state.cr0.intersects(Cr0::EM | Cr0::TS)
            && state.vector.x87.mxcsr & MASKS == MASKS;
        let xcr0 = if state.cr4.contains(Cr4::OSXSAVE) { state.xcr0 } else { 0 };
        let vectors = match self.width {
            _ if !has_sse => 0,
            2 if xcr0 & AVX512 == AVX512 => 3,
            1 | 2 if xcr0 & AVX == AVX => 2,
            _ => 1,
        };
        let view = mode_view(cpu);
        let time = view != View::User || !state.cr4.contains(Cr4::TSD);
        let mirrored = view == View::User
            && !is_32bit
            && self.mirror.as_ref().is_some_and(|mirror| mirror.shows(cpu.address_space()));
        Some(Setting { view, vectors, time, narrow: false, is_32bit, mirrored })
    }

    /// Lets branches of this setting find the block at the instruction pointer.
    fn remember_jump(&mut self, cpu: &mut Cpu<SoftEnv>, setting: Setting, key: Key, far: u64) {
        if self.lockstep.is_some() {
            return;
        }
        let cache = setting.jumps();
        let rip = cpu.state.rip;
        if setting.mirrored && !self.far_links.runs(key.page(), rip & !0xfff) {
            self.unlink_far();
        }
        let mut is_global = cpu.is_code_global();
        self.code_pages.insert(rip & !0xfff);
        if may_cross(rip) {
            is_global &= in_next_page(cpu, |cpu| cpu.is_code_global());
            self.code_pages.insert((rip | 0xfff).wrapping_add(1));
        }
        is_global &= has_global(setting.view);
        let context = self.context();
        context.fill_jump(cache, rip, far, is_global);
        let spaces = if is_global { context.global_jump_spaces } else { context.jump_spaces };
        let entries = self.second_jumps(cache);
        let index = jump_hash(rip) % SECOND_JUMPS[cache];
        if entries[index].guest != rip {
            entries[index ^ 1] = entries[index];
        }
        entries[index] = SecondJump { guest: rip, space: spaces[cache], host: far };
    }

    /// The jump whose distance stands at `link` was about to go to the instruction pointer, where
    /// this block is: links it, if that may be.
    fn link_far(&mut self, cpu: &mut Cpu<SoftEnv>, link: u32, key: Key, far: u64) {
        let rip = cpu.state.rip;
        cpu.state.rip = self.context().code_base;
        let from = cpu.code_place();
        cpu.state.rip = rip;
        let Some((from, _)) = from else { return };
        // A block that reaches into the next page depends on that as well.
        let is_lasting = self.far_links.may_link_from(from & !0xfff) && !may_cross(rip);
        let linked = self.cache.link_far(link, is_lasting.then_some(far));
        if is_lasting {
            self.far_links.add(linked, rip & !0xfff, key.page());
        }
    }

    /// Takes all links between pages back.
    fn unlink_far(&mut self) {
        for link in self.far_links.take() {
            self.cache.unlink_far(link);
        }
    }

    /// The mirror is about to show what a program has: sees to it that links between pages are right for
    /// it.
    fn prove_far_links(&mut self, cpu: &mut Cpu<SoftEnv>, shown: Shown) {
        let is_same = shown == Shown::Again && {
            let rip = cpu.state.rip;
            let are_right = self.far_links.targets().all(|(linear, gpa)| {
                cpu.state.rip = linear;
                cpu.code_place().is_some_and(|(found, _)| found == gpa)
            });
            cpu.state.rip = rip;
            are_right
        };
        if !is_same {
            self.unlink_far();
            self.far_links.forget();
            self.second_jumps(MIRRORED_JUMPS).fill(SecondJump::EMPTY);
        }
    }

    /// The block at the instruction pointer, which is at `key`.
    fn find(&mut self, cpu: &mut Cpu<SoftEnv>, key: Key) -> Option<Block> {
        match self.cache.find(key) {
            Some(Block::Crossing) => {
                let (second, _) = in_next_page(cpu, Cpu::code_place)?;
                self.cache.find_crossing(key, second)
            }
            found => found,
        }
    }

    fn find_or_translate(
        &mut self,
        cpu: &mut Cpu<SoftEnv>,
        key: Key,
        page: Page,
        setting: Setting,
    ) -> Option<Block> {
        if let Some(block) = self.find(cpu, key) {
            return Some(block);
        }
        // What is mirrored is a program that runs much.
        let threshold = if setting.mirrored { self.threshold / 8 } else { self.threshold };
        let heat = &mut self.heat[key.hash() % HEAT];
        if *heat < threshold {
            *heat += 1;
            return None;
        }
        self.translate(cpu, key, page, setting)
    }

    fn translate(
        &mut self,
        cpu: &mut Cpu<SoftEnv>,
        key: Key,
        page: Page,
        setting: Setting,
    ) -> Option<Block> {
        if self.cache.is_restless(key.page()) {
            return None;
        }
        let rip = cpu.state.rip;
        let offset = (rip & 0xfff) as usize;
        if !self.mark(cpu, page, offset) {
            return None;
        }
        let mut bytes = [0; MAX_BYTES];
        let bytes = &mut bytes[..MAX_BYTES.min(0x1000 - offset)];
        page.load_bytes(offset, bytes);
        let mut insns = std::mem::take(&mut self.insns);
        insns.clear();
        let mut len = 0;
        while insns.len() < MAX_INSTRUCTIONS {
            let next = key.at((offset + len) as u16);
            if len > 0 && matches!(self.cache.find(next), Some(Block::Code { .. })) {
                break;
            }
            let Some(insn) = cpu.decode(&bytes[len..], (offset + len) as u64) else { break };
            len += insn.len();
            insns.push(insn);
            let goes_on = match insn.flow_control() {
                FlowControl::Next if self.lockstep.is_some() => !lockstep::ends_block(&insn),
                FlowControl::Next => true,
                // Where the code behind a conditional jump was executed, too, it is made one with
                // what comes before.
                FlowControl::ConditionalBranch => {
                    let next = key.at((offset + len) as u16);
                    setting.mirrored || self.heat[next.hash() % HEAT] >= self.threshold / 4
                }
                _ => false,
            };
            if !goes_on || len == bytes.len() {
                break;
            }
        }
        let mut second = None;
        if insns.is_empty()
            && may_cross(rip)
            && let Some((gpa, next_page)) = in_next_page(cpu, Cpu::code_place)
        {
            if !self.mark(cpu, next_page, 0) {
                self.insns = insns;
                return None;
            }
            let mut both = [0; MAX_INSTRUCTION_BYTES];
            let (first, rest) = both.split_at_mut(bytes.len());
            first.copy_from_slice(bytes);
            next_page.load_bytes(0, rest);
            if let Some(insn) = cpu.decode(&both, offset as u64)
                && let Some(reach) = insn.len().checked_sub(bytes.len())
            {
                next_page.add_code(0, reach);
                if !next_page.matches(0, &both[bytes.len()..insn.len()]) {
                    self.insns = insns;
                    return None;
                }
                insns.push(insn);
                second = Some(gpa);
                len = bytes.len();
            }
        }
        page.add_code(offset, len);
        if !page.matches(offset, &bytes[..len]) {
            // It changed between the look and the mark.
            self.insns = insns;
            return None;
        }
        let (base, first_exit) = match self.cache.next_place() {
            Some(place) => place,
            None => {
                tracing::debug!(fill = ?self.cache.fill(), "the cache of translated code is full");
                self.counters.flushed += 1;
                self.cache.clear();
                self.far_links.forget();
                if let Some(lockstep) = &mut self.lockstep {
                    lockstep.clear();
                }
                self.forget_jumps();
                self.cache.next_place()?
            }
        };
        let common = self.cache.common;
        #[cfg(test)]
        lockstep::tests::spoil(&mut insns);
        let translated =
            self.translator.translate(&insns, setting, base, first_exit, common, &mut Offers(cpu));
        self.insns = insns;
        let Some(translated) = translated else {
            self.cache.insert_interpreted(key);
            return Some(Block::Interpret);
        };
        if let Some(proof) = &mut self.proof
            && let Err(violation) =
                proof.check(&self.translator, &translated, setting, base, first_exit, common)
        {
            self.counters.refused += 1;
            let code = &self.translator.asm.code;
            tracing::error!(%violation, rip = cpu.state.rip, ?code, "a translation is refused");
            self.cache.insert_interpreted(key);
            return Some(Block::Interpret);
        }
        self.counters.translated += 1;
        let Translator { asm, exits, links, sites, .. } = &self.translator;
        let mut links = links.as_slice();
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.add(self.cache.address(base), asm.code.len(), &self.insns, exits);
            links = &[];
        }
        let emitted = Emitted { code: &asm.code, exits, links, sites };
        self.cache.insert(key, second, &translated, &emitted)
    }

    /// Notices stores to code at `offset` in a page from here on: first those of this processor,
    /// then, when all have seen it, those of the others. `false` as long as they have not.
    fn mark(&mut self, cpu: &mut Cpu<SoftEnv>, page: Page, offset: usize) -> bool {
        let Shared { watch, ram, .. } = &*cpu.env.shared;
        let index = cpu.env.index;
        if page.add_code(offset, 1) {
            watch.page_became_code(index, page);
            watch.look(index, |pages| self.forget_writes(ram, pages));
        }
        let is_settled = watch.settled(index);
        self.counters.unsettled += u64::from(!is_settled);
        is_settled
    }

    /// Enters translated code of this setting at `near` and goes on until the processor's state
    /// must be looked at.
    fn execute(&mut self, cpu: &mut Cpu<SoftEnv>, mut setting: Setting, near: u64) {
        let mut next = Next::Enter { at: near, vectors: false };
        let mut is_far = false;
        loop {
            if setting.mirrored
                && let Some(mirror) = &mut self.mirror
            {
                mirror.anticipate(cpu);
            }
            self.load_state(cpu);
            if is_far {
                // What the far entry expects in RBX.
                self.context().code_base = cpu.state.rip;
            }
            next = self.execute_as(cpu, setting, next);
            // Where a branch has just been, jump caches may lead to what was forgotten.
            let Next::LookUp = next else { return };
            let Some((new, far)) = self.known_place(cpu) else { return };
            setting = new;
            is_far = true;
            next = Next::Enter { at: far, vectors: false };
        }
    }

    /// The same with the processor's state given to translated code already, until that is left for
    /// something else than to be entered again.
    fn execute_as(&mut self, cpu: &mut Cpu<SoftEnv>, setting: Setting, mut next: Next) -> Next {
        let began = runtime::tsc::read();
        let last = loop {
            match next {
                Next::Enter { at, .. } if setting.mirrored => self.enter_mirrored(at),
                Next::Enter { at, vectors } => self.enter(at, vectors),
                Next::Repeat => self.repeat_mirrored(),
                last => break last,
            }
            next = self.after(cpu, setting);
        };
        if setting.view == View::User
            && let Some(mirror) = &mut self.mirror
        {
            mirror.account(cpu, runtime::tsc::read().wrapping_sub(began));
        }
        last
    }

    /// Enters translated code for mirrored memory.
    fn enter_mirrored(&mut self, at: u64) {
        self.counters.entered += 1;
        self.context().target = at;
        // SAFETY: as in `enter`; the mirror was prepared for this thread when `run` began.
        unsafe { entry::enter_mirrored(self.context.get()) };
    }

    /// Goes on at the access to mirrored memory that faulted.
    fn repeat_mirrored(&mut self) {
        let context = self.context();
        context.target = context.fault.rip;
        context.status = context.fault.status;
        // SAFETY: as in `enter_mirrored`: translated code was left at `fault.rip`, with the registers
        // that are in the context again.
        unsafe { entry::repeat_mirrored(self.context.get()) };
    }

    /// Where translated code goes on if nothing but what it was left for is to be done, and the jump
    /// cache knows the block at the instruction pointer: the setting and the far entry.
    fn known_place(&mut self, cpu: &mut Cpu<SoftEnv>) -> Option<(Setting, u64)> {
        if !self.may_enter(cpu) || self.context.is_rung() {
            return None;
        }
        let setting = self.setting(cpu)?;
        let wants_mirror = self.mirror.as_ref().is_some_and(|mirror| mirror.wants_to_look(cpu));
        if self.settings[setting.jumps()] != Some(setting)
            || setting.view == View::User && wants_mirror
        {
            return None;
        }
        let far = self.context().find_jump(setting.jumps(), cpu.state.rip)?;
        Some((setting, far))
    }

    /// Enters translated code at `at`, with vector registers loaded first if so wanted, until it
    /// leaves.
    #[inline]
    pub(super) fn enter(&mut self, at: u64, vectors: bool) {
        self.counters.entered += 1;
        let context = self.context();
        context.target = at;
        let context = self.context.get();
        // SAFETY: the context is valid and nobody else uses it; `at` is an entry or place to
        // resume at of a block of this cache, whose code is there; below the stack pointer there is
        // room for a signal.
        unsafe {
            if vectors {
                entry::enter_with_vectors(context);
            } else {
                entry::enter(context);
            }
        }
    }

    /// The exit by which translated code has left.
    #[inline]
    pub(super) fn departure(&mut self) -> Departure {
        let number = self.context().exit;
        let Some(departure) = self.cache.exit(number) else {
            unreachable!("translated code left by exit {number}, which does not exist");
        };
        departure
    }

    /// The host's address of an offset in code memory.
    pub(super) fn cache_address(&self, offset: u32) -> u64 {
        self.cache.address(offset)
    }

    /// Does what translated code was left for.
    pub(super) fn after(&mut self, cpu: &mut Cpu<SoftEnv>, setting: Setting) -> Next {
        let Departure { exit, back } = self.departure();
        match exit {
            Exit::Attention { at } => {
                self.store_state(cpu, at.into());
                Next::Look
            }
            Exit::Chain { at } => {
                self.counters.chains += 1;
                let target = self.context().code_base.wrapping_add(at.into());
                self.go_on(cpu, setting, target, None)
            }
            Exit::Branch { at, stack } | Exit::FarChain { at, stack, .. } => {
                self.counters.branches += 1;
                let target = self.context().scratch;
                if (target << 16) as i64 >> 16 != target as i64 {
                    let rsp = &mut self.context().gpr[x86::state::gpr::RSP];
                    *rsp = rsp.wrapping_sub(stack as i64 as u64);
                    self.store_state(cpu, at.into());
                    cpu.execute(1);
                    return Next::Look;
                }
                let link = match exit {
                    Exit::FarChain { link, .. } => Some(link),
                    _ => None,
                };
                self.go_on(cpu, setting, target, link)
            }
            Exit::Miss { at, retry, size, write, merged } => {
                self.counters.misses += 1;
                let linear = self.context().scratch;
                let vectors = self.context().vectors_left != 0;
                let crosses = (linear & 0xfff) + u64::from(size) > 0x1000;
                if !crosses && self.fill(cpu, linear, write) {
                    self.counters.filled += 1;
                    return Next::Enter { at: self.cache.address(retry), vectors };
                }
                self.recover_flags(cpu, at, back);
                self.store_state(cpu, at.into());
                if crosses && merged {
                    let setting = Setting { narrow: true, ..setting };
                    if let Some((gpa, page)) = code_place(cpu, setting) {
                        let key = Key::new(gpa, setting);
                        let block = match self.find(cpu, key) {
                            None => self.translate(cpu, key, page, setting),
                            found => found,
                        };
                        if let Some(Block::Code { near, .. }) = block {
                            return Next::Enter { at: near, vectors };
                        }
                    }
                }
                cpu.execute(1);
                Next::LookUp
            }
            Exit::Fault => self.after_fault(cpu),
            Exit::Interpret { at, next, resume } => {
                self.counters.interpreted += 1;
                self.recover_flags(cpu, at, back);
                self.store_state(cpu, at.into());
                let expected = (cpu.state.rip & !0xfff).wrapping_add(next.into());
                cpu.execute(1);
                if resume == 0 || cpu.state.rip != expected || !self.may_resume(cpu, setting) {
                    return Next::LookUp;
                }
                self.counters.resumed += 1;
                self.load_state(cpu);
                Next::Enter { at: self.cache.address(resume), vectors: false }
            }
        }
    }

    /// An access to mirrored memory faulted: mirrors the memory, or has the interpreter do it.
    fn after_fault(&mut self, cpu: &mut Cpu<SoftEnv>) -> Next {
        let fault = self.context().fault;
        if fault.has_address
            && let Some(mirror) = &mut self.mirror
            && mirror.fill(cpu, fault.linear, fault.write)
        {
            self.counters.mirrored += 1;
            return Next::Repeat;
        }
        self.counters.not_mirrored += 1;
        let Some(site) = self.cache.site(fault.rip) else {
            unreachable!("translated code faulted at {:#x}, where it accesses nothing", fault.rip);
        };
        self.context().status = match site.status {
            Status::Host | Status::Both => status_to_ax(fault.rflags),
            Status::Kept | Status::Lost if site.is_spilled => fault.status,
            Status::Kept | Status::Lost => fault.rax,
        };
        self.recover_flags(cpu, site.at, site.back);
        self.store_state(cpu, site.at.into());
        cpu.execute(1);
        Next::LookUp
    }

    /// Computes the status flags that were given up before the instruction at `at`: those that
    /// the one `back` bytes before it left.
    pub(super) fn recover_flags(&mut self, cpu: &mut Cpu<SoftEnv>, at: u16, back: u8) {
        if back == 0 {
            return;
        }
        cpu.state.rip = self.context().code_base;
        let from = usize::from(at - u16::from(back));
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        let bytes = &mut bytes[..MAX_INSTRUCTION_BYTES.min(0x1000 - from)];
        if let Some((_, page)) = cpu.code_place() {
            page.load_bytes(from, bytes);
            let insn = cpu.decode(bytes, from as u64);
            let context = self.context();
            if let Some(flags) = insn.and_then(|insn| lost_flags::recover(&insn, &context.gpr)) {
                context.status = status_to_ax(flags);
            }
        }
    }

    /// Goes on at `target` under the same setting. The branch that led there has its distance at `link`,
    /// if that may be overwritten.
    fn go_on(
        &mut self,
        cpu: &mut Cpu<SoftEnv>,
        setting: Setting,
        target: u64,
        link: Option<u32>,
    ) -> Next {
        cpu.state.rip = target;
        if let Some((gpa, _)) = code_place(cpu, setting)
            && let key = Key::new(gpa, setting)
            && let Some(Block::Code { near, far }) = self.find(cpu, key)
        {
            self.remember_jump(cpu, setting, key, far);
            if let Some(link) = link {
                self.link_far(cpu, link, key, far);
            }
            self.context().code_base = target & !0xfff;
            return Next::Enter { at: near, vectors: false };
        }
        self.context().code_base = target & !0xfff;
        self.store_state(cpu, target & 0xfff);
        Next::Look
    }

    /// Whether translated code may go on behind an instruction that was interpreted.
    fn may_resume(&mut self, cpu: &mut Cpu<SoftEnv>, setting: Setting) -> bool {
        self.may_enter(cpu) && self.setting(cpu) == Some(setting)
    }

    /// Whether translated code may be entered with nothing else done before.
    fn may_enter(&self, cpu: &Cpu<SoftEnv>) -> bool {
        cpu.state.activity == Activity::Active
            && !cpu.wants_attention()
            && !cpu.env.shared.watch.has_changed(cpu.env.index)
            && cpu.has_forgotten_nothing()
    }

    /// Fills the soft TLB for an access at `linear`. `false` if the interpreter
    /// must carry out the access.
    fn fill(&mut self, cpu: &mut Cpu<SoftEnv>, linear: u64, write: bool) -> bool {
        let view = mode_view(cpu);
        let Some(target) = cpu.translate(linear, write) else { return false };
        let writable = target.writable && !target.page.has_code();
        if write && !writable {
            return false;
        }
        let is_global = target.global && has_global(view);
        let view = view as usize;
        let host = target.page.host();
        let context = self.context();
        context.fill_tlb(view, linear, host, write, is_global);
        let space = if is_global { journal::GLOBAL } else { context.spaces[view] };
        let tag = linear & !0xfff | space;
        let epoch = context.write_epoch;
        self.is_second_empty[view] = false;
        let entry = &mut self.second[view][second_index(view, linear)];
        let write = if writable { tag } else { SecondEntry::EMPTY.write };
        *entry = SecondEntry { read: tag, write, host, epoch };
        true
    }

    /// Gives the processor's state to translated code.
    pub(super) fn load_state(&mut self, cpu: &mut Cpu<SoftEnv>) {
        let vectors = std::ptr::from_mut(&mut cpu.state.vector);
        let state = &cpu.state;
        let context = self.context();
        context.gpr = state.gpr;
        context.code_base = state.rip & !0xfff;
        context.status = status_to_ax(state.rflags);
        context.rflags = state.rflags;
        context.fs_base = state.segment(SegReg::Fs).base;
        context.gs_base = state.segment(SegReg::Gs).base;
        let limited = [SegReg::Fs, SegReg::Gs].map(|reg| !flat::is_unlimited(state.segment(reg)));
        context.is_limited = limited.map(u32::from);
        context.kernel_gs_base = state.msrs.kernel_gs_base;
        context.cr2 = state.cr2;
        context.selectors = state.seg.map(|segment| segment.selector.into());
        context.tsc_aux = state.msrs.tsc_aux as u32;
        context.tsc_offset = state.msrs.tsc_offset;
        context.vectors = vectors;
    }

    /// Takes the processor's state back. The next instruction is at `at` in the page of code.
    pub(super) fn store_state(&mut self, cpu: &mut Cpu<SoftEnv>, at: u64) {
        let context = self.context();
        let state = &mut cpu.state;
        state.gpr = context.gpr;
        state.rip = context.code_base.wrapping_add(at);
        state.seg[SegReg::Gs as usize].base = context.gs_base;
        state.msrs.kernel_gs_base = context.kernel_gs_base;
        state.rflags = context.rflags & !Rflags::STATUS.bits() | status_from_ax(context.status);
    }
}

/// Where the code at the instruction pointer lies: its guest physical address and page. `None` if it
/// is to be interpreted: it cannot be fetched, or is at the end of 4 GiB, behind which 32-bit
/// code does not go on.
fn code_place(cpu: &mut Cpu<SoftEnv>, setting: Setting) -> Option<(u64, Page)> {
    const LAST_PAGE: u64 = 0xffff_f000;
    let is_last = setting.is_32bit && cpu.state.rip >= LAST_PAGE;
    if is_last { None } else { cpu.code_place() }
}

/// Whether an instruction at `rip` may reach into the next page.
fn may_cross(rip: u64) -> bool {
    (rip & 0xfff) as usize + MAX_INSTRUCTION_BYTES > 0x1000
}

/// Asks the processor about the start of the page behind that of the instruction pointer.
fn in_next_page<T>(cpu: &mut Cpu<SoftEnv>, ask: impl FnOnce(&mut Cpu<SoftEnv>) -> T) -> T {
    let rip = cpu.state.rip;
    cpu.state.rip = (rip | 0xfff).wrapping_add(1);
    let answer = ask(cpu);
    cpu.state.rip = rip;
    answer
}

/// How loads and stores look at memory.
fn mode_view(cpu: &Cpu<SoftEnv>) -> View {
    cpu.mode().view
}

/// The status flags as LAHF and SETO leave them in AX.
fn status_to_ax(rflags: u64) -> u64 {
    (rflags & 0xd5 | 2) << 8 | rflags >> 11 & 1
}

/// The status flags from AX.
pub(super) fn status_from_ax(ax: u64) -> u64 {
    ax >> 8 & 0xd5 | (ax & 1) << 11
}

/// Which instructions guest and host have.
struct Offers<'a>(&'a mut Cpu<SoftEnv>);

impl Offer for Offers<'_> {
    fn has(&mut self, insn: &Instruction, is_vector: bool) -> bool {
        self.0.env.host_has(insn) && (!is_vector || self.0.offers(insn.code()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_flags_survive_ax() {
        for bits in 0..64u64 {
            let flags = [0, 2, 4, 6, 7, 11]
                .iter()
                .enumerate()
                .map(|(i, flag)| (bits >> i & 1) << flag)
                .sum::<u64>();
            assert_eq!(status_from_ax(status_to_ax(flags)), flags);
        }
    }
}
