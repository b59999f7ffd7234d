//! The network card.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use net::Backend;
use runtime::Event;
use virtio::{NetCounters, NetOptions, Rate, Traffic};

use crate::driver::*;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const HEADER: u32 = 12;

/// A wire that keeps what it is given.
pub struct Wire {
    sent: Mutex<Vec<Vec<u8>>>,
    waiting: Mutex<VecDeque<Vec<u8>>>,
    readable: Event,
    broken: bool,
    takes_unfinished: bool,
    looks: AtomicUsize,
}

impl Wire {
    pub fn new(broken: bool) -> Arc<Self> {
        Self::with(broken, false)
    }
    fn with(broken: bool, takes_unfinished: bool) -> Arc<Self> {
        let readable = Event::new().unwrap();
        Arc::new(Self {
            sent: Mutex::default(),
            waiting: Mutex::default(),
            readable,
            broken,
            takes_unfinished,
            looks: AtomicUsize::new(0),
        })
    }
    fn deliver(&self, frame: &[u8]) {
        self.waiting.lock().unwrap().push_back(frame.to_vec());
        self.readable.signal();
    }
}

impl Backend for Wire {
    fn transmit(&self, frame: &[u8]) -> bool {
        self.sent.lock().unwrap().push(frame.to_vec());
        true
    }
    fn takes_unfinished(&self) -> bool {
        self.takes_unfinished
    }
    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        if self.broken {
            return Err(io::Error::other("cut"));
        }
        let mut waiting = self.waiting.lock().unwrap();
        let Some(next) = waiting.pop_front() else {
            self.readable.clear();
            return Ok(None);
        };
        frame[..next.len()].copy_from_slice(&next);
        Ok(Some(next.len()))
    }
    fn readable(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

fn guest(wire: &Arc<Wire>) -> Guest {
    guest_with(wire, NetOptions::default())
}

fn guest_with(wire: &Arc<Wire>, options: NetOptions) -> Guest {
    let memory = ram();
    let options = NetOptions { mac: MAC, ..options };
    Guest::new(virtio::net(wire.clone(), options, memory.clone()).unwrap(), memory)
}

#[test]
fn tells_its_address_and_that_the_link_is_up() {
    let g = guest(&Wire::new(false));
    assert_eq!(g.get16(g.cfg(2)), 0x1041);
    assert_eq!(g.offered() & 0xff_ffff, 1 << 5 | 1 << 16);
    assert_eq!(g.get::<4>(g.config), MAC[..4]);
    assert_eq!(g.get::<2>(g.config + 4), MAC[4..]);
    assert_eq!(g.get16(g.config + 6), 1);
    assert_eq!(g.get16(g.common + 18), 2);
}

#[test]
fn sends_frames() {
    let wire = Wire::new(false);
    let g = guest(&wire);
    let mut tx = g.start().remove(1);
    let frame: Vec<u8> = (0..100).collect();
    g.write(DATA + u64::from(HEADER), &frame);
    assert_eq!(tx.request(&g, &[(DATA, HEADER + 100, false)]), 0);
    // Header and frame in pieces of their own; and frames that are none.
    let pieces = [(DATA, HEADER, false), (DATA + 12, 50, false), (DATA + 62, 50, false)];
    tx.request(&g, &pieces);
    tx.request(&g, &[(DATA, HEADER + 13, false)]);
    tx.request(&g, &[(DATA, 3, false)]);
    tx.request(&g, &[(DATA, 100_000, false)]);
    tx.request(&g, &[(DATA, 100, true)]);
    assert_eq!(*wire.sent.lock().unwrap(), [frame.clone(), frame]);
}

#[test]
fn unfinished_frames_go_to_who_takes_them() {
    let wire = Wire::with(false, true);
    let g = guest(&wire);
    assert_eq!(g.offered() & 0xff_ffff, 1 | 1 << 5 | 1 << 11 | 1 << 12 | 1 << 16);
    let mut tx = g.start().remove(1);
    // Whatever is said of what is left to do, the frame is passed on as it is.
    g.write(DATA, &[0xff; HEADER as usize]);
    g.write(DATA + u64::from(HEADER), &[7; 30_000]);
    tx.request(&g, &[(DATA, HEADER + 30_000, false)]);
    assert_eq!(*wire.sent.lock().unwrap(), [[7; 30_000]]);
}

#[test]
fn receives_frames_as_buffers_come() {
    let wire = Wire::new(false);
    let g = guest(&wire);
    wire.deliver(&[1; 60]); // before anybody listens
    let mut rx = g.start().remove(0);
    let buffer = |n: u64| [(DATA + 0x1000 * n, 1526, true)];
    rx.submit(&g, &buffer(0));
    g.wait_interrupt(1);
    assert_eq!(rx.wait_used(&g).1, 72);
    assert_eq!(g.read(DATA, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(g.read(DATA + 12, 60), [1; 60]);
    // Buffers first, then frames.
    for n in 1..4 {
        rx.submit(&g, &buffer(n));
    }
    std::thread::sleep(std::time::Duration::from_millis(5));
    for n in 1..4u8 {
        wire.deliver(&vec![n; 500 * usize::from(n)]);
        assert_eq!(rx.wait_used(&g).1, 12 + 500 * u32::from(n));
        assert_eq!(g.read(DATA + 0x1000 * u64::from(n) + 12, 500), [n; 500]);
    }
}

#[test]
fn an_idle_worker_sleeps() {
    let wire = Wire::new(false);
    let g = guest(&wire);
    let mut rx = g.start().remove(0);
    rx.submit(&g, &[(DATA, 1526, true)]);
    wire.deliver(&[1; 60]);
    rx.wait_used(&g);
    rx.submit(&g, &[(DATA, 1526, true)]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(wire.looks.load(Ordering::Relaxed) < 20);
}

#[test]
fn a_frame_too_long_for_the_buffer_is_lost_alone() {
    let wire = Wire::new(false);
    let g = guest(&wire);
    let mut rx = g.start().remove(0);
    rx.submit(&g, &[(DATA, 100, true)]);
    wire.deliver(&[1; 89]);
    wire.deliver(&[2; 88]);
    assert_eq!(rx.wait_used(&g).1, 100);
    assert_eq!(g.read(DATA + 12, 88), [2; 88]);
}

#[test]
fn what_passes_is_counted() {
    let wire = Wire::new(false);
    let counters = Arc::<NetCounters>::default();
    let g = guest_with(&wire, NetOptions { counters: counters.clone(), ..NetOptions::default() });
    let mut queues = g.start();
    queues[1].request(&g, &[(DATA, HEADER + 100, false)]);
    queues[1].request(&g, &[(DATA, HEADER + 20, false)]);
    queues[1].request(&g, &[(DATA, HEADER + 13, false)]);
    queues[0].submit(&g, &[(DATA, 100, true)]);
    wire.deliver(&[1; 89]);
    wire.deliver(&[2; 88]);
    queues[0].wait_used(&g);
    let seen = |it: &Traffic| (it.packets.get(), it.bytes.get(), it.dropped.get());
    assert_eq!(seen(&counters.sent), (2, 120, 1));
    assert_eq!(seen(&counters.received), (1, 88, 1));
}

/// Frames come no faster than they may, which only a slower machine can make slower still.
#[test]
fn a_limit_makes_frames_wait() {
    let wire = Wire::new(false);
    let rate = Some(Rate { per_second: 1000, burst: 0 });
    let g = guest_with(&wire, NetOptions { receive: rate, send: rate, ..NetOptions::default() });
    let mut queues = g.start();
    let begun = Instant::now();
    for _ in 0..3 {
        queues[1].request(&g, &[(DATA, HEADER + 50, false)]);
    }
    assert!(begun.elapsed() >= Duration::from_millis(100));
    let begun = Instant::now();
    for n in 0..3 {
        queues[0].submit(&g, &[(DATA + 0x1000 * n, 1526, true)]);
        wire.deliver(&[7; 50]);
        queues[0].wait_used(&g);
    }
    assert!(begun.elapsed() >= Duration::from_millis(100));
    assert_eq!(wire.sent.lock().unwrap().len(), 3);
}

#[test]
fn a_frame_that_waits_keeps_nobody() {
    let wire = Wire::new(false);
    let rate = Some(Rate { per_second: 1, burst: 0 });
    let g = guest_with(&wire, NetOptions { send: rate, ..NetOptions::default() });
    let mut tx = g.start().remove(1);
    tx.request(&g, &[(DATA, HEADER + 10_000, false)]);
    // Its turn is in some hours.
    tx.submit(&g, &[(DATA, HEADER + 50, false)]);
    std::thread::sleep(Duration::from_millis(10));
    g.root.pause();
    g.root.resume();
    g.set_status(0);
    // A reset brings it no nearer.
    let mut tx = g.start().remove(1);
    tx.submit(&g, &[(DATA, HEADER + 50, false)]);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(tx.used_idx(&g), 0);
}

#[test]
fn a_pause_loses_no_frame() {
    let wire = Wire::new(false);
    let g = guest(&wire);
    let mut rx = g.start().remove(0);
    rx.submit(&g, &[(DATA, 1526, true)]);
    g.root.pause();
    wire.deliver(&[7; 64]);
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert_eq!(rx.used_idx(&g), 0);
    g.root.resume();
    assert_eq!(rx.wait_used(&g).1, 76);
}

#[test]
fn a_broken_back_end_leaves_the_device_alone() {
    let wire = Wire::new(true);
    let g = guest(&wire);
    let mut queues = g.start();
    queues[0].submit(&g, &[(DATA, 1526, true)]);
    queues[1].request(&g, &[(DATA, 100, false)]);
    assert_eq!(wire.sent.lock().unwrap().len(), 1);
    assert_eq!(g.status() & NEEDS_RESET, 0);
    g.set_status(0);
}

#[test]
fn malformed_buffers_break_the_card_until_reset() {
    let wire = Wire::new(false);
    let g = guest(&wire);
    let mut rx = g.start().remove(0);
    wire.deliver(&[1; 60]);
    rx.submit(&g, &[(RAM - 20, 1526, true)]);
    g.wait_needs_reset();
    let mut rx = g.start().remove(0);
    rx.submit(&g, &[(DATA, 1526, true)]);
    assert_eq!(rx.wait_used(&g).1, 72);
}
