//! Whoever started this process: who is told what happens, and whose end ends the guest.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::Arc;

use vmm_api::{Event, Failure};

use crate::fds;
use crate::journal::Journal;

/// Writes a line to standard error, if anybody reads that.
pub fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "lodge-vmm: {text}");
}

/// The channel to whoever started this process.
pub struct Launcher {
    status: Option<File>,
    gone: bool,
    journal: Arc<Journal>,
}

impl Launcher {
    /// Takes the status descriptor, if there is one. Without it, events go to standard error.
    /// `detached`: its end means nothing.
    pub fn new(status_fd: Option<RawFd>, detached: bool) -> Result<Self, Failure> {
        let status = status_fd
            .map(|fd| {
                fds::inherited(fd).map(File::from).map_err(|e| {
                    Failure::host(format!("cannot use the status descriptor {fd}: {e}"))
                })
            })
            .transpose()?;
        Ok(Self { gone: detached, ..Self::over(status) })
    }

    /// Reports to an open stream, or to standard error.
    pub fn over(status: Option<File>) -> Self {
        Self { status, gone: false, journal: Arc::default() }
    }

    /// What was reported, for others.
    pub fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    /// Reports an event. If nobody listens any longer, that is noticed elsewhere.
    pub fn tell(&mut self, event: &Event) {
        self.journal.record(event);
        match (&mut self.status, event) {
            (Some(status), _) => {
                if let Err(e) = event.write_line(status) {
                    tracing::debug!("nobody hears {event:?}: {e}");
                }
            }
            (None, Event::Error(failure)) => say(failure),
            (None, Event::Warning { message }) => say(message),
            (
                None,
                Event::Started {
                    accelerator,
                    accelerator_reason,
                    serial_pty,
                    virtio_console_pty,
                    gdb,
                },
            ) => {
                tracing::info!(?accelerator, reason = accelerator_reason, "started");
                for (what, pty) in [("serial port", serial_pty), ("console", virtio_console_pty)] {
                    if let Some(pty) = pty {
                        say(format_args!("the {what} is at {pty}"));
                    }
                }
                if let Some(place) = gdb {
                    say(format_args!("GDB can connect: target remote {place}"));
                }
            }
            (None, event) => tracing::info!(?event),
        }
    }

    /// What to poll(2) for a hang-up, until [`Launcher::set_gone`].
    pub fn hang_up(&self) -> Option<BorrowedFd<'_>> {
        self.status.as_ref().filter(|_| !self.gone).map(AsFd::as_fd)
    }

    /// The other end has been closed.
    pub fn set_gone(&mut self) {
        self.gone = true;
    }
}
