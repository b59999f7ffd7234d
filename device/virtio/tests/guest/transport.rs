//! The transport: discovery, negotiation, queues, interrupts. The device behind it is a disk.

use std::time::Duration;

use crate::block::{MemDisk, STATUS_PIECE, guest, header};
use crate::driver::*;

const BUFFER: u64 = DATA + 0x1000;

#[test]
fn refuses_features_it_did_not_offer() {
    let g = guest(&MemDisk::new(false));
    assert!(!g.negotiate(0)); // no VERSION_1
    assert!(!g.negotiate(VERSION_1 | 1 << 34)); // packed rings
    assert!(!g.negotiate(VERSION_1 | 1 << 50));
    assert!(g.negotiate(VERSION_1));
    // Once agreed, features stay.
    g.set32(g.common + 8, 1);
    g.set32(g.common + 12, 0xffff_ffff);
    assert_eq!(g.get32(g.common + 12), 1);
    // Feature words that do not exist are empty.
    g.set32(g.common, 2);
    assert_eq!(g.get32(g.common + 4), 0);
}

#[test]
fn does_nothing_before_driver_ok() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    assert!(g.negotiate(VERSION_1));
    let mut q = g.queues(VERSION_1).remove(0);
    q.submit(&g, &[header(&g, 0, 0), (BUFFER, 512, true), STATUS_PIECE]);
    std::thread::sleep(Duration::from_millis(20));
    assert!(disk.log.lock().unwrap().is_empty());
    g.go();
    q.wait_used(&g);
    // DRIVER_OK without FEATURES_OK is not taken.
    g.set_status(0);
    g.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(g.status(), ACKNOWLEDGE | DRIVER);
}

#[test]
fn registers_read_as_written_and_reset_to_zero() {
    let g = guest(&MemDisk::new(false));
    assert!(g.negotiate(VERSION_1));
    assert_eq!(g.get16(g.common + 18), 1);
    assert_eq!(g.get16(g.common + 24), 256);
    g.set16(g.common + 24, 100); // not a power of two
    g.set16(g.common + 24, 512); // more than there are
    assert_eq!(g.get16(g.common + 24), 256);
    g.set16(g.common + 24, 16);
    assert_eq!(g.get16(g.common + 24), 16);
    g.set32(g.common + 32, 0x1234_5000);
    g.set32(g.common + 36, 0x6);
    assert_eq!(g.get64(g.common + 32), 0x6_1234_5000);
    g.set16(g.common + 26, 1);
    assert_eq!(g.get16(g.common + 26), 1);
    g.set16(g.common + 26, 2); // there are two vectors
    assert_eq!(g.get16(g.common + 26), 0xffff);
    g.select(1); // there is one queue
    assert_eq!((g.get16(g.common + 24), g.get16(g.common + 26)), (0, 0xffff));
    g.set_status(0);
    assert_eq!(g.get16(g.common + 22), 0);
    assert_eq!((g.get16(g.common + 24), g.get64(g.common + 32)), (256, 0));
    assert_eq!(g.get16(g.common + 16), 0xffff);
}

#[test]
fn an_enabled_queue_is_fixed_until_reset() {
    let g = guest(&MemDisk::new(false));
    let mut q = g.start().remove(0);
    g.set32(g.common + 32, 0x1000);
    g.set16(g.common + 24, 8);
    g.set16(g.common + 28, 0);
    assert_eq!(g.get64(g.common + 32), q.desc);
    assert_eq!((g.get16(g.common + 24), g.get16(g.common + 28)), (q.size, 1));
    q.request(&g, &[header(&g, 0, 0), (BUFFER, 512, true), STATUS_PIECE]);
    // Queue reset (4.1.4.3.1): disabled, as new, and usable again.
    g.set16(g.common + 58, 1);
    assert_eq!((g.get16(g.common + 58), g.get16(g.common + 28)), (0, 0));
    assert_eq!(g.get16(g.common + 24), 256);
    let mut q = Queue::new(&g, 0, g.offered());
    q.request(&g, &[header(&g, 0, 0), (BUFFER, 512, true), STATUS_PIECE]);
}

#[test]
fn interrupts_only_when_asked() {
    let g = guest(&MemDisk::new(false));
    let mut q = g.start_with(VERSION_1).remove(0);
    g.write(q.avail, &1u16.to_le_bytes()); // VIRTQ_AVAIL_F_NO_INTERRUPT
    q.submit(&g, &[header(&g, 0, 0), (BUFFER, 512, true), STATUS_PIECE]);
    q.wait_used(&g);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(g.interrupts(), 0);
    g.write(q.avail, &0u16.to_le_bytes());
    q.request(&g, &[header(&g, 0, 0), (BUFFER, 512, true), STATUS_PIECE]);

    let mut q = g.start_with(VERSION_1 | EVENT_IDX).remove(0);
    let pieces = [header(&g, 0, 0), (BUFFER, 512, true), STATUS_PIECE];
    for n in 0..3 {
        let head = q.describe(&g, &pieces);
        q.set_used_event(&g, 2); // only for the third
        q.offer(&g, head);
        g.ring(0);
        q.wait_used(&g);
        if n < 2 {
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(g.interrupts(), 0);
        }
    }
    g.wait_interrupt(1);
}

/// A driver that rings only when it must, as real ones do, is never forgotten.
#[test]
fn doorbells_that_are_left_out_are_not_missed() {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let memory = ram();
        let g = Guest::new(virtio::rng(memory.clone()).unwrap(), memory);
        let mut q = g.start_with(features).remove(0);
        let mut rings = 0;
        for _ in 0..5_000 {
            let head = q.describe(&g, &[(DATA, 1, true)]);
            q.offer(&g, head);
            if q.wants_ring(&g) {
                rings += 1;
                g.ring(0);
            }
            let before = q.next_avail.wrapping_sub(1);
            let start = std::time::Instant::now();
            while q.used_idx(&g) == before {
                assert!(start.elapsed() < PATIENCE, "forgotten");
                std::hint::spin_loop();
            }
        }
        assert!(rings > 0);
    }
}

#[test]
fn falls_back_to_the_pin() {
    let g = guest(&MemDisk::new(false));
    g.disable_msix();
    let mut q = g.start().remove(0);
    q.submit(&g, &[header(&g, 0, 0), (BUFFER, 512, true), STATUS_PIECE]);
    g.wait_until("INTA", Guest::pin);
    assert_eq!(g.get16(g.cfg(6)) & 8, 8);
    assert_eq!(g.get8(g.isr), 1);
    assert!(!g.pin());
    assert_eq!((g.get8(g.isr), g.interrupts()), (0, 0));
    // A broken device says so with the other bit.
    q.set_avail_idx(&g, 1000);
    g.ring(0);
    g.wait_until("INTA", Guest::pin);
    assert_eq!(g.get8(g.isr), 2);
    g.set_status(0);
    assert!(!g.pin());
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let g = guest(&MemDisk::new(false));
    let bar = u64::from(g.get32(g.cfg(0x10)) & !0xf);
    g.set8(g.window + 4, 0);
    let access = |offset: u64, len: u32| {
        g.set32(g.window + 8, (offset - bar) as u32);
        g.set32(g.window + 12, len);
    };
    access(g.config, 4);
    assert_eq!(g.get32(g.window + 16), 4096);
    access(g.common + 20, 1);
    g.set8(g.window + 16, ACKNOWLEDGE);
    assert_eq!(g.status(), ACKNOWLEDGE);
    for (bar_index, offset, len) in
        [(0, 1, 4), (0, 0x8000, 4), (0, u32::MAX, 1), (0, 0, 3), (5, 0, 4)]
    {
        g.set8(g.window + 4, bar_index);
        g.set32(g.window + 8, offset);
        g.set32(g.window + 12, len);
        g.set32(g.window + 16, 0);
        assert_eq!(g.get32(g.window + 16), 0);
    }
    assert_eq!(g.status(), ACKNOWLEDGE);
}

#[test]
fn without_bus_master_nothing_moves() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    let mut q = g.start().remove(0);
    g.set16(g.cfg(4), 2);
    let head = q.submit(&g, &[header(&g, 0, 0), (BUFFER, 512, true), STATUS_PIECE]);
    std::thread::sleep(Duration::from_millis(20));
    assert!(disk.log.lock().unwrap().is_empty());
    g.set16(g.cfg(4), 6);
    assert_eq!(q.wait_used(&g), (head, 513));
    g.root.reset();
    assert_eq!(g.status(), 0);
}
