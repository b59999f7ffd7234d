//! GDB's place in this process.

use std::cell::Cell;
use std::sync::Arc;

use gdb::{Debugger, Listener, Seats};
use mem::GuestMemory;
use rustix::process::{Signal, getpid, kill_process};
use vmm_api::{Failure, GdbAddress, GdbConfig};

/// Where GDB connects to, for as long as this process lives; each machine gets a debugger that
/// listens there.
pub struct Debugging {
    listener: Arc<Listener>,
    /// The next machine waits for GDB.
    waits: Cell<bool>,
}

impl Debugging {
    /// Listens as the configuration asks for.
    pub fn open(config: &GdbConfig) -> Result<Self, Failure> {
        let (listener, remedy) = match &config.at {
            GdbAddress::Tcp(address) => (Listener::tcp(*address), "choose another port"),
            GdbAddress::Socket(path) => {
                (Listener::unix(path.clone()), "choose another path, or remove what is there")
            }
        };
        let listener = listener.map_err(|error| {
            let place = match &config.at {
                GdbAddress::Tcp(address) => address.to_string(),
                GdbAddress::Socket(path) => path.display().to_string(),
            };
            Failure::host(format!("cannot listen for GDB at {place}: {error}; {remedy}"))
        })?;
        Ok(Self { listener: Arc::new(listener), waits: Cell::new(config.wait) })
    }

    /// Where that is, for GDB's `target remote`.
    pub fn place(&self) -> String {
        self.listener.to_string()
    }

    /// The seats of a new machine's processors. Only the first machine waits for GDB.
    pub fn seats(&self) -> Result<Seats, Failure> {
        Seats::new(self.waits.replace(false))
            .map_err(|error| Failure::host(format!("cannot make an event: {error}")))
    }

    /// Starts the debugger of a machine.
    pub fn start(&self, seats: Seats, ram: GuestMemory) -> Result<Debugger, Failure> {
        let kill = || {
            // As a person's Ctrl-C: the main loop ends the guest in good order.
            if let Err(error) = kill_process(getpid(), Signal::INT) {
                tracing::warn!("GDB wants the guest to end, which cannot be told: {error}");
            }
        };
        Debugger::start(self.listener.clone(), seats, ram, kill).map_err(|error| {
            Failure::host(format!("cannot start a thread: {error}; raise the limit on processes"))
        })
    }
}
