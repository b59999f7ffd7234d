//! What a VMM tells whoever started it.
//!
//! `lodge-vmm --config-fd N --status-fd M` reads one [`VmConfig`](crate::VmConfig) as JSON from
//! descriptor N until its end, and writes one [`Event`] as JSON per line to descriptor M. The last
//! line is always [`Event::Stopped`] or [`Event::Error`]; a VMM that ends without one has crashed.
//! Its exit status says the same as the last event: [`StopReason::exit_status`] or
//! [`FailureKind::exit_status`].
//!
//! Descriptor M is one end of a stream socket. When its other end is closed, whoever started the
//! guest is gone, and the VMM stops it as upon SIGTERM, unless it was started with `--detached`.

use std::fmt;
use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::{Accelerator, line};

/// The port of the host to which the agent in a guest tries to connect when it is there, for
/// [`Event::AgentReady`]. The connection is refused.
pub const AGENT_READY_PORT: u32 = 1023;

/// Something that happened to a guest, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Everything is built and the guest's processors begin to run.
    Started {
        /// What runs them: never [`Accelerator::Auto`].
        accelerator: Accelerator,
        /// Why that one, in half a sentence for people; empty if it was asked for.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        accelerator_reason: String,
        /// The pseudo terminal of the serial port, where the configuration asked for one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        serial_pty: Option<String>,
        /// The pseudo terminal of the virtio console, where the configuration asked for one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        virtio_console_pty: Option<String>,
        /// Where GDB may connect to, as its `target remote` takes it, where the configuration asked
        /// for that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gdb: Option<String>,
    },
    /// The machine was reset, by the guest or by a triple fault, and starts anew.
    Reset,
    /// The guest was paused: its processors, its devices and its time stand still.
    Paused {
        /// Why, for people, unless somebody asked for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The guest goes on after a pause.
    Resumed,
    /// Lodge's agent in the guest is there: from now on, commands can be run and files be copied. On
    /// the API only.
    AgentReady,
    /// The guest has been told of a device that was attached.
    DeviceAttached {
        /// What it is called.
        id: String,
    },
    /// A device is gone: the guest has let go of it, or it was taken away.
    DeviceDetached {
        /// What it was called.
        id: String,
    },
    /// Something a person should know that does not end the guest.
    Warning {
        /// The whole text, for people.
        message: String,
    },
    /// The guest has ended and everything is flushed and closed. The last event.
    Stopped {
        /// Why.
        #[serde(flatten)]
        reason: StopReason,
    },
    /// The guest could not start or could not go on. The last event.
    Error(Failure),
}

impl Event {
    /// Writes the event as one line and flushes it.
    ///
    /// # Errors
    ///
    /// The writer's own; a broken pipe means that nobody listens any longer.
    pub fn write_line(&self, writer: &mut impl Write) -> io::Result<()> {
        line::write(self, writer)
    }

    /// Reads the next event; `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// The reader's own, and `InvalidData` for a line that is not an event.
    pub fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Event>> {
        line::read(reader)
    }
}

/// Why a guest ended in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum StopReason {
    /// The guest switched its power off (ACPI S5).
    PowerOff,
    /// The program that the guest is for has ended, and the guest said so at its exit port.
    Exited {
        /// The program's exit status.
        status: u8,
    },
    /// The guest wrote to a debug exit port (isa-debug-exit or pc-testdev).
    DebugExit {
        /// The exit status that results, `(N << 1) | 1` for a write of N to isa-debug-exit.
        status: u8,
    },
    /// Somebody asked for it: by the API, by SIGTERM, or by closing the status socket.
    Requested,
}

impl StopReason {
    /// The VMM's exit status: 0, that of the guest's program or, from a debug exit port, an odd number.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            StopReason::PowerOff | StopReason::Requested => 0,
            StopReason::Exited { status } | StopReason::DebugExit { status } => status,
        }
    }
}

/// Why a guest could not start or go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Where the cause lies.
    pub kind: FailureKind,
    /// What failed, why, and what to do next; whole sentences for people.
    pub message: String,
}

impl Failure {
    /// A failure whose cause is an error below, which its `message` tells in full.
    pub fn new(kind: FailureKind, message: impl fmt::Display) -> Failure {
        Failure { kind, message: without_numbers(message.to_string()) }
    }

    /// A problem of this host: no permission, no space, a port in use, too little memory.
    pub fn host(message: impl fmt::Display) -> Failure {
        Failure::new(FailureKind::Host, message)
    }

    /// A file that is missing, damaged or not what it should be: a kernel, an image.
    pub fn artifact(message: impl fmt::Display) -> Failure {
        Failure::new(FailureKind::Artifact, message)
    }

    /// A configuration that asks for what cannot be.
    pub fn configuration(message: impl fmt::Display) -> Failure {
        Failure::new(FailureKind::Configuration, message)
    }

    /// A mistake in Lodge itself.
    pub fn internal(message: impl fmt::Display) -> Failure {
        Failure::new(FailureKind::Internal, message)
    }
}

/// The standard library puts the number of a system's error behind its words, as in "Permission
/// denied (os error 13)". To a person that says nothing more.
fn without_numbers(mut text: String) -> String {
    const MARK: &str = " (os error ";
    while let Some(start) = text.find(MARK) {
        let rest = &text[start + MARK.len()..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || rest.as_bytes().get(digits) != Some(&b')') {
            break;
        }
        text.replace_range(start..start + MARK.len() + digits + 1, "");
    }
    text
}

/// Where the cause of a failure lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// The configuration asks for what cannot be.
    Configuration,
    /// A file is missing, damaged or not what it should be.
    Artifact,
    /// This host does not allow or does not have what is needed.
    Host,
    /// A mistake in Lodge itself.
    Internal,
}

impl FailureKind {
    /// The exit status of a program that ends for this. All are even, since a guest's debug exit
    /// port makes odd ones; 2 is also what a wrong command line gives.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            FailureKind::Configuration => 2,
            FailureKind::Artifact => 4,
            FailureKind::Host => 6,
            FailureKind::Internal => 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_travel_as_lines() {
        let events = [
            Event::Started {
                accelerator: Accelerator::Soft,
                accelerator_reason: "there is no /dev/kvm".into(),
                serial_pty: Some("/dev/pts/3".into()),
                virtio_console_pty: None,
                gdb: Some("127.0.0.1:1234".into()),
            },
            Event::Reset,
            Event::Warning { message: "two\nlines".into() },
            Event::Stopped { reason: StopReason::DebugExit { status: 3 } },
            Event::Stopped { reason: StopReason::Exited { status: 0 } },
            Event::Error(Failure::host("port 22 is in use")),
        ];
        let mut bytes = Vec::new();
        for event in &events {
            event.write_line(&mut bytes).unwrap();
        }
        assert_eq!(bytes.iter().filter(|&&b| b == b'\n').count(), events.len());
        let mut reader = bytes.as_slice();
        for event in &events {
            assert_eq!(Event::read_line(&mut reader).unwrap().as_ref(), Some(event));
        }
        assert_eq!(Event::read_line(&mut reader).unwrap(), None);
    }

    #[test]
    fn failures_are_told_without_numbers() {
        let error = io::Error::from_raw_os_error(2);
        let failure = Failure::host(format!("cannot open a: {error}; nor b: {error}"));
        let text = "cannot open a: No such file or directory; nor b: No such file or directory";
        assert_eq!(failure.message, text);
        for name in ["cannot open x (os error)", "x (os error ", "x (os error 2", "x (os error 2]"]
        {
            assert_eq!(Failure::host(name).message, name);
        }
    }

    #[test]
    fn the_wire_form_is_stable() {
        let text = |event: &Event| serde_json::to_string(event).unwrap();
        assert_eq!(
            text(&Event::Stopped { reason: StopReason::PowerOff }),
            r#"{"event":"stopped","reason":"power-off"}"#
        );
        assert_eq!(
            text(&Event::Error(Failure::artifact("no kernel"))),
            r#"{"event":"error","kind":"artifact","message":"no kernel"}"#
        );
    }

    #[test]
    fn a_line_that_is_no_event_is_refused() {
        let error = Event::read_line(&mut b"hello\n".as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn failures_never_look_like_a_debug_exit() {
        for kind in [
            FailureKind::Configuration,
            FailureKind::Artifact,
            FailureKind::Host,
            FailureKind::Internal,
        ] {
            let status = kind.exit_status();
            assert!(status != 0 && status % 2 == 0, "{kind:?}");
        }
    }
}
