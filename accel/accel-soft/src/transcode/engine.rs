//! The loop that runs translated code, translates more, and has the interpreter do the rest.

mod blocks;
mod exits;
mod jumps;
mod mirrored;
mod state;

use std::io;
use std::sync::Arc;

use iced_x86::Instruction;
use x86::state::{Activity, Cr0, Cr4, Rflags};
use x86::{Cpu, View};

use super::cache::{Block, Cache, Fill, Key, Set};
use super::context::{
    Context, ContextCell, JUMP_CACHES, MIRRORED_JUMPS, SECOND_ENTRIES, SecondEntry, VIEWS,
};
use super::far_links::FarLinks;
use super::lockstep::Lockstep;
use super::mirror::{self, Mirror};
use super::placed_jumps::PLACED;
use super::proof::Proof;
use super::translate::{Setting, Translator};
use super::watch::Became;
use super::{entry, flat};
use crate::env::SoftEnv;
use crate::ram::{Page, Ram};
use crate::zeroed::Table;
pub(super) use state::status_from_ax;

/// Entries of the table that counts how often code was entered.
const HEAT: usize = 1 << 16;
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
    second: [Table<SecondEntry>; VIEWS],
    is_second_empty: [bool; VIEWS],
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
        let [user, supervisor, supervisor_ac] = SECOND_ENTRIES.map(SecondEntry::table);
        let mut second = [user?, supervisor?, supervisor_ac?];
        // SAFETY: nobody else has the context yet.
        let tables = unsafe { &mut *context.get() };
        tables.second = second.each_mut().map(|entries| entries.as_mut_ptr());
        let lockstep = lockstep.map(Box::new);
        let mirror = mirror.filter(|_| lockstep.is_none());
        Ok(Some(Self {
            second,
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
        let range = self.cache.range();
        if self.mirror.take_if(|mirror| !mirror.prepare_thread(range)).is_some() {
            tracing::debug!("no memory is mirrored: this thread has restartable sequences");
        }
        if self.mirror.is_none() {
            mirror::release_thread();
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
                self.clear_jumps(MIRRORED_JUMPS);
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
                self.clear_jumps(setting.jumps());
                self.context().jump_settings[setting.jumps()] = PLACED | Key::of(setting);
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
        if !cpu.has_forgotten_nothing() {
            self.forget_translations(cpu);
        }
    }

    /// Forgets the translations of addresses that the processor has forgotten.
    fn forget_translations(&mut self, cpu: &mut Cpu<SoftEnv>) {
        let forgotten = cpu.take_forgotten();
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.forget(&forgotten);
        }
        if forgotten.all {
            (0..VIEWS).for_each(|view| self.context().clear_tlb(view));
            (0..JUMP_CACHES).for_each(|cache| self.clear_jumps(cache));
            self.forget_code_pages();
            if let Some(mirror) = &mut self.mirror {
                mirror.doubt();
            }
            for (entries, is_empty) in self.second.iter_mut().zip(&mut self.is_second_empty) {
                if !std::mem::replace(is_empty, true) {
                    SecondEntry::clear(entries);
                }
            }
        }
        if forgotten.all || forgotten.space {
            let space = u64::from(cpu.address_space());
            let context = self.context();
            if context.spaces[0] != space {
                context.spaces = [space; VIEWS];
                (0..VIEWS).for_each(|view| context.leave_space(view));
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
        // Code for mirrored memory repeats string instructions as they are, upwards.
        let mirrored = view == View::User
            && !is_32bit
            && state.rflags & Rflags::DF.bits() == 0
            && self.mirror.as_ref().is_some_and(|mirror| mirror.shows(cpu.address_space()));
        Some(Setting { view, vectors, time, narrow: false, is_32bit, mirrored })
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
            let ticks = runtime::tsc::read().wrapping_sub(began);
            mirror.account(cpu, ticks);
            if setting.mirrored {
                self.far_links.ran(ticks).into_iter().for_each(|link| self.cache.unlink_far(link));
            }
        }
        last
    }

    /// Where translated code goes on if nothing but what it was left for is to be done, and the jump
    /// cache knows the block at the instruction pointer: the setting and the far entry.
    fn known_place(&mut self, cpu: &mut Cpu<SoftEnv>) -> Option<(Setting, u64)> {
        if !self.may_enter(cpu) || self.context.is_rung() {
            return None;
        }
        let setting = self.setting(cpu)?;
        let wants_mirror = |mirror: &Mirror| mirror.wants_to_consider(cpu);
        if self.settings[setting.jumps()] != Some(setting)
            || setting.view == View::User && self.mirror.as_ref().is_some_and(wants_mirror)
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

    /// The host's address of an offset in code memory.
    pub(super) fn cache_address(&self, offset: u32) -> u64 {
        self.cache.address(offset)
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
