//! The API socket: answers whoever asks about the guest while it runs.

use std::io::{self, BufReader, ErrorKind};
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmm_api::{Accelerator, Answer, Failure, Request, Statistics};

use crate::fds;
use crate::meter::{self, Meter};

/// How many may be connected at once; others are turned away. The socket is the user's own.
const MAX_CLIENTS: usize = 16;
/// How long a client may take to read its answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// A machine as clients see it.
pub struct Shown {
    /// The guest's name.
    pub name: String,
    /// What runs its processors.
    pub accelerator: Accelerator,
    /// How often it was reset.
    pub resets: u64,
    /// When it was started or last reset.
    pub begun: Instant,
    /// What its processors count.
    pub meters: Vec<Arc<Meter>>,
}

/// The machine of now: a reset puts another in its place.
type Current = Mutex<Arc<Shown>>;

/// The API of a guest.
#[derive(Default)]
pub struct Api {
    /// Where clients come from, until they are served.
    listener: Option<UnixListener>,
    current: Option<Arc<Current>>,
}

impl Api {
    /// Takes the listening descriptor, if there is one. Without it, nobody can ask.
    pub fn new(fd: Option<RawFd>) -> Result<Self, Failure> {
        let listener = fd
            .map(|fd| {
                fds::inherited(fd).map(UnixListener::from).map_err(|e| {
                    Failure::host(format!("cannot use the API's descriptor {fd}: {e}"))
                })
            })
            .transpose()?;
        Ok(Self::over(listener))
    }

    /// Answers at an open socket.
    pub fn over(listener: Option<UnixListener>) -> Self {
        Self { listener, current: None }
    }

    /// Has clients see this machine from now on. Those who come earlier wait for the first.
    pub fn show(&mut self, shown: Shown) -> Result<(), Failure> {
        let shown = Arc::new(shown);
        let current = self.current.get_or_insert_with(|| Arc::new(Mutex::new(shown.clone())));
        *current.lock().unwrap_or_else(PoisonError::into_inner) = shown;
        if let Some(listener) = self.listener.take() {
            let current = current.clone();
            spawn(move || accept(&listener, &current)).map_err(|e| {
                Failure::host(format!("cannot start a thread: {e}; raise the limit on processes"))
            })?;
        }
        Ok(())
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("api".to_owned()).spawn(work).map(drop)
}

/// Serves clients for as long as the process lives, each on a thread of its own.
fn accept(listener: &UnixListener, current: &Arc<Current>) {
    // Each client's thread holds one of these.
    let seats = Arc::new(());
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(e) if e.kind() == ErrorKind::InvalidInput => {
                return tracing::warn!("the API's descriptor is no listening socket: {e}");
            }
            // Out of descriptors, perhaps.
            Err(e) => {
                tracing::debug!("the API cannot accept: {e}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let (seat, current) = (seats.clone(), current.clone());
        if Arc::strong_count(&seats) > MAX_CLIENTS + 1 {
            tracing::warn!("more than {MAX_CLIENTS} clients of the API: one is turned away");
            continue;
        }
        let serve = move || {
            if let Err(e) = serve(&client, &current) {
                tracing::debug!("a client of the API is gone: {e}");
            }
            drop(seat);
        };
        if let Err(e) = spawn(serve) {
            tracing::warn!("cannot start a thread for a client of the API: {e}");
        }
    }
}

/// Answers one client until it closes the connection or makes no sense.
fn serve(client: &UnixStream, current: &Current) -> io::Result<()> {
    client.set_write_timeout(Some(CLIENT_PATIENCE))?;
    let mut reader = BufReader::new(client);
    let mut writer = client;
    loop {
        match Request::read_line(&mut reader) {
            Ok(None) => return Ok(()),
            Ok(Some(Request::Statistics)) => {
                let shown = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Answer::Statistics(shown.statistics()).write_line(&mut writer)?;
            }
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                let failure = Failure::configuration(format!(
                    "the guest's lodge-vmm does not understand the request ({e}); it may be of \
                     another version than who asks"
                ));
                return Answer::Error(failure).write_line(&mut writer);
            }
            Err(e) => return Err(e),
        }
    }
}

impl Shown {
    fn statistics(&self) -> Statistics {
        let processors = meter::ask_all(&self.meters);
        Statistics {
            name: self.name.clone(),
            accelerator: self.accelerator,
            resets: self.resets,
            running_ns: self.begun.elapsed().as_nanos().try_into().unwrap_or(u64::MAX),
            processors,
        }
    }
}
