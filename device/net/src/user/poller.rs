//! The file descriptors that the network's thread waits for.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

/// Who waits for a file descriptor. The numbers of flows are never used again, so that an
/// event for one that is gone finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The other threads' signal.
    Wake,
    /// A TCP flow.
    Tcp(u64),
    /// A UDP flow.
    Udp(u64),
    /// A series of ICMP echoes.
    Echo(u64),
    /// A DNS query.
    Query(u64),
    /// A forwarded port.
    Forward(u64),
}

impl Token {
    const KIND_SHIFT: u32 = 56;

    fn to_data(self) -> epoll::EventData {
        let (kind, id) = match self {
            Self::Wake => (0, 0),
            Self::Tcp(id) => (1, id),
            Self::Udp(id) => (2, id),
            Self::Echo(id) => (3, id),
            Self::Query(id) => (4, id),
            Self::Forward(id) => (5, id),
        };
        epoll::EventData::new_u64(kind << Self::KIND_SHIFT | id)
    }

    fn from_data(data: epoll::EventData) -> Self {
        let id = data.u64() & ((1 << Self::KIND_SHIFT) - 1);
        match data.u64() >> Self::KIND_SHIFT {
            1 => Self::Tcp(id),
            2 => Self::Udp(id),
            3 => Self::Echo(id),
            4 => Self::Query(id),
            5 => Self::Forward(id),
            _ => Self::Wake,
        }
    }
}

/// What happened to a file descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Whose it is.
    pub token: Token,
    /// There is something to read, or an end or an error to read.
    pub readable: bool,
    /// There is room to write, or an error to find by writing.
    pub writable: bool,
    /// The peer sends no more.
    pub ended: bool,
    /// The connection is gone in both directions.
    pub gone: bool,
}

/// How many events are taken at a time.
const EVENTS: usize = 128;

/// An epoll instance.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// A poller that waits for nothing.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Waits for `fd` to be readable, and tells so as long as it is. Closing `fd` ends it.
    pub fn add_readable(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, token.to_data(), epoll::EventFlags::IN)?)
    }

    /// Waits for the changes of `fd`: each is told once. Closing `fd` ends it.
    pub fn add_edges(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, token.to_data(), flags)?)
    }

    /// Waits at most `timeout`, or without end, and appends what happened to `events`.
    pub fn wait(&self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().min(3600).cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS];
        let happened = match epoll::wait(&self.epoll, &mut buffer, timeout.as_ref()) {
            Ok((happened, _)) => happened,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        events.extend(happened.iter().map(|event| {
            // Copied out of a packed structure.
            let flags = event.flags;
            let error = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            let ended = error || flags.contains(epoll::EventFlags::RDHUP);
            Event {
                token: Token::from_data(event.data),
                readable: ended || flags.contains(epoll::EventFlags::IN),
                writable: error || flags.contains(epoll::EventFlags::OUT),
                ended,
                gone: error,
            }
        }));
        Ok(())
    }
}
