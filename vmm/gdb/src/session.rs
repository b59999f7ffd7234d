//! One connection of GDB, from its first byte to its last.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError};
use runtime::Event;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::target::Machine;

/// A packet of GDB has at most this many bytes; it hears so, and divides what is longer.
const PACKET: usize = 16 << 10;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// GDB let go of the guest, or is gone.
    Detached,
    /// GDB wants the guest to end.
    Kill,
}

/// Why a session broke off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection.
    #[error("the connection: {0}")]
    Connection(#[from] io::Error),
    /// GDB, or what understands it.
    #[error("the protocol: {0}")]
    Protocol(String),
}

/// A connected stream socket, of whichever kind.
struct Wire(OwnedFd);

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.write_all(&[byte])
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            // Without SIGPIPE, if GDB is gone.
            match rustix::net::send(&self.0, bytes, rustix::net::SendFlags::NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Stub<'a> = GdbStubStateMachine<'a, Machine, Wire>;

/// Serves GDB at `stream` until one of them ends it. The processors are held. `news` says that a
/// processor stopped.
pub fn serve(machine: &mut Machine, stream: OwnedFd, news: &Event) -> Result<Ending, Error> {
    let reader = stream.try_clone()?;
    let mut buffer = vec![0; PACKET];
    let stub = GdbStub::builder(Wire(stream)).with_packet_buffer(&mut buffer).build();
    let stub = stub.map_err(|error| Error::Protocol(error.to_string()))?;
    let mut stub = stub.run_state_machine(machine).map_err(broken)?;
    let mut bytes = [0; 4096];
    loop {
        if let Some(ending) = ending(&stub) {
            return Ok(ending);
        }
        let arrived = wait(&reader, news)?;
        if let GdbStubStateMachine::Running(running) = stub {
            stub = match machine.find_stop() {
                Some(reason) => running.report_stop(machine, reason).map_err(broken)?,
                None => running.into(),
            };
        } else if machine.has_ended() {
            return Ok(Ending::Detached);
        }
        if arrived {
            let count = match rustix::io::read(&reader, &mut bytes) {
                Ok(0) | Err(Errno::CONNRESET) => return Ok(Ending::Detached),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            };
            for &byte in &bytes[..count] {
                stub = feed(stub, machine, byte)?;
            }
        }
    }
}

/// Waits for GDB or a processor. Says whether GDB sent something.
fn wait(reader: &OwnedFd, news: &Event) -> Result<bool, Error> {
    let mut fds = [
        PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(news.as_fd(), PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(io::Error::from(error).into()),
    }
    let arrived = !fds[0].revents().is_empty();
    news.clear();
    Ok(arrived)
}

/// Takes one byte of GDB's.
fn feed<'a>(stub: Stub<'a>, machine: &mut Machine, byte: u8) -> Result<Stub<'a>, Error> {
    let stub = match stub {
        GdbStubStateMachine::Idle(idle) => idle.incoming_data(machine, byte),
        GdbStubStateMachine::Running(running) => running.incoming_data(machine, byte),
        stub => Ok(stub),
    };
    match stub.map_err(broken)? {
        GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
            machine.hold();
            interrupt.interrupt_handled(machine, Some(machine.interrupted())).map_err(broken)
        }
        stub => Ok(stub),
    }
}

fn ending(stub: &Stub<'_>) -> Option<Ending> {
    match stub {
        GdbStubStateMachine::Disconnected(end) => Some(match end.get_reason() {
            DisconnectReason::Kill => Ending::Kill,
            _ => Ending::Detached,
        }),
        _ => None,
    }
}

fn broken(error: GdbStubError<&'static str, io::Error>) -> Error {
    if error.is_connection_error() {
        match error.into_connection_error() {
            Some((error, _)) => Error::Connection(error),
            None => Error::Protocol("it broke off".to_owned()),
        }
    } else {
        Error::Protocol(error.to_string())
    }
}
