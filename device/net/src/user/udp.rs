//! UDP flows: a guest's port and a remote one, with a socket of the host between them.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Io;
use super::host::{Refusal, connect_udp};
use super::plan::Destination;
use super::poller::Token;

/// The most flows. The one that was quiet longest makes room for a new one.
const MAX_FLOWS: usize = 256;

/// How long a flow may be quiet: RFC 4787 section 4.3 asks for two minutes at least.
const IDLE: Duration = Duration::from_secs(120);

/// How many datagrams of one socket are passed on before others get their turn.
const BURST: usize = 64;

/// Where the two ends of a flow are, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    remote: SocketAddr,
}

#[derive(Debug)]
enum Outlet {
    /// A socket of the flow's own: the guest spoke first.
    Own(UdpSocket),
    /// The socket of a forwarded port, and the host's peer who spoke first.
    Forward(Arc<UdpSocket>, SocketAddr),
}

#[derive(Debug)]
struct Flow {
    key: Key,
    outlet: Outlet,
    last_used: Instant,
}

/// All UDP flows.
#[derive(Debug, Default)]
pub struct UdpTable {
    flows: HashMap<u64, Flow>,
    by_key: HashMap<Key, u64>,
    /// The flows of forwarded ports, by the guest's end and the host's peer.
    by_peer: HashMap<(SocketAddr, SocketAddr), u64>,
    next: u64,
}

impl UdpTable {
    /// Takes a guest's datagram that is not for the network itself.
    pub fn input(&mut self, io: &mut Io, guest: SocketAddr, remote: SocketAddr, data: &[u8]) {
        let key = Key { guest, remote };
        let id = match self.by_key.get(&key) {
            Some(&id) => id,
            None => {
                let target = match io.link.plan.destination(remote.ip()) {
                    Destination::Loopback(ip) | Destination::Outside(ip) => ip,
                    Destination::ClosedGateway | Destination::Resolver => {
                        return io.link.send_udp_unreachable(Refusal::Refused, guest, remote);
                    }
                    Destination::Nobody => {
                        return io.link.send_udp_unreachable(Refusal::Host, guest, remote);
                    }
                    Destination::Ignored => return,
                };
                let id = self.next;
                let socket = connect_udp(SocketAddr::new(target, remote.port()));
                let added = socket.and_then(|socket| {
                    io.poller.add_readable(&socket, Token::Udp(id))?;
                    Ok(socket)
                });
                match added {
                    Ok(socket) => self.insert(key, Outlet::Own(socket), io.now),
                    Err(error) => {
                        tracing::debug!(%remote, %error, "cannot open a UDP flow");
                        let refusal = Refusal::from(&error);
                        return io.link.send_udp_unreachable(refusal, guest, remote);
                    }
                }
            }
        };
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.last_used = io.now;
        let sent = match &flow.outlet {
            Outlet::Own(socket) => {
                // An error that an earlier datagram met shows up first, and this one stays here.
                socket.send(data).or_else(|error| {
                    if error.kind() == io::ErrorKind::ConnectionRefused {
                        io.link.send_udp_unreachable(Refusal::Refused, guest, remote);
                        socket.send(data)
                    } else {
                        Err(error)
                    }
                })
            }
            Outlet::Forward(socket, peer) => socket.send_to(data, peer),
        };
        match sent {
            // A full socket loses datagrams, as any network may.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                io.link.send_udp_unreachable(Refusal::from(&error), guest, remote);
            }
            _ => {}
        }
    }

    /// Takes an event of the socket of flow `id`.
    pub fn ready(&mut self, io: &mut Io, id: u64, buffer: &mut [u8]) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Outlet::Own(socket) = &flow.outlet else { return };
        for _ in 0..BURST {
            match socket.recv(buffer) {
                Ok(len) => {
                    flow.last_used = io.now;
                    let data = buffer.get(..len).unwrap_or_default();
                    io.link.send_udp(flow.key.remote, flow.key.guest, data);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    let refusal = Refusal::from(&error);
                    io.link.send_udp_unreachable(refusal, flow.key.guest, flow.key.remote);
                }
            }
        }
    }

    /// Takes a datagram from `peer` to a forwarded port, which goes to `guest`.
    pub fn forward(
        &mut self,
        io: &mut Io,
        socket: &Arc<UdpSocket>,
        peer: SocketAddr,
        guest: SocketAddr,
        data: &[u8],
    ) {
        let id = match self.by_peer.get(&(guest, peer)) {
            Some(&id) => id,
            None => {
                let taken = |remote| self.by_key.contains_key(&Key { guest, remote });
                let Some(remote) = super::forward::visible_peer(&io.link.plan, peer, taken) else {
                    return;
                };
                let outlet = Outlet::Forward(Arc::clone(socket), peer);
                self.insert(Key { guest, remote }, outlet, io.now)
            }
        };
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.last_used = io.now;
        io.link.send_udp(flow.key.remote, flow.key.guest, data);
    }

    fn insert(&mut self, key: Key, outlet: Outlet, now: Instant) -> u64 {
        if self.flows.len() >= MAX_FLOWS {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.last_used);
            if let Some((&oldest, _)) = oldest {
                self.remove(oldest);
            }
        }
        let id = self.next;
        self.next += 1;
        if let Outlet::Forward(_, peer) = outlet {
            self.by_peer.insert((key.guest, peer), id);
        }
        self.by_key.insert(key, id);
        self.flows.insert(id, Flow { key, outlet, last_used: now });
        id
    }

    fn remove(&mut self, id: u64) {
        let Some(flow) = self.flows.remove(&id) else { return };
        self.by_key.remove(&flow.key);
        if let Outlet::Forward(_, peer) = flow.outlet {
            self.by_peer.remove(&(flow.key.guest, peer));
        }
    }

    /// Forgets flows that have been quiet.
    pub fn expire(&mut self, now: Instant) {
        let is_idle = |flow: &Flow| now.saturating_duration_since(flow.last_used) >= IDLE;
        let idle: Vec<u64> =
            self.flows.iter().filter(|(_, flow)| is_idle(flow)).map(|(&id, _)| id).collect();
        for id in idle {
            self.remove(id);
        }
    }

    /// Whether there is anything to expire.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}
