//! Frames made and read by hand, for what smoltcp's sockets do not show.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use net::Backend;
use net::user::UserNetwork;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::*;

use crate::guest::{ADDRESS, GATEWAY, MAC, PATIENCE};

/// The gateway's card.
pub const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);

/// A frame to the gateway's card.
pub fn frame(protocol: EthernetProtocol, len: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = vec![0; 14 + len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(MAC);
    frame.set_dst_addr(GATEWAY_MAC);
    frame.set_ethertype(protocol);
    fill(frame.payload_mut());
    bytes
}

/// An IP packet in a frame.
pub fn ip(repr: IpRepr, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let protocol = match repr {
        IpRepr::Ipv4(_) => EthernetProtocol::Ipv4,
        IpRepr::Ipv6(_) => EthernetProtocol::Ipv6,
    };
    frame(protocol, repr.buffer_len(), |packet| {
        repr.emit(&mut *packet, &ChecksumCapabilities::default());
        fill(&mut packet[repr.header_len()..]);
    })
}

/// A UDP datagram's bytes behind the IP header.
pub fn udp(from: u16, to: (Ipv4Addr, u16), data: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: from, dst_port: to.1 };
    let mut bytes = vec![0; 8 + data.len()];
    repr.emit(
        &mut UdpPacket::new_unchecked(&mut bytes),
        &ADDRESS.into(),
        &to.0.into(),
        data.len(),
        |room| room.copy_from_slice(data),
        &ChecksumCapabilities::default(),
    );
    bytes
}

/// An IPv4 packet with `payload` from the guest.
pub fn ipv4(to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let repr = IpRepr::new(ADDRESS.into(), to.into(), protocol, payload.len(), 64);
    ip(repr, |room| room.copy_from_slice(payload))
}

/// A TCP segment from the guest.
pub fn tcp(to: Ipv4Addr, segment: &TcpRepr<'_>) -> Vec<u8> {
    let (from, to) = (ADDRESS.into(), to.into());
    let repr = IpRepr::new(from, to, IpProtocol::Tcp, segment.buffer_len(), 64);
    ip(repr, |room| {
        let mut packet = TcpPacket::new_unchecked(room);
        segment.emit(&mut packet, &from, &to, &ChecksumCapabilities::default());
    })
}

/// An empty segment with the given ports.
pub fn segment(from: u16, to: u16, control: TcpControl) -> TcpRepr<'static> {
    TcpRepr {
        src_port: from,
        dst_port: to,
        control,
        seq_number: TcpSeqNumber(1000),
        ack_number: None,
        window_len: 8192,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

/// Answers ARP requests for the guest, and returns the first other frame that `wanted` takes.
pub fn receive<T>(network: &UserNetwork, wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
    receive_while(network, || {}, wanted)
}

fn receive_while<T>(
    network: &UserNetwork,
    mut meanwhile: impl FnMut(),
    mut wanted: impl FnMut(&[u8]) -> Option<T>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; 1 << 16];
    loop {
        meanwhile();
        while let Some(len) = network.receive(&mut buffer).unwrap() {
            let bytes = &buffer[..len];
            let frame = EthernetFrame::new_checked(bytes).unwrap();
            assert_eq!(frame.src_addr(), GATEWAY_MAC);
            if let Some(result) = wanted(bytes) {
                return result;
            }
            answer_arp(network, &frame);
        }
        assert!(Instant::now() < deadline, "waited in vain for a frame");
        let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let mut fds = [PollFd::from_borrowed_fd(network.readable(), PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).unwrap();
    }
}

fn answer_arp(network: &UserNetwork, frame: &EthernetFrame<&[u8]>) {
    if frame.ethertype() != EthernetProtocol::Arp {
        return;
    }
    let request = ArpPacket::new_checked(frame.payload()).unwrap();
    let Ok(ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr: ADDRESS,
        ..
    }) = ArpRepr::parse(&request)
    else {
        return;
    };
    network.transmit(&arp(ArpOperation::Reply, source_hardware_addr, source_protocol_addr));
}

/// An ARP packet from the guest.
pub fn arp(operation: ArpOperation, mac: EthernetAddress, to: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: MAC,
        source_protocol_addr: ADDRESS,
        target_hardware_addr: mac,
        target_protocol_addr: to,
    };
    frame(EthernetProtocol::Arp, repr.buffer_len(), |room| {
        repr.emit(&mut ArpPacket::new_unchecked(room));
    })
}

/// The IPv4 packet in a frame: its header and payload. Checksums are verified.
pub fn read_ipv4(bytes: &[u8]) -> Option<(Ipv4Repr, &[u8])> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
    assert!(packet.verify_checksum());
    let repr = Ipv4Repr {
        src_addr: packet.src_addr(),
        dst_addr: packet.dst_addr(),
        next_header: packet.next_header(),
        payload_len: packet.payload().len(),
        hop_limit: packet.hop_limit(),
    };
    Some((repr, packet.payload()))
}

/// The ICMP message in a frame, and who sends it.
pub fn read_icmpv4(bytes: &[u8]) -> Option<(Ipv4Addr, Icmpv4Packet<&[u8]>)> {
    let (ip, payload) = read_ipv4(bytes)?;
    if ip.next_header != IpProtocol::Icmp {
        return None;
    }
    let packet = Icmpv4Packet::new_checked(payload).unwrap();
    assert!(packet.verify_checksum());
    Some((ip.src_addr, packet))
}

/// Expects an ICMP error about the IPv4 packet in the frame `sent`: who tells, and why.
pub fn receive_unreachable(network: &UserNetwork, sent: &[u8]) -> (Ipv4Addr, u8) {
    receive(network, |bytes| {
        let (from, icmp) = read_icmpv4(bytes)?;
        assert_eq!(icmp.msg_type(), Icmpv4Message::DstUnreachable);
        // The quoted header and the first 8 bytes behind it.
        let (header, payload) = icmp.data().split_at(20);
        let quoted = Ipv4Packet::new_unchecked(header);
        assert!(quoted.verify_checksum());
        let (original, data) = read_ipv4(sent).unwrap();
        assert_eq!((quoted.src_addr(), quoted.dst_addr()), (original.src_addr, original.dst_addr));
        assert_eq!(quoted.next_header(), original.next_header);
        // The ports, or the type, code and checksum.
        assert_eq!(payload.len(), 8);
        assert_eq!(payload[..4], data[..4]);
        Some((from, icmp.msg_code()))
    })
}

/// The ICMPv6 message in a frame: who sends it to whom, what it says, and its bytes.
pub fn read_icmpv6<T>(
    bytes: &[u8],
    read: impl FnOnce(Ipv6Addr, Ipv6Addr, Icmpv6Repr<'_>, &[u8]) -> T,
) -> Option<T> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv6 {
        return None;
    }
    let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
    if packet.next_header() != IpProtocol::Icmpv6 {
        return None;
    }
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let message = Icmpv6Packet::new_checked(packet.payload()).unwrap();
    let icmp = Icmpv6Repr::parse(&from, &to, &message, &ChecksumCapabilities::default()).unwrap();
    Some(read(from, to, icmp, packet.payload()))
}

/// An ICMPv6 message from the guest's address `from`.
pub fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, message: &Icmpv6Repr<'_>, hop_limit: u8) -> Vec<u8> {
    let len = message.buffer_len();
    let repr = IpRepr::new(from.into(), to.into(), IpProtocol::Icmpv6, len, hop_limit);
    ip(repr, |room| {
        let mut packet = Icmpv6Packet::new_unchecked(room);
        message.emit(&from, &to, &mut packet, &ChecksumCapabilities::default());
    })
}

/// Checks that the network still works: it answers a ping. Pings may be lost while the network
/// has other things to do, or does not know the guest.
pub fn ping(network: &UserNetwork, seq_no: u16) {
    ping_while(network, seq_no, |_| {});
}

/// [`ping`], with a look at the frames that come before the answer.
pub fn ping_while(network: &UserNetwork, seq_no: u16, mut other: impl FnMut(&[u8])) {
    let icmp = Icmpv4Repr::EchoRequest { ident: 77, seq_no, data: b"abcdefgh" };
    let mut payload = vec![0; icmp.buffer_len()];
    icmp.emit(&mut Icmpv4Packet::new_unchecked(&mut payload), &ChecksumCapabilities::default());
    let ping = ipv4(GATEWAY, IpProtocol::Icmp, &payload);
    let mut last = None;
    receive_while(
        network,
        || {
            if last.is_none_or(|last: Instant| last.elapsed() > Duration::from_millis(200)) {
                last = Some(Instant::now());
                network.transmit(&ping);
            }
        },
        |bytes| {
            other(bytes);
            let (from, icmp) = read_icmpv4(bytes)?;
            let wanted = icmp.msg_type() == Icmpv4Message::EchoReply
                && (icmp.echo_ident(), icmp.echo_seq_no()) == (77, seq_no);
            wanted.then(|| {
                assert_eq!(from, GATEWAY);
                assert_eq!(icmp.data(), b"abcdefgh");
            })
        },
    );
}
