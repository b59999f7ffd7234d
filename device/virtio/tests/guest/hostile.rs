//! Drivers that break the rules harm only their device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chardev::Chardev;
use mem::GuestMemory;
use proptest::prelude::*;
use virtio::VirtioPci;

use crate::block::{MemDisk, STATUS_PIECE, device, guest, header};
use crate::driver::*;
use crate::net::Wire;

const BUFFER: u64 = DATA + 0x1000;

/// Offers one chain that is no chain, sees the device stop, and then use it again after a reset.
fn breaks(what: &str, prepare: impl FnOnce(&Guest, &mut Queue)) {
    let g = guest(&MemDisk::new(false));
    let mut q = g.start().remove(0);
    prepare(&g, &mut q);
    g.ring(0);
    g.wait_needs_reset();
    g.wait_interrupt(0);
    assert_eq!(q.used_idx(&g), 0, "{what}");
    let mut q = g.start().remove(0);
    assert_eq!(q.request(&g, &[header(&g, 0, 9), (BUFFER, 512, true), STATUS_PIECE]), 513);
    assert_eq!(g.read(BUFFER, 512), [9; 512], "{what}");
}

#[test]
fn broken_chains() {
    breaks("a loop", |g, q| {
        q.set_descriptor(g, 0, (BUFFER, 16, F_NEXT, 1));
        q.set_descriptor(g, 1, (BUFFER, 16, F_NEXT, 0));
        q.offer(g, 0);
    });
    breaks("a loop of one", |g, q| {
        q.set_descriptor(g, 0, (BUFFER, 16, F_NEXT | F_WRITE, 0));
        q.offer(g, 0);
    });
    breaks("a next outside the table", |g, q| {
        q.set_descriptor(g, 0, (BUFFER, 16, F_NEXT, q.size));
        q.offer(g, 0);
    });
    breaks("a head outside the table", |g, q| q.offer(g, 0xffff));
    breaks("a readable buffer after a writable one", |g, q| {
        let head = q.describe(g, &[(BUFFER, 16, true), (BUFFER, 16, false)]);
        q.offer(g, head);
    });
    breaks("no room for a status", |g, q| {
        let head = q.describe(g, &[header(g, 0, 0)]);
        q.offer(g, head);
    });
    breaks("an empty request", |g, q| {
        let head = q.describe(g, &[(BUFFER, 0, true)]);
        q.offer(g, head);
    });
    breaks("4 GiB and more", |g, q| {
        let head = q.describe(g, &[header(g, 1, 0), (0, u32::MAX, false), (0, u32::MAX, false)]);
        q.offer(g, head);
    });
}

#[test]
fn buffers_outside_memory() {
    for (addr, len) in [
        (RAM, 16),
        (RAM - 8, 16),
        (HIGH_RAM - 1, 16),
        (u64::MAX, 1),
        (u64::MAX - 7, 16),
        (u64::MAX - 15, 16),
        (0, u32::MAX),
    ] {
        breaks("a buffer outside memory", |g, q| {
            let head = q.describe(g, &[header(g, 0, 0), (addr, len, true), STATUS_PIECE]);
            q.offer(g, head);
        });
    }
}

#[test]
fn broken_indirect_tables() {
    breaks("outside memory", |g, q| {
        q.set_descriptor(g, 0, (u64::MAX - 15, 16, F_INDIRECT, 0));
        q.offer(g, 0);
    });
    breaks("empty", |g, q| {
        q.set_descriptor(g, 0, (BUFFER, 0, F_INDIRECT, 0));
        q.offer(g, 0);
    });
    breaks("of an odd length", |g, q| {
        q.set_descriptor(g, 0, (BUFFER, 17, F_INDIRECT, 0));
        q.offer(g, 0);
    });
    breaks("inside another", |g, q| {
        g.write(BUFFER, &descriptor((BUFFER, 16, F_INDIRECT, 0)));
        q.set_descriptor(g, 0, (BUFFER, 16, F_INDIRECT, 0));
        q.offer(g, 0);
    });
    breaks("longer than the queue", |g, q| {
        let (header, ..) = header(g, 0, 0);
        for n in 0..300u16 {
            let piece = match n {
                0 => (header, 16, F_NEXT, 1),
                299 => (DATA, 1, F_WRITE, 0),
                _ => (DATA, 0, F_NEXT | F_WRITE, n + 1),
            };
            g.write(BUFFER + 16 * u64::from(n), &descriptor(piece));
        }
        q.set_descriptor(g, 0, (BUFFER, 16 * 300, F_INDIRECT, 0));
        q.offer(g, 0);
    });
}

#[test]
fn an_available_index_from_nowhere() {
    breaks("more requests than the ring holds", |g, q| q.set_avail_idx(g, q.size + 1));
    breaks("a step back", |g, q| q.set_avail_idx(g, 0xffff));
}

#[test]
fn rings_in_the_void() {
    for address in [RAM, RAM - 16, HIGH_RAM - 16, u64::MAX - 0xf, 0xffff_ffff_ffff_f000, 0x8001] {
        for register in [32, 40, 48] {
            let g = guest(&MemDisk::new(false));
            assert!(g.negotiate(VERSION_1));
            for (r, value) in [(32, 0x1000), (40, 0x3000), (48, 0x4000), (register, address)] {
                g.set32(g.common + r, value as u32);
                g.set32(g.common + r + 4, (value >> 32) as u32);
            }
            g.set16(g.common + 28, 1);
            assert_eq!(g.get16(g.common + 28), 0, "register {register} = {address:#x}");
            assert_eq!(g.status() & NEEDS_RESET, NEEDS_RESET);
            g.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
            g.ring(0);
            assert!(g.negotiate(VERSION_1));
        }
    }
}

/// A driver that rewrites its rings while the device reads them.
#[test]
fn rings_that_change_under_the_device() {
    for victim in &VICTIMS {
        let (device, memory) = (victim.device)();
        let g = Guest::new(device, memory);
        let queues = g.start();
        let start = Instant::now();
        let mut x = 0x9e37_79b9_7f4a_7c15u64;
        while start.elapsed() < Duration::from_millis(50) {
            for q in &queues {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let addr = if x >> 60 == 0 { x } else { DATA + (x >> 40 & 0xfff) };
                let flags = (x >> 8 & 3) as u16;
                let d = (addr, (x >> 20 & 0x3ff) as u32, flags, (x >> 32 & 0xf) as u16);
                q.set_descriptor(&g, (x & 0xf) as u16, d);
                q.set_avail_idx(&g, q.used_idx(&g).wrapping_add((x >> 16 & 3) as u16));
                g.ring(q.index);
            }
            if g.status() & NEEDS_RESET != 0 {
                let _ = g.start();
            }
        }
        g.set_status(0);
        (victim.works)(&g, &mut g.start());
    }
}

/// A descriptor of a guest gone wild, with a fair chance to be half right.
fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let addr = prop_oneof![
        6 => DATA..DATA + 0x2000,
        2 => Just(0x20_0000u64), // the rings themselves
        1 => Just(RAM - 4),
        1 => Just(u64::MAX - 4),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => 0u32..64, 3 => Just(512u32), 1 => Just(u32::MAX), 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0u16..4, 1 => Just(F_INDIRECT), 1 => any::<u16>()];
    (addr, len, flags, prop_oneof![8 => 0u16..16, 1 => any::<u16>()])
}

fn any_register_write() -> impl Strategy<Value = (u64, u8, u64)> {
    let value = prop_oneof![any::<u64>(), 0u64..16, Just(0x20_0000u64), Just(u64::MAX - 0xff)];
    // Not into the MSI-X table at 0x4000: where those messages go is the sink's business.
    (prop_oneof![4 => 0u64..64, 1 => 0x1000u64..0x4000, 1 => 0x5000u64..0x8000], 0u8..4, value)
}

fn any_ring() -> impl Strategy<Value = Vec<u8>> {
    (
        proptest::collection::vec(any_descriptor(), 16),
        proptest::collection::vec(prop_oneof![8 => 0u16..16, 1 => any::<u16>()], 16),
    )
        .prop_map(|(descriptors, heads)| {
            let mut table: Vec<u8> = descriptors.into_iter().flat_map(descriptor).collect();
            table.resize(0x1004, 0);
            table.extend(heads.into_iter().flat_map(u16::to_le_bytes));
            table
        })
}

/// A device to be abused, and how to see that it works.
struct Victim {
    device: fn() -> (VirtioPci, GuestMemory),
    works: fn(&Guest, &mut [Queue]),
}

const VICTIMS: [Victim; 4] = [
    Victim {
        device: || device(&MemDisk::new(false), 2),
        works: |g, queues| {
            let pieces = [header(g, 8, 0), (BUFFER, 20, true), STATUS_PIECE];
            assert_eq!(queues[1].request(g, &pieces), 21);
            assert_eq!(g.read(BUFFER, 7), b"LODGE-1");
        },
    },
    Victim {
        device: || {
            let memory = ram();
            (
                virtio::net(Wire::new(false), virtio::NetOptions::default(), memory.clone())
                    .unwrap(),
                memory,
            )
        },
        works: |g, queues| assert_eq!(queues[1].request(g, &[(BUFFER, 100, false)]), 0),
    },
    Victim {
        device: || {
            let memory = ram();
            let chardev = Arc::new(Chardev::null());
            (virtio::console(chardev, memory.clone()).unwrap(), memory)
        },
        works: |g, queues| assert_eq!(queues[1].request(g, &[(BUFFER, 100, false)]), 0),
    },
    Victim {
        device: || {
            let memory = ram();
            (virtio::rng(memory.clone()).unwrap(), memory)
        },
        works: |g, queues| assert_eq!(queues[0].request(g, &[(BUFFER, 100, true)]), 100),
    },
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is in the rings and registers: no panic, no hang, and after a reset the device
    /// works as new.
    #[test]
    fn nonsense_in_rings_and_registers(
        victim in 0..VICTIMS.len(),
        ring in any_ring(),
        data in proptest::collection::vec(any::<u8>(), 256),
        available in prop_oneof![4 => 0u16..17, 1 => any::<u16>()],
        features in prop_oneof![Just(0), Just(EVENT_IDX | RING_RESET | INDIRECT_DESC), any::<u64>()],
        writes in proptest::collection::vec(any_register_write(), 0..40),
    ) {
        let victim = &VICTIMS[victim];
        let (device, memory) = (victim.device)();
        let g = Guest::new(device, memory);
        let offered = g.offered();
        let queues = g.start_with(features & offered | VERSION_1);
        g.write(DATA, &data);
        for q in &queues {
            g.write(q.desc, &ring);
            q.set_avail_idx(&g, available);
            g.ring(q.index);
        }
        for (offset, size, value) in writes {
            let at = g.common + offset;
            g.mmio.write(at, &value.to_le_bytes()[..1 << size]);
            let mut back = [0; 8];
            g.mmio.read(at, &mut back[..1 << size]);
            g.ring((value & 3) as u16);
        }
        g.set_status(0);
        prop_assert_eq!(g.status(), 0);
        prop_assert_eq!(g.offered(), offered);
        (victim.works)(&g, &mut g.start());
    }
}
