//! The user-mode network: frames of a guest that knows the protocols, and breaks them.
#![no_main]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use net::Backend;
use net::user::{Resolvers, UserNetwork, UserNetworkConfig};
use smoltcp::wire::{
    IpAddress, IpProtocol, Ipv4Address, Ipv4Packet, Ipv6Address, TcpPacket, UdpPacket,
};

const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const GUEST: Ipv4Address = Ipv4Address::new(10, 0, 2, 15);
const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
const RESOLVER: Ipv4Address = Ipv4Address::new(10, 0, 2, 3);
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Arbitrary, Debug)]
enum Frame<'a> {
    /// Bytes behind the two addresses.
    Raw(&'a [u8]),
    Ipv4 {
        to: u8,
        protocol: u8,
        fragment: u16,
        id: u8,
        options: &'a [u8],
        payload: &'a [u8],
    },
    Ipv6 {
        to: u8,
        next_header: u8,
        payload: &'a [u8],
    },
    Udp {
        to: u8,
        port: u8,
        payload: &'a [u8],
    },
    /// A segment of one connection, its numbers relative to what is right.
    Tcp {
        flags: u16,
        sequence: i16,
        acknowledge: i16,
        window: u16,
        options: &'a [u8],
        data: u16,
    },
    /// The guest reads what has come.
    Read,
}

/// A server on the loopback interface, the only one that frames are led to.
static SERVER: LazyLock<u16> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(&[7; 5000]);
            let _ = stream.read(&mut [0; 100]);
        }
    });
    port
});

struct Guest {
    network: UserNetwork,
    /// What is next of our bytes and of theirs.
    sequence: u32,
    acknowledge: u32,
}

fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC[..], &GUEST_MAC, &kind.to_be_bytes(), payload].concat()
}

/// An address that is not outside: the guest's network, itself, broadcast.
fn address(to: u8) -> Ipv4Address {
    if to == 255 { Ipv4Address::BROADCAST } else { Ipv4Address::new(10, 0, 2, to) }
}

fn address_v6(to: u8) -> Ipv6Address {
    match to & 0xc0 {
        0xc0 => Ipv6Address::new(0xff02, 0, 0, 0, 0, 0, 0, (to & 0x3f).into()),
        0x80 => Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, (to & 0x3f).into()),
        _ => Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, to.into()),
    }
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let sum = bytes.chunks(2).fold(0u32, |sum, pair| {
        sum + u32::from(pair[0]) * 256 + u32::from(pair.get(1).copied().unwrap_or(0))
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

fn ipv4(
    to: Ipv4Address,
    protocol: u8,
    fragment: u16,
    id: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut options = options[..options.len().min(40)].to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    let header_len = 20 + options.len();
    let mut packet = vec![0; header_len];
    packet[0] = 0x40 | (header_len / 4) as u8;
    packet[2..4].copy_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
    packet[5] = id;
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&GUEST.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[20..].copy_from_slice(&options);
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    frame(0x0800, &packet)
}

fn ipv6(to: Ipv6Address, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let from = Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    frame(0x86dd, &packet)
}

/// Puts the right checksum into what stands behind an IP header.
fn correct(protocol: u8, from: IpAddress, to: IpAddress, payload: &mut [u8]) {
    let at = match protocol {
        1 | 58 => 2,
        6 => 16,
        17 => 6,
        _ => return,
    };
    if payload.len() < at + 2 {
        return;
    }
    payload[at..at + 2].fill(0);
    let len = (payload.len() as u32).to_be_bytes();
    let sum = match (protocol, from, to) {
        (1, ..) => checksum(&[payload]),
        (_, IpAddress::Ipv4(from), IpAddress::Ipv4(to)) => {
            checksum(&[&from.octets(), &to.octets(), &[0, protocol], &len[2..], payload])
        }
        (_, IpAddress::Ipv6(from), IpAddress::Ipv6(to)) => {
            checksum(&[&from.octets(), &to.octets(), &len, &[0, 0, 0, protocol], payload])
        }
        _ => return,
    };
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Frames that end at the host must end at our server.
fn lead_home(protocol: u8, to_gateway: bool, payload: &mut [u8]) {
    if to_gateway && matches!(protocol, 6 | 17) && payload.len() >= 4 {
        let port = u16::from_be_bytes([payload[2], payload[3]]);
        if protocol == 6 || port >= 100 {
            payload[2..4].copy_from_slice(&SERVER.to_be_bytes());
        }
    }
}

impl Guest {
    fn new() -> Self {
        let config = UserNetworkConfig {
            resolvers: Resolvers::Fixed(vec![]),
            ..UserNetworkConfig::default()
        };
        Self { network: UserNetwork::new(config).unwrap(), sequence: 1000, acknowledge: 0 }
    }

    fn send(&mut self, what: &Frame<'_>) {
        match what {
            Frame::Raw(bytes) => {
                let raw = [&GATEWAY_MAC[..], &GUEST_MAC, bytes].concat();
                // What has an IP header may lead anywhere.
                if !matches!(bytes.get(..2), Some([8, 0] | [0x86, 0xdd])) {
                    self.network.transmit(&raw);
                }
            }
            Frame::Ipv4 { to, protocol, fragment, id, options, payload } => {
                let (to, mut payload) = (address(*to), payload.to_vec());
                // Not TCP or UDP in fragments, whose ports we could not see to.
                if matches!(protocol, 6 | 17) && fragment & 0x3fff != 0 && to == GATEWAY {
                    return;
                }
                lead_home(*protocol, to == GATEWAY, &mut payload);
                correct(*protocol, GUEST.into(), to.into(), &mut payload);
                self.network.transmit(&ipv4(to, *protocol, *fragment, *id, options, &payload));
            }
            Frame::Ipv6 { to, next_header, payload } => {
                let (to, mut payload) = (address_v6(*to), payload.to_vec());
                let from = Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15);
                let to_gateway = to == address_v6(2);
                if to_gateway && *next_header == 44 {
                    return;
                }
                lead_home(*next_header, to_gateway, &mut payload);
                correct(*next_header, from.into(), to.into(), &mut payload);
                self.network.transmit(&ipv6(to, *next_header, &payload));
            }
            Frame::Udp { to, port, payload } => {
                let to = if to & 1 == 0 { RESOLVER } else { address(*to) };
                let port = if to == GATEWAY { 67 } else { u16::from(*port) };
                let mut bytes = vec![0; 8 + payload.len()];
                let mut datagram = UdpPacket::new_unchecked(&mut bytes);
                datagram.set_src_port(if port == 67 { 68 } else { 5000 });
                datagram.set_dst_port(port);
                datagram.set_len((8 + payload.len()) as u16);
                bytes[8..].copy_from_slice(payload);
                correct(17, GUEST.into(), to.into(), &mut bytes);
                self.network.transmit(&ipv4(to, 17, 0, 0, &[], &bytes));
            }
            Frame::Tcp { flags, sequence, acknowledge, window, options, data } => {
                let mut options = options[..options.len().min(40)].to_vec();
                options.resize(options.len().next_multiple_of(4), 1);
                let header_len = 20 + options.len();
                let mut segment = vec![0; header_len + usize::from(data % 2000)];
                segment[..2].copy_from_slice(&5000u16.to_be_bytes());
                segment[2..4].copy_from_slice(&SERVER.to_be_bytes());
                let sequence = self.sequence.wrapping_add(i32::from(*sequence) as u32);
                let acknowledge = self.acknowledge.wrapping_add(i32::from(*acknowledge) as u32);
                segment[4..8].copy_from_slice(&sequence.to_be_bytes());
                segment[8..12].copy_from_slice(&acknowledge.to_be_bytes());
                let flags = (header_len as u16 / 4) << 12 | flags & 0x1ff;
                segment[12..14].copy_from_slice(&flags.to_be_bytes());
                segment[14..16].copy_from_slice(&window.to_be_bytes());
                segment[20..header_len].copy_from_slice(&options);
                correct(6, GUEST.into(), GATEWAY.into(), &mut segment);
                self.network.transmit(&ipv4(GATEWAY, 6, 0, 0, &[], &segment));
            }
            Frame::Read => self.read(|_| false),
        }
    }

    /// Reads frames until there are none or one was `wanted`.
    fn read(&mut self, wanted: impl Fn(&[u8]) -> bool) {
        let mut buffer = vec![0; 1 << 16];
        while let Some(len) = self.network.receive(&mut buffer).unwrap() {
            let bytes = &buffer[..len];
            self.take_notice(bytes);
            if wanted(bytes) {
                return;
            }
        }
    }

    /// Follows the connection.
    fn take_notice(&mut self, bytes: &[u8]) {
        let packet = bytes.get(14..).and_then(|bytes| Ipv4Packet::new_checked(bytes).ok());
        let Some(packet) = packet.filter(|packet| packet.next_header() == IpProtocol::Tcp) else {
            return;
        };
        if let Ok(segment) = TcpPacket::new_checked(packet.payload()) {
            let len = segment.payload().len() as u32 + u32::from(segment.syn() || segment.fin());
            self.acknowledge = (segment.seq_number().0 as u32).wrapping_add(len);
            self.sequence = segment.ack_number().0 as u32;
        }
    }

    /// Whatever came before, the network answers.
    fn expect_life(&mut self) {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend(GUEST_MAC);
        arp.extend(GUEST.octets());
        arp.extend([0; 6]);
        arp.extend(GATEWAY.octets());
        self.network.transmit(&frame(0x0806, &arp));
        let start = Instant::now();
        let answered = std::cell::Cell::new(false);
        while !answered.get() {
            assert!(start.elapsed() < PATIENCE, "the network is silent");
            self.read(|bytes| {
                let is_answer = bytes.get(12..14) == Some(&[8, 6]) && bytes.get(21) == Some(&2);
                answered.set(answered.get() || is_answer);
                is_answer
            });
            std::thread::yield_now();
        }
    }
}

fuzz_target!(|frames: Vec<Frame<'_>>| {
    let mut guest = Guest::new();
    for frame in &frames {
        guest.send(frame);
        if matches!(frame, Frame::Tcp { .. }) {
            guest.expect_life();
        }
    }
    guest.expect_life();
});
