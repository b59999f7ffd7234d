//! One processor: its state, its TLB and what surrounds it.

use crate::alu::Flags;
use crate::block::BlockCache;
use crate::crossing::CrossingCache;
use crate::debugger::Debugger;
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec, Raised};
use crate::insn::native::Native;
use crate::state::{Cr0, Cr4, Rflags, SegReg, gpr};
use crate::tlb::{Tlb, View};
use crate::{CpuState, decode};

/// One processor that executes instructions.
///
/// Who changes [`state`](Self::state) from outside calls [`state_changed`](Self::state_changed)
/// afterwards.
pub struct Cpu<E: Env> {
    /// The architectural state.
    pub state: CpuState,
    /// What surrounds it.
    pub env: E,
    pub(crate) tlb: Tlb<E::Page>,
    pub(crate) blocks: BlockCache<E>,
    pub(crate) crossing: CrossingCache<E>,
    pub(crate) mode: Mode,
    /// The exception that the last [`Raised`] stands for.
    pub(crate) raised: Exception,
    /// The instruction pointer of the current instruction; `state.rip` is that of the next one.
    pub(crate) insn_ip: u64,
    /// The page that the current block was decoded from.
    pub(crate) code_page: Option<E::Page>,
    /// The current block must not go on: its code changed, or the state that it relies on.
    pub(crate) leave_block: bool,
    /// DR6 bits of breakpoints that the current instruction has hit.
    pub(crate) debug_hits: u64,
    /// A single-step trap follows the current instruction.
    pub(crate) single_step: bool,
    /// The instruction before loaded SS: debug exceptions wait for the end of this one.
    pub(crate) stack_loaded: bool,
    /// What a debugger outside of the guest wants.
    pub(crate) debugger: Debugger,
    /// How this vendor's processors decode.
    pub(crate) decoder_options: u32,
    /// Accesses of 16 bytes and more raise #AC, too: on AMD's processors, not on Intel's.
    pub(crate) checks_wide_alignment: bool,
    /// What instructions that the host executes need.
    pub(crate) native: Native,
    /// Counters that say what the processor did.
    pub stats: Stats,
}

/// What a processor did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instructions that were executed.
    pub instructions: u64,
    /// Blocks that were entered.
    pub blocks: u64,
    /// Blocks that were decoded.
    pub decoded: u64,
    /// Accesses that missed the TLB.
    pub tlb_misses: u64,
    /// Exceptions that were raised.
    pub exceptions: u64,
}

/// What follows from the state and is wanted at every turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Default operand and address size of code: 16, 32 or 64.
    pub code_bits: u32,
    /// Which bits of RSP the stack uses.
    pub stack_mask: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// How loads and stores look at memory in fact.
    pub view: View,
    /// The same, or [`View::Checked`] if accesses must be looked at one by one.
    pub fast_view: View,
    /// Instructions are executed one by one, with the checks of `step_carefully`: TF, RF,
    /// breakpoints or an interrupt shadow; or a debugger wants something.
    pub careful: bool,
    /// Only a debugger's points at instructions are the reason for that.
    pub points_only: bool,
    /// Alignment is checked (CR0.AM, RFLAGS.AC, CPL 3).
    pub check_alignment: bool,
    /// Data breakpoints are armed.
    pub check_breakpoints: bool,
}

impl<E: Env> Cpu<E> {
    /// A processor in the given state.
    pub fn new(state: CpuState, env: E) -> Self {
        let mut cpu = Self {
            mode: Mode::of(&state, &Debugger::default()),
            state,
            decoder_options: decode::options(env.cpuid(0, 0)),
            checks_wide_alignment: env.cpuid(0, 0).names_amd(),
            env,
            tlb: Tlb::new(),
            blocks: BlockCache::new(),
            crossing: CrossingCache::new(),
            raised: Exception::UD,
            insn_ip: 0,
            code_page: None,
            leave_block: false,
            debug_hits: 0,
            single_step: false,
            stack_loaded: false,
            debugger: Debugger::default(),
            native: Native::new(),
            stats: Stats::default(),
        };
        cpu.state_changed();
        cpu
    }

    /// Tells that somebody else runs what is run often: less of what was decoded is kept, in a quarter of the
    /// memory.
    pub fn keep_little_code(&mut self) {
        self.blocks.keep_little();
    }

    /// Takes note of changes that were made to `state` from outside.
    pub fn state_changed(&mut self) {
        self.single_step = false;
        self.stack_loaded = false;
        self.debug_hits = 0;
        self.tlb.flush_all();
        self.update_mode();
    }

    /// Derives the mode anew. Whatever changes CS, SS, CR0, CR4, EFER, DR7, the interrupt shadow
    /// or one of RFLAGS' TF, RF, VM, AC and IOPL calls this.
    pub(crate) fn update_mode(&mut self) {
        self.mode = Mode::of(&self.state, &self.debugger);
        self.leave_block = true;
    }

    /// Raises an exception: `return Err(cpu.raise(...))`.
    #[cold]
    pub(crate) fn raise(&mut self, exception: Exception) -> Raised {
        self.raised = exception;
        Raised(())
    }

    // --- Registers ------------------------------------------------------------------------

    /// The general-purpose register with operand number `reg` (see [`decode::gpr_number`]).
    #[inline(always)]
    pub(crate) fn reg<W: Word>(&self, reg: u8) -> W {
        let value = self.state.gpr[usize::from(reg & 15)];
        W::truncate(if W::SIZE == 1 && reg & decode::HIGH_BYTE != 0 { value >> 8 } else { value })
    }

    /// Writes a general-purpose register; 32-bit values clear the upper half.
    #[inline(always)]
    pub(crate) fn set_reg<W: Word>(&mut self, reg: u8, value: W) {
        let slot = &mut self.state.gpr[usize::from(reg & 15)];
        let value: u64 = value.into();
        *slot = match W::SIZE {
            1 if reg & decode::HIGH_BYTE != 0 => *slot & !0xff00 | value << 8,
            1 => *slot & !0xff | value,
            2 => *slot & !0xffff | value,
            _ => value,
        };
    }

    /// Sets the status flags.
    #[inline(always)]
    pub(crate) fn set_status(&mut self, flags: Flags) {
        self.state.rflags = self.state.rflags & !Rflags::STATUS.bits() | flags;
    }

    /// Whether all of `flags` are set in RFLAGS.
    #[inline(always)]
    pub(crate) fn flag(&self, flags: Rflags) -> bool {
        self.state.rflags & flags.bits() == flags.bits()
    }

    /// Sets or clears bits of RFLAGS other than those that [`update_mode`](Self::update_mode)
    /// depends on.
    #[inline(always)]
    pub(crate) fn set_flag(&mut self, flags: Rflags, on: bool) {
        let rest = self.state.rflags & !flags.bits();
        self.state.rflags = if on { rest | flags.bits() } else { rest };
    }

    /// Goes to `target`, an offset in CS that is already cut to the operand size. A near branch
    /// out of the segment, or to a non-canonical address, faults before anything changes.
    #[inline(always)]
    pub(crate) fn branch(&mut self, target: u64) -> Exec {
        let ok = if self.mode.code_bits == 64 {
            is_canonical(target)
        } else {
            target <= u64::from(self.state.seg[SegReg::Cs as usize].limit)
        };
        if !ok {
            return Err(self.raise(Exception::GP0));
        }
        self.state.rip = target;
        Ok(())
    }

    /// RSP as the stack uses it.
    #[inline(always)]
    pub(crate) fn stack_pointer(&self) -> u64 {
        self.state.gpr[gpr::RSP] & self.mode.stack_mask
    }

    /// Sets the part of RSP that the stack uses.
    #[inline(always)]
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.mode.stack_mask;
        // A 32-bit stack clears the upper half as every 32-bit write does.
        let keep = if mask == 0xffff { !0xffff } else { 0 };
        self.state.gpr[gpr::RSP] = self.state.gpr[gpr::RSP] & keep | value & mask;
    }
}

impl Mode {
    fn of(state: &CpuState, debugger: &Debugger) -> Self {
        let cpl = state.cpl();
        let cs = state.segment(SegReg::Cs).attributes;
        let ss = state.segment(SegReg::Ss).attributes;
        let is_64bit = state.is_64bit();
        let view = if cpl == 3 {
            View::User
        } else if state.cr4.contains(Cr4::SMAP) && state.rflags & Rflags::AC.bits() == 0 {
            View::Supervisor
        } else {
            View::SupervisorAc
        };
        let check_alignment =
            cpl == 3 && state.cr0.contains(Cr0::AM) && state.rflags & Rflags::AC.bits() != 0;
        let armed = (0..4u32).filter(|i| state.dr7 >> (i * 2) & 3 != 0);
        let kind = |i: u32| state.dr7 >> (16 + i * 4) & 3;
        let check_breakpoints = armed.clone().any(|i| kind(i) != 0) || debugger.watches_data();
        let breaks_on_execution = armed.clone().any(|i| kind(i) == 0);
        let steps = state.rflags & (Rflags::TF | Rflags::RF).bits() != 0
            || state.interrupt_shadow
            || check_breakpoints
            || breaks_on_execution
            || debugger.steps();
        let has_points = debugger.watches_instructions();
        Self {
            code_bits: if is_64bit {
                64
            } else if cs.is_big() && state.is_protected() && !state.is_v8086() {
                32
            } else if cs.is_big() {
                // Real mode with a D bit left over from protected mode keeps it.
                if state.is_v8086() { 16 } else { 32 }
            } else {
                16
            },
            stack_mask: if is_64bit {
                u64::MAX
            } else if ss.is_big() && !state.is_v8086() {
                0xffff_ffff
            } else {
                0xffff
            },
            cpl,
            view,
            fast_view: if check_alignment || check_breakpoints { View::Checked } else { view },
            careful: steps || has_points,
            points_only: has_points && !steps,
            check_alignment,
            check_breakpoints,
        }
    }
}

/// Whether bits 63:47 are all alike (48-bit linear addresses).
#[inline(always)]
pub(crate) fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}
