//! The DNS resolver: answers the network's own names, and passes all other queries on to the
//! host's resolvers.

mod hosts;
mod local;
mod message;
mod upstream;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

pub use local::Names;
use message::{Query, Rcode};
pub use upstream::Upstream;

use super::Io;
use super::host::connect_udp;
use super::poller::Token;

/// The port of DNS.
pub const PORT: u16 = 53;

/// The most queries that wait for an answer. Each holds a socket of the host.
const MAX_QUERIES: usize = 64;

/// How long an upstream resolver may take before the next one is asked. Guests' resolvers wait
/// for five seconds as a rule: whatever happens, they hear from us before.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How often one query is sent upstream at most.
const MAX_TRIES: u32 = 3;

/// The longest answer that UDP can carry.
const MAX_ANSWER: usize = 65535;

/// The resolver's state.
#[derive(Debug)]
pub struct Resolver {
    upstream: Upstream,
    names: Names,
    queries: HashMap<u64, Pending>,
    next: u64,
    random: RandomState,
}

/// A query that was passed on.
#[derive(Debug)]
struct Pending {
    guest: SocketAddr,
    /// The address at which the guest asked us.
    us: SocketAddr,
    message: Vec<u8>,
    /// The number under which the query is asked upstream. The guest must not know it, nor may
    /// anybody guess it.
    id: u16,
    socket: Option<UdpSocket>,
    tries: u32,
    deadline: Instant,
}

/// What came of asking upstream once more.
enum Asked {
    Yes,
    /// Nobody is left to ask.
    Nobody,
}

impl Resolver {
    /// A resolver that knows `names` itself.
    pub fn new(upstream: Upstream, names: Names) -> Self {
        let (queries, random) = (HashMap::new(), RandomState::new());
        Self { upstream, names, queries, next: 0, random }
    }

    /// The upstream resolvers' addresses, the preferred first.
    pub fn upstream(&mut self, now: Instant) -> &[SocketAddr] {
        self.upstream.addresses(now)
    }

    /// Takes a guest's query to our address `us`.
    pub fn input(&mut self, io: &mut Io, guest: SocketAddr, us: SocketAddr, message: &[u8]) {
        let Some(query) = Query::parse(message) else {
            // What is too short for a header, or is an answer, gets none.
            if message::is_query(message) {
                io.link.send_udp(us, guest, &message::error(message, Rcode::FormatError));
            }
            return;
        };
        if let Some(answer) = self.names.answer(&query, &io.link.plan) {
            io.link.send_udp(us, guest, &answer);
            return;
        }
        if self.queries.len() >= MAX_QUERIES {
            io.link.send_udp(us, guest, &message::error(message, Rcode::ServerFailure));
            return;
        }
        let id = self.next;
        self.next += 1;
        let mut pending = Pending {
            guest,
            us,
            message: message.to_vec(),
            id: self.random.hash_one(id) as u16,
            socket: None,
            tries: 0,
            deadline: io.now,
        };
        match pending.ask(io, id, self.upstream.addresses(io.now)) {
            Asked::Yes => drop(self.queries.insert(id, pending)),
            Asked::Nobody => pending.fail(io),
        }
    }

    /// Takes an event of the socket of query `id`.
    pub fn ready(&mut self, io: &mut Io, id: u64, buffer: &mut [u8]) {
        let Some(pending) = self.queries.get_mut(&id) else { return };
        let Some(socket) = &pending.socket else { return };
        let limit = buffer.len().min(MAX_ANSWER);
        let Some(buffer) = buffer.get_mut(..limit) else { return };
        loop {
            match socket.recv(buffer) {
                Ok(len) => {
                    let answer = buffer.get_mut(..len).unwrap_or_default();
                    if message::adopt(answer, pending.id, &pending.message) {
                        io.link.send_udp(pending.us, pending.guest, answer);
                        self.queries.remove(&id);
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // Nobody there: no need to wait for the next one.
                Err(_) => break,
            }
        }
        self.ask_again(io, id);
    }

    /// Asks the next resolver, or gives up, where one did not answer in time.
    pub fn expire(&mut self, io: &mut Io) {
        let late: Vec<u64> = self
            .queries
            .iter()
            .filter_map(|(&id, pending)| (pending.deadline <= io.now).then_some(id))
            .collect();
        for id in late {
            self.ask_again(io, id);
        }
    }

    fn ask_again(&mut self, io: &mut Io, id: u64) {
        let Some(pending) = self.queries.get_mut(&id) else { return };
        if let Asked::Nobody = pending.ask(io, id, self.upstream.addresses(io.now)) {
            pending.fail(io);
            self.queries.remove(&id);
        }
    }

    /// When [`Resolver::expire`] has work next.
    pub fn deadline(&self) -> Option<Instant> {
        self.queries.values().map(|pending| pending.deadline).min()
    }
}

impl Pending {
    /// Asks the next resolver that can be asked.
    fn ask(&mut self, io: &mut Io, id: u64, upstream: &[SocketAddr]) -> Asked {
        self.socket = None;
        let mut message = self.message.clone();
        message::set_id(&mut message, self.id);
        // A single resolver is asked again: its answer, or the query, may have been lost. Where
        // it refuses at once, so will it the next time.
        let mut tried = 0;
        while self.tries < MAX_TRIES && tried < upstream.len() {
            let next = usize::try_from(self.tries).unwrap_or(0) % upstream.len();
            self.tries += 1;
            tried += 1;
            let Some(&resolver) = upstream.get(next) else { break };
            let socket = connect_udp(resolver).and_then(|socket| {
                io.poller.add_readable(&socket, Token::Query(id))?;
                socket.send(&message)?;
                Ok(socket)
            });
            match socket {
                Ok(socket) => {
                    self.socket = Some(socket);
                    self.deadline = io.now + PATIENCE;
                    return Asked::Yes;
                }
                Err(error) => tracing::debug!(%resolver, %error, "cannot ask a resolver"),
            }
        }
        Asked::Nobody
    }

    fn fail(&self, io: &mut Io) {
        let error = message::error(&self.message, Rcode::ServerFailure);
        io.link.send_udp(self.us, self.guest, &error);
    }
}
