//! The API: JSON by HTTP/1.1 on a Unix socket, for whoever asks about the guest while it runs or
//! wants something done with it. docs/api/openapi.json describes it.
//!
//! One thread serves all clients, with hyper on tokio's single-threaded runtime: the parser that
//! most of Rust's servers use, at the price of one thread and under 1 MiB of memory. Frameworks
//! above it (axum) would add routing, of which a dozen fixed paths need none.
//!
//! Nothing here can hold up the guest: what only the thread that drives the machine can do is
//! handed to it by [`Orders`](crate::control::Orders).

mod balloon;
mod body;
mod console;
mod endpoints;
mod query;
mod server;
mod streams;
mod upgrade;
mod vsock;

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use hybrid_vsock::Vsock;
use machine::Counters;
use runtime::thread::{Role, spawn};
use tokio::sync::watch;
use virtio::Balloon;
use vmm_api::{
    AGENT_READY_PORT, Accelerator, Event, Failure, Instance, MemoryStatistics, RunState, Snapshot,
    Statistics, VmConfig,
};

use crate::control::Orders;
use crate::directory::Directory;
use crate::fds;
use crate::hub::{Ends, Hub};
use crate::journal::{Journal, unix_ms};
use crate::meter::{self, Meter};
use crate::snapshot;

/// A machine as clients see it.
#[derive(Clone)]
pub struct Shown {
    /// What the guest is made of.
    pub config: Arc<VmConfig>,
    /// What it is doing.
    pub state: RunState,
    /// Why it is paused, unless somebody asked for it.
    pub pause_reason: Option<String>,
    /// What runs its processors.
    pub accelerator: Accelerator,
    /// How often it was reset.
    pub resets: u64,
    /// When it was started or last reset.
    pub begun: Instant,
    /// What its processors count.
    pub meters: Vec<Arc<Meter>>,
    /// What its disks, cards and folders count.
    pub counters: Counters,
}

/// What clients reach.
struct Shared {
    /// The machine of now: a reset puts another in its place.
    shown: Mutex<Shown>,
    /// When the guest was first started, in milliseconds since 1970.
    started_ms: u64,
    orders: Arc<Orders>,
    journal: Arc<Journal>,
    /// `None`: the first serial port leads elsewhere.
    console: Option<Arc<Hub>>,
    /// The guest's, if it has one.
    directory: Option<OwnedFd>,
    /// `None`: there is no guest that could be connected to.
    vsock: Option<Arc<Vsock>>,
    /// `None`: the guest has none.
    balloon: Option<Arc<Balloon>>,
    own_memory: OwnMemory,
}

/// The API of a guest.
pub struct Api {
    /// Where clients come from, until they are served.
    listener: Option<UnixListener>,
    directory: Directory,
    orders: Arc<Orders>,
    journal: Arc<Journal>,
    console: Option<(Arc<Hub>, Option<Ends>)>,
    vsock: Option<Arc<Vsock>>,
    balloon: Option<Arc<Balloon>>,
    shared: Option<Arc<Shared>>,
    server: Option<Server>,
    own_memory: OwnMemory,
}

/// The thread that serves clients.
struct Server {
    closing: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Api {
    /// Takes the descriptor that listens, if there is one: without it, nobody can ask. `directory`
    /// is where the console's log is kept.
    pub fn new(
        fd: Option<RawFd>,
        directory: Directory,
        journal: Arc<Journal>,
    ) -> Result<Self, Failure> {
        let listener = fd
            .map(|fd| {
                fds::inherited(fd).map(UnixListener::from).map_err(|e| {
                    Failure::host(format!("cannot use the API's descriptor {fd}: {e}"))
                })
            })
            .transpose()?;
        Self::over(listener, directory, journal)
    }

    /// Answers at an open socket.
    pub fn over(
        listener: Option<UnixListener>,
        directory: Directory,
        journal: Arc<Journal>,
    ) -> Result<Self, Failure> {
        let orders =
            Orders::new().map_err(|e| Failure::host(format!("cannot make an event: {e}")))?;
        Ok(Self {
            listener,
            directory,
            orders,
            journal,
            console: None,
            vsock: None,
            balloon: None,
            shared: None,
            server: None,
            own_memory: OwnMemory::open(),
        })
    }

    /// Whether anybody can ask.
    pub fn is_served(&self) -> bool {
        self.listener.is_some() || self.server.is_some()
    }

    /// The guest's directory, if it has one.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// What the guest is made of, and what runs it, if clients have seen it yet.
    pub fn shown(&self) -> Option<Shown> {
        self.shared.as_ref().map(|shared| shared.shown())
    }

    /// What clients want done.
    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Makes a console that clients can attach to, besides `starter`. What is returned is for the
    /// serial port.
    pub fn open_console(&mut self, starter: Option<OwnedFd>) -> Result<OwnedFd, Failure> {
        let log = self.directory.console_log()?;
        let (hub, ends, guest) = Hub::new(log, starter)
            .map_err(|e| Failure::host(format!("cannot open the guest's console: {e}")))?;
        self.console = Some((hub, Some(ends)));
        Ok(guest)
    }

    /// Makes the host's end of the guest's socket device, by which clients connect to the guest.
    pub fn open_vsock(&mut self) -> Result<Arc<Vsock>, Failure> {
        let vsock = Arc::new(self.directory.vsock()?);
        let journal = self.journal.clone();
        vsock.listen_for(AGENT_READY_PORT, move || journal.record(&Event::AgentReady));
        self.vsock = Some(vsock.clone());
        Ok(vsock)
    }

    /// Makes the host's end of the guest's balloon, by which clients have it give memory back, if it is to
    /// have one.
    pub fn open_balloon(&mut self, config: &VmConfig) -> Result<Option<Arc<Balloon>>, Failure> {
        // Huge pages were set aside for the guest, so that it can count on them.
        let balloon = config.balloon.then(|| Balloon::new(!config.hugepages)).transpose();
        let balloon = balloon.map_err(|e| Failure::host(format!("cannot make an event: {e}")))?;
        self.balloon = balloon.map(Arc::new);
        Ok(self.balloon.clone())
    }

    /// Has clients see this machine from now on. Those who come earlier wait for the first.
    pub fn show(&mut self, shown: Shown) -> Result<(), Failure> {
        if let Some(shared) = &self.shared {
            *shared.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
            return Ok(());
        }
        let shared = Arc::new(Shared {
            shown: Mutex::new(shown),
            started_ms: unix_ms(),
            orders: self.orders.clone(),
            journal: self.journal.clone(),
            console: self.console.as_ref().map(|(hub, _)| hub.clone()),
            directory: self.directory.handle()?,
            vsock: self.vsock.clone(),
            balloon: self.balloon.clone(),
            own_memory: self.own_memory.clone(),
        });
        self.shared = Some(shared.clone());
        let Some(listener) = self.listener.take() else { return Ok(()) };
        let console =
            self.console.as_mut().and_then(|(hub, ends)| Some((hub.clone(), ends.take()?)));
        let (closing, closed) = watch::channel(false);
        let serve = move || server::serve(listener, shared, console, closed);
        let thread = spawn(Role::Api, "api", serve).map_err(|e| {
            Failure::host(format!("cannot start a thread: {e}; raise the limit on processes"))
        })?;
        self.server = Some(Server { closing, thread });
        Ok(())
    }

    /// Has clients see what the guest is doing.
    pub fn set_state(&self, state: RunState) {
        if let Some(shared) = &self.shared {
            let mut shown = shared.shown.lock().unwrap_or_else(PoisonError::into_inner);
            (shown.state, shown.pause_reason) = (state, None);
        }
    }

    /// Has clients see that the guest is paused, and why, unless somebody asked for it.
    pub fn set_paused(&self, reason: Option<String>) {
        if let Some(shared) = &self.shared {
            let mut shown = shared.shown.lock().unwrap_or_else(PoisonError::into_inner);
            (shown.state, shown.pause_reason) = (RunState::Paused, reason);
        }
    }

    /// Lets clients read the last events and output, for a moment at most, and serves no more. The
    /// guest's consoles must have been closed.
    pub fn finish(mut self) {
        self.journal.end();
        if let Some(Server { closing, thread }) = self.server.take() {
            let _ = closing.send(true);
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The guest's snapshots.
    fn snapshots(&self) -> Result<Vec<Snapshot>, Failure> {
        self.directory.as_ref().map_or(Ok(Vec::new()), snapshot::list)
    }

    fn shown(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn instance(&self) -> Instance {
        let shown = self.shown();
        Instance {
            name: shown.config.name.clone(),
            state: shown.state,
            pause_reason: shown.pause_reason,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            accelerator: shown.accelerator,
            cpus: shown.config.cpus,
            memory_mib: shown.config.memory_mib,
            started_ms: self.started_ms,
            resets: shown.resets,
        }
    }
}

impl Shown {
    /// What was counted. Waits for processors, two seconds at most.
    fn statistics(&self, resident_bytes: u64) -> Statistics {
        Statistics {
            name: self.config.name.clone(),
            accelerator: self.accelerator,
            resets: self.resets,
            running_ns: self.begun.elapsed().as_nanos().try_into().unwrap_or(u64::MAX),
            memory: MemoryStatistics { guest_bytes: self.config.memory_mib << 20, resident_bytes },
            processors: meter::ask_all(&self.meters),
            disks: self.counters.disks(),
            nets: self.counters.nets(),
            folders: self.counters.folders(),
        }
    }
}

/// What the host says of this process's memory: open, because a process that has confined itself could
/// not open it.
#[derive(Clone)]
struct OwnMemory(Option<Arc<File>>);

impl OwnMemory {
    fn open() -> Self {
        Self(File::open("/proc/self/statm").ok().map(Arc::new))
    }

    /// What of it is in the host's memory (proc(5), statm: pages; the second number); 0 if the host does
    /// not say.
    fn resident_bytes(&self) -> u64 {
        self.resident_pages()
            .map_or(0, |pages| pages.saturating_mul(rustix::param::page_size() as u64))
    }

    fn resident_pages(&self) -> Option<u64> {
        let mut text = [0; 128];
        let len = self.0.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..len)?).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    }
}
