//! UDP between a guest and the host, both ways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;

use net::Backend;
use net::user::{Forward, Transport, UserNetwork, UserNetworkConfig};
use smoltcp::wire::*;

use crate::guest::{ADDRESS, GATEWAY, GATEWAY_V6, Guest, PATIENCE};
use crate::wire;

/// A server that sends back what it gets, and its port.
fn echo(address: IpAddr) -> u16 {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..len], from).unwrap();
        }
    });
    port
}

#[test]
fn datagrams_come_back() {
    let ways: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::LOCALHOST.into(), GATEWAY.into()),
        (Ipv6Addr::LOCALHOST.into(), GATEWAY_V6.into()),
    ];
    for (host, gateway) in ways {
        let to = SocketAddr::new(gateway, echo(host));
        let mut guest = Guest::new(UserNetworkConfig::default());
        let handle = guest.udp_socket(6000);
        for data in [&b"hello"[..], &[0xa5; 1400], b""] {
            guest.udp(handle).send_slice(data, to).unwrap();
            guest.until("an echo", |guest| {
                let (back, from) = guest.udp(handle).recv().ok()?;
                assert_eq!(from.endpoint, to.into());
                assert_eq!(back, data);
                Some(())
            });
        }
    }
}

/// The fragments of a packet, in frames.
fn fragments(to: Ipv4Addr, payload: &[u8]) -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = payload
        .chunks(1480)
        .enumerate()
        .map(|(i, data)| {
            let mut bytes = wire::ipv4(to, IpProtocol::Udp, data);
            let mut packet = Ipv4Packet::new_unchecked(&mut bytes[14..]);
            packet.set_ident(99);
            packet.set_dont_frag(false);
            packet.set_frag_offset((i * 1480) as u16);
            packet.set_more_frags((i + 1) * 1480 < payload.len());
            packet.fill_checksum();
            bytes
        })
        .collect();
    frames.reverse();
    frames
}

#[test]
fn long_datagrams_travel_in_fragments() {
    let port = echo(Ipv4Addr::LOCALHOST.into());
    let network = UserNetwork::new(UserNetworkConfig::default()).unwrap();
    wire::ping(&network, 1);
    let data: Vec<u8> = (0..9000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let sent = wire::udp(6000, (GATEWAY, port), &data);
    for frame in fragments(GATEWAY, &sent) {
        network.transmit(&frame);
    }
    let mut payload = Vec::new();
    wire::receive(&network, |bytes| {
        assert!(bytes.len() <= 1514);
        let (header, data) = wire::read_ipv4(bytes)?;
        assert_eq!((header.src_addr, header.dst_addr), (GATEWAY, ADDRESS));
        let packet = Ipv4Packet::new_checked(&bytes[14..]).unwrap();
        assert_eq!(usize::from(packet.frag_offset()), payload.len());
        payload.extend_from_slice(data);
        (!packet.more_frags()).then_some(())
    });
    let packet = UdpPacket::new_checked(&payload[..]).unwrap();
    assert!(packet.verify_checksum(&GATEWAY.into(), &ADDRESS.into()));
    assert_eq!((packet.src_port(), packet.dst_port()), (port, 6000));
    assert!(packet.payload() == data);
}

#[test]
fn a_closed_port_is_unreachable() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let network = UserNetwork::new(UserNetworkConfig::default()).unwrap();
    wire::ping(&network, 1);
    let datagram = wire::udp(6000, (GATEWAY, port), b"hello");
    let frame = wire::ipv4(GATEWAY, IpProtocol::Udp, &datagram);
    network.transmit(&frame);
    assert_eq!(wire::receive_unreachable(&network, &frame), (GATEWAY, 3), "no such port");
}

#[test]
fn a_forwarded_port_leads_into_the_guest() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let host: SocketAddr = host.parse().unwrap();
        let mut guest = Guest::new(UserNetworkConfig {
            forwards: vec![Forward { transport: Transport::Udp, host, guest_port: 53 }],
            ..UserNetworkConfig::default()
        });
        // The network must know the guest, or the first datagram is lost, as datagrams may be.
        wire::ping(&guest.network, 1);
        let address = guest.network.forwarded()[0];
        let handle = guest.udp_socket(53);
        let clients: Vec<UdpSocket> = (0..3_u8)
            .map(|i| {
                let client = UdpSocket::bind((address.ip(), 0)).unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                client.connect(address).unwrap();
                client.send(&[i; 100]).unwrap();
                client
            })
            .collect();
        for _ in 0..3 {
            guest.until("a client's datagram", |guest| {
                let (data, from) = guest.udp(handle).recv().ok()?;
                assert_eq!(from.endpoint.addr, GATEWAY.into());
                let answer = [data[0] + 100; 200];
                guest.udp(handle).send_slice(&answer, from.endpoint).unwrap();
                Some(())
            });
        }
        guest.until("the answers to go", |guest| {
            (guest.udp(handle).send_queue() == 0).then_some(())
        });
        for (i, client) in (100..).zip(clients) {
            let mut buffer = [0; 300];
            assert_eq!(client.recv(&mut buffer).unwrap(), 200);
            assert_eq!(buffer[0], i);
        }
    }
}

#[test]
fn more_flows_than_there_is_room_for() {
    let port = echo(Ipv4Addr::LOCALHOST.into());
    let network = UserNetwork::new(UserNetworkConfig::default()).unwrap();
    wire::ping(&network, 1);
    // One after the other: the server's socket has room for some 250 datagrams, and loses what
    // comes while its thread has no processor. In the end the first one, long forgotten, again.
    for from in (1..=1000).chain([1]) {
        let datagram = wire::udp(from, (GATEWAY, port), &from.to_be_bytes());
        network.transmit(&wire::ipv4(GATEWAY, IpProtocol::Udp, &datagram));
        wire::receive(&network, |bytes| {
            let (_, payload) = wire::read_ipv4(bytes)?;
            let packet = UdpPacket::new_checked(payload).ok()?;
            let ports = (packet.src_port(), packet.dst_port());
            (ports == (port, from)).then(|| assert_eq!(packet.payload(), from.to_be_bytes()))
        });
    }
}

/// Datagrams that come faster than a server takes them may be lost, but nothing else may happen.
#[test]
fn a_flood_of_flows_is_survived() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let network = UserNetwork::new(UserNetworkConfig::default()).unwrap();
    wire::ping(&network, 1);
    for from in 1..=2000 {
        let datagram = wire::udp(from, (GATEWAY, port), &[1; 100]);
        network.transmit(&wire::ipv4(GATEWAY, IpProtocol::Udp, &datagram));
    }
    wire::ping(&network, 2);
}
