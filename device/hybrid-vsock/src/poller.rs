//! The host's sockets that are waited for. The workers wait for all of them by one descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

/// Who else waits for connections has a number from [`FIRST_CONNECTION`] on.
pub const WAKE: u64 = 0;
/// The socket on which programs of the host connect.
pub const LISTENER: u64 = 1;
/// Numbers of connections start here, and none is used again.
pub const FIRST_CONNECTION: u64 = 2;

/// How many events are taken at a time.
const EVENTS: usize = 64;

/// What happened to a descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The number by which it was added.
    pub id: u64,
    /// There is something to read, or an end or an error to read.
    pub readable: bool,
    /// There is room to write, or an error to find by writing.
    pub writable: bool,
    /// Nobody is at the other end any more.
    pub hung_up: bool,
}

/// An epoll instance (epoll(7)), itself readable while it has events.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// A poller that waits for nothing.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Waits for the changes of `fd`: each is told once. Closing `fd` ends it.
    pub fn add_edges(&self, fd: impl AsFd, id: u64) -> io::Result<()> {
        use epoll::EventFlags;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(id), flags)?)
    }

    /// What has happened; `false` if nothing has.
    pub fn take(&self, happened: &mut Vec<Event>) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
        // Interrupted: whoever waits for the poller comes back.
        let count = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now)).unwrap_or(0);
        happened.extend(events.iter().map(|event| {
            let (flags, id) = (event.flags, event.data.u64());
            use epoll::EventFlags;
            Event {
                id,
                readable: flags.intersects(
                    EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR,
                ),
                writable: flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR),
                hung_up: flags.contains(EventFlags::HUP),
            }
        }));
        count > 0
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
