//! The life of a guest, from start to end, with resets in between.

mod brake;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use machine::PowerRequest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmm_api::{Event, Failure, StopReason, VmConfig};

use crate::accelerators::{self, Choice};
use crate::api::{Api, Shown};
use crate::consoles::Consoles;
use crate::debugging::Debugging;
use crate::launcher::Launcher;
use crate::running::Running;
use crate::signals::{self, Signals, Wish};
use brake::{Advice, Brake};

/// How long a guest may take to switch itself off when it is asked to.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(60);

/// How the run of one machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Stop(StopReason),
    Reset,
}

/// Runs the guest to its end.
pub fn run(
    config: &VmConfig,
    launcher: &mut Launcher,
    api: &mut Api,
) -> Result<StopReason, Failure> {
    // Before the first thread, because threads inherit which signals are blocked.
    signals::block()?;
    // Before this process opens a file, whose number the configuration could name.
    let consoles = Consoles::open(config)?;
    let mut signals = Signals::new()?;
    let choice = accelerators::choose(config.accelerator)?;
    run_on(&choice, config, &consoles, &mut signals, launcher, api)
}

fn run_on(
    choice: &Choice,
    config: &VmConfig,
    consoles: &Consoles,
    signals: &mut Signals,
    launcher: &mut Launcher,
    api: &mut Api,
) -> Result<StopReason, Failure> {
    let accelerator = choice.accelerator.as_ref();
    let debugging = config.gdb.as_ref().map(Debugging::open).transpose()?;
    let mut resets = 0;
    let mut brake = Brake::default();
    loop {
        let running = Running::start(config, accelerator, consoles, debugging.as_ref())?;
        let pty = |chardev: &chardev::Chardev| chardev.pty().map(|p| p.display().to_string());
        let begun = Instant::now();
        api.show(Shown {
            name: config.name.clone(),
            accelerator: accelerators::kind(accelerator),
            resets,
            begun,
            meters: running.meters(),
        })?;
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
        let ending = wait(&running, signals, launcher);
        // After a failure, too, what the guest saw complete goes to disk.
        let stopped = running.stop();
        match ending? {
            Ending::Stop(reason) => return stopped.map(|()| reason),
            Ending::Reset => stopped?,
        }
        resets += 1;
        if let Advice::Pause { first } = brake.after(begun.elapsed()) {
            if first {
                launcher.tell(&Event::Warning { message: RESETS_TOO_OFTEN.to_owned() });
            }
            if pause(brake::PAUSE, signals, launcher)? {
                return Ok(StopReason::Requested);
            }
        }
    }
}

const RESETS_TOO_OFTEN: &str = "the guest resets itself again and again, right after each start, \
     so that it is now started no more than once a second; perhaps its kernel needs other \
     hardware, more memory or another command line";

/// Waits while there is no machine. Returns whether the guest is to end meanwhile.
fn pause(time: Duration, signals: &mut Signals, launcher: &mut Launcher) -> Result<bool, Failure> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if poll_all(&[], signals, launcher, Some(end))?.launcher_gone || signals.take().is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits until the machine's run ends.
fn wait(
    running: &Running,
    signals: &mut Signals,
    launcher: &mut Launcher,
) -> Result<Ending, Failure> {
    // Set once the guest has been asked to switch itself off.
    let mut deadline: Option<Instant> = None;
    loop {
        let sources = [running.power_requests(), running.failures()];
        let happened = poll_all(&sources, signals, launcher, deadline)?;
        if happened.launcher_gone {
            launcher.set_gone();
        }
        if let Some(failure) = running.take_failure() {
            return Err(failure);
        }
        if let Some(request) = running.take_power_request() {
            let was_asked = deadline.is_some() || happened.launcher_gone;
            return Ok(after_power_request(request, was_asked));
        }
        match signals.take() {
            Some(Wish::StopNow) => return Ok(Ending::Stop(StopReason::Requested)),
            // Asked again: patience is over.
            Some(Wish::PowerOff) if deadline.is_some() => {
                return Ok(Ending::Stop(StopReason::Requested));
            }
            wish if deadline.is_none() && (wish.is_some() || happened.launcher_gone) => {
                tracing::info!("the guest is asked to switch itself off");
                if !running.press_power_button() {
                    tracing::warn!("the guest does not listen to its power button: it is ended");
                    return Ok(Ending::Stop(StopReason::Requested));
                }
                deadline = Some(Instant::now() + POWER_OFF_PATIENCE);
            }
            _ => {}
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            tracing::warn!(
                "the guest did not switch itself off within {} seconds: it is ended",
                POWER_OFF_PATIENCE.as_secs()
            );
            return Ok(Ending::Stop(StopReason::Requested));
        }
    }
}

/// What a guest's request leads to. One that was asked to end does not come back by a reset.
fn after_power_request(request: PowerRequest, was_asked: bool) -> Ending {
    Ending::Stop(match request {
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
