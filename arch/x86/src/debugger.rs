//! What a debugger outside of the guest wants of a processor: points to stop at, single steps, and
//! INT3 for itself. The guest's own debug registers and flags know nothing of it.

use crate::cpu::Cpu;
use crate::env::Env;
use crate::exception::Exec;
use crate::paging::Access;
use crate::state::Activity;

/// A processor has as many as it has debug registers for addresses (SDM Vol. 3, 17.2.1), so that
/// every accelerator can have them.
pub const DEBUG_POINTS: usize = 4;

/// What a debugger wants of a processor. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    /// Stop after one instruction, or in the handler of the exception that it raises. Interrupts
    /// wait meanwhile, unless the processor is halted.
    pub step: bool,
    /// Stop at INT3 instead of raising #BP.
    pub int3: bool,
    /// Stop at these.
    pub points: [Option<DebugPoint>; DEBUG_POINTS],
}

/// An address to stop at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugPoint {
    /// The linear address; for data a multiple of `len`.
    pub linear: u64,
    /// How many bytes of data, 1, 2, 4 or 8; 1 for instructions.
    pub len: u8,
    /// What stops there.
    pub kind: PointKind,
}

/// What stops at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointKind {
    /// An instruction that begins there, before it is executed.
    Execute,
    /// A store, after it was done.
    Write,
    /// A load or store, after it was done.
    Access,
}

/// Why a processor stopped for a debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    /// One instruction was executed.
    Step,
    /// INT3 is the next instruction.
    Int3,
    /// The point of this number was met.
    Point(u8),
}

/// A debugger's part of a processor.
#[derive(Debug, Default)]
pub(crate) struct Debugger {
    control: DebugControl,
    stop: Option<DebugStop>,
}

impl Debugger {
    /// Points of data are watched.
    pub fn watches_data(&self) -> bool {
        self.points().any(|(_, point)| point.kind != PointKind::Execute)
    }

    /// Instructions must be executed one by one, wherever they are.
    pub fn steps(&self) -> bool {
        self.control.step || self.stop.is_some() || self.watches_data()
    }

    /// There are points at instructions.
    pub fn watches_instructions(&self) -> bool {
        self.points().any(|(_, point)| point.kind == PointKind::Execute)
    }

    /// An instruction in the page at `linear` is a point.
    fn watches_page(&self, linear: u64) -> bool {
        self.points().any(|(_, p)| p.kind == PointKind::Execute && p.linear >> 12 == linear >> 12)
    }

    /// Takes note of a load or store.
    pub fn note(&mut self, linear: u64, len: usize, access: Access) {
        let touches = |point: &DebugPoint| {
            let last = linear.saturating_add(len as u64 - 1);
            let kind_fits = match point.kind {
                PointKind::Execute => false,
                PointKind::Write => access == Access::Write,
                PointKind::Access => true,
            };
            kind_fits
                && linear < point.linear.saturating_add(point.len.into())
                && point.linear <= last
        };
        let hit = self.points().find(|(_, point)| touches(point)).map(|(number, _)| number);
        if let Some(number) = hit {
            self.stop.get_or_insert(DebugStop::Point(number));
        }
    }

    fn points(&self) -> impl Iterator<Item = (u8, &DebugPoint)> {
        (0..)
            .zip(&self.control.points)
            .filter_map(|(number, point)| Some((number, point.as_ref()?)))
    }
}

impl<E: Env> Cpu<E> {
    /// Has the processor stop where a debugger wants, from now on. What stopped it before is
    /// forgotten.
    pub fn set_debug(&mut self, control: &DebugControl) {
        self.debugger = Debugger { control: *control, stop: None };
        self.update_mode();
    }

    /// Why the processor stopped for a debugger, once.
    pub fn take_debug_stop(&mut self) -> Option<DebugStop> {
        let stop = self.debugger.stop.take()?;
        self.update_mode();
        Some(stop)
    }

    /// Whether [`take_debug_stop`](Self::take_debug_stop) would say something. Until it was asked,
    /// the processor executes nothing. Only in careful mode can this be so.
    pub fn is_debug_stopped(&self) -> bool {
        self.debugger.stop.is_some()
    }

    /// Executes the INT3 at the instruction pointer as if there were no debugger.
    pub fn pass_int3(&mut self) {
        let debugger = core::mem::take(&mut self.debugger);
        self.update_mode();
        self.step();
        self.debugger = debugger;
        self.update_mode();
    }

    /// Whether interrupts wait for the end of a debugger's step.
    #[inline(always)]
    pub(crate) fn is_stepped(&self) -> bool {
        self.mode.careful && self.debugger.control.step && self.state.activity == Activity::Active
    }

    /// In careful mode: whether the next instruction must be executed on its own. Not so if only
    /// other pages have points.
    pub(crate) fn steps_here(&self) -> bool {
        !self.mode.points_only || self.debugger.watches_page(self.code_linear())
    }

    /// Before an instruction is executed on its own: whether it is a point.
    pub(crate) fn stops_before(&mut self) -> bool {
        let linear = self.code_linear();
        let is_here =
            |point: &DebugPoint| point.kind == PointKind::Execute && point.linear == linear;
        let hit =
            self.debugger.points().find(|(_, point)| is_here(point)).map(|(number, _)| number);
        if let Some(number) = hit {
            self.debugger.stop.get_or_insert(DebugStop::Point(number));
        }
        self.debugger.stop.is_some()
    }

    /// After an instruction, or the exception that it raised.
    pub(crate) fn stepped(&mut self) {
        if self.debugger.control.step {
            self.debugger.stop.get_or_insert(DebugStop::Step);
        }
    }

    /// INT3: the debugger's, or else the guest's.
    pub(crate) fn int3(&mut self) -> Exec {
        if !self.debugger.control.int3 {
            return self.software_interrupt(crate::vector::BP, crate::interrupt::Source::Software);
        }
        self.debugger.stop = Some(DebugStop::Int3);
        self.state.rip = self.insn_ip;
        self.single_step = false;
        self.update_mode();
        Ok(())
    }
}
