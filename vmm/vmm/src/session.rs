//! The life of a guest, from start to end, with resets in between.

mod brake;
mod wait;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::{Files, PowerRequest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use sandbox::Sandbox;
use vmm_api::{Event, Failure, RunState, StopReason, VmConfig};

use crate::accelerators::{self, Choice};
use crate::affinity::Affinity;
use crate::api::{Api, Shown};
use crate::assembly::{Assembly, Links};
use crate::confinement;
use crate::consoles::Consoles;
use crate::control::Command;
use crate::debugging::Debugging;
use crate::fds;
use crate::hotplug::Hardware;
use crate::launcher::Launcher;
use crate::running::Running;
use crate::signals::{self, Signals};
use crate::snapshot::Opened;
use crate::taps;
use brake::{Advice, Brake};
use wait::Wait;

/// How the run of one machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Stop(StopReason),
    Reset,
}

/// Runs the guest to its end.
///
/// `snapshot`: it goes on from what is in this directory.
pub fn run(
    config: VmConfig,
    snapshot: Option<OwnedFd>,
    launcher: &mut Launcher,
    api: &mut Api,
) -> Result<StopReason, Failure> {
    // Before the first thread, because threads inherit which signals are blocked.
    signals::block()?;
    if !config.folders.is_empty() {
        fds::take_all();
    }
    let choice = accelerators::choose(config.accelerator)?;
    let sandbox = confinement::begin(&config, choice.accelerator.as_ref())?;
    let start = Start { snapshot: snapshot.map(Opened::new).transpose()?, sandbox };
    let consoles = Consoles::open(&config, api)?;
    let mut signals = Signals::new()?;
    let config = Arc::new(config);
    run_on(&choice, &config, start, &consoles, &mut signals, launcher, api)
}

/// What matters before the guest's first instruction only.
#[derive(Default)]
struct Start {
    /// The guest goes on from there.
    snapshot: Option<Opened>,
    /// The confinement that has begun.
    sandbox: Option<Sandbox>,
}

fn run_on(
    choice: &Choice,
    config: &Arc<VmConfig>,
    start: Start,
    consoles: &Consoles,
    signals: &mut Signals,
    launcher: &mut Launcher,
    api: &mut Api,
) -> Result<StopReason, Failure> {
    let accelerator = choice.accelerator.as_ref();
    let affinity = Arc::new(Affinity::new(&config.limits)?);
    let vsock = api.open_vsock()?;
    let balloon = api.open_balloon(config)?;
    let taps = taps::open(config)?;
    let debugging = config.gdb.as_ref().map(Debugging::open).transpose()?;
    let Start { mut snapshot, sandbox } = start;
    let restored = snapshot.as_ref().map(|it| it.disks(config.disks.len())).transpose()?;
    let files = Files::open(config, restored.as_ref().map(|disks| disks.layers.as_slice()))?;
    if let Some(message) = confinement::complete(sandbox, config, &files, api.directory())? {
        launcher.tell(&Event::Warning { message });
    }
    let taps = taps::connect(config, taps)?;
    let mut hardware = Hardware::new(config.clone(), files, taps);
    let mut resets = 0;
    let mut brake = Brake::default();
    loop {
        // A reset leads back to the guest's kernel, not to the snapshot.
        let snapshot = snapshot.take();
        let config = &hardware.config;
        let links = Links {
            consoles,
            files: &hardware.files,
            balloon: balloon.as_ref(),
            vsock: &vsock,
            taps: &hardware.taps,
        };
        let assembly = match &snapshot {
            Some(snapshot) => Assembly::restore(config, accelerator, links, snapshot)?,
            None => {
                let assembly = Assembly::boot(config, accelerator, links)?;
                hardware.files.keep()?;
                assembly
            }
        };
        let begun = Instant::now();
        let mut running = Running::start(assembly, &affinity, debugging.as_ref())?;
        let pty = |chardev: &chardev::Chardev| chardev.pty().map(|p| p.display().to_string());
        api.show(Shown {
            config: config.clone(),
            state: RunState::Running,
            pause_reason: None,
            accelerator: accelerators::kind(accelerator),
            resets,
            begun,
            meters: running.meters(),
            counters: running.machine().counters(),
        })?;
        // The guest runs already. Whoever started it hears of that once it is sure to go on.
        if let Some(snapshot) = snapshot {
            snapshot.finish_verification()?;
            hardware.files.keep()?;
            running.stand_on(snapshot.into_parent());
        }
        launcher.tell(&if resets > 0 {
            Event::Reset
        } else {
            Event::Started {
                accelerator: accelerators::kind(accelerator),
                accelerator_reason: choice.reason.clone(),
                serial_pty: pty(&consoles.serial),
                virtio_console_pty: consoles.virtio.as_deref().and_then(pty),
                gdb: debugging.as_ref().map(Debugging::place),
            }
        });
        runtime::heap::give_back();
        let ending = Wait::new(&mut running, signals, launcher, api, &mut hardware).until_the_end();
        // After a failure, too, what the guest saw complete goes to disk.
        let stopped = running.stop();
        match ending? {
            Ending::Stop(reason) => return stopped.map(|()| reason),
            Ending::Reset => stopped?,
        }
        hardware.keep_all();
        resets += 1;
        if let Advice::Pause { first } = brake.after(begun.elapsed()) {
            if first {
                launcher.tell(&Event::Warning { message: RESETS_TOO_OFTEN.to_owned() });
            }
            if pause(brake::PAUSE, signals, launcher, api)? {
                return Ok(StopReason::Requested);
            }
        }
    }
}

const RESETS_TOO_OFTEN: &str = "the guest resets itself again and again, right after each start, \
     so that it is now started no more than once a second; perhaps its kernel needs other \
     hardware, more memory or another command line";

/// Waits while there is no machine. Returns whether the guest is to end meanwhile.
fn pause(
    time: Duration,
    signals: &mut Signals,
    launcher: &mut Launcher,
    api: &Api,
) -> Result<bool, Failure> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let sources = [api.orders().as_fd()];
        let happened = poll_all(&sources, signals, launcher, Some(end))?;
        if happened.launcher_gone || signals.take().is_some() {
            return Ok(true);
        }
        if let Some(order) = api.orders().take() {
            if let Command::Stop { .. } = order.command {
                order.answer(Ok(None));
                return Ok(true);
            }
            order.answer(Err(Failure::configuration(
                "the guest has just been reset and is about to start anew; try again",
            )));
        }
    }
    Ok(false)
}

/// What a guest's request leads to. One that was asked to end does not come back by a reset.
fn after_power_request(request: PowerRequest, was_asked: bool) -> Ending {
    Ending::Stop(match request {
        PowerRequest::Exit { status } => StopReason::Exited { status },
        PowerRequest::DebugExit { value } => {
            StopReason::DebugExit { status: PowerRequest::debug_exit_status(value) }
        }
        PowerRequest::PowerOff | PowerRequest::Reset if was_asked => StopReason::Requested,
        PowerRequest::PowerOff => StopReason::PowerOff,
        PowerRequest::Reset => return Ending::Reset,
    })
}

struct Happened {
    launcher_gone: bool,
}

/// Waits for something to happen, there or at `sources`, at most until `deadline`.
fn poll_all(
    sources: &[BorrowedFd<'_>],
    signals: &Signals,
    launcher: &Launcher,
    deadline: Option<Instant>,
) -> Result<Happened, Failure> {
    let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
    fds.extend(sources.iter().map(|&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    let others = fds.len();
    fds.extend(launcher.hang_up().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)));
    let timeout = deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
    });
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Happened { launcher_gone: false }),
        Err(e) => return Err(Failure::host(format!("cannot wait for events: {e}"))),
    }
    let launcher_gone = fds.get(others).is_some_and(|fd| !fd.revents().is_empty());
    Ok(Happened { launcher_gone })
}

#[cfg(test)]
mod tests;
