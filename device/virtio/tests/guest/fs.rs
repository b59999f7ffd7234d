//! The file system device. What it does with requests is tested where it is done (folder).

use std::fs;
use std::sync::Arc;

use folder::{Folder, Options, Root};
use tempfile::TempDir;
use virtio::{FolderCounters, VirtioPci};

use crate::driver::*;

pub const REQUEST: u64 = DATA;
pub const REPLY: u64 = DATA + 0x1_0000;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;

pub struct Shared {
    pub place: TempDir,
    pub counters: Arc<FolderCounters>,
}

impl Shared {
    pub fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("file"), "contents").unwrap();
        Self { place, counters: Arc::default() }
    }

    pub fn device(&self, memory: &mem::GuestMemory) -> VirtioPci {
        let root = Root::open(self.place.path()).unwrap();
        let folder = Folder::new(root, Options::default()).unwrap();
        virtio::fs("folder0", folder, self.counters.clone(), memory.clone()).unwrap()
    }
}

fn guest() -> (Guest, Shared) {
    let (memory, shared) = (ram(), Shared::new());
    (Guest::new(shared.device(&memory), memory), shared)
}

/// Sends a request and returns what is behind the answer's header, or the number of an error.
pub fn ask(g: &Guest, q: &mut Queue, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
    let len = 40 + body.len() as u32;
    g.write(REQUEST, &[len.to_le_bytes(), opcode.to_le_bytes()].concat());
    g.write(REQUEST + 8, &[5u64.to_le_bytes(), node.to_le_bytes()].concat());
    g.write(REQUEST + 24, &[0; 16]);
    g.write(REQUEST + 40, body);
    // In pieces, as it pleases the driver.
    let pieces = [
        (REQUEST, 40, false),
        (REQUEST + 40, len - 40, false),
        (REPLY, 16, true),
        (REPLY + 16, 4096, true),
    ];
    let written = q.request(g, &pieces) as usize;
    let reply = g.read(REPLY, written);
    assert_eq!(reply[..4], (written as u32).to_le_bytes());
    assert_eq!(reply[8..16], 5u64.to_le_bytes());
    match i32::from_le_bytes(reply[4..8].try_into().unwrap()) {
        0 => Ok(reply[16..].to_vec()),
        error => Err(-error),
    }
}

pub fn introduce(g: &Guest, q: &mut Queue) {
    let hello = [7u32, 36, 0, u32::MAX].map(u32::to_le_bytes).concat();
    assert_eq!(ask(g, q, INIT, 0, &hello).unwrap().len(), 64);
}

/// Opens the file; its node and its handle.
pub fn open(g: &Guest, q: &mut Queue) -> (u64, u64) {
    let number = |bytes: Vec<u8>| u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let node = number(ask(g, q, LOOKUP, 1, b"file\0").unwrap());
    (node, number(ask(g, q, OPEN, node, &[0; 8]).unwrap()))
}

pub fn read(g: &Guest, q: &mut Queue, handle: u64) -> Result<Vec<u8>, i32> {
    let body = [&handle.to_le_bytes()[..], &[0; 8], &100u32.to_le_bytes(), &[0; 20]].concat();
    ask(g, q, READ, 0, &body)
}

#[test]
fn tells_its_tag() {
    let (g, _shared) = guest();
    assert_eq!(g.get16(g.cfg(2)), 0x105a);
    assert_eq!(g.get::<8>(g.config), *b"folder0\0");
    assert_eq!(g.get32(g.config + 36), 1);
    assert_eq!(g.get16(g.common + 18), 2);
    let (long, memory) = ("x".repeat(37), ram());
    for tag in ["", &long] {
        let root = Root::open("/".as_ref()).unwrap();
        let folder = Folder::new(root, Options::default()).unwrap();
        assert!(virtio::fs(tag, folder, Arc::default(), memory.clone()).is_err());
    }
}

#[test]
fn a_file_is_read() {
    let (g, shared) = guest();
    let mut queues = g.start();
    let (urgent, requests) = queues.split_at_mut(1);
    let q = &mut requests[0];
    introduce(&g, q);
    let (node, handle) = open(&g, q);
    assert_eq!(read(&g, q, handle).unwrap(), b"contents");
    assert_eq!(ask(&g, q, LOOKUP, 1, b"missing\0"), Err(2));
    assert_eq!(ask(&g, q, LOOKUP, 1, b"../file\0"), Err(22));
    let counted = &shared.counters;
    assert_eq!((counted.reads.requests.get(), counted.reads.bytes.get()), (1, 8));
    assert_eq!((counted.requests.get(), counted.failed.get()), (6, 1));
    // What is forgotten by the other queue is not known to this one.
    let forget = [&48u32.to_le_bytes()[..], &FORGET.to_le_bytes(), &[0; 8], &node.to_le_bytes()];
    g.write(REQUEST, &[&forget.concat()[..], &[0; 16], &1u64.to_le_bytes()].concat());
    assert_eq!(urgent[0].request(&g, &[(REQUEST, 48, false)]), 0);
    assert_eq!(ask(&g, q, OPEN, node, &[0; 8]), Err(116));
    // A pause changes nothing, a reset all.
    g.root.pause();
    g.root.resume();
    assert_eq!(read(&g, q, handle).unwrap(), b"contents");
    let mut queues = g.start();
    assert_eq!(read(&g, &mut queues[1], handle), Err(5));
    introduce(&g, &mut queues[1]);
    assert_eq!(read(&g, &mut queues[1], handle), Err(9));
}

#[test]
fn requests_of_wrong_lengths() {
    let (g, _shared) = guest();
    let mut queues = g.start();
    introduce(&g, &mut queues[1]);
    // Nobody is answered where there is no room, and nothing more than the error where there is little.
    g.write(REQUEST, &[0; 64]);
    assert_eq!(queues[1].request(&g, &[(REQUEST, 64, false)]), 0);
    assert_eq!(queues[1].request(&g, &[(REQUEST, 64, false), (REPLY, 15, true)]), 0);
    assert_eq!(queues[1].request(&g, &[(REQUEST, 64, false), (REPLY, 16, true)]), 16);
    // More than is ever asked at once.
    assert_eq!(queues[1].request(&g, &[(0, 0x20_0000, false), (REPLY, 99, true)]), 16);
    // What has no header breaks the device.
    queues[1].submit(&g, &[(REQUEST, 39, false), (REPLY, 100, true)]);
    g.wait_needs_reset();
}
