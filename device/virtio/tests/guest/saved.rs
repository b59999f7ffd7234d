//! A device whose state was saved goes on as another one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bus::{BadState, Saved};
use chardev::{Backend, Chardev};
use hybrid_vsock::{HEADER, Header, Op, Vsock};
use serde_json::Value;
use virtio::{BlockOptions, VirtioPci};

use crate::block::{MemDisk, STATUS_PIECE, header};
use crate::driver::*;
use crate::fs::{self, Shared};

/// The function's state, to be saved and restored.
fn function(guest: &Guest) -> Arc<dyn Saved> {
    guest.root.saved().into_iter().find(|(number, _)| *number == 1).unwrap().1
}

/// Another device that takes over the state of the first, which is paused.
fn again(first: &Guest, device: VirtioPci) -> Guest {
    let second = Guest::new(device, first.memory.clone());
    second.root.pause();
    function(&second).restore(&function(first).save().unwrap()).unwrap();
    second
}

fn disk(disk: &Arc<MemDisk>, queues: u16, memory: &mem::GuestMemory) -> VirtioPci {
    let options = BlockOptions { queues, ..BlockOptions::default() };
    virtio::block(disk.clone(), options, memory.clone()).unwrap()
}

#[test]
fn requests_that_wait_are_served_by_the_other() {
    let image = MemDisk::new(false);
    let memory = ram();
    let g = Guest::new(disk(&image, 1, &memory), memory.clone());
    let mut q = g.start().remove(0);
    let buffer = DATA + 0x1000;
    let read = |g: &Guest, sector| [header(g, 0, sector), (buffer, 512, true), STATUS_PIECE];
    let pieces = read(&g, 3);
    assert_eq!(q.request(&g, &pieces), 513);
    g.root.pause();
    let interrupts = g.interrupts();
    let pieces = read(&g, 5);
    q.submit(&g, &pieces);
    let h = again(&g, disk(&image, 1, &memory));
    assert_eq!(h.status(), g.status());
    assert_eq!(q.used_idx(&h), 1);
    h.root.resume();
    h.wait_interrupt(1);
    assert_eq!(q.wait_used(&h).1, 513);
    assert_eq!(h.read(buffer, 512), vec![5; 512]);
    for sector in 6..300u64 {
        let pieces = read(&h, sector);
        assert_eq!(q.request(&h, &pieces), 513);
        assert_eq!(h.read(buffer, 512), vec![sector as u8; 512]);
    }
    assert_eq!(g.interrupts(), interrupts, "the first one does nothing any more");
}

#[test]
fn input_and_output_of_a_console_go_on_where_they_were() {
    let console = |memory: &mem::GuestMemory| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let chardev = Arc::new(Chardev::open(Backend::Stream(theirs.into())).unwrap());
        (virtio::console(chardev, memory.clone()).unwrap(), ours)
    };
    let memory = ram();
    let (device, mut terminal) = console(&memory);
    let g = Guest::new(device, memory.clone());
    let mut queues = g.start();
    let mut tx = queues.remove(1);
    let mut rx = queues.remove(0);
    // More than the guest has a buffer for.
    terminal.write_all(b"abcdef").unwrap();
    rx.submit(&g, &[(DATA, 2, true)]);
    assert_eq!(rx.wait_used(&g).1, 2);
    g.wait_until("the rest of the input", |g| {
        g.root.pause();
        let state = function(g).save().unwrap();
        g.root.resume();
        String::from_utf8(state).unwrap().contains("\"input\":\"63646566\"")
    });
    g.root.pause();
    let (device, mut terminal) = console(&memory);
    let h = again(&g, device);
    h.root.resume();
    rx.submit(&h, &[(DATA, 64, true)]);
    assert_eq!(rx.wait_used(&h).1, 4);
    assert_eq!(h.read(DATA, 4), b"cdef");
    h.write(DATA, b"hello");
    assert_eq!(tx.request(&h, &[(DATA, 5, false)]), 0);
    let mut text = [0; 5];
    terminal.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
}

#[test]
fn a_guest_hears_that_its_connections_are_gone() {
    let socket = |memory: &mem::GuestMemory| {
        let host = Arc::new(Vsock::new(None).unwrap());
        (virtio::vsock(host.clone(), memory.clone()).unwrap(), host)
    };
    let memory = ram();
    let (device, host) = socket(&memory);
    let g = Guest::new(device, memory.clone());
    let mut queues = g.start();
    let (mut events, mut rx) = (queues.remove(2), queues.remove(0));
    let _program = host.connect(99).unwrap();
    rx.submit(&g, &[(DATA, 4096, true)]);
    assert_eq!(rx.wait_used(&g).1 as usize, HEADER);
    g.write(DATA + 0x2000, &[0xff; 8]);
    events.submit(&g, &[(DATA + 0x2000, 8, true)]);
    g.root.pause();
    let (device, host) = socket(&memory);
    let h = again(&g, device);
    assert!(!host.is_live());
    h.root.resume();
    // struct virtio_vsock_event: the transport was reset (5.10.6.7).
    assert_eq!(events.wait_used(&h).1, 4);
    assert_eq!(h.read(DATA + 0x2000, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    // It may not have come to that yet, and would end a connection that is made now.
    let _program = host.connect(98).unwrap();
    rx.submit(&h, &[(DATA, 4096, true)]);
    assert!(!host.has_packets());
    // Once, and when it is ready for the next event, new connections are made as ever.
    events.submit(&h, &[(DATA + 0x2000, 8, true)]);
    assert_eq!(rx.wait_used(&h).1 as usize, HEADER);
    let request = Header::read(h.read(DATA, HEADER).first_chunk().unwrap());
    assert_eq!((request.op, request.dst_port), (Op::Request as u16, 98));
    assert_eq!(events.used_idx(&h), 1);
}

#[test]
fn what_cannot_be_is_refused() {
    let image = MemDisk::new(false);
    let memory = ram();
    let g = Guest::new(disk(&image, 1, &memory), memory.clone());
    g.start();
    g.root.pause();
    let state: Value = serde_json::from_slice(&function(&g).save().unwrap()).unwrap();
    let refused = |queues, change: &dyn Fn(&mut Value)| -> BadState {
        let mut state = state.clone();
        change(&mut state["device"]);
        let h = Guest::new(disk(&image, queues, &memory), memory.clone());
        h.root.pause();
        let state = serde_json::to_vec(&state).unwrap();
        function(&h).restore(&state).unwrap_err()
    };
    refused(2, &|_| {});
    refused(1, &|device| device["accepted"] = u64::MAX.into());
    refused(1, &|device| device["accepted"] = 0.into());
    refused(1, &|device| device["queues"][0]["descriptors"] = (1u64 << 40).into());
    refused(1, &|device| device["queues"][0]["descriptors"] = 8.into());
    refused(1, &|device| device["queues"][0]["size"] = 3.into());
    refused(1, &|device| device["queues"][0]["size"] = 65535.into());
    refused(1, &|device| device["queues"] = Value::Null);
    refused(1, &|device| device["colour"] = "red".into());
}

#[test]
fn files_that_are_open_stay_open() {
    let (memory, shared) = (ram(), Shared::new());
    let g = Guest::new(shared.device(&memory), memory.clone());
    let mut queues = g.start();
    fs::introduce(&g, &mut queues[1]);
    let (_, handle) = fs::open(&g, &mut queues[1]);
    g.root.pause();
    let h = again(&g, shared.device(&memory));
    h.root.resume();
    assert_eq!(fs::read(&h, &mut queues[1], handle).unwrap(), b"contents");
}
