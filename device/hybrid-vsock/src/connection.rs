//! One connection: what each side may still do, and how much it may send (VIRTIO 1.2, 5.10.6.3 to
//! 5.10.6.5).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::packet::{Header, Op, shutdown};
use crate::poller::Event;
use crate::{BUFFER, MAX_PAYLOAD};

/// The longest line by which a program of the host says where it wants to go, in bytes.
const MAX_LINE: usize = 32;

/// How far a connection has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// A program of the host has not said where it wants to go. This is what it has said so far.
    Greeting(Vec<u8>),
    /// The guest has been asked, or is about to be.
    Requested,
    /// It is made.
    Open,
    /// Both sides have been told that it ends; the guest has to say so, too.
    Closing,
    /// For the guest it is over. A program of the host reads what came before.
    Draining,
}

/// The guest has broken the rules, or ended the connection: it is to be told that there is none.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

/// What a connection has for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub op: Op,
    pub flags: u32,
    /// How many bytes of data follow.
    pub len: usize,
}

impl From<Op> for Packet {
    fn from(op: Op) -> Self {
        Self { op, flags: 0, len: 0 }
    }
}

/// What is to be told to the guest.
#[derive(Debug, Default)]
struct Due {
    /// That it is asked for a connection, or its request granted.
    opening: Option<Op>,
    /// How much room there is.
    credit: bool,
}

/// A connection between a socket of the host and a port in the guest.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    pub state: State,
    /// Host's and guest's port.
    pub ports: (u32, u32),
    /// It is among those that have something for the guest.
    pub is_queued: bool,
    due: Due,

    // What the last events said of the socket; an operation that would block takes it back.
    readable: bool,
    writable: bool,
    hung_up: bool,

    // From the guest to the host.
    waiting: VecDeque<u8>,
    /// How many bytes the host has taken (fwd_cnt), and how many the guest knows of.
    taken: u32,
    told_taken: u32,
    guest_sends: bool,
    host_receives: bool,
    /// The host knows that the guest sends no more.
    host_knows_the_end: bool,

    // From the host to the guest.
    /// How many bytes were sent (tx_cnt), and the guest's buf_alloc and fwd_cnt.
    sent: u32,
    guest_room: u32,
    guest_taken: u32,
    asked_for_credit: bool,
    guest_receives: bool,
    host_sends: bool,
    /// The flags of the last shutdown that the guest was told of.
    told_shutdown: u32,
}

impl Connection {
    fn new(socket: UnixStream, state: State, ports: (u32, u32)) -> Self {
        Self {
            socket,
            state,
            ports,
            is_queued: false,
            due: Due::default(),
            readable: false,
            writable: true,
            hung_up: false,
            waiting: VecDeque::new(),
            taken: 0,
            told_taken: 0,
            guest_sends: true,
            host_receives: true,
            host_knows_the_end: false,
            sent: 0,
            guest_room: 0,
            guest_taken: 0,
            asked_for_credit: false,
            guest_receives: true,
            host_sends: true,
            told_shutdown: 0,
        }
    }

    /// A program of the host has connected.
    pub fn from_host(socket: UnixStream) -> Self {
        Self::new(socket, State::Greeting(Vec::new()), (0, 0))
    }

    /// The guest has asked for a connection, and it is granted.
    pub fn from_guest(socket: UnixStream, ports: (u32, u32), request: &Header) -> Self {
        let mut connection = Self::new(socket, State::Open, ports);
        connection.due.opening = Some(Op::Response);
        connection.take_credit(request);
        connection
    }

    /// Asks the guest for the connection.
    pub fn request(&mut self, ports: (u32, u32)) {
        self.ports = ports;
        self.state = State::Requested;
        self.due.opening = Some(Op::Request);
    }

    /// How many bytes the host has taken.
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes note of what happened to the socket.
    pub fn note(&mut self, event: Event) {
        self.readable |= event.readable;
        self.writable |= event.writable;
        self.hung_up |= event.hung_up;
        self.flush();
    }

    /// Reads on where the program of the host wants to go: a port, once it has said so. The error:
    /// it says nothing that is understood.
    pub fn greet(&mut self) -> Result<Option<u32>, Broken> {
        let State::Greeting(line) = &mut self.state else { return Ok(None) };
        // A byte at a time: what follows the line is data.
        let mut byte = [0];
        loop {
            match self.socket.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break,
                Ok(1) if line.len() < MAX_LINE => line.extend(byte),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return Err(Broken),
            }
        }
        let text = str::from_utf8(line).map_err(|_| Broken)?;
        let port = text.trim_end().strip_prefix("CONNECT ").ok_or(Broken)?;
        port.parse().map(Some).map_err(|_| Broken)
    }

    /// Takes a packet from the guest.
    pub fn transmit(&mut self, header: &Header, op: Op, data: &[u8]) -> Result<(), Broken> {
        self.take_credit(header);
        match (op, &self.state) {
            (Op::Response, State::Requested) => {
                self.state = State::Open;
                // A fresh socket has room for this; one that is closed shows when it is read.
                let _ = self.socket.write(format!("OK {}\n", self.ports.0).as_bytes());
                Ok(())
            }
            (Op::Rw, State::Open) if self.guest_sends => self.take_data(data),
            (Op::CreditUpdate, State::Open | State::Closing) => Ok(()),
            (Op::CreditRequest, State::Open | State::Closing) => {
                self.due.credit = true;
                Ok(())
            }
            (Op::Shutdown, State::Open | State::Closing) => {
                if header.flags & shutdown::SEND != 0 {
                    self.guest_sends = false;
                }
                if header.flags & shutdown::RECEIVE != 0 {
                    self.guest_receives = false;
                    let _ = self.socket.shutdown(Shutdown::Read);
                }
                self.flush();
                // Closed: the guest waits for the answer.
                if self.guest_sends || self.guest_receives { Ok(()) } else { Err(Broken) }
            }
            _ => Err(Broken),
        }
    }

    /// What the guest says of its room with each packet.
    fn take_credit(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        self.guest_taken = header.fwd_cnt;
        if self.credit() > 0 {
            self.asked_for_credit = false;
        }
    }

    /// How many bytes the guest has room for. A guest that counts wrong has none.
    fn credit(&self) -> usize {
        let on_the_way = self.sent.wrapping_sub(self.guest_taken);
        self.guest_room.saturating_sub(on_the_way) as usize
    }

    fn take_data(&mut self, data: &[u8]) -> Result<(), Broken> {
        if data.len() > BUFFER - self.waiting.len() {
            return Err(Broken);
        }
        let written = if self.waiting.is_empty() { self.write(data) } else { 0 };
        self.waiting.extend(data.get(written..).unwrap_or_default());
        Ok(())
    }

    /// Gives the host what it takes; how much that is. To whom does not listen, everything.
    fn write(&mut self, data: &[u8]) -> usize {
        let mut written = 0;
        while self.host_receives && self.writable && written < data.len() {
            match self.socket.write(data.get(written..).unwrap_or_default()) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_) => self.host_receives = false,
            }
        }
        if !self.host_receives {
            written = data.len();
        }
        self.taken = self.taken.wrapping_add(written as u32); // at most `BUFFER`
        // The guest need not know of each byte, only well before it runs out of room.
        if self.taken.wrapping_sub(self.told_taken) as usize >= BUFFER / 2 {
            self.due.credit = true;
        }
        written
    }

    /// Gives the host what waits, and its end.
    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            let (first, second) = waiting.as_slices();
            let mut written = self.write(first);
            if written == first.len() {
                written += self.write(second);
            }
            self.waiting = waiting;
            self.waiting.drain(..written);
            if written == 0 {
                return;
            }
        }
        // What is there no more is given back: connections are often idle.
        self.waiting.shrink_to(0);
        // Once: it is itself an event of the socket's.
        if !self.guest_sends && !std::mem::replace(&mut self.host_knows_the_end, true) {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// For the guest it is over.
    pub fn drain(&mut self) {
        self.state = State::Draining;
        self.guest_sends = false;
        self.flush();
    }

    /// Whether nobody needs it any more.
    pub fn is_over(&self) -> bool {
        self.state == State::Draining && (self.waiting.is_empty() || self.hung_up)
    }

    /// Whether there may be something for the guest.
    pub fn has_packet(&self) -> bool {
        match self.state {
            State::Greeting(_) | State::Draining => false,
            State::Requested => self.due.opening.is_some() || self.hung_up,
            State::Open => {
                self.due.opening.is_some()
                    || self.due.credit
                    || self.wants_to_read() && (self.credit() > 0 || !self.asked_for_credit)
                    || self.shutdown() != self.told_shutdown
            }
            State::Closing => self.due.credit,
        }
    }

    fn wants_to_read(&self) -> bool {
        self.readable && self.host_sends && self.guest_receives
    }

    /// What the host does no more.
    fn shutdown(&self) -> u32 {
        // Whoever has closed the socket does nothing more, once the guest has all of it.
        let sends = self.host_sends && (self.guest_receives || !self.hung_up);
        let receives = self.host_receives && (sends || !self.hung_up);
        let flag = |does: bool, flag: u32| if does { 0 } else { flag };
        flag(sends, shutdown::SEND) | flag(receives, shutdown::RECEIVE)
    }

    /// The next packet for the guest, with its data in `room`.
    pub fn receive(&mut self, room: &mut [u8]) -> Option<Packet> {
        if let Some(op) = self.due.opening.take() {
            return Some(op.into());
        }
        if std::mem::take(&mut self.due.credit) {
            return Some(Op::CreditUpdate.into());
        }
        match self.state {
            State::Requested if self.hung_up => {
                self.drain();
                Some(Op::Rst.into())
            }
            State::Open => self.read(room).or_else(|| self.end()),
            _ => None,
        }
    }

    /// The guest is told how much the host has taken with each packet.
    pub fn told(&mut self) {
        self.told_taken = self.taken;
    }

    fn read(&mut self, room: &mut [u8]) -> Option<Packet> {
        if !self.wants_to_read() {
            return None;
        }
        let credit = self.credit();
        if credit == 0 {
            let asks = !std::mem::replace(&mut self.asked_for_credit, true);
            return asks.then(|| Op::CreditRequest.into());
        }
        let len = room.len().min(credit).min(MAX_PAYLOAD);
        let room = room.get_mut(..len)?;
        loop {
            match self.socket.read(room) {
                Ok(len @ 1..) => {
                    self.sent = self.sent.wrapping_add(len as u32); // at most `MAX_PAYLOAD`
                    return Some(Packet { op: Op::Rw, flags: 0, len });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                // The end, or a socket that is of no use any more.
                Ok(_) | Err(_) => {
                    self.host_sends = false;
                    return None;
                }
            }
        }
    }

    /// What the host does no more, if the guest has not been told.
    fn end(&mut self) -> Option<Packet> {
        let flags = self.shutdown();
        if flags == self.told_shutdown {
            return None;
        }
        self.told_shutdown = flags;
        if flags == shutdown::BOTH {
            self.state = State::Closing;
        }
        Some(Packet { op: Op::Shutdown, flags, len: 0 })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
