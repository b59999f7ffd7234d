//! The socket device's queues, and packets of the guest's, while a program of the host is connected.
#![no_main]

use std::io::Read;
use std::sync::Arc;

use arbitrary::Arbitrary;
use hybrid_vsock::{BUFFER, GUEST_CID, HEADER, HOST_CID, Header, MAX_CONNECTIONS, Vsock};
use libfuzzer_sys::fuzz_target;
use lodge_fuzz::virtio::Driver;
use lodge_fuzz::wiring;

#[derive(Arbitrary, Debug)]
struct Packet {
    /// Not from the guest to the host.
    strays: bool,
    port: u8,
    kind: u8,
    op: u8,
    flags: u8,
    buf_alloc: u32,
    fwd_cnt: u32,
    len: u16,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    packets: Vec<Packet>,
    driver: Driver<'a>,
}

fuzz_target!(|input: Input<'_>| {
    let vsock = Arc::new(Vsock::new(None).unwrap());
    let mut host = vsock.connect(5).unwrap();
    host.set_nonblocking(true).unwrap();
    let mut room = [0; HEADER + 4096];
    for packet in &input.packets {
        let header = Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID + u64::from(packet.strays),
            src_port: 5,
            dst_port: (1 << 30) + u32::from(packet.port % 2),
            len: packet.len.into(),
            kind: if packet.kind < 250 { 1 } else { packet.kind.into() },
            op: (packet.op % 9).into(),
            flags: packet.flags.into(),
            buf_alloc: packet.buf_alloc,
            fwd_cnt: packet.fwd_cnt,
        };
        vsock.transmit(&header.bytes(), &vec![7; packet.len.into()]);
        if vsock.has_packets() {
            vsock.receive(&mut room);
        }
        let _ = host.read(&mut room);
        let (connections, bytes) = vsock.kept();
        assert!(connections <= MAX_CONNECTIONS && bytes <= MAX_CONNECTIONS * BUFFER);
    }
    let memory = wiring::ram();
    input.driver.drive(virtio::vsock(vsock, memory.clone()).unwrap(), &memory);
});
