//! TCP: flows between the guest and the host's peers.

mod flow;
mod stack;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;
use smoltcp::wire::TcpPacket;

use self::flow::{Flow, Next, Phase};
use self::stack::Stack;
use super::Io;
use super::errors::Quote;
use super::forward::visible_peer;
use super::host::{Refusal, connect_tcp, reset_on_close, tune_tcp};
use super::plan::Destination;
use super::poller::{Event, Token};

/// The most flows. Together with those of other protocols they stay below the 1024 file
/// descriptors that a process may have by default. The least useful one makes room.
const MAX_FLOWS: usize = 512;

/// How many bytes a flow's buffer holds in each direction: much while there are few flows,
/// because a guest that runs slowly can only be kept busy by what is under way.
const LARGE_BUFFER: usize = 512 << 10;
const SMALL_BUFFER: usize = 64 << 10;
const FLOWS_WITH_LARGE_BUFFERS: usize = 32;

/// A buffer holds at least this many packets of full length.
const MIN_PACKETS: usize = 4;

/// How long a guest may take to answer a connection to a forwarded port.
const GUEST_PATIENCE: Duration = Duration::from_secs(75);

/// Where the two ends of a flow are, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    remote: SocketAddr,
}

/// All TCP flows.
#[derive(Debug, Default)]
pub struct TcpTable {
    flows: HashMap<u64, Flow>,
    by_key: HashMap<Key, u64>,
    next: u64,
    /// The flows to be pumped.
    due: Vec<u64>,
    /// The flows that wait for room on the link.
    blocked: BTreeSet<u64>,
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
}

impl TcpTable {
    /// Takes a guest's segment, which is an IP packet as well.
    pub fn input(
        &mut self,
        io: &mut Io,
        quote: Quote<'_>,
        packet: &[u8],
        upstream: impl FnOnce(Instant) -> Vec<SocketAddr>,
    ) {
        let Ok(segment) = TcpPacket::new_checked(quote.payload) else { return };
        let guest = SocketAddr::new(quote.ip.src_addr().into(), segment.src_port());
        let remote = SocketAddr::new(quote.ip.dst_addr().into(), segment.dst_port());
        if guest.port() == 0 || remote.port() == 0 {
            return;
        }
        let now = io.smoltcp_now();
        let is_syn = segment.syn() && !segment.ack() && !segment.rst();
        let key = Key { guest, remote };
        if let Some(&id) = self.by_key.get(&key)
            && let Some(flow) = self.flows.get_mut(&id)
        {
            flow.last_heard = io.now;
            let is_old = flow.state() == Some(State::TimeWait);
            match &mut flow.phase {
                // The guest has given up. A repeated SYN asks for patience only.
                Phase::Connecting { .. } => {
                    if segment.rst() {
                        self.remove(id);
                    }
                    return;
                }
                // The port is in use again (RFC 9293 section 3.6.1).
                Phase::Joined(_) if is_syn && is_old => self.remove(id),
                Phase::Joined(stack) => {
                    stack.input(&mut io.link, packet, now);
                    self.make_due(id);
                    return;
                }
            }
        }
        if is_syn {
            self.open(io, key, quote, packet, upstream);
        } else if !matches!(io.link.plan.destination(remote.ip()), Destination::Ignored) {
            io.link.send_reset(&quote.ip, &segment);
        }
    }

    /// Takes a guest's SYN to a new flow.
    fn open(
        &mut self,
        io: &mut Io,
        key: Key,
        quote: Quote<'_>,
        packet: &[u8],
        upstream: impl FnOnce(Instant) -> Vec<SocketAddr>,
    ) {
        let Key { guest, remote } = key;
        let mut others = match io.link.plan.destination(remote.ip()) {
            Destination::Loopback(ip) | Destination::Outside(ip) => {
                vec![SocketAddr::new(ip, remote.port())]
            }
            Destination::Resolver if remote.port() == super::dns::PORT => upstream(io.now),
            Destination::Resolver | Destination::ClosedGateway => Vec::new(),
            Destination::Nobody => return refuse(io, Refusal::Host, quote),
            Destination::Ignored => return,
        };
        others.reverse();
        let id = self.next;
        match connect_next(io, id, &mut others) {
            Ok(host) => {
                let phase = Phase::Connecting { syn: packet.to_vec(), others };
                self.insert(io, Flow::new(guest, remote, phase, host, io.now));
            }
            Err(error) => {
                tracing::debug!(%remote, %error, "cannot connect");
                refuse(io, Refusal::from(&error), quote);
            }
        }
    }

    /// Takes an event of the socket of flow `id`.
    pub fn ready(&mut self, io: &mut Io, event: &Event, id: u64) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.note(event);
        if flow.awaits_guest() && event.gone {
            // The client of a forwarded port has given up before the guest answered.
            flow.abort();
        }
        if let Phase::Connecting { syn, others } = &mut flow.phase {
            let outcome = match flow.host.as_ref().map(TcpStream::take_error) {
                Some(Ok(None)) if event.writable => Ok(()),
                Some(Ok(None)) | None => return,
                Some(Ok(Some(error)) | Err(error)) => Err(error),
            };
            let syn = std::mem::take(syn);
            match outcome {
                Ok(()) => self.join(io, id, &syn),
                Err(error) if others.is_empty() => {
                    let remote = flow.remote;
                    tracing::debug!(%remote, %error, "connection refused");
                    self.remove(id);
                    if let Some(quote) = super::input::quote(&syn) {
                        refuse(io, Refusal::from(&error), quote);
                    }
                }
                Err(_) => match connect_next(io, id, others) {
                    Ok(host) => {
                        flow.host = Some(host);
                        if let Phase::Connecting { syn: kept, .. } = &mut flow.phase {
                            *kept = syn;
                        }
                    }
                    Err(error) => {
                        self.remove(id);
                        if let Some(quote) = super::input::quote(&syn) {
                            refuse(io, Refusal::from(&error), quote);
                        }
                    }
                },
            }
            return;
        }
        self.make_due(id);
    }

    /// The host is connected: now the guest's SYN is answered.
    fn join(&mut self, io: &mut Io, id: u64, syn: &[u8]) {
        let now = io.smoltcp_now();
        let buffer = self.buffer_size(io.link.mtu);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        match Stack::listen(&mut io.link, flow.remote, flow.guest.ip(), buffer, now) {
            Some(mut stack) => {
                stack.input(&mut io.link, syn, now);
                flow.phase = Phase::Joined(Box::new(stack));
                self.make_due(id);
            }
            None => self.remove(id),
        }
    }

    /// Takes a connection to a forwarded port, which goes to `guest`.
    pub fn accept(&mut self, io: &mut Io, host: TcpStream, peer: SocketAddr, guest: SocketAddr) {
        let id = self.next;
        let prepared = host
            .set_nonblocking(true)
            .and_then(|()| tune_tcp(&host))
            .and_then(|()| io.poller.add_edges(&host, Token::Tcp(id)));
        if let Err(error) = prepared {
            tracing::debug!(%peer, %error, "cannot take a connection");
            return reset_on_close(&host);
        }
        let taken = |remote| self.by_key.contains_key(&Key { guest, remote });
        let stack = visible_peer(&io.link.plan, peer, taken).and_then(|remote| {
            let buffer = self.buffer_size(io.link.mtu);
            let now = io.smoltcp_now();
            Some((remote, Stack::connect(&mut io.link, remote, guest, buffer, now)?))
        });
        let Some((remote, stack)) = stack else { return reset_on_close(&host) };
        let phase = Phase::Joined(Box::new(stack));
        let id = self.insert(io, Flow::new(guest, remote, phase, host, io.now));
        self.make_due(id);
    }

    /// Says hello once more to guests that have just appeared: SYNs that went unheard are
    /// repeated less and less often.
    pub fn greet(&mut self, io: &mut Io, newcomers: &[IpAddr]) {
        let now = io.smoltcp_now();
        let buffer = self.buffer_size(io.link.mtu);
        let waits = |flow: &Flow| flow.awaits_guest() && newcomers.contains(&flow.guest.ip());
        let waiting: Vec<u64> =
            self.flows.iter().filter(|(_, flow)| waits(flow)).map(|(&id, _)| id).collect();
        for id in waiting {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            let (local, guest) = (flow.remote, flow.guest);
            if let Some(stack) = Stack::connect(&mut io.link, local, guest, buffer, now) {
                flow.phase = Phase::Joined(Box::new(stack));
                self.make_due(id);
            }
        }
    }

    fn buffer_size(&self, mtu: usize) -> usize {
        let size =
            if self.flows.len() < FLOWS_WITH_LARGE_BUFFERS { LARGE_BUFFER } else { SMALL_BUFFER };
        size.max(MIN_PACKETS * mtu)
    }

    fn insert(&mut self, io: &mut Io, flow: Flow) -> u64 {
        if self.flows.len() >= MAX_FLOWS {
            self.evict(io);
        }
        let id = self.next;
        self.next += 1;
        self.by_key.insert(Key { guest: flow.guest, remote: flow.remote }, id);
        self.flows.insert(id, flow);
        id
    }

    /// Takes away the flow that will be missed least: one that has ended, or else the one whose
    /// guest has been silent longest.
    fn evict(&mut self, io: &mut Io) {
        let victim = self.flows.iter().min_by_key(|(_, flow)| {
            let in_use = flow.state() != Some(State::TimeWait);
            (in_use, flow.last_heard)
        });
        let Some((&id, _)) = victim else { return };
        if let Some(flow) = self.flows.get_mut(&id) {
            tracing::debug!(guest = %flow.guest, remote = %flow.remote, "too many TCP flows");
            flow.abort();
            let now = io.smoltcp_now();
            flow.pump(&mut io.link, now);
        }
        self.remove(id);
    }

    fn remove(&mut self, id: u64) {
        if let Some(flow) = self.flows.remove(&id) {
            self.by_key.remove(&Key { guest: flow.guest, remote: flow.remote });
        }
    }

    fn make_due(&mut self, id: u64) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !std::mem::replace(&mut flow.is_due, true)
        {
            self.due.push(id);
        }
    }

    /// Pumps the flows for which something has happened or whose time has come.
    pub fn pump(&mut self, io: &mut Io) {
        while let Some(&Reverse((at, id))) = self.timers.peek() {
            if at > io.now {
                break;
            }
            self.timers.pop();
            if let Some(flow) = self.flows.get_mut(&id)
                && flow.timer == Some(at)
            {
                flow.timer = None;
                self.make_due(id);
            }
        }
        if !self.blocked.is_empty() && io.link.has_room() {
            for id in std::mem::take(&mut self.blocked) {
                self.make_due(id);
            }
        }
        let now = io.smoltcp_now();
        for id in std::mem::take(&mut self.due) {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.is_due = false;
            match flow.pump(&mut io.link, now) {
                Next::Over => self.remove(id),
                Next::WaitForRoom => drop(self.blocked.insert(id)),
                Next::Wait(at) => {
                    let at = at.map(|at| io.std_time(at));
                    if let Some(at) = at
                        && flow.timer.is_none_or(|timer| at < timer)
                    {
                        flow.timer = Some(at);
                        self.timers.push(Reverse((at, id)));
                    }
                }
            }
        }
    }

    /// Ends connections to forwarded ports that the guest did not answer in time.
    pub fn expire(&mut self, now: Instant) {
        for (&id, flow) in &mut self.flows {
            let is_late = now.saturating_duration_since(flow.since) >= GUEST_PATIENCE;
            if is_late && flow.awaits_guest() {
                flow.abort();
                if !std::mem::replace(&mut flow.is_due, true) {
                    self.due.push(id);
                }
            }
        }
    }

    /// Whether there are any flows.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// When [`TcpTable::pump`] has work next.
    pub fn deadline(&self, io: &Io) -> Option<Instant> {
        if !self.due.is_empty() {
            return Some(io.now);
        }
        self.timers.peek().map(|&Reverse((at, _))| at)
    }
}

/// Begins a connection to the last of `others`, or the one before it, and so on.
fn connect_next(io: &Io, id: u64, others: &mut Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut result = Err(io::ErrorKind::ConnectionRefused.into());
    while let Some(to) = others.pop() {
        result = connect_tcp(to).and_then(|host| {
            io.poller.add_edges(&host, Token::Tcp(id))?;
            Ok(host)
        });
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Tells the guest that its SYN leads nowhere.
fn refuse(io: &mut Io, why: Refusal, quote: Quote<'_>) {
    match (why, TcpPacket::new_checked(quote.payload)) {
        (Refusal::Refused, Ok(segment)) => io.link.send_reset(&quote.ip, &segment),
        _ => io.link.send_unreachable(why, quote),
    }
}
