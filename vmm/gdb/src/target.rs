//! A machine's processors as the threads of what GDB debugs.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::sync::Arc;

use accel::{CpuState, DebugControl, DebugStop, PointKind, Sections};
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{
    SingleRegisterAccess, SingleRegisterAccessOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use mem::GuestMemory;
use runtime::Event;
use x86::state::Activity;

use crate::memory::Memory;
use crate::points::{Points, Want};
use crate::registers::{Refused, Register, RegisterFile, X86};
use crate::seat::Seat;

/// EFAULT, as GDB reads it: "cannot access memory".
const BAD_ADDRESS: u8 = 14;

pub type StopReason = MultiThreadStopReason<u64>;

/// A machine under the debugger.
pub struct Machine {
    seats: Vec<Arc<Seat>>,
    memory: Memory,
    points: Points,
    /// What GDB wants of each processor; set anew before each resumption.
    actions: Vec<Option<Action>>,
    /// Processors without an action stay where they are.
    is_locked: bool,
    /// The processor that stopped last.
    current: usize,
    /// Watchpoints that other processors met at the same time. They cannot happen again, so they are
    /// told when GDB lets the processors go.
    pending: Vec<(usize, Want)>,
    /// Has [`find_stop`](Self::find_stop) called.
    news: Arc<Event>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Continue,
    Step,
}

/// The number of the thread that is processor `index`: they begin at 1.
fn tid(index: usize) -> Tid {
    NonZeroUsize::MIN.saturating_add(index)
}

impl Machine {
    /// For the processors at `seats`, which signal `news`.
    pub fn new(seats: Vec<Arc<Seat>>, ram: GuestMemory, news: Arc<Event>) -> Self {
        Self {
            actions: vec![None; seats.len()],
            seats,
            memory: Memory::new(ram),
            points: Points::default(),
            is_locked: false,
            current: 0,
            pending: Vec::new(),
            news,
        }
    }

    /// Holds all processors.
    pub fn hold(&mut self) {
        self.seats.iter().for_each(|seat| seat.call());
        for seat in &self.seats {
            seat.await_here();
        }
    }

    /// Lets all processors run as if there were no debugger.
    pub fn leave(&mut self) {
        self.memory.remove_breakpoints();
        self.points = Points::default();
        self.pending.clear();
        self.seats.iter().for_each(|seat| seat.release(DebugControl::default()));
    }

    /// All processors have ended.
    pub fn has_ended(&self) -> bool {
        self.seats.iter().all(|seat| seat.has_ended())
    }

    /// Holds all processors if one stopped, and says why. `None` if none did, or only for
    /// something that is none of GDB's business.
    pub fn find_stop(&mut self) -> Option<StopReason> {
        if self.has_ended() {
            return Some(StopReason::Exited(0));
        }
        if let Some((index, want)) = self.pending.pop() {
            self.current = index;
            return Some(met(tid(index), want));
        }
        // Behind the last one, so that no processor can keep the others from being noticed.
        let count = self.seats.len();
        let order = (1..=count).map(|n| (self.current + n) % count);
        for index in order.collect::<Vec<_>>() {
            if let Some(stop) = self.seats[index].take_stop()
                && self.seats[index].await_here()
                && let Some(reason) = self.explain(index, stop)
            {
                self.hold();
                self.current = index;
                self.keep_pending();
                return Some(reason);
            }
        }
        None
    }

    /// Takes note of what else stopped processors. Steps are done, and what lies before an
    /// instruction will be met again.
    fn keep_pending(&mut self) {
        for (index, seat) in self.seats.iter().enumerate() {
            if let Some(DebugStop::Point(number)) = seat.take_stop()
                && let Some(want) = self.points.want_of(number)
                && want.kind != PointKind::Execute
            {
                self.pending.push((index, want));
            }
        }
    }

    /// The reason of a stop. If it is none of GDB's business, the processor goes on.
    fn explain(&mut self, index: usize, stop: DebugStop) -> Option<StopReason> {
        let thread = tid(index);
        match stop {
            DebugStop::Step => {
                Some(StopReason::SignalWithThread { tid: thread, signal: Signal::SIGTRAP })
            }
            DebugStop::Int3 if self.memory.is_at_breakpoint(&self.state(index)?) => {
                Some(StopReason::SwBreak(thread))
            }
            DebugStop::Int3 => {
                self.seats[index].ask(|vcpu| vcpu.pass_int3())?;
                self.release(index);
                None
            }
            DebugStop::Point(number) => {
                let want = self.points.want_of(number);
                if want.is_none() {
                    // Taken away while the processor was on its way here.
                    self.release(index);
                }
                want.map(|want| met(thread, want))
            }
        }
    }

    /// The reason of a stop that GDB asked for.
    pub fn interrupted(&self) -> StopReason {
        StopReason::SignalWithThread { tid: tid(self.current), signal: Signal::SIGINT }
    }

    /// Lets a processor do what GDB wants of it.
    fn release(&self, index: usize) {
        let action = self.actions[index].unwrap_or(Action::Continue);
        self.seats[index].release(DebugControl {
            step: action == Action::Step,
            int3: self.memory.has_breakpoints(),
            points: self.points.to_control(),
        });
    }

    fn seat(&self, thread: Tid) -> Result<(usize, &Seat), TargetError<&'static str>> {
        let index = thread.get() - 1;
        let seat = self.seats.get(index).ok_or(TargetError::NonFatal)?;
        Ok((index, seat))
    }

    /// The state of a processor that is held.
    fn state(&self, index: usize) -> Option<CpuState> {
        self.seats[index].ask(|vcpu| vcpu.load(Sections::all()).cloned())
    }

    fn state_of(&self, thread: Tid) -> TargetResult<CpuState, Self> {
        let (index, _) = self.seat(thread)?;
        self.state(index).ok_or(TargetError::NonFatal)
    }

    /// Changes the state of a processor that is held.
    fn change(
        &self,
        thread: Tid,
        change: impl FnOnce(&mut CpuState) -> Result<(), Refused> + Send + 'static,
    ) -> TargetResult<(), Self> {
        let (_, seat) = self.seat(thread)?;
        let sections = Sections::GENERAL | Sections::SYSTEM | Sections::VECTOR | Sections::MSRS;
        let done = seat.ask(move |vcpu| match change(vcpu.load(sections)?) {
            Ok(()) => vcpu.store(sections).map(|()| true),
            Err(Refused) => Ok(false),
        });
        if done == Some(true) { Ok(()) } else { Err(TargetError::NonFatal) }
    }

    fn add_point(&mut self, linear: u64, len: u64, kind: PointKind) -> bool {
        self.points.add(Want { linear, len, kind })
    }

    fn remove_point(&mut self, linear: u64, len: u64, kind: PointKind) -> bool {
        self.points.remove(Want { linear, len, kind })
    }
}

/// The reason of a stop at a point.
fn met(tid: Tid, want: Want) -> StopReason {
    let watched = |kind| StopReason::Watch { tid, kind, addr: want.linear };
    match want.kind {
        PointKind::Execute => StopReason::HwBreak(tid),
        PointKind::Write => watched(WatchKind::Write),
        PointKind::Access => watched(WatchKind::ReadWrite),
    }
}

/// What watches this. Processors cannot watch loads alone (SDM Vol. 3, 17.2.4).
fn point_kind(kind: WatchKind) -> Option<PointKind> {
    match kind {
        WatchKind::Write => Some(PointKind::Write),
        WatchKind::ReadWrite => Some(PointKind::Access),
        WatchKind::Read => None,
    }
}

impl Target for Machine {
    type Arch = X86;
    type Error = &'static str;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Machine {
    fn read_registers(&mut self, file: &mut RegisterFile, thread: Tid) -> TargetResult<(), Self> {
        *file = RegisterFile::of(&self.state_of(thread)?);
        Ok(())
    }

    fn write_registers(&mut self, file: &RegisterFile, thread: Tid) -> TargetResult<(), Self> {
        let file = file.clone();
        self.change(thread, move |state| file.apply(state))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(
        &mut self,
        linear: u64,
        data: &mut [u8],
        thread: Tid,
    ) -> TargetResult<usize, Self> {
        let state = self.state_of(thread)?;
        match self.memory.read(&state, linear, data) {
            0 if !data.is_empty() => Err(TargetError::Errno(BAD_ADDRESS)),
            count => Ok(count),
        }
    }

    fn write_addrs(&mut self, linear: u64, data: &[u8], thread: Tid) -> TargetResult<(), Self> {
        let state = self.state_of(thread)?;
        self.memory.write(&state, linear, data).ok_or(TargetError::Errno(BAD_ADDRESS))
    }

    fn list_active_threads(&mut self, found: &mut dyn FnMut(Tid)) -> Result<(), Self::Error> {
        // The one that stopped last comes first: it is what GDB shows when it connects.
        found(tid(self.current));
        (0..self.seats.len()).filter(|&index| index != self.current).map(tid).for_each(found);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Machine {
    fn read_register(
        &mut self,
        thread: Tid,
        register: Register,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let value = register.read(&self.state_of(thread)?);
        let len = buffer.len().min(value.len());
        buffer[..len].copy_from_slice(&value[..len]);
        Ok(len)
    }

    fn write_register(
        &mut self,
        thread: Tid,
        register: Register,
        value: &[u8],
    ) -> TargetResult<(), Self> {
        let value = value.to_vec();
        self.change(thread, move |state| register.write(state, &value))
    }
}

impl ThreadExtraInfo for Machine {
    fn thread_extra_info(&self, thread: Tid, mut buffer: &mut [u8]) -> Result<usize, Self::Error> {
        let room = buffer.len();
        let doing = match self.state_of(thread).map(|state| (state.activity, state.cpl())) {
            Ok((Activity::Active, 3)) => "in a program",
            Ok((Activity::Active, _)) => "in the kernel",
            Ok((Activity::Halted, _)) => "halted",
            Ok((Activity::WaitForSipi, _)) => "not started yet",
            Ok((Activity::Shutdown, _)) => "shut down",
            Err(_) => "ended",
        };
        // What does not fit is left out.
        let _ = write!(buffer, "processor {}, {doing}", thread.get() - 1);
        Ok(room - buffer.len())
    }
}

impl MultiThreadResume for Machine {
    fn resume(&mut self) -> Result<(), Self::Error> {
        let points = &self.points;
        self.pending.retain(|(_, want)| points.contains(*want));
        if !self.pending.is_empty() {
            self.news.signal();
            return Ok(());
        }
        for index in 0..self.seats.len() {
            if self.actions[index].is_some() || !self.is_locked {
                self.release(index);
            }
        }
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Self::Error> {
        self.actions.fill(None);
        self.is_locked = false;
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        thread: Tid,
        _: Option<Signal>,
    ) -> Result<(), Self::Error> {
        if let Some(action) = self.actions.get_mut(thread.get() - 1) {
            *action = Some(Action::Continue);
        }
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Machine {
    fn set_resume_action_step(
        &mut self,
        thread: Tid,
        _: Option<Signal>,
    ) -> Result<(), Self::Error> {
        if let Some(action) = self.actions.get_mut(thread.get() - 1) {
            *action = Some(Action::Step);
        }
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Machine {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Self::Error> {
        self.is_locked = true;
        Ok(())
    }
}

impl Breakpoints for Machine {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Machine {
    fn add_sw_breakpoint(&mut self, linear: u64, _: usize) -> TargetResult<bool, Self> {
        // GDB does not say in which processor's address space. Kernels are in all of them, and
        // programs in that of the processor that stopped.
        let count = self.seats.len();
        let states = (0..count).filter_map(|n| self.state((self.current + n) % count));
        let states: Vec<_> = states.collect();
        Ok(states.iter().any(|state| self.memory.add_breakpoint(state, linear).is_some()))
    }

    fn remove_sw_breakpoint(&mut self, linear: u64, _: usize) -> TargetResult<bool, Self> {
        self.memory.remove_breakpoint(linear);
        Ok(true)
    }
}

impl HwBreakpoint for Machine {
    fn add_hw_breakpoint(&mut self, linear: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add_point(linear, 1, PointKind::Execute))
    }

    fn remove_hw_breakpoint(&mut self, linear: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_point(linear, 1, PointKind::Execute))
    }
}

impl HwWatchpoint for Machine {
    fn add_hw_watchpoint(
        &mut self,
        linear: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(point_kind(kind).is_some_and(|kind| self.add_point(linear, len, kind)))
    }

    fn remove_hw_watchpoint(
        &mut self,
        linear: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(point_kind(kind).is_some_and(|kind| self.remove_point(linear, len, kind)))
    }
}
