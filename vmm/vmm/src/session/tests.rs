//! Guests that are scripts: processors that do to the machine what the test says.

use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use accel::{
    Accelerator, CpuBus, CpuState, DebugControl, Exit, Fault, Kicker, Sections, Statistics, Vcpu,
    Vm, VmResources,
};
use irqchip::{IrqSink, Msi};
use tempfile::TempDir;
use vmm_api::{BootConfig, FailureKind};

use super::*;
use crate::directory::Directory;

/// What the bootstrap processor does in the `n`th life of the machine; the others sleep.
type Script = fn(life: u32, bus: &dyn CpuBus) -> Result<Exit, Fault>;

struct Scripted {
    script: Script,
    lives: AtomicU32,
}

struct ScriptedVm {
    script: Script,
    life: u32,
}

struct ScriptedVcpu {
    script: Option<Script>,
    life: u32,
    state: CpuState,
    kicked: Arc<runtime::Event>,
}

impl Accelerator for Scripted {
    fn name(&self) -> &'static str {
        "soft"
    }
    fn create_vm(&self, _: VmResources) -> Result<Arc<dyn Vm>, Fault> {
        let life = self.lives.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(ScriptedVm { script: self.script, life }))
    }
}

struct NoIrqs;

impl IrqSink for NoIrqs {
    fn set_gsi(&self, _: u32, _: bool) {}
    fn send_msi(&self, _: Msi) {}
}

impl Vm for ScriptedVm {
    fn irq_sink(&self) -> Arc<dyn IrqSink> {
        Arc::new(NoIrqs)
    }
    fn stop_time(&self) {}
    fn resume_time(&self) {}
    fn take_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, Fault> {
        Ok(Box::new(ScriptedVcpu {
            script: (index == 0).then_some(self.script),
            life: self.life,
            state: CpuState::reset(0),
            kicked: Arc::new(runtime::Event::new().unwrap()),
        }))
    }
}

impl Vcpu for ScriptedVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<Exit, Fault> {
        if let Some(script) = self.script.take() {
            assert_eq!(self.state.rip, 0x10_0020, "the processor is at the kernel's entry");
            return script(self.life, bus);
        }
        self.kicked.wait();
        Ok(Exit::Kicked)
    }
    fn kicker(&self) -> Kicker {
        let kicked = self.kicked.clone();
        Kicker::new(move || kicked.signal())
    }
    fn load(&mut self, _: Sections) -> Result<&mut CpuState, Fault> {
        Ok(&mut self.state)
    }
    fn store(&mut self, _: Sections) -> Result<(), Fault> {
        Ok(())
    }
    fn set_debug(&mut self, _: &DebugControl) -> Result<(), Fault> {
        Ok(())
    }
    fn pass_int3(&mut self) -> Result<(), Fault> {
        Ok(())
    }
    fn statistics(&self) -> Statistics {
        Statistics { counts: vec![("lives", (self.life + 1).into())], levels: Vec::new() }
    }
}

/// A status socket, of which the test has the far end.
fn launcher() -> (Launcher, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    (Launcher::over(Some(OwnedFd::from(near).into())), far)
}

fn nobody_asks() -> Api {
    Api::over(None, Directory::default(), Arc::default()).unwrap()
}

fn config(dir: &TempDir) -> VmConfig {
    let header = [0x1bad_b002u32, 0x1_0000, 0xe451_4ffe, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, header.map(u32::to_le_bytes).as_flattened()).unwrap();
    let mut config: VmConfig = serde_json::from_value(serde_json::json!({
        "name": "test", "cpus": 2, "memory_mib": 16, "boot": { "kernel": kernel },
    }))
    .unwrap();
    config.debug.debug_exit = true;
    config
}

fn asked_for(accelerator: Scripted) -> Choice {
    Choice { accelerator: Box::new(accelerator), reason: String::new() }
}

/// Runs a script to its end; the result, and the events on the way.
fn play(script: Script) -> (Result<StopReason, Failure>, Vec<Event>) {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    let accelerator = Scripted { script, lives: AtomicU32::new(0) };
    let mut api = nobody_asks();
    let consoles = Consoles::open(&config, &mut api).unwrap();
    let mut signals = Signals::new().unwrap();
    let (mut launcher, far) = launcher();
    let result = run_on(
        &asked_for(accelerator),
        &config.into(),
        Start::default(),
        &consoles,
        &mut signals,
        &mut launcher,
        &mut api,
    );
    drop(launcher);
    let mut far = BufReader::new(far);
    let events = std::iter::from_fn(|| Event::read_line(&mut far).unwrap()).collect::<Vec<_>>();
    (result, events)
}

fn power_off(bus: &dyn CpuBus) {
    bus.port_write(0x604, &(5u16 << 10 | 1 << 13).to_le_bytes());
}

const STARTED: Event = Event::Started {
    accelerator: vmm_api::Accelerator::Soft,
    accelerator_reason: String::new(),
    serial_pty: None,
    virtio_console_pty: None,
    gdb: None,
};

#[test]
fn a_guest_switches_itself_off() {
    let (result, events) = play(|_, bus| {
        power_off(bus);
        Ok(Exit::Kicked)
    });
    assert_eq!(result, Ok(StopReason::PowerOff));
    assert_eq!(events, [STARTED]);
}

#[test]
fn a_reset_builds_the_machine_anew() {
    let (result, events) = play(|life, bus| {
        match life {
            0 => bus.port_write(0xcf9, &[6]),
            1 => return Ok(Exit::TripleFault),
            _ => power_off(bus),
        }
        Ok(Exit::Kicked)
    });
    assert_eq!(result, Ok(StopReason::PowerOff));
    assert_eq!(events, [STARTED, Event::Reset, Event::Reset]);
}

#[test]
fn a_guest_that_gets_nowhere_is_slowed_down() {
    let (result, events) = play(|life, bus| {
        if life == 6 {
            power_off(bus);
            return Ok(Exit::Kicked);
        }
        Ok(Exit::TripleFault)
    });
    assert_eq!(result, Ok(StopReason::PowerOff));
    let told = events.iter().filter(|event| matches!(event, Event::Warning { .. })).count();
    assert_eq!(told, 1, "{events:?}");
    assert_eq!(events.iter().filter(|event| **event == Event::Reset).count(), 6);
}

#[test]
fn a_debug_exit_becomes_the_status() {
    let (result, _) = play(|_, bus| {
        bus.port_write(0xf4, &[0x10]);
        Ok(Exit::Kicked)
    });
    assert_eq!(result.unwrap().exit_status(), 0x21);
}

#[test]
fn a_processor_that_cannot_go_on_ends_the_guest() {
    let (result, _) = play(|_, _| Err(Fault::Unsupported("no such thing".to_owned())));
    assert_eq!(result.unwrap_err().message, "no such thing");
    let (result, _) = play(|_, _| panic!("a mistake, made by this test"));
    assert_eq!(result.unwrap_err().kind, FailureKind::Internal);
}

/// Runs a script that waits for its power button, while `act` goes on in another thread.
fn ask_to_end(act: impl FnOnce(UnixStream) + Send) -> Result<StopReason, Failure> {
    static LISTENING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = LISTENING.lock().unwrap_or_else(|e| e.into_inner());
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    let script = |_: u32, bus: &dyn CpuBus| {
        const PWRBTN: u16 = 1 << 8;
        bus.port_write(0x602, &PWRBTN.to_le_bytes());
        loop {
            let mut status = [0; 2];
            bus.port_read(0x600, &mut status);
            if u16::from_le_bytes(status) & PWRBTN != 0 {
                power_off(bus);
                return Ok(Exit::Kicked);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let accelerator = Scripted { script, lives: AtomicU32::new(0) };
    let mut api = nobody_asks();
    let consoles = Consoles::open(&config, &mut api).unwrap();
    let mut signals = Signals::new().unwrap();
    let (mut launcher, far) = launcher();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            act(far);
        });
        run_on(
            &asked_for(accelerator),
            &config.into(),
            Start::default(),
            &consoles,
            &mut signals,
            &mut launcher,
            &mut api,
        )
    })
}

#[test]
fn a_launcher_that_goes_away_ends_the_guest() {
    assert_eq!(ask_to_end(drop), Ok(StopReason::Requested));
}

#[test]
fn a_signal_ends_the_guest() {
    // Only this thread waits for its own signals, so that other tests stay undisturbed.
    // SAFETY: no preconditions.
    let me = unsafe { libc::pthread_self() };
    let result = ask_to_end(move |far| {
        // SAFETY: the thread lives until this scope has ended.
        unsafe { libc::pthread_kill(me, libc::SIGTERM) };
        std::mem::forget(far);
    });
    assert_eq!(result, Ok(StopReason::Requested));
}

#[test]
fn a_machine_that_cannot_be_built_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir);
    config.boot = BootConfig { kernel: dir.path().join("missing"), ..config.boot };
    let accelerator = Scripted { script: |_, _| Ok(Exit::Kicked), lives: AtomicU32::new(0) };
    let mut api = nobody_asks();
    let consoles = Consoles::open(&config, &mut api).unwrap();
    let mut signals = Signals::new().unwrap();
    let (mut launcher, _far) = launcher();
    let failure = run_on(
        &asked_for(accelerator),
        &config.into(),
        Start::default(),
        &consoles,
        &mut signals,
        &mut launcher,
        &mut api,
    )
    .unwrap_err();
    assert_eq!(failure.kind, FailureKind::Artifact);
    assert!(failure.message.contains("missing"), "{failure}");
}

#[test]
fn a_guest_that_was_asked_to_end_does_not_come_back() {
    use PowerRequest::{DebugExit, Exit, PowerOff, Reset};
    let stop = Ending::Stop;
    assert_eq!(after_power_request(Reset, false), Ending::Reset);
    assert_eq!(after_power_request(Reset, true), stop(StopReason::Requested));
    assert_eq!(after_power_request(PowerOff, false), stop(StopReason::PowerOff));
    assert_eq!(after_power_request(PowerOff, true), stop(StopReason::Requested));
    let exit = stop(StopReason::DebugExit { status: 33 });
    assert_eq!(after_power_request(DebugExit { value: 16 }, true), exit);
    let exited = stop(StopReason::Exited { status: 7 });
    assert_eq!(after_power_request(Exit { status: 7 }, true), exited);
}
