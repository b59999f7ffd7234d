//! Serves GDB's remote protocol for a guest's processors: `target remote` in GDB.
//!
//! Processors are GDB's threads; all of them stand still while GDB has the word. Breakpoints are
//! INT3s in guest memory, hardware breakpoints and watchpoints are points of the accelerator
//! ([`accel::DebugControl`]). A guest that nobody debugs pays nothing.

#![forbid(unsafe_code)]

mod listen;
mod memory;
mod points;
mod registers;
mod seat;
mod session;
mod target;
mod x87;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use accel::Kicker;
use mem::GuestMemory;
use runtime::Event;
use runtime::thread::{Role, spawn};
use rustix::event::{PollFd, PollFlags, poll};

pub use listen::Listener;
pub use seat::Seat;
use session::Ending;
use target::Machine;

/// The seats of a machine's processors, before they run.
pub struct Seats {
    news: Arc<Event>,
    seats: Vec<Arc<Seat>>,
    is_held: bool,
}

impl Seats {
    /// None yet. With `is_held`, processors wait for GDB before their first instruction.
    ///
    /// # Errors
    ///
    /// The host's, if it gives no descriptor.
    pub fn new(is_held: bool) -> io::Result<Self> {
        Ok(Self { news: Arc::new(Event::new()?), seats: Vec::new(), is_held })
    }

    /// The seat of the next processor, which `kicker` kicks.
    pub fn add(&mut self, kicker: Kicker) -> Arc<Seat> {
        let seat = Arc::new(Seat::new(kicker, self.news.clone(), self.is_held));
        self.seats.push(seat.clone());
        seat
    }
}

/// The debugger of a machine, at work on a thread of its own. Dropped, it ends; by then, all
/// processors must have ended.
pub struct Debugger {
    thread: Option<JoinHandle<()>>,
    news: Arc<Event>,
    is_over: Arc<AtomicBool>,
}

impl Debugger {
    /// Waits for GDB at `listener`, one after the other. `kill` is called when it wants the guest to
    /// end.
    ///
    /// # Errors
    ///
    /// The host's, if it gives no thread.
    pub fn start(
        listener: Arc<Listener>,
        seats: Seats,
        ram: GuestMemory,
        kill: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let Seats { news, seats, is_held: _ } = seats;
        let is_over = Arc::new(AtomicBool::new(false));
        let (told, ends) = (news.clone(), is_over.clone());
        let mut machine = Machine::new(seats, ram, news.clone());
        let thread = spawn(Role::Debugger, "gdb", move || {
            while !ends.load(Ordering::SeqCst) {
                if await_connection(&listener, &told) {
                    attend(&listener, &mut machine, &told, &kill);
                }
            }
        })?;
        Ok(Self { thread: Some(thread), news, is_over })
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.news.signal();
        if let Some(thread) = self.thread.take() {
            // If it panicked, it said so.
            let _ = thread.join();
        }
    }
}

/// Waits for a connection, or for news. Says whether there is a connection.
fn await_connection(listener: &Listener, news: &Event) -> bool {
    let mut fds = [
        PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(news.as_fd(), PollFlags::IN),
    ];
    // An error is as good as an interruption: both are looked at again.
    let _ = poll(&mut fds, None);
    let is_there = !fds[0].revents().is_empty();
    news.clear();
    is_there
}

/// Serves one connection.
fn attend(listener: &Listener, machine: &mut Machine, news: &Event, kill: &impl Fn()) {
    let stream = match listener.accept() {
        Ok(stream) => stream,
        // It changed its mind.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
        Err(error) => {
            tracing::warn!("cannot take GDB's connection: {error}");
            return thread::sleep(Duration::from_millis(100));
        }
    };
    tracing::info!("GDB is connected");
    machine.hold();
    let ending = session::serve(machine, stream, news);
    // What GDB left undone, however it went.
    machine.hold();
    machine.leave();
    match ending {
        Ok(Ending::Detached) => tracing::info!("GDB is gone"),
        Ok(Ending::Kill) => kill(),
        Err(error) => tracing::warn!("GDB is gone: {error}"),
    }
}
