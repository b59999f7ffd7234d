//! The network card's queues, in front of a network that has frames of every length to give.
#![no_main]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use libfuzzer_sys::fuzz_target;
use lodge_fuzz::virtio::Driver;
use lodge_fuzz::wiring;
use runtime::Event;
use virtio::NetOptions;

/// The lengths of frames that come, an impossible one among them.
const FRAMES: [usize; 5] = [14, 60, 1514, 65553, usize::MAX];

struct Wire {
    given: AtomicUsize,
    readable: Event,
}

impl net::Backend for Wire {
    fn transmit(&self, frame: &[u8]) -> bool {
        assert!((14..=65553).contains(&frame.len()), "a frame of {} bytes", frame.len());
        true
    }
    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        frame.fill(5);
        Ok(FRAMES.get(self.given.fetch_add(1, Ordering::Relaxed)).copied())
    }
    fn readable(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

fuzz_target!(|driver: Driver<'_>| {
    let memory = wiring::ram();
    let wire = Wire { given: AtomicUsize::new(0), readable: Event::new().unwrap() };
    driver.drive(
        virtio::net(Arc::new(wire), NetOptions::default(), memory.clone()).unwrap(),
        &memory,
    );
});
