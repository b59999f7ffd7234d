//! DHCP and DNS at the edge of a network: frames from the guest and from the network.
#![no_main]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use net::Backend;
use net::edge::{Edge, EdgeConfig};
use net::user::Resolvers;
use runtime::Event;

const SERVER_MAC: [u8; 6] = [0x52, 0x55, 10, 88, 0, 2];
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

#[derive(Arbitrary, Debug)]
enum Frame<'a> {
    /// From the guest to anybody: bytes behind the addresses.
    Out(&'a [u8]),
    /// From the guest to the services.
    Asked(&'a [u8]),
    /// From the network.
    In(&'a [u8]),
    /// The guest reads what has come.
    Read,
}

struct Wire {
    coming: Mutex<VecDeque<Vec<u8>>>,
    readable: Event,
}

impl Backend for Wire {
    fn transmit(&self, frame: &[u8]) -> bool {
        assert!(!frame.starts_with(&SERVER_MAC), "what is for the services was let out");
        true
    }
    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(next) = self.coming.lock().unwrap().pop_front() else { return Ok(None) };
        frame[..next.len()].copy_from_slice(&next);
        Ok(Some(next.len()))
    }
    fn readable(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

fuzz_target!(|frames: Vec<Frame<'_>>| {
    let wire = Arc::new(Wire { coming: Mutex::default(), readable: Event::new().unwrap() });
    let config = EdgeConfig {
        card: GUEST_MAC,
        address: [10, 88, 0, 16].into(),
        prefix_len: 24,
        server: [10, 88, 0, 2].into(),
        host: Some([10, 88, 0, 1].into()),
        router: None,
        // Nobody is asked.
        resolvers: Resolvers::Fixed(vec![]),
        hostname: Some("guest".into()),
        hosts: "/etc/hosts".into(),
        forwards: vec![],
    };
    let edge = Edge::new(wire.clone(), config).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let mut read = || while edge.receive(&mut buffer).unwrap().is_some() {};
    // Frames may be lost.
    let send = |to: &[u8; 6], bytes: &[u8]| {
        edge.transmit(&[to, &GUEST_MAC[..], bytes].concat());
    };
    for frame in &frames {
        match frame {
            Frame::Out(bytes) => send(&[0xff; 6], bytes),
            Frame::Asked(bytes) => send(&SERVER_MAC, bytes),
            Frame::In(bytes) => wire.coming.lock().unwrap().push_back(bytes.to_vec()),
            Frame::Read => read(),
        }
    }
    read();
});
