//! All connections of a guest: which packet belongs to which, and whose turn it is.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::connection::{Broken, Connection, Packet, State};
use crate::packet::{HEADER, Header, Op, TYPE_STREAM};
use crate::poller::{Event, FIRST_CONNECTION, LISTENER, Poller, WAKE};
use crate::sockets::Sockets;
use crate::{BUFFER, GUEST_CID, HOST_CID, MAX_CONNECTIONS};

/// Answers to packets that belong to no connection, at most. Further ones get none.
const MAX_REPLIES: usize = 256;
/// How often the sockets are looked at in a row.
const ROUNDS: usize = 8;
/// The first port that programs of the host come from. Below are those that the guest goes to.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// A port of the host at which it counts that the guest tries to connect.
pub struct Knocks {
    pub port: u32,
    pub heard: Box<dyn Fn() + Send>,
    pub was_heard: bool,
}

impl std::fmt::Debug for Knocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Knocks").field("port", &self.port).finish_non_exhaustive()
    }
}

/// The connections.
#[derive(Debug)]
pub struct Mux {
    sockets: Option<Sockets>,
    poller: Arc<Poller>,
    /// The guest has a driver.
    pub is_live: bool,
    /// The guest is to have no packets yet.
    pub is_held: bool,
    /// Whom the guest tells something by trying to connect.
    pub knocks: Option<Knocks>,
    connections: HashMap<u64, Connection>,
    /// The connections that the guest knows of, by host's and guest's port.
    by_ports: HashMap<(u32, u32), u64>,
    /// Those that have something for the guest, in turn.
    queue: VecDeque<u64>,
    replies: VecDeque<Header>,
    next_id: u64,
    next_port: u32,
}

impl Mux {
    /// No connections.
    pub fn new(sockets: Option<Sockets>, poller: Arc<Poller>) -> io::Result<Self> {
        if let Some(sockets) = &sockets {
            poller.add_edges(sockets, LISTENER)?;
        }
        Ok(Self {
            sockets,
            poller,
            is_live: false,
            is_held: false,
            knocks: None,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            queue: VecDeque::new(),
            replies: VecDeque::new(),
            next_id: FIRST_CONNECTION,
            next_port: FIRST_HOST_PORT,
        })
    }

    /// Forgets all connections that the guest may know of.
    pub fn reset(&mut self) {
        self.is_live = false;
        self.is_held = false;
        if let Some(knocks) = &mut self.knocks {
            knocks.was_heard = false;
        }
        self.by_ports.clear();
        self.queue.clear();
        self.replies.clear();
        for connection in self.connections.values_mut() {
            if !matches!(connection.state, State::Greeting(_)) {
                connection.drain();
            }
        }
        self.connections.retain(|_, connection| !connection.is_over());
    }

    /// Takes in a program of the host, which says where it wants to go.
    pub fn adopt(&mut self, socket: UnixStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        self.add(Connection::from_host(socket)).map(drop)
    }

    /// Connections, and bytes that wait for the host.
    pub fn kept(&self) -> (usize, usize) {
        (self.connections.len(), self.connections.values().map(Connection::waiting).sum())
    }

    /// Adds a connection, if there is room for it.
    fn add(&mut self, connection: Connection) -> io::Result<u64> {
        if self.connections.len() >= MAX_CONNECTIONS {
            // A guest that never says that it has closed its end, too, does not keep others out.
            let closing = self.connections.iter().find(|(_, c)| c.state == State::Closing);
            let Some((&id, connection)) = closing else {
                return Err(io::Error::other("the guest has too many connections"));
            };
            let ports = connection.ports;
            self.connections.remove(&id);
            self.forget(ports, id);
        }
        let id = self.next_id;
        self.poller.add_edges(&connection, id)?;
        self.next_id += 1;
        self.connections.insert(id, connection);
        Ok(id)
    }

    /// Whether [`Mux::receive`] may have something.
    pub fn has_packets(&self) -> bool {
        !self.is_held && (!self.queue.is_empty() || !self.replies.is_empty())
    }

    /// Looks at what happened to the host's sockets. Whether somebody wanted to wake who waits.
    pub fn poll(&mut self) -> bool {
        let mut woken = false;
        let mut events = Vec::new();
        // Who is taken in may have said something already. What is left makes the poller readable.
        for _ in 0..ROUNDS {
            if !self.poller.take(&mut events) {
                break;
            }
            for event in events.drain(..) {
                match event.id {
                    WAKE => woken = true,
                    LISTENER => self.accept(),
                    _ => self.look_after(event),
                }
            }
        }
        woken
    }

    /// Takes in all programs that want to connect.
    fn accept(&mut self) {
        loop {
            let Some(sockets) = &self.sockets else { return };
            match sockets.accept().and_then(|socket| self.adopt(socket)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.raw_os_error().is_some() => {
                    // Out of descriptors: the next who connects is noticed again.
                    tracing::warn!("a program cannot connect to the guest: {error}");
                    return;
                }
                Err(error) => tracing::debug!("a program cannot connect to the guest: {error}"),
            }
        }
    }

    fn look_after(&mut self, event: Event) {
        let id = event.id;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.note(event);
        if matches!(connection.state, State::Greeting(_)) {
            match connection.greet() {
                Ok(None) => {}
                Ok(Some(port)) => self.request(id, port),
                Err(_) => drop(self.connections.remove(&id)),
            }
        }
        self.settle(id);
    }

    /// Has the guest be asked for a connection to a port of its.
    fn request(&mut self, id: u64, guest_port: u32) {
        // Each is free some time: there are fewer connections than ports.
        let ports = loop {
            let ports = (self.next_port, guest_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.by_ports.contains_key(&ports) {
                break ports;
            }
        };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.request(ports);
            self.by_ports.insert(ports, id);
        }
    }

    /// Gives a connection its turn if it has something for the guest, and removes it if it is over.
    fn settle(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.is_over() {
            let ports = connection.ports;
            self.connections.remove(&id);
            self.forget(ports, id);
        } else if connection.has_packet() && !connection.is_queued {
            connection.is_queued = true;
            self.queue.push_back(id);
        }
    }

    /// The guest no longer knows of a connection.
    fn forget(&mut self, ports: (u32, u32), id: u64) {
        if self.by_ports.get(&ports) == Some(&id) {
            self.by_ports.remove(&ports);
        }
    }

    /// Takes a packet from the guest.
    pub fn transmit(&mut self, header: &Header, data: &[u8]) {
        if header.src_cid != GUEST_CID {
            // Nobody who could be answered.
            return;
        }
        let op = Op::from_number(header.op);
        let ports = (header.dst_port, header.src_port);
        let id = self.by_ports.get(&ports).copied();
        match (op, id) {
            // There is nobody else but the host.
            _ if header.dst_cid != HOST_CID => self.refuse(header),
            (Some(Op::Rst), None) => {}
            (Some(Op::Request), None) if header.kind == TYPE_STREAM => {
                if let Err(error) = self.connect(ports, header) {
                    tracing::debug!("the guest cannot connect to port {}: {error}", ports.0);
                    self.refuse(header);
                }
            }
            (_, None) => self.refuse(header),
            (op, Some(id)) => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                let result = match op {
                    Some(Op::Rst) => {
                        connection.drain();
                        Ok(())
                    }
                    Some(op) if header.kind == TYPE_STREAM => connection.transmit(header, op, data),
                    _ => Err(Broken),
                };
                if result.is_err() {
                    connection.drain();
                    self.refuse(header);
                }
                if self.connections.get(&id).is_some_and(|c| c.state == State::Draining) {
                    self.forget(ports, id);
                }
                self.settle(id);
            }
        }
    }

    /// Connects the guest to the program of the host that listens for its port.
    fn connect(&mut self, ports: (u32, u32), request: &Header) -> io::Result<()> {
        if let Some(knocks) = self.knocks.as_mut().filter(|knocks| knocks.port == ports.0) {
            if !std::mem::replace(&mut knocks.was_heard, true) {
                (knocks.heard)();
            }
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let sockets = self.sockets.as_ref().ok_or(io::ErrorKind::ConnectionRefused)?;
        let socket = sockets.connect(ports.0)?;
        let id = self.add(Connection::from_guest(socket, ports, request))?;
        self.by_ports.insert(ports, id);
        self.settle(id);
        Ok(())
    }

    /// Tells the guest that there is no such connection.
    fn refuse(&mut self, header: &Header) {
        // Two that answer each other's refusals would never end (5.10.6.4).
        if header.op == Op::Rst as u16 || self.replies.len() >= MAX_REPLIES {
            return;
        }
        self.replies.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            op: Op::Rst as u16,
            ..Header::default()
        });
    }

    /// Writes the next packet for the guest to `room`; its length.
    pub fn receive(&mut self, room: &mut [u8]) -> Option<usize> {
        let (head, room) = room.split_first_chunk_mut::<HEADER>()?;
        if room.is_empty() {
            return None;
        }
        if let Some(reply) = self.replies.pop_front() {
            *head = reply.bytes();
            return Some(HEADER);
        }
        while let Some(id) = self.queue.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.is_queued = false;
            let packet = connection.receive(room);
            if let Some(Packet { op, flags, len }) = packet {
                connection.told();
                let (src_port, dst_port) = connection.ports;
                *head = Header {
                    src_cid: HOST_CID,
                    dst_cid: GUEST_CID,
                    src_port,
                    dst_port,
                    len: len as u32, // at most `MAX_PAYLOAD`
                    kind: TYPE_STREAM,
                    op: op as u16,
                    flags,
                    buf_alloc: BUFFER as u32,
                    fwd_cnt: connection.taken(),
                }
                .bytes();
            }
            if connection.state == State::Draining {
                let ports = connection.ports;
                self.forget(ports, id);
            }
            self.settle(id);
            if let Some(Packet { len, .. }) = packet {
                return Some(HEADER + len);
            }
        }
        None
    }
}
