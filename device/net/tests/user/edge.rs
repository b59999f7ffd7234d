//! Services at the edge of a network of the host, which is two cables' ends in this process.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;

use net::Backend;
use net::edge::{Edge, EdgeConfig};
use net::user::{Forward, Resolvers, Transport};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::wire::*;
use tempfile::TempDir;

use crate::guest::Guest;
use crate::services::{ask, query, upstream};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
const ONE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 16);
const TWO: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 17);
const ONE_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 1]);
const TWO_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 2]);

/// Of the services.
const SERVER_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 88, 0, 2]);

/// Frames on their way to one end of a cable.
struct Way {
    frames: Mutex<VecDeque<Vec<u8>>>,
    readable: OwnedFd,
}

/// One end of a cable.
struct End {
    to_us: Arc<Way>,
    from_us: Arc<Way>,
}

fn cable() -> (Arc<End>, Arc<End>) {
    let way = || {
        let readable = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        Arc::new(Way { frames: Mutex::default(), readable })
    };
    let (there, back) = (way(), way());
    let other = End { to_us: there.clone(), from_us: back.clone() };
    (Arc::new(End { to_us: back, from_us: there }), Arc::new(other))
}

impl Backend for End {
    fn transmit(&self, frame: &[u8]) -> bool {
        self.from_us.frames.lock().unwrap().push_back(frame.to_vec());
        rustix::io::write(&self.from_us.readable, &1_u64.to_ne_bytes()).is_ok()
    }

    fn receive(&self, frame: &mut [u8]) -> std::io::Result<Option<usize>> {
        let mut frames = self.to_us.frames.lock().unwrap();
        let Some(next) = frames.pop_front() else {
            let _ = rustix::io::read(&self.to_us.readable, &mut [0; 8]);
            return Ok(None);
        };
        frame[..next.len()].copy_from_slice(&next);
        Ok(Some(next.len()))
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.to_us.readable.as_fd()
    }
}

fn config(names: &TempDir, card: EthernetAddress, address: Ipv4Addr) -> EdgeConfig {
    let hosts = names.path().join("hosts");
    fs::write(&hosts, format!("{ONE} one\n{TWO} two\n")).unwrap();
    EdgeConfig {
        card: card.0,
        address,
        prefix_len: 24,
        server: SERVER,
        host: Some(HOST),
        router: None,
        resolvers: Resolvers::Fixed(Vec::new()),
        hostname: Some("guest".into()),
        hosts,
        forwards: Vec::new(),
    }
}

/// A guest that has asked for its address, behind an edge.
fn guest(network: Arc<End>, config: EdgeConfig) -> Guest<Edge> {
    let (mac, address, router) = (EthernetAddress(config.card), config.address, config.router);
    let mut guest = Guest::on(Edge::new(network, config).unwrap(), 1500, mac, false);
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let given = guest.until("a lease", |guest| {
        match guest.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            Some(dhcpv4::Event::Configured(config)) => {
                assert_eq!(config.server.identifier, SERVER);
                assert_eq!(config.dns_servers.as_slice(), [SERVER]);
                assert_eq!(config.router, router);
                Some(config.address)
            }
            _ => None,
        }
    });
    assert_eq!(given, Ipv4Cidr::new(address, 24));
    guest.interface.update_ip_addrs(|addresses| addresses.push(IpCidr::Ipv4(given)).unwrap());
    guest
}

/// Has both guests work until `done` has a result.
fn until<T>(
    one: &mut Guest<Edge>,
    other: &mut Guest<Edge>,
    mut done: impl FnMut(&mut Guest<Edge>, &mut Guest<Edge>) -> Option<T>,
) -> T {
    one.until("both guests", |one| {
        other.poll();
        done(one, other)
    })
}

fn has_address(answer: &[u8], address: Ipv4Addr) -> bool {
    answer.ends_with(&[&[0, 4], &address.octets()[..]].concat())
}

#[test]
fn guests_find_each_other_by_name() {
    let names = tempfile::tempdir().unwrap();
    let (here, there) = cable();
    let mut one = guest(here, config(&names, ONE_MAC, ONE));
    let mut two = guest(there.clone(), config(&names, TWO_MAC, TWO));
    for (number, name) in (10..).zip(["two", "two.lodge", "TWO.lodge"]) {
        let answer = ask(&mut one, (SERVER, 53).into(), &query(number, name));
        assert!(has_address(&answer, TWO), "{name}: {answer:?}");
    }
    assert!(has_address(&ask(&mut one, (SERVER, 53).into(), &query(2, "host.lodge")), HOST));
    // Nobody is asked about other names where there is no way out.
    assert_eq!(ask(&mut one, (SERVER, 53).into(), &query(3, "three.lodge"))[3] & 15, 3);
    assert_eq!(ask(&mut one, (SERVER, 53).into(), &query(4, "example.org"))[3] & 15, 2);
    // A guest that comes later is found as well.
    let hosts = names.path().join("hosts");
    fs::write(&hosts, format!("{ONE} one\n{TWO} two\n10.88.0.18 three\n")).unwrap();
    let answer = ask(&mut one, (SERVER, 53).into(), &query(5, "three.lodge"));
    assert!(has_address(&answer, [10, 88, 0, 18].into()), "{answer:?}");

    let (sender, receiver) = (one.udp_socket(1000), two.udp_socket(2000));
    one.udp(sender).send_slice(b"hello", (TWO, 2000)).unwrap();
    let from = until(&mut one, &mut two, |_, two| {
        let (data, from) = two.sockets.get_mut::<udp::Socket>(receiver).recv().ok()?;
        assert_eq!(data, b"hello");
        Some(from.endpoint)
    });
    assert_eq!(from, (ONE, 1000).into());
}

#[test]
fn with_a_way_out_others_are_asked() {
    let names = tempfile::tempdir().unwrap();
    let resolvers = Resolvers::Fixed(vec![upstream()]);
    let config = EdgeConfig { router: Some(HOST), resolvers, ..config(&names, ONE_MAC, ONE) };
    let (here, there) = cable();
    let mut one = guest(here, config);
    let answer = ask(&mut one, (SERVER, 53).into(), &query(1, "example.org"));
    assert!(has_address(&answer, [192, 0, 2, 7].into()), "{answer:?}");
    assert!(has_address(&ask(&mut one, (SERVER, 53).into(), &query(2, "two")), TWO));
    // Nothing of all that has been on the network.
    let mut buffer = [0; 2000];
    while let Some(len) = there.receive(&mut buffer).unwrap() {
        let frame = EthernetFrame::new_checked(&buffer[..len]).unwrap();
        assert_eq!(frame.ethertype(), EthernetProtocol::Arp, "{frame}");
        let packet = ArpPacket::new_checked(frame.payload()).unwrap();
        assert_ne!(packet.target_protocol_addr(), SERVER.octets());
    }
}

#[test]
fn a_closed_network_has_no_host() {
    let names = tempfile::tempdir().unwrap();
    let mut one = guest(cable().0, EdgeConfig { host: None, ..config(&names, ONE_MAC, ONE) });
    assert_eq!(ask(&mut one, (SERVER, 53).into(), &query(1, "host.lodge"))[3] & 15, 3);
}

#[test]
fn ports_lead_into_guests() {
    let names = tempfile::tempdir().unwrap();
    let forward = Forward {
        transport: Transport::Tcp,
        host: SocketAddr::from(([127, 0, 0, 1], 0)),
        guest_port: 80,
    };
    let config = EdgeConfig { forwards: vec![forward], ..config(&names, ONE_MAC, ONE) };
    let mut one = guest(cable().0, config);
    let handle = one.tcp_socket(4096);
    one.tcp(handle).listen(80).unwrap();
    let address = one.network.forwarded()[0];
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"question").unwrap();
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).unwrap();
        answer
    });
    one.until("a client", |one| {
        let socket = one.sockets.get_mut::<tcp::Socket>(handle);
        let question = socket.can_recv() && socket.recv_queue() == 8;
        question.then(|| socket.send_slice(b"answer").unwrap())
    });
    one.until("the client's end", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), *b"answer");
}

fn frame(to: EthernetAddress, protocol: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_dst_addr(to);
    frame.set_src_addr(TWO_MAC);
    frame.set_ethertype(protocol);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

/// An IPv4 packet with a datagram.
fn datagram(from: Ipv4Addr, port: u16) -> Vec<u8> {
    let caps = smoltcp::phy::ChecksumCapabilities::default();
    let udp = UdpRepr { src_port: 67, dst_port: port };
    let ip = IpRepr::new(from.into(), ONE.into(), IpProtocol::Udp, 8 + 4, 64);
    let mut packet = vec![0; ip.buffer_len()];
    ip.emit(&mut packet, &caps);
    let mut room = UdpPacket::new_unchecked(&mut packet[20..]);
    udp.emit(&mut room, &from.into(), &ONE.into(), 4, |data| data.fill(7), &caps);
    packet
}

fn arp(operation: ArpOperation, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: TWO_MAC,
        source_protocol_addr: from,
        target_hardware_addr: ONE_MAC,
        target_protocol_addr: to,
    };
    let mut packet = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut packet));
    packet
}

/// The next frame for a guest that is behind an edge.
fn next(edge: &Edge) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let len = edge.receive(&mut buffer).unwrap()?;
    Some(buffer[..len].to_vec())
}

#[test]
fn nobody_on_the_network_plays_the_server() {
    let names = tempfile::tempdir().unwrap();
    let (here, there) = cable();
    let edge = Edge::new(here, config(&names, ONE_MAC, ONE)).unwrap();
    let (ip, is_arp) = (EthernetProtocol::Ipv4, EthernetProtocol::Arp);
    for false_frame in [
        frame(ONE_MAC, is_arp, &arp(ArpOperation::Reply, SERVER, ONE)),
        frame(EthernetAddress::BROADCAST, is_arp, &arp(ArpOperation::Request, SERVER, SERVER)),
        frame(ONE_MAC, ip, &datagram(SERVER, 5000)),
        frame(EthernetAddress::BROADCAST, ip, &datagram(TWO, 68)),
    ] {
        there.transmit(&false_frame);
    }
    let honest = [
        frame(ONE_MAC, is_arp, &arp(ArpOperation::Reply, TWO, ONE)),
        frame(ONE_MAC, ip, &datagram(TWO, 5000)),
        frame(ONE_MAC, EthernetProtocol::Ipv6, &[0x60; 60]),
    ];
    for frame in &honest {
        there.transmit(frame);
        assert_eq!(next(&edge).as_ref(), Some(frame));
    }
    assert_eq!(next(&edge), None);
}

#[test]
fn what_is_for_the_services_is_not_let_out_however_short_it_is() {
    let names = tempfile::tempdir().unwrap();
    let (here, there) = cable();
    let edge = Edge::new(here, config(&names, ONE_MAC, ONE)).unwrap();
    let whole = frame(SERVER_MAC, EthernetProtocol::Ipv4, &[0x45; 8]);
    for len in 6..whole.len() {
        edge.transmit(&whole[..len]);
        assert_eq!(there.receive(&mut [0; 64]).unwrap(), None, "{len} bytes");
    }
    // Of others, the network sees to it.
    let other = frame(TWO_MAC, EthernetProtocol::Ipv4, &[]);
    edge.transmit(&other[..13]);
    assert_eq!(there.receive(&mut [0; 64]).unwrap(), Some(13));
}

proptest! {
    /// Whatever a guest sends, it comes out at the other end as it is, or is the services' and does
    /// not come out at all.
    #[test]
    fn frames_pass_as_they_are(
        to_server in any::<bool>(),
        protocol in prop_oneof![Just(0x800_u16), Just(0x806), any::<u16>()],
        mut payload in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..100),
            (any::<u32>(), any::<u16>()).prop_map(|(from, port)| datagram(from.into(), port)),
            any::<u32>().prop_map(|to| arp(ArpOperation::Request, ONE, to.into())),
        ],
        damage in proptest::option::of((any::<usize>(), any::<u8>())),
    ) {
        if let (Some((at, byte)), false) = (damage, payload.is_empty()) {
            let len = payload.len();
            payload[at % len] = byte;
        }
        let names = tempfile::tempdir().unwrap();
        let (here, there) = cable();
        let edge = Edge::new(here, config(&names, ONE_MAC, ONE)).unwrap();
        let sent = frame(if to_server { SERVER_MAC } else { TWO_MAC }, protocol.into(), &payload);
        edge.transmit(&sent);
        let mut buffer = vec![0; 2000];
        let passed = there.receive(&mut buffer).unwrap().map(|len| buffer[..len].to_vec());
        match passed {
            Some(passed) => prop_assert!(!to_server && passed == sent),
            None => prop_assert!(to_server || [0x800, 0x806].contains(&protocol)),
        }
        // The same from the other side harms nobody either.
        there.transmit(&sent);
        next(&edge);
    }
}
