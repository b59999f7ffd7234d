//! A machine with its processors running.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use accel::{Accelerator, Exit, Fault, Kicker, Sections, Vcpu, Vm, VmResources};
use machine::{Machine, MemoryMap, Parts, PowerRequest};
use runtime::{Clock, Timers};
use vmm_api::{Failure, VmConfig};

use crate::accelerators;
use crate::consoles::Consoles;
use crate::gate::{Gate, Runner};
use crate::meter::Meter;
use crate::signals;

/// How long processors may take to come to a stop. One may be in the midst of a device's work.
const PAUSE_PATIENCE: Duration = Duration::from_secs(10);

/// A machine whose processors run, each on a thread of its own. Dropping it stops them.
pub struct Running {
    processors: Processors,
    machine: Arc<Machine>,
    failures: Arc<Failures>,
    /// The interrupt controllers live as long as this.
    vm: Arc<dyn Vm>,
    clock: Arc<Clock>,
    /// While paused: the host's TSC when that began.
    paused: Option<u64>,
}

/// The threads of the processors.
#[derive(Default)]
struct Processors {
    threads: Vec<(Kicker, JoinHandle<()>)>,
    meters: Vec<Arc<Meter>>,
    stop: Arc<AtomicBool>,
    gate: Arc<Gate>,
}

/// The first failure of a processor.
struct Failures {
    first: Mutex<Option<Failure>>,
    event: runtime::Event,
}

impl Running {
    /// Builds the machine that `config` describes, loads its kernel and starts its processors.
    pub fn start(
        config: &VmConfig,
        accelerator: &dyn Accelerator,
        consoles: &Consoles,
    ) -> Result<Self, Failure> {
        let cpuid = accelerators::cpuid(config.cpu_model)?;
        let phys_bits = machine::physical_address_bits(&cpuid);
        let map =
            MemoryMap::new(config.memory_mib << 20, phys_bits).map_err(Failure::configuration)?;
        let memory = mem::allocate(map.ram()).map_err(Failure::host)?;
        let clock = Arc::new(Clock::stopped_at(0));
        let timers = Arc::new(Timers::new(clock.clone()).map_err(no_thread)?);
        let event = runtime::Event::new()
            .map_err(|e| Failure::host(format!("cannot make an event: {e}")))?;
        let failures = Arc::new(Failures { first: Mutex::default(), event });
        let vm = accelerator
            .create_vm(VmResources {
                memory: memory.clone(),
                clock: clock.clone(),
                timers: timers.clone(),
                cpus: config.cpus,
                cpuid,
            })
            .map_err(fault)?;
        let machine = Arc::new(Machine::build(Parts {
            config,
            map,
            phys_bits,
            memory,
            irq: vm.irq_sink(),
            timers,
            serial: consoles.serial.clone(),
            serial2: consoles.serial2.clone(),
            virtio_console: consoles.virtio.clone(),
            debug_console: consoles.debug.clone(),
        })?);

        let mut vcpus = Vec::new();
        for index in 0..config.cpus {
            let mut vcpu = vm.take_vcpu(index).map_err(fault)?;
            let sections = Sections::GENERAL | Sections::SYSTEM | Sections::MSRS;
            machine.prepare_processor(index, vcpu.load(sections).map_err(fault)?);
            vcpu.store(sections).map_err(fault)?;
            vcpus.push(vcpu);
        }
        clock.resume();
        let mut processors = Processors::default();
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            processors.start(index, vcpu, &machine, &failures).map_err(no_thread)?;
        }
        Ok(Self { processors, machine, failures, vm, clock, paused: None })
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
        self.paused = Some(runtime::tsc::read());
        self.machine.pause();
        Ok(())
    }

    /// Ends a pause. Harmless if there is none.
    pub fn resume(&mut self) {
        let Some(since) = self.paused.take() else { return };
        self.machine.resume();
        self.vm.skip_time(runtime::tsc::read().wrapping_sub(since));
        self.clock.resume();
        self.processors.gate.open();
    }

    /// Whether the guest is paused.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
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
        machine: &Arc<Machine>,
        failures: &Arc<Failures>,
    ) -> io::Result<()> {
        let kicker = vcpu.kicker();
        let meter = Arc::new(Meter::new(kicker.clone()));
        self.meters.push(meter.clone());
        let machine = machine.clone();
        let (stop, gate) = (self.stop.clone(), self.gate.clone());
        let failures = failures.clone();
        gate.expect();
        let thread = thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
            let _alarm = Alarm { index, failures: &failures, meter: &meter };
            let runner = gate.runner();
            match signals::leave_to_other_threads() {
                Ok(()) => run(index, &mut *vcpu, &machine, &stop, &runner, &failures, &meter),
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

/// A processor's thread.
fn run(
    index: usize,
    vcpu: &mut dyn Vcpu,
    machine: &Machine,
    stop: &AtomicBool,
    runner: &Runner<'_>,
    failures: &Failures,
    meter: &Meter,
) {
    while !stop.load(Ordering::SeqCst) {
        match vcpu.run(machine) {
            Ok(Exit::Kicked | Exit::Debug) => {
                meter.answer(|| vcpu.statistics());
                runner.pass(|| meter.rest(vcpu.statistics()), || meter.go_on());
            }
            Ok(Exit::TripleFault) => {
                tracing::warn!("processor {index} ended in a triple fault: the machine is reset");
                machine.request(PowerRequest::Reset);
                return;
            }
            Err(error) => {
                failures.report(fault(error));
                return;
            }
        }
    }
}

/// Reports a processor's thread that panics.
struct Alarm<'a> {
    index: usize,
    failures: &'a Failures,
    meter: &'a Meter,
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
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

fn fault(fault: Fault) -> Failure {
    match fault {
        Fault::Host { .. } => Failure::host(fault),
        Fault::Unsupported(_) => Failure::configuration(fault),
        Fault::Wrong(_) => Failure::internal(fault),
    }
}

fn no_thread(error: io::Error) -> Failure {
    Failure::host(format!("cannot start a thread: {error}; raise the limit on processes"))
}
