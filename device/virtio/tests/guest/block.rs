//! The block device.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use block::Disk;
use virtio::{BlockCounters, BlockLimits, BlockOptions, Rate, Transfers, VirtioPci};

use crate::driver::*;

const SECTORS: usize = 4096;

/// A disk in memory that keeps a log and can be held up.
pub struct MemDisk {
    bytes: Mutex<Vec<u8>>,
    readonly: bool,
    pub log: Mutex<Vec<String>>,
    held: Mutex<bool>,
    released: Condvar,
    fail: Mutex<bool>,
    panic: Mutex<bool>,
}

impl MemDisk {
    pub fn new(readonly: bool) -> Arc<Self> {
        let bytes = (0..SECTORS * 512).map(|i| (i / 512) as u8).collect();
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            readonly,
            log: Mutex::default(),
            held: Mutex::new(false),
            released: Condvar::new(),
            fail: Mutex::new(false),
            panic: Mutex::new(false),
        })
    }
    pub fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.released.notify_all();
    }
    fn enter(&self, what: String) -> io::Result<()> {
        self.log.lock().unwrap().push(what);
        let held = self.held.lock().unwrap();
        drop(self.released.wait_while(held, |held| *held).unwrap());
        let panics = *self.panic.lock().unwrap();
        assert!(!panics, "a mistake, made by this test");
        if *self.fail.lock().unwrap() { Err(io::Error::other("broken")) } else { Ok(()) }
    }
}

impl Disk for MemDisk {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn is_readonly(&self) -> bool {
        self.readonly
    }
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.enter(format!("read {offset} {}", data.len()))?;
        data.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..data.len()]);
        Ok(())
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.enter(format!("write {offset} {}", data.len()))?;
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.enter("flush".to_owned())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.enter(format!("discard {offset} {len}"))
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.enter(format!("zeroes {offset} {len} {unmap}"))?;
        self.bytes.lock().unwrap()[offset as usize..][..len as usize].fill(0);
        Ok(())
    }
}

pub fn device(disk: &Arc<MemDisk>, queues: u16) -> (VirtioPci, mem::GuestMemory) {
    device_with(disk, BlockOptions { queues, ..BlockOptions::default() })
}

fn device_with(disk: &Arc<MemDisk>, options: BlockOptions) -> (VirtioPci, mem::GuestMemory) {
    let memory = ram();
    let options = BlockOptions { serial: Some("LODGE-1".to_owned()), ..options };
    (virtio::block(disk.clone(), options, memory.clone()).unwrap(), memory)
}

pub fn guest(disk: &Arc<MemDisk>) -> Guest {
    let (device, memory) = device(disk, 1);
    Guest::new(device, memory)
}

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
pub const BUFFER: u64 = DATA + 0x1000;

/// Writes a request header to guest memory.
pub fn header(guest: &Guest, kind: u32, sector: u64) -> Piece {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    guest.write(HEADER, &bytes);
    guest.write(STATUS, &[0xff]);
    (HEADER, 16, false)
}

pub const STATUS_PIECE: Piece = (STATUS, 1, true);

/// A whole request: status and used length.
pub fn request(g: &Guest, q: &mut Queue, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
    let mut pieces = vec![header(g, kind, sector)];
    pieces.extend(data);
    pieces.push(STATUS_PIECE);
    let len = q.request(g, &pieces);
    (g.read(STATUS, 1)[0], len)
}

#[test]
fn tells_what_it_is() {
    let g = guest(&MemDisk::new(false));
    assert_eq!(g.get16(g.cfg(2)), 0x1042);
    assert_eq!(g.offered() & 0x7fff, 1 << 2 | 1 << 6 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 14);
    assert_eq!(g.get64(g.config), SECTORS as u64);
    assert_eq!((g.get32(g.config + 12), g.get32(g.config + 20)), (254, 512));
    assert_eq!(g.get16(g.config + 34), 1);
    let ro = guest(&MemDisk::new(true));
    assert_eq!(ro.offered() & 0x7fff, 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 12);
}

#[test]
fn requests_are_counted_and_wait_their_turn() {
    let disk = MemDisk::new(false);
    let counters = Arc::<BlockCounters>::default();
    let limits = BlockLimits {
        bytes: Some(Rate { per_second: 10_240, burst: 0 }),
        requests: Some(Rate { per_second: 1000, burst: 0 }),
    };
    let options = BlockOptions { limits, counters: counters.clone(), ..BlockOptions::default() };
    let (device, memory) = device_with(&disk, options);
    let g = Guest::new(device, memory);
    let mut q = g.start().remove(0);
    let begun = Instant::now();
    for _ in 0..2 {
        assert_eq!(request(&g, &mut q, 1, 8, &[(BUFFER, 512, false)]).0, 0);
        assert_eq!(request(&g, &mut q, 0, 8, &[(BUFFER, 1024, true)]).0, 0);
    }
    // All but the last had to be waited for: no machine is too slow for that.
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!(request(&g, &mut q, 4, 0, &[]).0, 0);
    assert_eq!(request(&g, &mut q, 0, SECTORS as u64, &[(BUFFER, 512, true)]).0, 1);
    let seen = |it: &Transfers| (it.requests.get(), it.bytes.get());
    assert_eq!((seen(&counters.writes), seen(&counters.reads)), ((2, 1024), (2, 2048)));
    assert_eq!((counters.flushes.get(), counters.failed.get()), (1, 1));
}

#[test]
fn writes_flushes_and_reads_back() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    let mut q = g.start().remove(0);
    let text: Vec<u8> = (0..1536u32).map(|i| (i * 7) as u8).collect();
    g.write(BUFFER, &text);
    // In odd pieces, one of them empty.
    let pieces = [(BUFFER, 3, false), (BUFFER, 0, false), (BUFFER + 3, 1533, false)];
    assert_eq!(request(&g, &mut q, 1, 8, &pieces), (0, 1));
    assert_eq!(request(&g, &mut q, 4, 0, &[]), (0, 1));
    let into = [(HIGH_RAM, 1000, true), (BUFFER + 0x2000, 536, true)];
    assert_eq!(request(&g, &mut q, 0, 8, &into), (0, 1537));
    assert_eq!([g.read(HIGH_RAM, 1000), g.read(BUFFER + 0x2000, 536)].concat(), text);
    assert_eq!(*disk.log.lock().unwrap(), ["write 4096 1536", "flush", "read 4096 1536"]);
}

#[test]
fn goes_through_indirect_descriptors_and_around_the_ring() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    let mut q = g.start().remove(0);
    for sector in 0..200u64 {
        q.set_used_event(&g, sector as u16);
        let pieces = [header(&g, 0, sector), (BUFFER, 512, true), STATUS_PIECE];
        let head = q.describe_indirect(&g, BUFFER + 0x1000, &pieces);
        q.offer(&g, head);
        g.ring(0);
        g.wait_interrupt(1);
        assert_eq!(q.wait_used(&g), (head, 513));
        assert_eq!(g.read(BUFFER, 512), vec![sector as u8; 512]);
    }
}

#[test]
fn large_requests_go_in_pieces() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    let mut q = g.start().remove(0);
    let len = 600 * 1024;
    assert_eq!(request(&g, &mut q, 0, 0, &[(BUFFER, len, true)]), (0, len + 1));
    let read = g.read(BUFFER, len as usize);
    assert!(read.chunks(512).enumerate().all(|(n, s)| s.iter().all(|&b| b == n as u8)));
    assert_eq!(disk.log.lock().unwrap().len(), 3);
}

#[test]
fn tells_its_serial_number() {
    let g = guest(&MemDisk::new(false));
    let mut q = g.start().remove(0);
    assert_eq!(request(&g, &mut q, 8, 0, &[(BUFFER, 20, true)]), (0, 21));
    assert_eq!(g.read(BUFFER, 20), *b"LODGE-1\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let long = BlockOptions { queues: 1, serial: Some("x".repeat(21)), ..BlockOptions::default() };
    assert!(virtio::block(MemDisk::new(false), long, ram()).is_err());
}

#[test]
fn discards_and_writes_zeroes() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    let mut q = g.start().remove(0);
    let mut range = |kind, sector: u64, sectors: u32, flags: u32| {
        g.write(BUFFER, &sector.to_le_bytes());
        g.write(BUFFER + 8, &sectors.to_le_bytes());
        g.write(BUFFER + 12, &flags.to_le_bytes());
        request(&g, &mut q, kind, 0, &[(BUFFER, 16, false)]).0
    };
    assert_eq!(range(11, 8, 16, 0), 0);
    assert_eq!(range(13, 9, 3, 1), 0);
    assert_eq!(range(13, 9, 3, 0), 0);
    assert_eq!(range(11, 8, 16, 1), 2); // a discard has no flags
    assert_eq!(range(13, 9, 3, 2), 2);
    assert_eq!(range(11, SECTORS as u64 - 1, 2, 0), 1);
    assert_eq!(range(13, u64::MAX, 1, 0), 1);
    assert_eq!(range(13, 0, u32::MAX, 0), 1);
    let log = ["discard 4096 8192", "zeroes 4608 1536 true", "zeroes 4608 1536 false"];
    assert_eq!(*disk.log.lock().unwrap(), log);
    assert_eq!(request(&g, &mut q, 11, 0, &[(BUFFER, 15, false)]).0, 1);
}

#[test]
fn refuses_what_cannot_be() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    let mut q = g.start().remove(0);
    let read = [(BUFFER, 512, true)];
    assert_eq!(request(&g, &mut q, 0, SECTORS as u64, &read).0, 1);
    assert_eq!(request(&g, &mut q, 0, u64::MAX, &read).0, 1);
    assert_eq!(request(&g, &mut q, 0, 0, &[(BUFFER, 511, true)]).0, 1);
    assert_eq!(request(&g, &mut q, 1, SECTORS as u64 - 1, &[(BUFFER, 1024, false)]).0, 1);
    assert_eq!(request(&g, &mut q, 77, 0, &[]).0, 2);
    // A header that is too short still gets its answer.
    header(&g, 0, 0);
    q.request(&g, &[(HEADER, 15, false), STATUS_PIECE]);
    assert_eq!(g.read(STATUS, 1), [1]);
    assert!(disk.log.lock().unwrap().is_empty());
    *disk.fail.lock().unwrap() = true;
    assert_eq!(request(&g, &mut q, 0, 0, &read).0, 1);
    assert_eq!(request(&g, &mut q, 4, 0, &[]).0, 1);
    *disk.fail.lock().unwrap() = false;
    assert_eq!(request(&g, &mut q, 0, 0, &read), (0, 513));
}

#[test]
fn a_readonly_disk_is_not_written() {
    let disk = MemDisk::new(true);
    let g = guest(&disk);
    let mut q = g.start().remove(0);
    assert_eq!(request(&g, &mut q, 1, 0, &[(BUFFER, 512, false)]).0, 1);
    assert_eq!(request(&g, &mut q, 11, 0, &[(BUFFER, 16, false)]).0, 1);
    assert_eq!(request(&g, &mut q, 13, 0, &[(BUFFER, 16, false)]).0, 1);
    assert!(disk.log.lock().unwrap().is_empty());
}

#[test]
fn without_flush_each_write_is_made_safe() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    let mut q = g.start_with(VERSION_1).remove(0);
    assert_eq!(request(&g, &mut q, 1, 0, &[(BUFFER, 512, false)]).0, 0);
    assert_eq!(*disk.log.lock().unwrap(), ["write 0 512", "flush"]);
}

#[test]
fn queues_work_side_by_side() {
    let disk = MemDisk::new(false);
    let (device, memory) = device(&disk, 4);
    let g = Guest::new(device, memory);
    let mut queues = g.start();
    assert_eq!(queues.len(), 4);
    // All four wait in the disk at once, so none waits for another.
    disk.hold(true);
    header(&g, 0, 3);
    for (n, q) in queues.iter_mut().enumerate() {
        let to = BUFFER + 0x1000 * n as u64;
        q.submit(&g, &[(HEADER, 16, false), (to, 512, true), (to + 0x800, 1, true)]);
    }
    g.wait_until("four reads", |_| disk.log.lock().unwrap().len() == 4);
    disk.hold(false);
    for (n, q) in queues.iter_mut().enumerate() {
        g.wait_interrupt(n as u32 + 1);
        q.wait_used(&g);
        assert_eq!(g.read(BUFFER + 0x1000 * n as u64, 512), [3; 512]);
    }
}

#[test]
fn a_reset_waits_for_the_request_in_hand() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    let mut q = g.start().remove(0);
    disk.hold(true);
    let pieces = [header(&g, 0, 5), (BUFFER, 512, true), STATUS_PIECE];
    q.submit(&g, &pieces);
    q.submit(&g, &pieces); // stays in the ring
    g.wait_until("a read", |_| disk.log.lock().unwrap().len() == 1);
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| g.set_status(0));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!reset.is_finished());
        disk.hold(false);
    });
    assert_eq!(g.status(), 0);
    assert_eq!(disk.log.lock().unwrap().len(), 1);
    // From now on the device leaves memory alone.
    g.write(BUFFER, &[0xaa; 512]);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(g.read(BUFFER, 512), [0xaa; 512]);
    let mut q = g.start().remove(0);
    assert_eq!(request(&g, &mut q, 0, 5, &[(BUFFER, 512, true)]), (0, 513));
}

#[test]
fn a_pause_keeps_the_place() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    let mut q = g.start().remove(0);
    assert_eq!(request(&g, &mut q, 0, 1, &[(BUFFER, 512, true)]), (0, 513));
    g.root.pause();
    let head = q.submit(&g, &[header(&g, 0, 2), (BUFFER, 512, true), STATUS_PIECE]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(disk.log.lock().unwrap().len(), 1);
    g.root.resume();
    assert_eq!(q.wait_used(&g), (head, 513));
    assert_eq!(g.read(BUFFER, 512), [2; 512]);
}

#[test]
fn a_disk_that_panics_needs_a_reset() {
    let disk = MemDisk::new(false);
    let g = guest(&disk);
    let mut q = g.start().remove(0);
    *disk.panic.lock().unwrap() = true;
    q.submit(&g, &[header(&g, 0, 5), (BUFFER, 512, true), STATUS_PIECE]);
    g.wait_needs_reset();
    g.wait_interrupt(0);
    *disk.panic.lock().unwrap() = false;
    let mut q = g.start().remove(0);
    assert_eq!(request(&g, &mut q, 0, 5, &[(BUFFER, 512, true)]), (0, 513));
}
