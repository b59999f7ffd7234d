//! A machine whose first processor a check drives itself, through the traits.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use accel::{Accelerator, CpuidTable, Exit, Sections, Vcpu, Vm};
use iced_x86::IcedError;
use runtime::Clock;
use x86::CpuState;
use x86::state::Activity;

use crate::bus::TestBus;
use crate::case::Build;
use crate::expect::Event;
use crate::guest::{Guest, Host};
use crate::runner;
use crate::start::Start;

/// What a check comes to: an error says what is wrong.
pub type Checked<T = ()> = Result<T, String>;

/// A machine whose first processor the check drives itself.
pub struct Bench {
    pub guest: Guest,
    pub vm: Arc<dyn Vm>,
    pub vcpu: Box<dyn Vcpu>,
    /// The machine's time.
    pub clock: Arc<Clock>,
    bus: TestBus,
}

impl Bench {
    /// A machine with one processor, which is in the mode `start`, about to run what `build` writes.
    pub fn new(
        accelerator: &dyn Accelerator,
        cpuid: &CpuidTable,
        start: Start,
        build: impl Fn(&mut Guest) -> Result<(), IcedError> + Send + Sync + 'static,
    ) -> Checked<Self> {
        Self::make(accelerator, cpuid, start, Box::new(build), false)
    }

    /// The same in 64-bit mode with Hyper-V's enlightenments.
    pub fn enlightened(
        accelerator: &dyn Accelerator,
        cpuid: &CpuidTable,
        build: impl Fn(&mut Guest) -> Result<(), IcedError> + Send + Sync + 'static,
    ) -> Checked<Self> {
        Self::make(accelerator, cpuid, Start::Long, Box::new(build), true)
    }

    fn make(
        accelerator: &dyn Accelerator,
        cpuid: &CpuidTable,
        start: Start,
        build: Build,
        hyperv: bool,
    ) -> Checked<Self> {
        let mut guest = Guest::build(start, cpuid, &build)?;
        let mut resources = runner::resources(cpuid, guest.memory.clone(), 1)?;
        resources.hyperv = hyperv;
        let clock = resources.clock.clone();
        let vm = accelerator.create_vm(resources).map_err(|e| e.to_string())?;
        let mut vcpu = vm.take_vcpu(0).map_err(|e| e.to_string())?;
        runner::set_up(vcpu.as_mut(), &mut guest).map_err(|e| e.to_string())?;
        let bus = TestBus {
            events: Mutex::new(Vec::new()),
            host: Host { memory: guest.memory.clone(), irq: vm.irq_sink() },
            host_call: None,
            kickers: vec![vcpu.kicker()],
            signal: Mutex::new(channel().0),
        };
        Ok(Self { guest, vm, vcpu, clock, bus })
    }

    /// Runs until the processor stops. One that does not is kicked after ten minutes, which
    /// fails the check that waits for something else.
    pub fn run(&mut self) -> Checked<Exit> {
        let kicker = self.vcpu.kicker();
        let (done, wait) = channel::<()>();
        let watch = thread::spawn(move || {
            if wait.recv_timeout(Duration::from_secs(600)).is_err() {
                kicker.kick();
            }
        });
        let exit = self.vcpu.run(&self.bus).map_err(|e| e.to_string());
        let _ = done.send(());
        watch.join().map_err(|_| "the watch panicked".to_owned())?;
        exit
    }

    /// Runs for a while, then kicks.
    pub fn run_for(&mut self, time: Duration) -> Checked<Exit> {
        let kicker = self.vcpu.kicker();
        let kicks = thread::spawn(move || {
            thread::sleep(time);
            kicker.kick();
        });
        let exit = self.run();
        kicks.join().map_err(|_| "the kicker panicked".to_owned())?;
        exit
    }

    /// Runs until the processor has halted, however busy the host is.
    pub fn run_to_halt(&mut self) -> Checked {
        for _ in 0..5000 {
            equal("the exit", Exit::Kicked, self.run_for(Duration::from_millis(5))?)?;
            if self.state()?.activity == Activity::Halted {
                return Ok(());
            }
        }
        Err("the processor does not halt".to_owned())
    }

    /// All of the processor's state.
    pub fn state(&mut self) -> Checked<&mut CpuState> {
        self.vcpu.load(Sections::all()).map_err(|e| e.to_string())
    }

    /// Has what was changed there take effect.
    pub fn store(&mut self, sections: Sections) -> Checked {
        self.vcpu.store(sections).map_err(|e| e.to_string())
    }

    /// The vectors of the exceptions and interrupts that its handlers were entered for.
    pub fn vectors(&self) -> Vec<u64> {
        let events = self.bus.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let vector = |event: &Event| match event {
            Event::Fault(record) => Some(record.vector),
            _ => None,
        };
        events.iter().filter_map(vector).collect()
    }

    /// What the guest wrote to the debug port.
    pub fn outs(&self) -> Vec<u32> {
        let events = self.bus.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        events
            .iter()
            .filter_map(|event| if let Event::Out(value) = event { Some(*value) } else { None })
            .collect()
    }
}

/// An error unless both are equal.
pub fn equal<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, got: T) -> Checked {
    if expected == got {
        return Ok(());
    }
    Err(format!("expected {what} {expected:x?}, got {got:x?}"))
}

/// A loop without end, which pauses as such loops do.
pub fn wait(g: &mut Guest) -> Result<(), IcedError> {
    let mut here = g.a.create_label();
    g.a.set_label(&mut here)?;
    g.a.pause()?;
    g.a.jmp(here)
}

/// A loop of a single instruction, without end.
pub fn spin(g: &mut Guest) -> Result<(), IcedError> {
    let mut here = g.a.create_label();
    g.a.set_label(&mut here)?;
    g.a.jmp(here)
}
