//! One TCP flow: a connection of the guest with us, and one of ours with a peer of the host.
//! What comes in at one end goes out at the other: data, ends of data, and resets.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};

use super::stack::Stack;
use crate::user::host::reset_on_close;
use crate::user::link::Link;

/// If smoltcp wants to be polled at once right after it was polled, it wants something that it
/// did not get. Time alone may change that.
const STUCK: Duration = Duration::from_millis(10);

/// How far a flow is.
#[derive(Debug)]
pub enum Phase {
    /// The guest has sent a SYN, and the host is connecting.
    Connecting {
        /// The guest's SYN: an IP packet.
        syn: Vec<u8>,
        /// Where to try next if it is refused.
        others: Vec<SocketAddr>,
    },
    /// The guest's end is in smoltcp's hands.
    Joined(Box<Stack>),
}

/// A TCP flow.
#[derive(Debug)]
pub struct Flow {
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end as the guest sees it.
    pub remote: SocketAddr,
    /// How far it is.
    pub phase: Phase,
    /// The host's socket, until both directions have ended.
    pub host: Option<TcpStream>,
    /// When the flow came to be.
    pub since: std::time::Instant,
    /// When the guest was heard of last.
    pub last_heard: std::time::Instant,
    /// The time for which the flow is in the queue of timers.
    pub timer: Option<std::time::Instant>,
    /// The flow is on the list of those to be pumped.
    pub is_due: bool,
    /// The host's socket may have something to read.
    readable: bool,
    /// The host's socket may have room.
    writable: bool,
    /// The host's peer has ended its direction: what is left must be read to the end.
    peer_ending: bool,
    /// The end of the host's peer's data has been read.
    peer_ended: bool,
    /// The end of the guest's data has been passed on.
    guest_ended: bool,
    /// The connection did not end in good order.
    reset: bool,
}

/// What a flow does after it was pumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Waits for an event, or at most until a time.
    Wait(Option<Instant>),
    /// Waits for room on the link.
    WaitForRoom,
    /// Is no more.
    Over,
}

impl Flow {
    /// A flow between the guest and the peer of the host's socket.
    pub fn new(
        guest: SocketAddr,
        remote: SocketAddr,
        phase: Phase,
        host: TcpStream,
        now: std::time::Instant,
    ) -> Self {
        Self {
            guest,
            remote,
            phase,
            host: Some(host),
            since: now,
            last_heard: now,
            timer: None,
            is_due: false,
            readable: true,
            writable: true,
            peer_ending: false,
            peer_ended: false,
            guest_ended: false,
            reset: false,
        }
    }

    /// Notes what the host's socket is ready for.
    pub fn note(&mut self, event: &crate::user::poller::Event) {
        self.readable |= event.readable;
        self.writable |= event.writable;
        self.peer_ending |= event.ended;
    }

    /// The state of the guest's end.
    pub fn state(&self) -> Option<State> {
        match &self.phase {
            Phase::Connecting { .. } => None,
            Phase::Joined(stack) => Some(stack.socket().state()),
        }
    }

    /// Whether we have sent the guest a SYN and it has not answered.
    pub fn awaits_guest(&self) -> bool {
        self.state() == Some(State::SynSent)
    }

    /// Ends the flow in both directions at once.
    pub fn abort(&mut self) {
        self.reset = true;
        self.drop_host();
        if let Phase::Joined(stack) = &mut self.phase {
            stack.socket_mut().abort();
        }
    }

    fn drop_host(&mut self) {
        if let Some(host) = self.host.take()
            && self.reset
        {
            reset_on_close(&host);
        }
    }

    /// Passes on what can be passed on.
    pub fn pump(&mut self, link: &mut Link, now: Instant) -> Next {
        if let Err(error) = self.exchange() {
            tracing::debug!(guest = %self.guest, remote = %self.remote, %error, "reset");
            self.abort();
        }
        let Phase::Joined(stack) = &mut self.phase else { return Next::Wait(None) };
        let had_room = stack.output(link, now);
        if self.guest_ended && self.peer_ended {
            self.host = None;
        }
        if stack.is_over() {
            // With the host's socket still there the guest has reset the connection.
            self.reset |= self.host.is_some();
            self.drop_host();
            return Next::Over;
        }
        if !had_room {
            return Next::WaitForRoom;
        }
        Next::Wait(stack.poll_at(now).map(|at| if at <= now { now + STUCK } else { at }))
    }

    /// Moves data between the host's socket and the guest's.
    fn exchange(&mut self) -> io::Result<()> {
        let (Phase::Joined(stack), Some(host)) = (&mut self.phase, &mut self.host) else {
            return Ok(());
        };
        let socket = stack.socket_mut();
        while self.writable && socket.can_recv() {
            // The outer error cannot be: can_recv() has just said so.
            let Ok(written) = socket.recv(|data| match host.write(data) {
                Ok(len) => (len, Ok(len)),
                Err(error) => (0, Err(error)),
            }) else {
                break;
            };
            match written {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let guest_ends = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if guest_ends && !socket.can_recv() && !self.guest_ended {
            self.guest_ended = true;
            // Fails where the peer has closed already; then reading tells.
            let _ = host.shutdown(std::net::Shutdown::Write);
        }
        while self.readable && !self.peer_ended && socket.can_send() {
            let Ok(read) = socket.send(|room| match host.read(room) {
                Ok(len) => (len, Ok((len, len < room.len()))),
                Err(error) => (0, Err(error)),
            }) else {
                break;
            };
            match read {
                Ok((0, _)) => {
                    self.peer_ended = true;
                    socket.close();
                }
                // All that there was: the next event tells of more (epoll(7)), unless it was
                // the end, which has been told already.
                Ok((_, true)) if !self.peer_ending => self.readable = false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
