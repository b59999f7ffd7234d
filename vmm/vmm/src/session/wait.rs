//! While a machine runs: what happens to it, and what is wanted of it.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use machine::PowerRequest;
use vmm_api::{Event, Failure, RunState, StopReason};

use super::{Ending, after_power_request, poll_all};
use crate::api::Api;
use crate::control::{Command, Outcome};
use crate::hotplug::{Attachment, Gone, Hardware};
use crate::launcher::Launcher;
use crate::room::NoRoom;
use crate::running::Running;
use crate::signals::{Signals, Wish};
use crate::snapshot;

/// How long a guest may take to switch itself off when a signal asks it to.
const POWER_OFF_PATIENCE: Duration = Duration::from_secs(60);

/// How soon to pause the guest again where that failed.
const PAUSE_AGAIN: Duration = Duration::from_secs(1);

/// Why a guest that is there for one program has ended without it.
const KERNEL_GAVE_UP: &str = "the guest's kernel gave up, or was told to restart, before the guest's program had \
     ended: the last lines of its console say why";

/// The wait for the end of a machine's run.
pub struct Wait<'a> {
    running: &'a mut Running,
    signals: &'a mut Signals,
    launcher: &'a mut Launcher,
    api: &'a Api,
    hardware: &'a mut Hardware,
    /// Set once the guest has been asked to switch itself off.
    asked: Option<Asked>,
    /// The images that the host has no room for, and for which the guest does not stand still yet.
    full: BTreeSet<PathBuf>,
    /// Set while the guest stands still because the host has no room for its disks.
    no_room: Option<NoRoom>,
    /// A client of the API wants the machine to be reset.
    reset_wanted: bool,
}

/// The guest has been asked to switch itself off.
#[derive(Clone, Copy, Debug)]
struct Asked {
    since: Instant,
    patience: Duration,
}

impl Asked {
    /// When it is over; `None`: not in this world's time.
    fn deadline(self) -> Option<Instant> {
        self.since.checked_add(self.patience)
    }
}

impl<'a> Wait<'a> {
    /// For this machine.
    pub fn new(
        running: &'a mut Running,
        signals: &'a mut Signals,
        launcher: &'a mut Launcher,
        api: &'a Api,
        hardware: &'a mut Hardware,
    ) -> Self {
        let full = BTreeSet::new();
        let (asked, no_room, reset_wanted) = (None, None, false);
        Self { running, signals, launcher, api, hardware, asked, full, no_room, reset_wanted }
    }

    /// Waits until the machine's run ends.
    pub fn until_the_end(mut self) -> Result<Ending, Failure> {
        loop {
            let look = self.no_room.as_ref().map(|no_room| no_room.next_look);
            let again = (!self.full.is_empty()).then(|| Instant::now() + PAUSE_AGAIN);
            let leaving = self.hardware.deadline();
            let deadlines = [self.asked.and_then(Asked::deadline), look, again, leaving];
            let deadline = deadlines.into_iter().flatten().min();
            let sources = [
                self.running.power_requests(),
                self.running.failures(),
                self.running.full_disks(),
                self.running.machine().removed(),
                self.api.orders().as_fd(),
            ];
            let happened = poll_all(&sources, self.signals, self.launcher, deadline)?;
            if happened.launcher_gone {
                self.launcher.set_gone();
            }
            if let Some(failure) = self.running.take_failure() {
                return Err(failure);
            }
            if let Some(request) = self.running.take_power_request() {
                let was_asked = self.asked.is_some() || happened.launcher_gone;
                // A guest that is there for one program does not begin it again and again.
                let is_alone = self.hardware.config.exit_port && !self.reset_wanted;
                if request == PowerRequest::Reset && is_alone && !was_asked {
                    return Err(Failure::artifact(KERNEL_GAVE_UP));
                }
                return Ok(after_power_request(request, was_asked));
            }
            self.mind_room();
            self.mind_devices();
            let now = match self.signals.take() {
                Some(Wish::StopNow) => true,
                // Asked again: patience is over.
                Some(Wish::PowerOff) if self.asked.is_some() => true,
                wish if wish.is_some() || happened.launcher_gone => {
                    self.ask_to_power_off(POWER_OFF_PATIENCE)
                }
                _ => false,
            };
            if now || self.obey() || self.is_overdue() {
                return Ok(Ending::Stop(StopReason::Requested));
            }
        }
    }

    /// Has the guest stand still where the host has no room for its disks, and go on once there is.
    fn mind_room(&mut self) {
        self.full.extend(self.running.take_full_disks());
        if self.running.is_paused() {
            // What could not be written is tried again when the guest goes on.
            self.full.clear();
        }
        if !self.full.is_empty() {
            match self.running.pause() {
                Ok(()) => {
                    let no_room = NoRoom::new(std::mem::take(&mut self.full));
                    let reason = Some(no_room.reason());
                    self.api.set_paused(reason.clone());
                    self.launcher.tell(&Event::Paused { reason });
                    self.no_room = Some(no_room);
                }
                Err(failure) => tracing::warn!("the host has no room for a disk, but {failure}"),
            }
        }
        if self.no_room.as_mut().is_some_and(NoRoom::is_over) {
            self.resume();
        }
    }

    /// Closes devices that the guest has let go of.
    fn mind_devices(&mut self) {
        for Gone { id, closed, orders } in self.hardware.close_removed(self.running.machine()) {
            if let Err(failure) = &closed {
                self.launcher.tell(&Event::Warning { message: failure.message.clone() });
            }
            self.show_devices();
            self.launcher.tell(&Event::DeviceDetached { id });
            for order in orders {
                order.answer(closed.clone().map(|()| None));
            }
        }
        self.hardware.lose_patience(self.running.machine());
    }

    fn show_devices(&self) {
        let counters = self.running.machine().counters();
        self.api.set_devices(self.hardware.config.clone(), counters);
    }

    fn attach(&mut self, attachment: &Attachment) -> Outcome {
        let device = self.hardware.attach(self.running.machine(), attachment)?;
        self.show_devices();
        self.launcher.tell(&Event::DeviceAttached { id: device.id().unwrap_or_default() });
        Ok(Some(device))
    }

    /// Presses the power button, and gives the guest so much time. Returns whether it is of no
    /// use, so that the guest is to be ended now.
    fn ask_to_power_off(&mut self, patience: Duration) -> bool {
        if let Some(asked) = &mut self.asked {
            // The least patient counts.
            asked.patience = asked.patience.min(asked.since.elapsed().saturating_add(patience));
            return false;
        }
        tracing::info!("the guest is asked to switch itself off");
        self.resume();
        if !self.running.press_power_button() {
            tracing::warn!("the guest does not listen to its power button: it is ended");
            return true;
        }
        self.api.set_state(RunState::Stopping);
        self.asked = Some(Asked { since: Instant::now(), patience });
        false
    }

    fn is_overdue(&self) -> bool {
        let Some(asked) = self.asked else { return false };
        let is_overdue = asked.deadline().is_some_and(|deadline| Instant::now() >= deadline);
        if is_overdue {
            tracing::warn!(
                "the guest did not switch itself off within {} seconds: it is ended",
                asked.patience.as_secs()
            );
        }
        is_overdue
    }

    /// Does what clients of the API want. Returns whether the guest is to be ended now.
    fn obey(&mut self) -> bool {
        let Some(order) = self.api.orders().take() else { return false };
        if let Command::Stop { patience } = order.command {
            let now = patience.is_zero() || self.ask_to_power_off(patience);
            order.answer(Ok(None));
            return now;
        }
        if let (Command::Detach(request), false) = (&order.command, self.running.is_paused()) {
            let request = request.clone();
            self.hardware.detach(self.running.machine(), &request, order);
            return false;
        }
        let outcome = self.carry_out(order.command.clone());
        order.answer(outcome);
        false
    }

    fn carry_out(&mut self, command: Command) -> Outcome {
        let conflict = |what: &str| Err(Failure::configuration(what));
        let is_paused = self.running.is_paused();
        match command {
            Command::Pause if self.asked.is_some() => conflict("the guest is about to end"),
            Command::Pause => {
                self.running.pause()?;
                // From now on it stands still whether there is room or not.
                if self.no_room.take().is_some() || !is_paused {
                    self.api.set_paused(None);
                    self.launcher.tell(&Event::Paused { reason: None });
                }
                Ok(None)
            }
            Command::Resume => {
                self.resume();
                Ok(None)
            }
            Command::PressPowerButton | Command::Attach(_) | Command::Detach(_)
                if self.no_room.is_some() =>
            {
                conflict(
                    "this host has no room for what the guest writes, so that it stands still and notices nothing: \
                     make room (`lodge inspect` says where), or end it with `lodge kill`",
                )
            }
            Command::PressPowerButton | Command::Attach(_) | Command::Detach(_) if is_paused => {
                conflict("the guest is paused, and notices nothing: resume it first")
            }
            Command::Attach(_) if self.asked.is_some() => conflict("the guest is about to end"),
            Command::Attach(attachment) => self.attach(&attachment),
            Command::PressPowerButton if !self.running.press_power_button() => {
                conflict("the guest does not listen to its power button")
            }
            Command::PressPowerButton => Ok(None),
            Command::Snapshot { .. } if self.asked.is_some() => {
                conflict("the guest is about to end")
            }
            Command::Snapshot { name } => self.make_snapshot(&name),
            Command::Reset => {
                self.reset_wanted = true;
                self.running.request_reset();
                Ok(None)
            }
            // Are looked at by the caller.
            Command::Stop { .. } | Command::Detach(_) => Ok(None),
        }
    }

    fn make_snapshot(&mut self, name: &str) -> Outcome {
        let Some((shown, directory)) = self.api.shown().zip(self.api.directory().handle()?) else {
            return Err(Failure::configuration(
                "this guest has no directory that a snapshot could be kept in",
            ));
        };
        snapshot::create(name, self.running, &shown, &directory).map(|()| None)
    }

    /// Ends a pause, if there is one.
    fn resume(&mut self) {
        self.no_room = None;
        if self.running.is_paused() {
            self.running.resume();
            let is_asked = self.asked.is_some();
            self.api.set_state(if is_asked { RunState::Stopping } else { RunState::Running });
            self.launcher.tell(&Event::Resumed);
        }
    }
}
