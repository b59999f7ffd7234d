//! A guest that means harm. Whatever it sends, the network goes on.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::LazyLock;
use std::thread;

use net::Backend;
use net::user::{Resolvers, UserNetwork, UserNetworkConfig};
use proptest::prelude::*;
use proptest::sample::Index;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::*;

use crate::guest::{ADDRESS_V6, GATEWAY, GATEWAY_V6};
use crate::wire;

const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// A network from which nothing leads off this machine: frames may become anything.
fn network() -> UserNetwork {
    UserNetwork::new(UserNetworkConfig {
        resolvers: Resolvers::Fixed(vec![]),
        host_loopback: false,
        ..UserNetworkConfig::default()
    })
    .unwrap()
}

/// Takes frames away, as a guest does, so that the queue does not stay full.
fn drain(network: &UserNetwork) {
    let mut buffer = vec![0; 1 << 16];
    while network.receive(&mut buffer).unwrap().is_some() {}
}

/// A frame of each kind that the network understands.
fn valid_frames() -> Vec<Vec<u8>> {
    let caps = ChecksumCapabilities::default();
    let echo = Icmpv4Repr::EchoRequest { ident: 1, seq_no: 2, data: b"data" };
    let mut ping = vec![0; echo.buffer_len()];
    echo.emit(&mut Icmpv4Packet::new_unchecked(&mut ping), &caps);
    let echo = Icmpv6Repr::EchoRequest { ident: 1, seq_no: 2, data: b"data" };
    let solicit =
        |target_addr| Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, lladdr: None });
    let router = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None });
    let all_routers: Ipv6Addr = "ff02::2".parse().unwrap();
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04host\x05lodge\0\0\x01\0\x01";
    let mut dhcp = vec![0; 300];
    dhcp[..3].copy_from_slice(&[1, 1, 6]);
    dhcp[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    dhcp[236..244].copy_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    let mut fragment = wire::ipv4(GATEWAY, IpProtocol::Udp, &[0; 64]);
    Ipv4Packet::new_unchecked(&mut fragment[14..]).set_more_frags(true);
    vec![
        wire::arp(ArpOperation::Request, EthernetAddress::BROADCAST, GATEWAY),
        wire::ipv4(GATEWAY, IpProtocol::Icmp, &ping),
        wire::icmpv6(ADDRESS_V6, GATEWAY_V6, &echo, 64),
        wire::icmpv6(ADDRESS_V6, GATEWAY_V6, &solicit(GATEWAY_V6), 255),
        wire::icmpv6(ADDRESS_V6, all_routers, &router, 255),
        wire::ipv4(DNS, IpProtocol::Udp, &wire::udp(5000, (DNS, 53), query)),
        wire::ipv4(GATEWAY, IpProtocol::Udp, &wire::udp(68, (GATEWAY, 67), &dhcp)),
        wire::ipv4(GATEWAY, IpProtocol::Udp, &wire::udp(5000, (GATEWAY, 9), b"data")),
        wire::tcp(GATEWAY, &wire::segment(5000, 80, TcpControl::Syn)),
        wire::tcp(GATEWAY, &wire::segment(5000, 80, TcpControl::Fin)),
        fragment,
    ]
}

/// Whether a frame is for somebody outside, in which case it must not be sent by a test.
fn leaves_this_machine(frame: &[u8]) -> bool {
    let inside = |destination: &[u8]| match destination.len() {
        4 => destination[..3] == [10, 0, 2],
        _ => destination[..8] == [0xfd, 0, 0, 0, 0, 0, 0, 0] || destination[..2] == [0xff, 2],
    };
    match frame.get(12..14) {
        Some([8, 0]) => frame.get(30..34).is_some_and(|to| !inside(to)),
        Some([0x86, 0xdd]) => frame.get(38..54).is_some_and(|to| !inside(to)),
        _ => false,
    }
}

/// A server that talks, listens and sends back.
static PORT: LazyLock<u16> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let _ = stream.write_all(&[7; 40000]);
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
                let _ = stream.read(&mut [0]);
            });
        }
    });
    port
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_survived(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..100),
    ) {
        let network = network();
        for mut frame in frames {
            // Most noise would not get past the Ethernet header.
            if let Some(header) = frame.get_mut(..14) {
                header[..6].copy_from_slice(&[0x52, 0x55, 10, 0, 2, 2]);
                let kinds = [[8, 0], [8, 6], [0x86, 0xdd]];
                let kind = kinds[usize::from(header[12]) % kinds.len()];
                header[12..].copy_from_slice(&kind);
            }
            if !leaves_this_machine(&frame) {
                network.transmit(&frame);
            }
        }
        wire::ping(&network, 1);
    }

    #[test]
    fn damaged_frames_are_survived(
        damages in prop::collection::vec(
            (any::<Index>(), prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
             any::<Option<Index>>()),
            0..300),
    ) {
        let network = network();
        let frames = valid_frames();
        for (which, changes, cut) in damages {
            let mut frame = which.get(&frames).clone();
            for (place, value) in changes {
                let place = place.index(frame.len());
                frame[place] = value;
            }
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len()));
            }
            if !leaves_this_machine(&frame) {
                network.transmit(&frame);
            }
        }
        drain(&network);
        wire::ping(&network, 1);
    }

    #[test]
    fn wild_segments_are_survived(
        segments in prop::collection::vec(
            (any::<u8>(), -70000..70000_i32, prop::option::weighted(0.9, -70000..70000_i32),
             any::<u16>(), 0..3000_usize, any::<bool>()),
            1..200),
    ) {
        let network = UserNetwork::new(UserNetworkConfig::default()).unwrap();
        wire::ping(&network, 1);
        let mut syn = wire::segment(5000, *PORT, TcpControl::Syn);
        syn.window_scale = Some(7);
        syn.max_seg_size = Some(segments[0].3);
        syn.sack_permitted = segments[0].5;
        network.transmit(&wire::tcp(GATEWAY, &syn));
        let theirs = wire::receive(&network, |bytes| {
            let (ip, payload) = wire::read_ipv4(bytes)?;
            (ip.next_header == IpProtocol::Tcp)
                .then(|| TcpPacket::new_unchecked(payload).seq_number())
        });
        let data = [5; 3000];
        for (i, (flags, seq, ack, window_len, len, exact)) in segments.into_iter().enumerate() {
            let mut segment = wire::segment(5000, *PORT, match flags % 16 {
                0 => TcpControl::Syn,
                1 => TcpControl::Fin,
                2 => TcpControl::Rst,
                3..8 => TcpControl::Psh,
                _ => TcpControl::None,
            });
            let near = |base: TcpSeqNumber, offset: i32| TcpSeqNumber(base.0.wrapping_add(offset));
            let shrink = |offset: i32| if exact { offset / 30000 } else { offset };
            segment.seq_number = near(TcpSeqNumber(1001), shrink(seq));
            segment.ack_number = ack.map(|ack| near(theirs, 1 + shrink(ack)));
            segment.window_len = window_len;
            segment.payload = &data[..len];
            network.transmit(&wire::tcp(GATEWAY, &segment));
            if i % 8 == 0 {
                drain(&network);
            }
        }
        drain(&network);
        wire::ping(&network, 2);
    }
}

#[test]
fn a_guest_that_never_reads_fills_its_queue_alone() {
    let network = network();
    let ping = &valid_frames()[1];
    wire::ping(&network, 1);
    for _ in 0..100_000 {
        network.transmit(ping);
    }
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    while let Some(len) = network.receive(&mut buffer).unwrap() {
        bytes += len;
    }
    assert!(bytes < 8 << 20, "{bytes}");
    drain(&network);
    wire::ping(&network, 2);
}
