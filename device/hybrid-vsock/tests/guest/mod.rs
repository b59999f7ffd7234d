//! A guest that speaks in packets, for the tests.

#![allow(dead_code)] // Each test program uses a part of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use hybrid_vsock::{GUEST_CID, HEADER, HOST_CID, Header, MAX_PAYLOAD, Op, SOCKET, Vsock};
use tempfile::TempDir;

/// How much room the guest says that it has.
pub const ROOM: u32 = 64 << 10;

pub struct Guest {
    pub vsock: Vsock,
    pub directory: TempDir,
}

/// A packet from the host.
#[derive(Debug)]
pub struct Received {
    pub header: Header,
    pub data: Vec<u8>,
}

impl Received {
    pub fn op(&self) -> Op {
        Op::from_number(self.header.op).expect("an operation")
    }

    /// The host's and the guest's port.
    pub fn ports(&self) -> (u32, u32) {
        (self.header.src_port, self.header.dst_port)
    }
}

impl Guest {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vsock = Vsock::new(Some(File::open(directory.path()).unwrap().into())).unwrap();
        vsock.start();
        Self { vsock, directory }
    }

    /// A header of a packet from the guest.
    pub fn header(op: Op, ports: (u32, u32)) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: ports.1,
            dst_port: ports.0,
            kind: 1,
            op: op as u16,
            buf_alloc: ROOM,
            ..Header::default()
        }
    }

    pub fn send(&self, op: Op, ports: (u32, u32)) {
        self.vsock.transmit(&Self::header(op, ports).bytes(), &[]);
    }

    pub fn send_data(&self, ports: (u32, u32), data: &[u8]) {
        let header = Header { len: data.len() as u32, ..Self::header(Op::Rw, ports) };
        self.vsock.transmit(&header.bytes(), data);
    }

    pub fn shut_down(&self, ports: (u32, u32), flags: u32) {
        let header = Header { flags, ..Self::header(Op::Shutdown, ports) };
        self.vsock.transmit(&header.bytes(), &[]);
    }

    /// The next packet, if there is one.
    pub fn receive(&self) -> Option<Received> {
        self.receive_into(MAX_PAYLOAD)
    }

    /// The next packet, in a buffer with room for so much data.
    pub fn receive_into(&self, room: usize) -> Option<Received> {
        let mut buffer = vec![0; HEADER + room];
        while self.vsock.has_packets() {
            if let Some(len) = self.vsock.receive(&mut buffer) {
                let (head, data) = buffer[..len].split_first_chunk().unwrap();
                let header = Header::read(head);
                assert_eq!(header.len as usize, data.len());
                assert_eq!(header.dst_cid, GUEST_CID);
                return Some(Received { header, data: data.to_vec() });
            }
        }
        None
    }

    #[track_caller]
    pub fn expect(&self, op: Op) -> Received {
        let received = self.receive().expect("a packet");
        assert_eq!(received.op(), op, "{received:?}");
        received
    }

    /// A program of the host, which has said where it wants to go.
    pub fn connect_from_host(&self, line: &str) -> UnixStream {
        let mut host = UnixStream::connect(self.directory.path().join(SOCKET)).unwrap();
        host.write_all(line.as_bytes()).unwrap();
        host
    }

    /// A connection that a program of the host has made.
    pub fn connected(&self) -> (UnixStream, (u32, u32)) {
        let mut host = self.connect_from_host("CONNECT 1234\n");
        let request = self.expect(Op::Request);
        assert_eq!(request.header.dst_port, 1234);
        self.send(Op::Response, request.ports());
        let line = format!("OK {}\n", request.header.src_port);
        let mut answer = vec![0; line.len()];
        host.read_exact(&mut answer).unwrap();
        assert_eq!(answer, line.as_bytes());
        (host, request.ports())
    }
}

/// Whether the stream is at its end, or was reset.
pub fn is_at_end(mut stream: &UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0) | Err(_))
}
