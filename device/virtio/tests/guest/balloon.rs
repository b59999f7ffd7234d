//! The balloon.

use std::sync::Arc;
use std::time::Duration;

use virtio::{Balloon, BalloonSize};

use crate::driver::*;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORT: usize = 3;

/// Statistics, free page reporting, and that the guest may take memory back.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 5;
/// Where a page is that the tests give away.
const PAGE: u64 = DATA + 0x8000;
const FULL: [u8; 4096] = [7; 4096];

fn guest(gives_back: bool) -> (Guest, Arc<Balloon>, Vec<Queue>) {
    let memory = ram();
    let host = Arc::new(Balloon::new(gives_back).unwrap());
    let g = Guest::new(virtio::balloon(host.clone(), memory.clone()).unwrap(), memory);
    assert_eq!(g.get16(g.cfg(2)), 0x1045);
    assert_eq!(g.offered() & 0xff, FEATURES);
    let queues = g.start_with(FEATURES | VERSION_1);
    (g, host, queues)
}

fn numbers(pages: &[u64]) -> Vec<u8> {
    pages.iter().flat_map(|page| ((page / 4096) as u32).to_le_bytes()).collect()
}

#[test]
fn pages_in_the_balloon_are_given_back() {
    for gives_back in [true, false] {
        let (g, host, mut queues) = guest(gives_back);
        for page in 0..3 {
            g.write(PAGE + page * 4096, &FULL);
        }
        let given = numbers(&[PAGE + 4096, PAGE]);
        g.write(DATA, &given);
        assert_eq!(queues[INFLATE].request(&g, &[(DATA, given.len() as u32, false)]), 0);
        let expected = if gives_back { [0, 0, 7] } else { [7; 3] };
        assert_eq!([0, 1, 2].map(|page| g.read(PAGE + page * 4096, 1)[0]), expected);
        // The driver says how many there are.
        g.set32(g.config + 4, 2);
        assert_eq!(host.size(), BalloonSize { wanted: 0, actual: 2 });
        assert_eq!(queues[DEFLATE].request(&g, &[(DATA, given.len() as u32, false)]), 0);
        g.write(PAGE, b"again");
        assert_eq!(g.read(PAGE, 5), b"again");
    }
}

#[test]
fn the_driver_is_told_what_is_wanted() {
    let (g, host, _queues) = guest(true);
    let before = g.interrupts();
    host.want(12345);
    g.wait_until("an interrupt", |g| g.interrupts() > before);
    assert_eq!(g.get32(g.config), 12345);
    // What is wanted is not the driver's to say.
    g.set32(g.config, 1);
    assert_eq!(host.size(), BalloonSize { wanted: 12345, actual: 0 });
    // It stays so over a reset, and what there was in the balloon does not.
    g.set32(g.config + 4, 99);
    g.set_status(0);
    assert_eq!(host.size(), BalloonSize { wanted: 12345, actual: 0 });
}

#[test]
fn free_pages_are_given_back() {
    let (g, _host, mut queues) = guest(true);
    for page in 0..4 {
        g.write(PAGE + page * 4096, &FULL);
    }
    let free = [(PAGE, 4096, true), (PAGE + 0x2000, 0x1800, true)];
    assert_eq!(queues[REPORT].request(&g, &free), 0);
    assert_eq!([0, 1, 2, 3].map(|page| g.read(PAGE + page * 4096, 1)[0]), [0, 7, 0, 7]);
}

#[test]
fn statistics_are_asked_for() {
    let (g, host, mut queues) = guest(true);
    assert_eq!(host.memory_use(Duration::ZERO), None);
    let statistics = |free: u64| {
        let entries = [(4u16, free), (5, 1 << 30), (999, 5)];
        entries.map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).concat()
    };
    let queue = &mut queues[STATISTICS];
    let mut leave = |free| {
        let bytes = statistics(free);
        g.write(DATA, &bytes);
        queue.submit(&g, &[(DATA, bytes.len() as u32, false)]);
    };
    leave(4096);
    g.wait_until("statistics", |_| host.memory_use(Duration::ZERO).is_some());
    let it = host.memory_use(Duration::ZERO).unwrap();
    assert_eq!((it.free, it.total, it.available), (Some(4096), Some(1 << 30), None));
    // Who asks has the driver fill the buffer anew, as often as it gets it back.
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| host.memory_use(PATIENCE));
        let queue = &mut queues[STATISTICS];
        let mut seen = 0;
        g.wait_until("an answer", |g| {
            if queue.used_idx(g) != seen {
                seen = queue.used_idx(g);
                let bytes = statistics(8192);
                g.write(DATA, &bytes);
                queue.submit(g, &[(DATA, bytes.len() as u32, false)]);
            }
            asker.is_finished()
        });
        assert_eq!(asker.join().unwrap().unwrap().free, Some(8192));
    });
}

#[test]
fn nonsense_harms_nobody() {
    let (g, host, mut queues) = guest(true);
    // No memory, the last pages that there can be, and half a number.
    let given = [numbers(&[1 << 40, u64::from(u32::MAX) << 12]), vec![1, 2]].concat();
    g.write(DATA, &given);
    assert_eq!(queues[INFLATE].request(&g, &[(DATA, given.len() as u32, false)]), 0);
    assert_eq!(queues[INFLATE].request(&g, &[(DATA, 64, true)]), 0);
    assert_eq!(queues[REPORT].request(&g, &[(DATA, 64, false)]), 0);
    assert_eq!(queues[REPORT].request(&g, &[(PAGE + 1, 4095, true)]), 0);
    queues[STATISTICS].submit(&g, &[(DATA, 7, false)]);
    g.wait_until("statistics", |_| host.memory_use(Duration::ZERO).is_some());
    g.set32(g.config + 4, u32::MAX);
    assert_eq!(host.size().actual, u32::MAX);
    assert_eq!(g.status() & 0x40, 0);
}
