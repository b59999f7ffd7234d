//! ICMP echo: the gateway and the resolver answer themselves, others through the host's
//! unprivileged ICMP sockets (icmp(7)).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol,
    IpRepr,
};

use super::Io;
use super::errors::Quote;
use super::host::{Refusal, connect_echo};
use super::link::{HOP_LIMIT, Link};
use super::plan::Destination;
use super::poller::Token;

/// The most series of echoes at a time. The one that was quiet longest makes room.
const MAX_SERIES: usize = 32;

/// How long a series may be quiet.
const IDLE: Duration = Duration::from_secs(30);

/// The length of an echo's header.
const HEADER: usize = 8;

/// An echo request or reply: RFC 792, RFC 4443 section 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Tells series apart.
    pub ident: u16,
    /// Counts within a series.
    pub seq_no: u16,
    /// What is to come back.
    pub data: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: IpAddr,
    target: IpAddr,
    ident: u16,
}

#[derive(Debug)]
struct Series {
    key: Key,
    socket: UdpSocket,
    last_used: Instant,
}

/// The series of echoes that went out through the host.
#[derive(Debug, Default)]
pub struct EchoTable {
    series: HashMap<u64, Series>,
    by_key: HashMap<Key, u64>,
    next: u64,
}

impl EchoTable {
    /// Takes a guest's echo request.
    pub fn input(&mut self, io: &mut Io, quote: Quote<'_>, echo: Echo<'_>) {
        let (from, to) = (quote.ip.src_addr().into(), quote.ip.dst_addr().into());
        if io.link.plan.is_ours(to) {
            send_reply(&mut io.link, to, from, echo);
            return;
        }
        match io.link.plan.destination(to) {
            Destination::Outside(target) => {
                let key = Key { guest: from, target, ident: echo.ident };
                if let Err(error) = self.forward(io, key, echo) {
                    tracing::debug!(%target, %error, "cannot send an echo request");
                    io.link.send_unreachable(Refusal::from(&error), quote);
                }
            }
            Destination::Nobody => io.link.send_unreachable(Refusal::Host, quote),
            _ => {}
        }
    }

    fn forward(&mut self, io: &mut Io, key: Key, echo: Echo<'_>) -> io::Result<()> {
        let id = match self.by_key.get(&key) {
            Some(&id) => id,
            None => {
                let socket = connect_echo(key.target)?;
                self.make_room();
                let id = self.next;
                self.next += 1;
                io.poller.add_readable(&socket, Token::Echo(id))?;
                self.series.insert(id, Series { key, socket, last_used: io.now });
                self.by_key.insert(key, id);
                id
            }
        };
        let Some(series) = self.series.get_mut(&id) else { return Ok(()) };
        series.last_used = io.now;
        // The kernel puts its own number and checksum in.
        let mut packet = Vec::with_capacity(HEADER + echo.data.len());
        let kind = match key.target {
            IpAddr::V4(_) => Icmpv4Message::EchoRequest.into(),
            IpAddr::V6(_) => Icmpv6Message::EchoRequest.into(),
        };
        packet.extend_from_slice(&[kind, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(&echo.seq_no.to_be_bytes());
        packet.extend_from_slice(echo.data);
        match series.socket.send(&packet) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    fn make_room(&mut self) {
        if self.series.len() < MAX_SERIES {
            return;
        }
        let oldest = self.series.iter().min_by_key(|(_, series)| series.last_used);
        if let Some((&id, _)) = oldest {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(series) = self.series.remove(&id) {
            self.by_key.remove(&series.key);
        }
    }

    /// Takes an event of the socket of series `id`.
    pub fn ready(&mut self, io: &mut Io, id: u64, buffer: &mut [u8]) {
        let Some(series) = self.series.get_mut(&id) else { return };
        while let Ok(len) = series.socket.recv(buffer) {
            let reply = buffer.get(..len).unwrap_or_default();
            let (Some(&[kind, _, _, _, _, _, s1, s0]), Some(data)) =
                (reply.first_chunk::<HEADER>(), reply.get(HEADER..))
            else {
                continue;
            };
            let expected = match series.key.target {
                IpAddr::V4(_) => kind == Icmpv4Message::EchoReply.into(),
                IpAddr::V6(_) => kind == Icmpv6Message::EchoReply.into(),
            };
            if expected {
                let seq_no = u16::from_be_bytes([s1, s0]);
                let echo = Echo { ident: series.key.ident, seq_no, data };
                series.last_used = io.now;
                send_reply(&mut io.link, series.key.target, series.key.guest, echo);
            }
        }
    }

    /// Forgets series that have been quiet.
    pub fn expire(&mut self, now: Instant) {
        let is_idle = |series: &Series| now.saturating_duration_since(series.last_used) >= IDLE;
        let idle: Vec<u64> =
            self.series.iter().filter(|(_, series)| is_idle(series)).map(|(&id, _)| id).collect();
        for id in idle {
            self.remove(id);
        }
    }

    /// Whether there is anything to expire.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }
}

fn send_reply(link: &mut Link, from: IpAddr, to: IpAddr, echo: Echo<'_>) {
    let Echo { ident, seq_no, data } = echo;
    let len = HEADER + data.len();
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let icmp = Icmpv4Repr::EchoReply { ident, seq_no, data };
            let ip = IpRepr::new(from.into(), to.into(), IpProtocol::Icmp, len, HOP_LIMIT);
            if u16::try_from(ip.buffer_len()).is_ok() {
                link.send_ip(ip, |payload| {
                    icmp.emit(&mut Icmpv4Packet::new_unchecked(payload), &Link::checksums());
                });
            }
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let icmp = Icmpv6Repr::EchoReply { ident, seq_no, data };
            let ip = IpRepr::new(from.into(), to.into(), IpProtocol::Icmpv6, len, HOP_LIMIT);
            if u16::try_from(ip.payload_len()).is_ok() {
                link.send_ip(ip, |payload| {
                    let mut packet = Icmpv6Packet::new_unchecked(payload);
                    icmp.emit(&from, &to, &mut packet, &Link::checksums());
                });
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::user::config::UserNetworkConfig;
    use crate::user::frames::{Inbox, Outbox, Signal};
    use crate::user::services::Services;

    #[test]
    fn an_echo_comes_back_through_the_host() {
        let wake = Arc::new(Signal::new().unwrap());
        let outbox = Arc::new(Outbox::new(1500, Arc::clone(&wake)).unwrap());
        let inbox = Arc::new(Inbox::new(1500, Arc::clone(&wake)));
        let config = UserNetworkConfig::default();
        let (services, _) = Services::new(config.into(), inbox, Arc::clone(&outbox), wake).unwrap();
        let (mut io, mut table) = (services.io, services.echo);
        let mac = smoltcp::wire::EthernetAddress([2, 0, 0, 0, 0, 1]);
        for (guest, target) in [("10.0.2.15", "127.0.0.1"), ("fd00::15", "::1")] {
            let (guest, target) = (guest.parse().unwrap(), target.parse().unwrap());
            io.link.neighbors.learn(guest, mac);
            let echo = Echo { ident: 0x4321, seq_no: 7, data: b"there and back" };
            match table.forward(&mut io, Key { guest, target, ident: echo.ident }, echo) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    eprintln!("SKIPPED: net.ipv4.ping_group_range does not allow ICMP sockets");
                    return;
                }
                result => result.unwrap(),
            }
            let mut buffer = [0; 2048];
            let len = (0..6000)
                .find_map(|_| {
                    std::thread::sleep(Duration::from_millis(10));
                    for id in 0..table.next {
                        table.ready(&mut io, id, &mut [0; 2048]);
                    }
                    io.link.flush();
                    outbox.receive(&mut buffer)
                })
                .unwrap();
            let reply = crate::user::input::quote(&buffer[14..len]).unwrap();
            assert_eq!(IpAddr::from(reply.ip.src_addr()), target);
            assert_eq!(IpAddr::from(reply.ip.dst_addr()), guest);
            assert_eq!(reply.payload[4..8], [0x43, 0x21, 0, 7]);
            assert_eq!(&reply.payload[8..], echo.data);
        }
    }
}
