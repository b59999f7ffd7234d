//! Where a console's bytes go to and come from: the host's end of serial ports and virtio
//! consoles.
//!
//! ```text
//!   vCPU -> console device -> [ring] -> worker thread -> terminal, socket, file
//!                    device <----------- worker thread <- terminal, socket
//! ```
//!
//! A [`Chardev`] never makes a vCPU wait: output goes into a bounded ring that a worker drains.
//! A full ring takes nothing more, and the device passes that on to its guest (a UART's
//! transmitter stays busy) until the worker reports room. Input flows only as fast as the device
//! says it can take it. Nothing is lost in either direction while somebody is connected.

#![forbid(unsafe_code)]

mod front;
mod port;
mod ring;
mod socket;
mod terminal;
mod worker;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

pub use front::{FrontEnd, FrontEndMut};
pub use terminal::RawTerminal;

use runtime::thread::{Role, spawn};

use port::Port;
use ring::Ring;
use worker::Shared;

/// How many bytes of output wait for a slow reader, or are kept for one that has not come yet.
pub const RING_SIZE: usize = 64 * 1024;

/// How long the end of a [`Chardev`] waits for its last output to be taken.
const GRACE: Duration = Duration::from_secs(1);

/// Where a console leads.
#[derive(Debug)]
pub enum Backend {
    /// Nowhere: output is dropped, and there is no input.
    Null,
    /// Standard input and output of this process, in whichever mode the terminal is
    /// (see [`RawTerminal`]).
    Stdio,
    /// An open stream: a connected socket, a pipe, a terminal. When its far end closes, output
    /// is dropped from then on.
    Stream(OwnedFd),
    /// A new pseudo terminal; [`Chardev::pty`] tells its name.
    Pty,
    /// A Unix socket to listen at, accessible to this user only. One client at a time; the
    /// newest [`RING_SIZE`] bytes of output are kept for the next client while there is none.
    Socket(PathBuf),
    /// A file to append output to, created if missing. No input.
    Log(PathBuf),
}

/// A back end could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be made.
    #[error(
        "cannot listen at the console socket {path}: {source}; \
         choose a path in a directory you may write to, at most 107 bytes long"
    )]
    Socket {
        /// Where it was to be.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Somebody listens at this socket.
    #[error("the console socket {0} is in use by another process; choose another path")]
    SocketInUse(PathBuf),
    /// Something that is not a socket is in the place.
    #[error("{0} exists and is not a socket; choose another path for the console socket")]
    NotASocket(PathBuf),
    /// The log file cannot be opened.
    #[error("cannot open the console log {path} for writing: {source}; choose another path")]
    Log {
        /// Where it was to be.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// No pseudo terminal is to be had.
    #[error("cannot open a pseudo terminal: {0}; check that /dev/pts is mounted")]
    Pty(io::Error),
    /// The process has no usable standard input or output.
    #[error("cannot use standard input and output as console: {0}; choose another console")]
    Stdio(io::Error),
    /// The host has no thread or file descriptor to give.
    #[error("cannot start the console's worker: {0}; raise the limits on open files and threads")]
    Worker(io::Error),
}

/// An open back end. Dropping it flushes what output it can within a second, ends the worker and
/// closes the back end. Any thread may call.
pub struct Chardev {
    /// `None`: output is dropped, and there is no input.
    worker: Option<Worker>,
    pty: Option<PathBuf>,
}

struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Hangs up when the worker has ended.
    ended: std::sync::Mutex<mpsc::Receiver<()>>,
}

impl Chardev {
    /// Opens `backend` and starts its worker thread.
    pub fn open(backend: Backend) -> Result<Self, Error> {
        let (port, pty) = match backend {
            Backend::Null => return Ok(Self::null()),
            Backend::Stdio => (Port::stdio().map_err(Error::Stdio)?, None),
            Backend::Stream(fd) => (Port::stream(fd).map_err(Error::Worker)?, None),
            Backend::Pty => {
                let (port, path) = Port::pty().map_err(Error::Pty)?;
                (port, Some(path))
            }
            Backend::Socket(path) => (Port::Socket(socket::Server::listen(path)?), None),
            Backend::Log(path) => {
                (Port::log(&path).map_err(|source| Error::Log { path, source })?, None)
            }
        };
        let shared =
            Arc::new(Shared::new(Ring::new(RING_SIZE), port.reader()).map_err(Error::Worker)?);
        let (end, ended) = mpsc::channel();
        let thread = spawn(Role::Console, "console", {
            let shared = shared.clone();
            move || {
                let _end: mpsc::Sender<()> = end;
                worker::run(&shared, port);
            }
        })
        .map_err(Error::Worker)?;
        let worker = Worker { shared, thread: Some(thread), ended: ended.into() };
        Ok(Self { worker: Some(worker), pty })
    }

    /// A console that leads nowhere.
    pub fn null() -> Self {
        Self { worker: None, pty: None }
    }

    /// The terminal to open in order to speak with the guest, if the back end is a pty.
    pub fn pty(&self) -> Option<&PathBuf> {
        self.pty.as_ref()
    }

    /// Connects the device that input goes to. Call once the device exists; input that came
    /// before waits.
    pub fn attach(&self, device: Weak<dyn FrontEnd>) {
        if let Some(Worker { shared, .. }) = &self.worker {
            *shared.front.lock().unwrap_or_else(PoisonError::into_inner) = Some(device);
            shared.event.signal();
        }
    }

    /// Takes output and returns how many bytes of it were taken. Never blocks. If not all were,
    /// [`FrontEnd::room`] is called when it is worth trying again.
    pub fn write(&self, data: &[u8]) -> usize {
        self.worker.as_ref().map_or(data.len(), |worker| worker.shared.write(data))
    }

    /// How many bytes [`Chardev::write`] would take now.
    pub fn room(&self) -> usize {
        self.worker.as_ref().map_or(usize::MAX, |worker| worker.shared.room())
    }

    /// To be called by a device whose [`FrontEnd::can_receive`] has grown. Cheap, and may be
    /// called with the device's lock held.
    pub fn accept_input(&self) {
        if let Some(worker) = &self.worker {
            worker.shared.accept_input();
        }
    }
}

impl std::fmt::Debug for Chardev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chardev").field("pty", &self.pty).finish_non_exhaustive()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.close();
        let Some(thread) = self.thread.take() else { return };
        // The worker itself may drop a device, and the device this.
        if thread.thread().id() == thread::current().id() {
            return;
        }
        // A worker that hangs in a write to a stopped terminal is left behind: the process ends
        // soon, and that terminal's user decides when.
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(GRACE + GRACE / 2) == Err(mpsc::RecvTimeoutError::Disconnected) {
            let _ = thread.join();
        }
    }
}
