//! The loop that runs translated code, translates more, and has the interpreter do the rest.

use std::io;
use std::sync::Arc;

use iced_x86::{FlowControl, Instruction};
use x86::state::{Activity, Cr0, Cr4, Rflags, SegReg};
use x86::{Cpu, View};

use super::cache::{Block, Cache, Fill, Key, Set};
use super::context::{
    Context, ContextCell, SECOND_ENTRIES, SECOND_JUMPS, SecondEntry, SecondJump, VIEWS, jump_hash,
    places_of_page,
};
use super::entry;
use super::lockstep::{self, Lockstep};
use super::lost_flags;
use super::proof::Proof;
use super::translate::{Departure, Exit, MAX_INSTRUCTIONS, Offer, Setting, Translator};
use crate::env::SoftEnv;
use crate::ram::Page;

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
    /// The soft TLB of a view has translations that are not global.
    is_local: [bool; 3],
    /// The same of its jump cache.
    are_jumps_local: [bool; 3],
    /// The second level of the soft TLB, by view; the context points at it.
    second: [Box<[SecondEntry]>; VIEWS],
    is_second_empty: [bool; VIEWS],
    /// The second level of the jump cache, by view; the context points at it.
    second_jumps: [Box<[SecondJump]>; VIEWS],
    /// Linear pages that jump caches lead to.
    code_pages: Set<u64>,
    /// What each view's jump cache leads to.
    settings: [Option<Setting>; 3],
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
    /// The state of the processor is whole; look anew.
    Look,
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
    ) -> io::Result<Option<Self>> {
        if !entry::is_possible() {
            return Ok(None);
        }
        let mut second =
            SECOND_ENTRIES.map(|entries| vec![SecondEntry::EMPTY; entries].into_boxed_slice());
        let mut second_jumps =
            SECOND_JUMPS.map(|entries| vec![SecondJump::EMPTY; entries].into_boxed_slice());
        // SAFETY: nobody else has the context yet.
        let tables = unsafe { &mut *context.get() };
        for view in 0..VIEWS {
            tables.second[view] = second[view].as_mut_ptr();
            tables.second_jumps[view] = second_jumps[view].as_mut_ptr();
        }
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
            is_local: [false; 3],
            are_jumps_local: [false; 3],
            code_pages: Set::default(),
            settings: [None; 3],
            lockstep: lockstep.map(Box::new),
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
            if mode.careful || mode.fast_view == View::Checked || mode.code_bits != 64 {
                cpu.execute(usize::MAX);
                continue;
            }
            let Some((gpa, page)) = cpu.code_place() else {
                cpu.execute(1);
                continue;
            };
            let setting = self.setting(cpu);
            if self.settings[setting.view as usize] != Some(setting) {
                // Jump caches know nothing of settings but the view.
                self.settings[setting.view as usize] = Some(setting);
                self.forget_jumps();
            }
            let key = Key::new(gpa, setting);
            match self.find_or_translate(cpu, key, page) {
                Some(Block::Code { near, .. }) if self.lockstep.is_some() => {
                    if !self.execute_in_lockstep(cpu, setting, near) {
                        return;
                    }
                }
                Some(Block::Code { near, far }) => {
                    self.remember_jump(cpu, far);
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
        cpu.env.shared.watch.look(index, || self.forget_writes());
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
            self.is_local = [true; 3];
            self.are_jumps_local = [true; 3];
            self.forget_second_jumps();
            for (entries, is_empty) in self.second.iter_mut().zip(&mut self.is_second_empty) {
                if !std::mem::replace(is_empty, true) {
                    entries.fill(SecondEntry::EMPTY);
                }
            }
        }
        if forgotten.all || forgotten.space {
            // The supervisor's second level has global pages only.
            let space = u64::from(cpu.address_space());
            self.context().spaces = [space, 0, space];
        }
        if forgotten.all || forgotten.space {
            for view in 0..3 {
                let is_local = std::mem::take(&mut self.is_local[view]);
                let are_jumps_local = std::mem::take(&mut self.are_jumps_local[view]);
                // The second levels fill the first without a word. Some have global pages alone.
                if is_local || view != View::Supervisor as usize {
                    self.context().clear_tlb(view);
                }
                if are_jumps_local || view == View::User as usize {
                    self.context().clear_jumps(view);
                }
            }
        }
        for &linear in forgotten.pages() {
            self.context().clear_page(linear);
            for view in 0..3 {
                self.second[view][second_index(view, linear)] = SecondEntry::EMPTY;
            }
            if self.code_pages.remove(&(linear & !0xfff)) {
                self.forget_jumps_to(linear);
            }
        }
    }

    /// Forgets what the soft TLBs allow to store to.
    fn forget_writes(&mut self) {
        let context = self.context();
        context.clear_writes();
        context.write_epoch += 1;
    }

    fn forget_jumps(&mut self) {
        self.counters.jumps_forgotten += 1;
        self.code_pages.clear();
        (0..VIEWS).for_each(|view| self.context().clear_jumps(view));
        self.forget_second_jumps();
    }

    /// Forgets where jump caches lead for the page at `linear`.
    fn forget_jumps_to(&mut self, linear: u64) {
        self.counters.jumps_forgotten += 1;
        self.context().jump.iter_mut().for_each(|jump| jump.clear_page(linear));
        for entries in &mut self.second_jumps {
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

    fn forget_second_jumps(&mut self) {
        self.second_jumps.iter_mut().for_each(|entries| entries.fill(SecondJump::EMPTY));
    }

    fn setting(&self, cpu: &Cpu<SoftEnv>) -> Setting {
        let state = &cpu.state;
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
        Setting { view, vectors, time, narrow: false }
    }

    /// Lets branches of the current view find the block at the instruction pointer.
    fn remember_jump(&mut self, cpu: &mut Cpu<SoftEnv>, far: u64) {
        if self.lockstep.is_some() {
            return;
        }
        let view = mode_view(cpu) as usize;
        let rip = cpu.state.rip;
        let mut is_global = cpu.is_code_global();
        self.code_pages.insert(rip & !0xfff);
        if may_cross(rip) {
            is_global &= in_next_page(cpu, |cpu| cpu.is_code_global());
            self.code_pages.insert((rip | 0xfff).wrapping_add(1));
        }
        self.are_jumps_local[view] |= !is_global;
        let context = self.context();
        context.fill_jump(view, rip, far);
        let is_user = view == View::User as usize;
        if is_global || is_user {
            let space = if is_user { context.spaces[view] } else { 0 };
            let entries = &mut self.second_jumps[view];
            let index = jump_hash(rip) % SECOND_JUMPS[view];
            if entries[index].guest != rip {
                entries[index ^ 1] = entries[index];
            }
            entries[index] = SecondJump { guest: rip, space, host: far };
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

    fn find_or_translate(&mut self, cpu: &mut Cpu<SoftEnv>, key: Key, page: Page) -> Option<Block> {
        if let Some(block) = self.find(cpu, key) {
            return Some(block);
        }
        let heat = &mut self.heat[key.hash() % HEAT];
        if *heat < self.threshold {
            *heat += 1;
            return None;
        }
        let setting = self.setting(cpu);
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
                    self.heat[next.hash() % HEAT] >= self.threshold / 4
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
        let Translator { asm, exits, links, .. } = &self.translator;
        let mut links = links.as_slice();
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.add(self.cache.address(base), asm.code.len(), &self.insns, exits);
            links = &[];
        }
        self.cache.insert(key, second, &translated, &asm.code, exits, links)
    }

    /// Notices stores to code at `offset` in a page from here on: first those of this processor,
    /// then, when all have seen it, those of the others. `false` as long as they have not.
    fn mark(&mut self, cpu: &mut Cpu<SoftEnv>, page: Page, offset: usize) -> bool {
        let watch = &cpu.env.shared.watch;
        let index = cpu.env.index;
        if page.add_code(offset, 1) {
            watch.page_became_code(index);
            watch.look(index, || self.forget_writes());
        }
        let is_settled = watch.settled(index);
        self.counters.unsettled += u64::from(!is_settled);
        is_settled
    }

    /// Enters translated code of this setting at `near` and goes on until the processor's state
    /// must be looked at.
    fn execute(&mut self, cpu: &mut Cpu<SoftEnv>, setting: Setting, near: u64) {
        self.load_state(cpu);
        let mut next = Next::Enter { at: near, vectors: false };
        while let Next::Enter { at, vectors } = next {
            self.enter(at, vectors);
            next = self.after(cpu, setting);
        }
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
                self.go_on(cpu, setting, target)
            }
            Exit::Branch { at, stack } => {
                self.counters.branches += 1;
                let target = self.context().scratch;
                if (target << 16) as i64 >> 16 != target as i64 {
                    let rsp = &mut self.context().gpr[x86::state::gpr::RSP];
                    *rsp = rsp.wrapping_sub(stack as i64 as u64);
                    self.store_state(cpu, at.into());
                    cpu.execute(1);
                    return Next::Look;
                }
                self.go_on(cpu, setting, target)
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
                    if let Some((gpa, page)) = cpu.code_place() {
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
                Next::Look
            }
            Exit::Interpret { at, next, resume } => {
                self.counters.interpreted += 1;
                self.recover_flags(cpu, at, back);
                self.store_state(cpu, at.into());
                let expected = (cpu.state.rip & !0xfff).wrapping_add(next.into());
                cpu.execute(1);
                if resume == 0 || cpu.state.rip != expected || !self.may_resume(cpu, setting) {
                    return Next::Look;
                }
                self.counters.resumed += 1;
                self.load_state(cpu);
                Next::Enter { at: self.cache.address(resume), vectors: false }
            }
        }
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

    /// Goes on at `target` under the same setting.
    fn go_on(&mut self, cpu: &mut Cpu<SoftEnv>, setting: Setting, target: u64) -> Next {
        self.context().code_base = target & !0xfff;
        cpu.state.rip = target;
        if let Some((gpa, _)) = cpu.code_place()
            && let Some(Block::Code { near, far }) = self.find(cpu, Key::new(gpa, setting))
        {
            self.remember_jump(cpu, far);
            return Next::Enter { at: near, vectors: false };
        }
        self.store_state(cpu, target & 0xfff);
        Next::Look
    }

    /// Whether translated code may go on behind an instruction that was interpreted.
    fn may_resume(&mut self, cpu: &mut Cpu<SoftEnv>, setting: Setting) -> bool {
        let mode = cpu.mode();
        cpu.state.activity == Activity::Active
            && !mode.careful
            && mode.fast_view != View::Checked
            && mode.code_bits == 64
            && !cpu.wants_attention()
            && !cpu.env.shared.watch.has_changed(cpu.env.index)
            && cpu.has_forgotten_nothing()
            && self.setting(cpu) == setting
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
        if !target.global {
            self.is_local[view as usize] = true;
        }
        let host = target.page.host();
        let context = self.context();
        context.fill_tlb(view as usize, linear, host, write);
        if target.global || view != View::Supervisor {
            let tag = linear & !0xfff | context.spaces[view as usize];
            let epoch = context.write_epoch;
            self.is_second_empty[view as usize] = false;
            let entry = &mut self.second[view as usize][second_index(view as usize, linear)];
            let write = if writable { tag } else { SecondEntry::EMPTY.write };
            *entry = SecondEntry { read: tag, write, host, epoch };
        }
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
        context.kernel_gs_base = state.msrs.kernel_gs_base;
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
