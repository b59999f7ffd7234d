//! The console.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use chardev::{Backend, Chardev};

use crate::driver::*;

/// A console, and the terminal at its other end.
fn guest() -> (Guest, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let chardev = Chardev::open(Backend::Stream(theirs.into())).unwrap();
    let memory = ram();
    (Guest::new(virtio::console(Arc::new(chardev), memory.clone()).unwrap(), memory), ours)
}

#[test]
fn output_arrives() {
    let (g, mut terminal) = guest();
    assert_eq!(g.get16(g.cfg(2)), 0x1043);
    let mut tx = g.start().remove(1);
    g.write(DATA, b"hello, world");
    assert_eq!(tx.request(&g, &[(DATA, 5, false), (DATA + 5, 7, false)]), 0);
    let mut text = [0; 12];
    terminal.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello, world");
}

#[test]
fn input_arrives_as_buffers_come() {
    let (g, mut terminal) = guest();
    terminal.write_all(b"root\n").unwrap(); // before the guest is up
    let mut rx = g.start().remove(0);
    rx.submit(&g, &[(DATA, 3, true)]);
    assert_eq!(rx.wait_used(&g).1, 3);
    rx.submit(&g, &[(DATA + 3, 64, true)]);
    g.wait_interrupt(1);
    assert_eq!(rx.wait_used(&g).1, 2);
    assert_eq!(g.read(DATA, 5), b"root\n");
    rx.submit(&g, &[(DATA, 64, true)]);
    std::thread::sleep(Duration::from_millis(5));
    terminal.write_all(b"x").unwrap();
    assert_eq!(rx.wait_used(&g).1, 1);
}

/// Much more than all buffers on the way hold, in both directions, with pauses in between.
#[test]
fn nothing_is_lost_when_it_gets_tight() {
    const LEN: usize = 600_000;
    let pattern = |i: usize| (i * 31 + i / 251) as u8;
    let (g, mut terminal) = guest();
    let mut queues = g.start();
    let mut tx = queues.remove(1);
    let mut rx = queues.remove(0);

    let mut writer = terminal.try_clone().unwrap();
    let typist = std::thread::spawn(move || {
        let text: Vec<u8> = (0..LEN).map(pattern).collect();
        writer.write_all(&text).unwrap();
    });
    let mut got = Vec::new();
    while got.len() < LEN {
        rx.submit(&g, &[(DATA, 3000, true)]);
        let (_, len) = rx.wait_used(&g);
        got.extend(g.read(DATA, len as usize));
    }
    typist.join().unwrap();
    assert!(got.iter().enumerate().all(|(i, &b)| b == pattern(i)));

    let text: Vec<u8> = (0..LEN).map(pattern).collect();
    let place = HIGH_RAM;
    g.write(place, &text);
    let pieces: Vec<Piece> =
        (0..LEN).step_by(60_000).map(|at| (place + at as u64, 60_000, false)).collect();
    tx.submit(&g, &pieces[..5]);
    tx.submit(&g, &pieces[5..]);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(tx.used_idx(&g), 0); // nobody reads, so it waits
    g.root.pause();
    g.root.resume();
    let mut got = vec![0; LEN];
    terminal.read_exact(&mut got).unwrap();
    assert!(got.iter().enumerate().all(|(i, &b)| b == pattern(i)));
    tx.wait_used(&g);
    tx.wait_used(&g);
}

#[test]
fn a_reset_forgets_half_sent_output() {
    let (g, mut terminal) = guest();
    let mut tx = g.start().remove(1);
    g.write(HIGH_RAM, &[b'x'; 0x10_0000]);
    tx.submit(&g, &[(HIGH_RAM, 0x10_0000, false)]);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(tx.used_idx(&g), 0);
    let mut tx = g.start().remove(1);
    g.write(DATA, b"end");
    tx.submit(&g, &[(DATA, 3, false)]);
    let mut text = Vec::new();
    let mut some = [0; 4096];
    while !text.ends_with(b"end") {
        let len = terminal.read(&mut some).unwrap();
        text.extend_from_slice(&some[..len]);
    }
    assert!(text.len() < 0x10_0000);
    tx.wait_used(&g);
}
