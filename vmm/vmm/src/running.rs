//! A machine with its processors running.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use accel::{CpuidTable, Exit, Fault, Kicker, Vcpu, VcpuState, Vm, VmState};
use gdb::{Debugger, Seat};
use machine::{Machine, PowerRequest};
use mem::GuestMemory;
use runtime::Clock;
use runtime::thread::{Role, spawn};
use vmm_api::Failure;

use crate::affinity::Affinity;
use crate::assembly::{Assembly, no_thread};
use crate::debugging::Debugging;
use crate::gate::{Gate, Runner};
use crate::meter::Meter;
use crate::signals;
use crate::snapshot::Parent;

/// How long processors may take to come to a stop. One may be in the midst of a device's work.
const PAUSE_PATIENCE: Duration = Duration::from_secs(10);

/// How many snapshots are remembered, in case the last ones are removed.
const MAX_PARENTS: usize = 3;

/// A machine whose processors run, each on a thread of its own. Dropping it stops them.
pub struct Running {
    processors: Processors,
    /// Ends after the processors.
    debugger: Option<Debugger>,
    machine: Arc<Machine>,
    failures: Arc<Failures>,
    /// The interrupt controllers live as long as this.
    vm: Arc<dyn Vm>,
    memory: GuestMemory,
    clock: Arc<Clock>,
    cpuid: CpuidTable,
    /// While paused: the host's TSC when that began.
    paused: Option<u64>,
    /// The snapshots that the next one may stand on, the newest first.
    parents: Vec<Arc<Parent>>,
}

/// The threads of the processors.
#[derive(Default)]
struct Processors {
    threads: Vec<(Kicker, JoinHandle<()>)>,
    meters: Vec<Arc<Meter>>,
    stop: Arc<AtomicBool>,
    gate: Arc<Gate>,
    /// Where each leaves its state on an errand.
    saved: Arc<Mutex<BTreeMap<usize, Result<VcpuState, Fault>>>>,
}

/// The first failure of a processor.
struct Failures {
    first: Mutex<Option<Failure>>,
    event: runtime::Event,
}

impl Running {
    /// Starts the processors of a machine.
    pub fn start(
        assembly: Assembly,
        affinity: &Arc<Affinity>,
        debugging: Option<&Debugging>,
    ) -> Result<Self, Failure> {
        let Assembly { machine, vm, vcpus, memory, clock, cpuid } = assembly;
        let event = runtime::Event::new()
            .map_err(|e| Failure::host(format!("cannot make an event: {e}")))?;
        let failures = Arc::new(Failures { first: Mutex::default(), event });
        vm.resume_time();
        clock.resume();
        let mut seats = debugging.map(Debugging::seats).transpose()?;
        let mut processors = Processors::default();
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let seat = seats.as_mut().map(|seats| seats.add(vcpu.kicker()));
            let thread = processors.start(index, vcpu, affinity, seat, &machine, &failures);
            thread.map_err(no_thread)?;
        }
        let debugger = match debugging.zip(seats) {
            Some((debugging, seats)) => Some(debugging.start(seats, memory.clone())?),
            None => None,
        };
        Ok(Self {
            processors,
            debugger,
            machine,
            failures,
            vm,
            memory,
            clock,
            cpuid,
            paused: None,
            parents: Vec::new(),
        })
    }

    /// Has processors, devices and guest time stand still, until [`Running::resume`]: then nothing
    /// changes the guest's memory, and nothing it can read tells it of the pause. Harmless if it is
    /// paused already.
    pub fn pause(&mut self) -> Result<(), Failure> {
        if self.paused.is_some() {
            return Ok(());
        }
        if !self.processors.pause() {
            return Err(Failure::host(
                "a processor of the guest does not come to a stop, because it waits for a device \
                 or because this host is very busy; try again",
            ));
        }
        self.clock.pause();
        self.vm.stop_time();
        self.paused = Some(runtime::tsc::read());
        self.machine.pause();
        Ok(())
    }

    /// Ends a pause. Harmless if there is none.
    pub fn resume(&mut self) {
        if self.paused.take().is_none() {
            return;
        }
        self.vm.resume_time();
        self.clock.resume();
        self.machine.resume();
        self.processors.gate.open();
    }

    /// Whether the guest is paused.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// The host's TSC when the pause began, if there is one.
    pub fn paused_since(&self) -> Option<u64> {
        self.paused
    }

    /// From now on the guest stands on this snapshot.
    pub fn stand_on(&mut self, parent: Parent) {
        self.parents.insert(0, Arc::new(parent));
        self.parents.truncate(MAX_PARENTS);
    }

    /// The last snapshots since the guest was switched on, the newest first. Some may have been removed.
    pub fn parents(&self) -> &[Arc<Parent>] {
        &self.parents
    }

    /// The devices.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// All of RAM, which changes at any time but in a pause.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Guest time.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What CPUID tells the guest.
    pub fn cpuid(&self) -> &CpuidTable {
        &self.cpuid
    }

    /// How fast the processors' TSCs run, in Hz.
    pub fn tsc_hz(&self) -> u64 {
        self.vm.tsc_hz()
    }

    /// The state of each processor, in a pause.
    pub fn save_processors(&self) -> Result<Vec<VcpuState>, Failure> {
        self.processors.save()
    }

    /// The state of what processors share, in a pause.
    pub fn save_chips(&self) -> Result<VmState, Failure> {
        self.vm.save().map_err(fault)
    }

    /// Has the machine be reset, as by its reset button.
    pub fn request_reset(&self) {
        self.machine.request(PowerRequest::Reset);
    }

    /// Presses the power button, as a person would. Says whether the guest listens to it.
    pub fn press_power_button(&self) -> bool {
        self.machine.press_power_button()
    }

    /// Readable when [`Running::take_power_request`] has something.
    pub fn power_requests(&self) -> BorrowedFd<'_> {
        self.machine.power_requests().as_fd()
    }

    /// What the guest asks of its machine.
    pub fn take_power_request(&self) -> Option<PowerRequest> {
        self.machine.power_requests().take()
    }

    /// Readable when [`Running::take_full_disks`] has something.
    pub fn full_disks(&self) -> BorrowedFd<'_> {
        self.machine.full_disks().as_fd()
    }

    /// The images that the host has no room for.
    pub fn take_full_disks(&self) -> BTreeSet<PathBuf> {
        self.machine.full_disks().take()
    }

    /// Readable when [`Running::take_failure`] has something.
    pub fn failures(&self) -> BorrowedFd<'_> {
        self.failures.event.as_fd()
    }

    /// Why a processor cannot go on.
    pub fn take_failure(&self) -> Option<Failure> {
        self.failures.event.clear();
        self.failures.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What the processors count, also when they have stopped.
    pub fn meters(&self) -> Vec<Arc<Meter>> {
        self.processors.meters.clone()
    }

    /// Stops processors and devices and flushes the disks.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.processors.stop();
        self.debugger = None;
        self.machine.stop()
    }
}

impl Failures {
    fn report(&self, failure: Failure) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(failure);
        self.event.signal();
    }
}

impl Processors {
    fn start(
        &mut self,
        index: usize,
        mut vcpu: Box<dyn Vcpu>,
        affinity: &Arc<Affinity>,
        seat: Option<Arc<Seat>>,
        machine: &Arc<Machine>,
        failures: &Arc<Failures>,
    ) -> io::Result<()> {
        let kicker = vcpu.kicker();
        let meter = Arc::new(Meter::new(kicker.clone()));
        self.meters.push(meter.clone());
        let machine = machine.clone();
        let (stop, gate) = (self.stop.clone(), self.gate.clone());
        let saved = self.saved.clone();
        let (failures, affinity) = (failures.clone(), affinity.clone());
        gate.expect();
        let thread = spawn(Role::Processor, format!("vcpu{index}"), move || {
            let seat = seat.as_deref();
            let _alarm = Alarm { index, failures: &failures, meter: &meter, seat };
            let runner = gate.runner();
            match affinity.apply(index).and_then(|()| signals::leave_to_other_threads()) {
                Ok(()) => {
                    let thread = Thread {
                        index,
                        machine: &machine,
                        stop: &stop,
                        runner,
                        saved: &saved,
                        failures: &failures,
                        meter: &meter,
                        seat,
                    };
                    thread.run(&mut *vcpu);
                }
                Err(failure) => failures.report(failure),
            }
            let statistics = vcpu.statistics();
            tracing::debug!(index, ?statistics, "a processor stopped");
            meter.end(Some(statistics));
        })?;
        self.threads.push((kicker, thread));
        Ok(())
    }

    /// Stops the processors until the gate is opened; false if they do not come to it.
    fn pause(&self) -> bool {
        self.gate.close(|| self.kick(), PAUSE_PATIENCE)
    }

    /// The states of all, which wait at the gate.
    fn save(&self) -> Result<Vec<VcpuState>, Failure> {
        let saved = || self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        saved().clear();
        self.gate.send_on_errand();
        let states = std::mem::take(&mut *saved());
        if states.len() != self.threads.len() {
            return Err(Failure::configuration(
                "a processor of the guest has just ended; the guest is about to be reset",
            ));
        }
        states.into_values().map(|state| state.map_err(fault)).collect()
    }

    fn kick(&self) {
        for (kicker, _) in &self.threads {
            kicker.kick();
        }
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.kick();
        self.gate.open();
        for (_, thread) in self.threads.drain(..) {
            // A panic has been reported by the thread's alarm.
            let _ = thread.join();
        }
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A processor's thread, and what it deals with.
struct Thread<'a> {
    index: usize,
    machine: &'a Machine,
    stop: &'a AtomicBool,
    runner: Runner<'a>,
    saved: &'a Mutex<BTreeMap<usize, Result<VcpuState, Fault>>>,
    failures: &'a Failures,
    meter: &'a Meter,
    seat: Option<&'a Seat>,
}

impl Thread<'_> {
    /// Runs the processor until it is to stop or cannot go on.
    fn run(self, vcpu: &mut dyn Vcpu) {
        while self.go_on(vcpu) {
            match self.seat.map(|seat| seat.pass(vcpu, |vcpu| self.go_on(vcpu))).transpose() {
                Ok(None | Some(true)) => {}
                Ok(Some(false)) => return,
                Err(error) => return self.failures.report(fault(error)),
            }
            match vcpu.run(self.machine) {
                Ok(Exit::Kicked) => {}
                Ok(Exit::Debug(why)) => {
                    if let Some(seat) = self.seat {
                        seat.stopped(why);
                    }
                }
                Ok(Exit::TripleFault) => {
                    tracing::warn!(
                        "processor {} ended in a triple fault: the machine is reset",
                        self.index
                    );
                    self.machine.request(PowerRequest::Reset);
                    return;
                }
                Err(error) => return self.failures.report(fault(error)),
            }
        }
    }

    /// Answers who asks for the processor's numbers, and waits while the guest is paused. Whether
    /// the thread shall go on then.
    fn go_on(&self, vcpu: &mut dyn Vcpu) -> bool {
        self.meter.answer(|| vcpu.statistics());
        let keep = |state| {
            self.saved.lock().unwrap_or_else(PoisonError::into_inner).insert(self.index, state);
        };
        self.runner.pass(
            vcpu,
            |vcpu| self.meter.rest(vcpu.statistics()),
            |vcpu| keep(vcpu.save()),
            |_| self.meter.go_on(),
        );
        !self.stop.load(Ordering::SeqCst)
    }
}

/// Tells the others of the end of a processor's thread, also if it panics.
struct Alarm<'a> {
    index: usize,
    failures: &'a Failures,
    meter: &'a Meter,
    seat: Option<&'a Seat>,
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if let Some(seat) = self.seat {
            seat.end();
        }
        if thread::panicking() {
            self.meter.end(None);
            self.failures.report(Failure::internal(format!(
                "the thread of processor {} panicked, which is a mistake in Lodge; please report \
                 the message on standard error",
                self.index
            )));
        }
    }
}

/// An accelerator's failure, as it is told to whoever started this process.
pub fn fault(fault: Fault) -> Failure {
    match fault {
        Fault::Host { .. } => Failure::host(fault),
        Fault::Unsupported(_) => Failure::configuration(fault),
        Fault::BadState(_) => Failure::artifact(fault),
        Fault::Wrong(_) => Failure::internal(fault),
    }
}
