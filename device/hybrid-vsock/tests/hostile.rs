//! Guests that break the rules: they hurt themselves alone.

mod guest;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use guest::{Guest, is_at_end};
use hybrid_vsock::{BUFFER, GUEST_CID, HEADER, HOST_CID, Header, MAX_CONNECTIONS, Op};
use proptest::prelude::*;

#[test]
fn a_guest_that_sends_too_much_loses_the_connection() {
    let guest = Guest::new();
    let (mut host, ports) = guest.connected();
    let (other, _) = guest.connected();
    let mut sent = 0;
    loop {
        guest.send_data(ports, &[1; 60_000]);
        sent += 60_000;
        let mut packets = std::iter::from_fn(|| guest.receive());
        if packets.any(|packet| packet.op() == Op::Rst) {
            break;
        }
        assert!(guest.vsock.kept().1 <= BUFFER);
        assert!(sent < 10 << 20, "never refused");
    }
    // What it sent while it kept the rules arrives.
    let mut received = 0;
    let mut piece = [0; 4096];
    loop {
        match host.read(&mut piece).unwrap() {
            0 => break,
            len => received += len,
        }
        let _ = guest.receive();
    }
    assert_eq!(received, sent - 60_000);
    other.set_nonblocking(true).unwrap();
    assert!((&other).read(&mut [0]).is_err(), "the other goes on");
}

#[test]
fn a_guest_that_counts_wrong_gets_nothing() {
    let guest = Guest::new();
    let (mut host, ports) = guest.connected();
    host.write_all(b"hello").unwrap();
    for (buf_alloc, fwd_cnt) in [(0, 0), (10, 11), (u32::MAX - 1, 1), (5, u32::MAX)] {
        let header = Header { buf_alloc, fwd_cnt, ..Guest::header(Op::CreditUpdate, ports) };
        guest.vsock.transmit(&header.bytes(), &[]);
        while let Some(packet) = guest.receive() {
            assert!(matches!(packet.op(), Op::CreditRequest | Op::Rw), "{packet:?}");
        }
    }
}

#[test]
fn packets_of_no_connection_are_refused_and_bounded() {
    let guest = Guest::new();
    for op in [Op::Response, Op::Rw, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        guest.send(op, (1, 2));
        assert_eq!(guest.expect(Op::Rst).ports(), (1, 2));
    }
    // Refusals are not refused.
    guest.send(Op::Rst, (1, 2));
    assert!(guest.receive().is_none());
    for wrong in [
        Header { op: 0, ..Guest::header(Op::Rw, (1, 2)) },
        Header { op: 99, ..Guest::header(Op::Rw, (1, 2)) },
        Header { kind: 2, ..Guest::header(Op::Request, (1, 2)) },
    ] {
        guest.vsock.transmit(&wrong.bytes(), &[]);
        assert_eq!(guest.expect(Op::Rst).ports(), (1, 2));
    }
    for _ in 0..100_000 {
        guest.send(Op::Rw, (1, 2));
    }
    assert!(std::iter::from_fn(|| guest.receive()).count() < 1000);
}

#[test]
fn a_packet_out_of_turn_ends_the_connection() {
    type Act = fn(&Guest, (u32, u32));
    let out_of_turn: [Act; 5] = [
        |guest, ports| guest.send(Op::Response, ports),
        |guest, ports| guest.send(Op::Request, ports),
        |guest, ports| {
            let header = Header { kind: 2, ..Guest::header(Op::CreditUpdate, ports) };
            guest.vsock.transmit(&header.bytes(), &[]);
        },
        |guest, ports| {
            let header = Header { op: 77, ..Guest::header(Op::Rw, ports) };
            guest.vsock.transmit(&header.bytes(), &[]);
        },
        |guest, ports| {
            guest.shut_down(ports, hybrid_vsock::shutdown::SEND);
            guest.send_data(ports, b"after its end");
        },
    ];
    for act in out_of_turn {
        let guest = Guest::new();
        let (host, ports) = guest.connected();
        act(&guest, ports);
        assert_eq!(guest.expect(Op::Rst).ports(), ports);
        assert!(is_at_end(&host));
        assert_eq!(guest.vsock.kept(), (0, 0));
    }
}

#[test]
fn data_before_the_answer_ends_the_connection() {
    let guest = Guest::new();
    let host = guest.connect_from_host("CONNECT 1\n");
    let ports = guest.expect(Op::Request).ports();
    guest.send_data(ports, b"too early");
    guest.expect(Op::Rst);
    assert!(is_at_end(&host));
}

/// What happens, in any order.
#[derive(Clone, Debug)]
enum Act {
    Packet { header: Header, data: Vec<u8> },
    Receive { room: usize },
    Connect,
    HostWrites { which: usize, len: usize },
    HostReads { which: usize },
    HostGoes { which: usize },
    Reset,
}

fn header() -> impl Strategy<Value = Header> {
    let cid = || prop_oneof![9 => Just(GUEST_CID), 9 => Just(HOST_CID), 1 => any::<u64>()];
    let host_port = prop_oneof![8 => (1u32 << 30)..(1 << 30) + 6, 1 => any::<u32>()];
    let room = || prop_oneof![Just(0), Just(1000), Just(1 << 20), any::<u32>()];
    let ids = (Just(GUEST_CID), Just(HOST_CID)).boxed();
    let ids = prop_oneof![9 => ids, 1 => (cid(), cid()).boxed()];
    (
        ids,
        host_port,
        prop_oneof![8 => Just(5u32), 1 => any::<u32>()],
        prop_oneof![15 => Just(1u16), 1 => any::<u16>()],
        prop_oneof![15 => 1u16..8, 1 => any::<u16>()],
        prop_oneof![7 => 0u32..4, 1 => any::<u32>()],
        room(),
        room(),
    )
        .prop_map(|((src_cid, dst_cid), dst_port, src_port, kind, op, flags, alloc, fwd)| {
            Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len: 0,
                kind,
                op,
                flags,
                buf_alloc: alloc,
                fwd_cnt: fwd,
            }
        })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (header(), prop_oneof![Just(0usize), 0usize..100, Just(65536usize)])
            .prop_map(|(header, len)| Act::Packet {
                header: Header { len: len as u32, ..header },
                data: vec![9; len],
            }),
        8 => (0usize..5000).prop_map(|room| Act::Receive { room }),
        3 => Just(Act::Connect),
        3 => (0usize..8, 0usize..100_000).prop_map(|(which, len)| Act::HostWrites { which, len }),
        2 => (0usize..8).prop_map(|which| Act::HostReads { which }),
        1 => (0usize..8).prop_map(|which| Act::HostGoes { which }),
        1 => Just(Act::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 300 } else { 3000 }))]

    #[test]
    fn whatever_happens_the_host_keeps_little_and_the_guest_gets_sense(
        acts in proptest::collection::vec(act(), 0..120)
    ) {
        let guest = Guest::new();
        let mut hosts: Vec<UnixStream> = Vec::new();
        for act in acts {
            match act {
                Act::Packet { header, data } => guest.vsock.transmit(&header.bytes(), &data),
                Act::Receive { room } => {
                    let mut buffer = vec![0; HEADER + room];
                    if guest.vsock.has_packets()
                        && let Some(len) = guest.vsock.receive(&mut buffer)
                    {
                        let header = Header::read(buffer.first_chunk().unwrap());
                        prop_assert!(Op::from_number(header.op).is_some());
                        prop_assert_eq!(header.len as usize, len - HEADER);
                    }
                }
                Act::Connect => {
                    let host = guest.connect_from_host("CONNECT 5\n");
                    host.set_nonblocking(true).unwrap();
                    // More than wait at once cannot connect.
                    prop_assert!(guest.vsock.has_packets() || hosts.len() < 300);
                    hosts.push(host);
                }
                Act::HostWrites { which, len } => {
                    if let Some(host) = hosts.get_mut(which) {
                        let _ = host.write(&vec![3; len]);
                    }
                }
                Act::HostReads { which } => {
                    if let Some(host) = hosts.get_mut(which) {
                        let _ = host.read(&mut [0; 10_000]);
                    }
                }
                Act::HostGoes { which } => {
                    if which < hosts.len() {
                        hosts.swap_remove(which);
                    }
                }
                Act::Reset => {
                    guest.vsock.reset();
                    guest.vsock.start();
                }
            }
            let (connections, bytes) = guest.vsock.kept();
            prop_assert!(connections <= MAX_CONNECTIONS);
            prop_assert!(bytes <= MAX_CONNECTIONS * BUFFER);
        }
        // It comes to rest, and when all are gone nothing is left.
        let mut packets = 0;
        while guest.receive().is_some() {
            packets += 1;
            prop_assert!(packets < 10_000);
        }
        drop(hosts);
        while guest.receive().is_some() {}
        guest.vsock.reset();
        prop_assert_eq!(guest.vsock.kept(), (0, 0));
    }
}
