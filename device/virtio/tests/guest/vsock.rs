//! The socket device. What it does with packets is tested where it is done (hybrid-vsock).

use std::io::{Read, Write};
use std::sync::Arc;

use hybrid_vsock::{GUEST_CID, HEADER, HOST_CID, Header, Op, Vsock};

use crate::driver::*;

const RX: u64 = DATA;
const TX: u64 = DATA + 0x8000;

fn guest() -> (Guest, Arc<Vsock>) {
    let (memory, host) = (ram(), Arc::new(Vsock::new(None).unwrap()));
    (Guest::new(virtio::vsock(host.clone(), memory.clone()).unwrap(), memory), host)
}

/// Offers a buffer and takes the packet that comes.
fn receive(g: &Guest, rx: &mut Queue) -> (Header, Vec<u8>) {
    rx.submit(g, &[(RX, 4096, true)]);
    let len = rx.wait_used(g).1 as usize;
    let packet = g.read(RX, len);
    (Header::read(packet.first_chunk().unwrap()), packet[HEADER..].to_vec())
}

fn send(g: &Guest, tx: &mut Queue, op: Op, to: &Header, data: &[u8]) {
    let header = Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: to.dst_port,
        dst_port: to.src_port,
        len: data.len() as u32,
        kind: 1,
        op: op as u16,
        buf_alloc: 10_000,
        ..Header::default()
    };
    g.write(TX, &header.bytes());
    g.write(TX + HEADER as u64, data);
    tx.request(g, &[(TX, HEADER as u32, false), (TX + HEADER as u64, data.len() as u32, false)]);
}

#[test]
fn tells_its_address() {
    let (g, host) = guest();
    assert_eq!(g.get16(g.cfg(2)), 0x1053);
    assert_eq!(g.offered() & 0xff_ffff, 1);
    assert_eq!(g.get::<8>(g.config), GUEST_CID.to_le_bytes());
    assert_eq!(g.get16(g.common + 18), 3);
    assert!(!host.is_live());
    g.start();
    assert!(host.is_live());
    g.set_status(0);
    assert!(!host.is_live());
}

#[test]
fn a_connection_from_start_to_end() {
    let (g, host) = guest();
    let mut queues = g.start();
    let mut program = host.connect(99).unwrap();
    let (request, _) = receive(&g, &mut queues[0]);
    assert_eq!((request.op, request.dst_port), (Op::Request as u16, 99));
    send(&g, &mut queues[1], Op::Response, &request, b"");
    send(&g, &mut queues[1], Op::Rw, &request, b"hello");
    let mut text = vec![0; format!("OK {}\nhello", request.src_port).len()];
    program.read_exact(&mut text).unwrap();
    assert!(text.ends_with(b"\nhello"));
    // Also over a pause.
    g.root.pause();
    program.write_all(b"goodbye").unwrap();
    g.root.resume();
    let (packet, data) = receive(&g, &mut queues[0]);
    assert_eq!((packet.op, data.as_slice()), (Op::Rw as u16, b"goodbye".as_slice()));
    // A buffer first, then something to put there.
    queues[0].submit(&g, &[(RX, 4096, true)]);
    drop(program);
    assert_eq!(queues[0].wait_used(&g).1 as usize, HEADER);
    // A reset leaves nothing of it.
    g.set_status(0);
    assert_eq!(host.kept(), (0, 0));
}

#[test]
fn packets_that_are_none_are_lost_alone() {
    let (g, host) = guest();
    let mut queues = g.start();
    let header =
        |len| Header { src_cid: GUEST_CID, dst_cid: HOST_CID, len, op: 5, ..Header::default() };
    g.write(TX, &header(1000).bytes());
    for len in [0, 10, HEADER as u32, HEADER as u32 + 999] {
        queues[1].request(&g, &[(TX, len, false)]);
    }
    g.write(TX, &header(u32::MAX).bytes());
    queues[1].request(&g, &[(TX, 100_000, false)]);
    queues[1].request(&g, &[(TX, 100, true)]);
    assert!(!host.has_packets());
    // The last one is whole, and answered.
    g.write(TX, &header(6).bytes());
    queues[1].request(&g, &[(TX, 50, false)]);
    assert_eq!(receive(&g, &mut queues[0]).0.op, Op::Rst as u16);
}

#[test]
fn a_buffer_without_room_breaks_the_device_until_reset() {
    for len in [0, 43, 44] {
        let (g, host) = guest();
        let mut queues = g.start();
        queues[0].submit(&g, &[(RX, len, true)]);
        let _program = host.connect(1).unwrap();
        g.wait_needs_reset();
        let mut queues = g.start();
        let _program = host.connect(1).unwrap();
        assert_eq!(receive(&g, &mut queues[0]).0.op, Op::Request as u16);
    }
}
