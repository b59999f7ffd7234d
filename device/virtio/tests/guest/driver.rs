//! A small driver: finds a device on the bus and speaks virtio to it.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bus::AddressSpace;
use irqchip::{IrqLine, IrqSink, Msi, MsiTarget};
use mem::{GuestAddress, GuestMemory, RamRange};
use pci::{ECAM_SIZE, PciDevice, PciRoot, Windows};
use vm_memory::Bytes;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const RING_RESET: u64 = 1 << 40;

pub const ACKNOWLEDGE: u8 = 1;
pub const DRIVER: u8 = 2;
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 64;

/// RAM from 0, and more at 4 GiB.
pub const RAM: u64 = 0x40_0000;
pub const HIGH_RAM: u64 = 1 << 32;
/// Where tests put data. Rings lie above, at [`RINGS`].
pub const DATA: u64 = 0x1_0000;
const RINGS: u64 = 0x20_0000;
const ECAM: u64 = 0xb000_0000;
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The config vector, and from 1 on those of the queues.
const MSI_BASE: u32 = 0x40;

#[derive(Default)]
pub struct Sink {
    messages: Mutex<Vec<u32>>,
    level: Mutex<bool>,
    changed: Condvar,
}

impl IrqSink for Sink {
    fn set_gsi(&self, _gsi: u32, level: bool) {
        *self.level.lock().unwrap() = level;
    }
    fn send_msi(&self, msi: Msi) {
        assert_eq!(msi.address, 0xfee0_0000);
        self.messages.lock().unwrap().push(msi.data - MSI_BASE);
        self.changed.notify_all();
    }
}

/// A machine with one virtio device.
pub struct Guest {
    pub memory: GuestMemory,
    pub mmio: Arc<AddressSpace>,
    pub root: Arc<PciRoot>,
    pub sink: Arc<Sink>,
    device: u8,
    pub common: u64,
    pub isr: u64,
    pub config: u64,
    pub notify: u64,
    notify_multiplier: u64,
    /// The configuration access capability.
    pub window: u64,
}

pub fn ram() -> GuestMemory {
    mem::allocate(&[RamRange { start: 0, len: RAM }, RamRange { start: HIGH_RAM, len: 0x10_0000 }])
        .unwrap()
}

impl Guest {
    /// Plugs a device in, finds its structures, and enables it with MSI-X.
    pub fn new(device: impl PciDevice + 'static, memory: GuestMemory) -> Self {
        let (mmio, io) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
        let sink = Arc::new(Sink::default());
        let lines = [16, 17, 18, 19].map(|gsi| IrqLine::new(sink.clone(), gsi));
        let windows = Windows {
            memory32: 0xc000_0000..=0xcfff_ffff,
            memory64: 0x80_0000_0000..=0xff_ffff_ffff,
            io: 0xc000..=0xcfff,
        };
        let root =
            PciRoot::new(&mmio, &io, windows, MsiTarget::new(sink.clone()), Some(lines), None);
        mmio.attach("ecam", ECAM..=ECAM + ECAM_SIZE - 1, root.ecam()).unwrap();
        let device = root.add(None, Box::new(device)).unwrap();
        let mut guest = Self {
            memory,
            mmio,
            root,
            sink,
            device,
            common: 0,
            isr: 0,
            config: 0,
            notify: 0,
            notify_multiplier: 0,
            window: 0,
        };
        guest.probe();
        guest
    }

    fn probe(&mut self) {
        assert_eq!(self.get16(self.cfg(0)), 0x1af4);
        let bar = (u64::from(self.get32(self.cfg(0x14))) << 32)
            | u64::from(self.get32(self.cfg(0x10)) & !0xf);
        let mut at = u64::from(self.get8(self.cfg(0x34)));
        while at != 0 {
            let place = bar + u64::from(self.get32(self.cfg(at + 8)));
            match (self.get8(self.cfg(at)), self.get8(self.cfg(at + 3))) {
                (9, 1) => self.common = place,
                (9, 2) => {
                    self.notify = place;
                    self.notify_multiplier = self.get32(self.cfg(at + 16)).into();
                }
                (9, 3) => self.isr = place,
                (9, 4) => self.config = place,
                (9, 5) => self.window = self.cfg(at),
                (0x11, _) => self.enable_msix(at, bar),
                _ => {}
            }
            at = self.get8(self.cfg(at + 1)).into();
        }
        self.set16(self.cfg(4), 0x6); // memory, bus master
    }

    fn enable_msix(&self, at: u64, bar: u64) {
        let vectors = u32::from(self.get16(self.cfg(at + 2)) & 0x7ff) + 1;
        let table = bar + u64::from(self.get32(self.cfg(at + 4)) & !7);
        for vector in 0..vectors {
            let entry = table + 16 * u64::from(vector);
            self.set32(entry, 0xfee0_0000);
            self.set32(entry + 4, 0);
            self.set32(entry + 8, MSI_BASE + vector);
            self.set32(entry + 12, 0);
        }
        self.set16(self.cfg(at + 2), 0x8000);
    }

    /// Turns MSI-X off, so that INTA is in use.
    pub fn disable_msix(&self) {
        let mut at = u64::from(self.get8(self.cfg(0x34)));
        while self.get8(self.cfg(at)) != 0x11 {
            at = self.get8(self.cfg(at + 1)).into();
        }
        self.set16(self.cfg(at + 2), 0);
    }

    /// The address of a register of configuration space.
    pub fn cfg(&self, register: u64) -> u64 {
        ECAM + (u64::from(self.device) << 15) + register
    }

    pub fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(at, &mut data);
        data
    }
    pub fn get8(&self, at: u64) -> u8 {
        self.get::<1>(at)[0]
    }
    pub fn get16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at))
    }
    pub fn get32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.get(at))
    }
    pub fn get64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.get(at))
    }
    pub fn set8(&self, at: u64, value: u8) {
        self.mmio.write(at, &[value]);
    }
    pub fn set16(&self, at: u64, value: u16) {
        self.mmio.write(at, &value.to_le_bytes());
    }
    pub fn set32(&self, at: u64, value: u32) {
        self.mmio.write(at, &value.to_le_bytes());
    }

    pub fn status(&self) -> u8 {
        self.get8(self.common + 20)
    }
    pub fn set_status(&self, value: u8) {
        self.set8(self.common + 20, value);
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        self.set32(self.common, 0);
        let low = self.get32(self.common + 4);
        self.set32(self.common, 1);
        u64::from(self.get32(self.common + 4)) << 32 | u64::from(low)
    }

    /// Resets the device and accepts `features`. Returns whether the device agrees.
    pub fn negotiate(&self, features: u64) -> bool {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        for (word, value) in [features as u32, (features >> 32) as u32].into_iter().enumerate() {
            self.set32(self.common + 8, word as u32);
            self.set32(self.common + 12, value);
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.set16(self.common + 16, 0); // configuration changes interrupt with vector 0
        self.status() & FEATURES_OK != 0
    }

    /// Says that the driver is ready: queues run.
    pub fn go(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(self.status() & NEEDS_RESET, 0);
    }

    /// The usual start: all features that are offered, all queues.
    pub fn start(&self) -> Vec<Queue> {
        self.start_with(self.offered())
    }

    pub fn start_with(&self, features: u64) -> Vec<Queue> {
        assert!(self.negotiate(features));
        let queues = self.queues(features);
        self.go();
        queues
    }

    /// Sets up and enables all queues.
    pub fn queues(&self, features: u64) -> Vec<Queue> {
        (0..self.get16(self.common + 18)).map(|n| Queue::new(self, n, features)).collect()
    }

    pub fn select(&self, queue: u16) {
        self.set16(self.common + 22, queue);
    }

    pub fn ring(&self, queue: u16) {
        self.select(queue);
        let offset = u64::from(self.get16(self.common + 30)) * self.notify_multiplier;
        self.set16(self.notify + offset, queue);
    }

    /// Waits for a message with this vector and takes it.
    pub fn wait_interrupt(&self, vector: u32) {
        let messages = self.sink.messages.lock().unwrap();
        let (mut messages, timeout) = self
            .sink
            .changed
            .wait_timeout_while(messages, PATIENCE, |m| !m.contains(&vector))
            .unwrap();
        assert!(!timeout.timed_out(), "no interrupt with vector {vector}");
        messages.retain(|&m| m != vector);
    }

    pub fn interrupts(&self) -> usize {
        self.sink.messages.lock().unwrap().len()
    }

    pub fn pin(&self) -> bool {
        *self.sink.level.lock().unwrap()
    }

    pub fn write(&self, at: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(at)).unwrap();
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    /// Waits until `done`.
    pub fn wait_until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "{what} does not come");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits until the driver's mistake was noticed.
    pub fn wait_needs_reset(&self) {
        self.wait_until("DEVICE_NEEDS_RESET", |g| g.status() & NEEDS_RESET != 0);
    }
}

/// A piece of a request: address, length, whether the device writes it.
pub type Piece = (u64, u32, bool);

pub const F_NEXT: u16 = 1;
pub const F_WRITE: u16 = 2;
pub const F_INDIRECT: u16 = 4;

/// A virtqueue on the driver's side.
pub struct Queue {
    pub index: u16,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub next_avail: u16,
    last_used: u16,
    next_desc: u16,
    event_idx: bool,
}

impl Queue {
    pub fn new(guest: &Guest, index: u16, features: u64) -> Self {
        guest.select(index);
        let size = guest.get16(guest.common + 24).min(64);
        let base = RINGS + u64::from(index) * 0x4000;
        let queue = Self {
            index,
            size,
            desc: base,
            avail: base + 0x1000,
            used: base + 0x2000,
            next_avail: 0,
            last_used: 0,
            next_desc: 0,
            event_idx: features & EVENT_IDX != 0,
        };
        guest.write(base, &[0; 0x4000]);
        queue.enable(guest);
        queue
    }

    pub fn enable(&self, guest: &Guest) {
        guest.select(self.index);
        guest.set16(guest.common + 24, self.size);
        guest.set16(guest.common + 26, self.index + 1);
        for (register, value) in [(32, self.desc), (40, self.avail), (48, self.used)] {
            guest.set32(guest.common + register, value as u32);
            guest.set32(guest.common + register + 4, (value >> 32) as u32);
        }
        guest.set16(guest.common + 28, 1);
        assert_eq!(guest.get16(guest.common + 28), 1);
    }

    pub fn set_descriptor(&self, guest: &Guest, n: u16, d: (u64, u32, u16, u16)) {
        guest.write(self.desc + 16 * u64::from(n), &descriptor(d));
    }

    /// Puts a chain into the descriptor table and returns its head.
    pub fn describe(&mut self, guest: &Guest, pieces: &[Piece]) -> u16 {
        let head = self.next_desc;
        for (i, &(addr, len, write)) in pieces.iter().enumerate() {
            let n = self.next_desc;
            self.next_desc = (n + 1) % self.size;
            let more = if i + 1 < pieces.len() { F_NEXT } else { 0 };
            let flags = more | if write { F_WRITE } else { 0 };
            self.set_descriptor(guest, n, (addr, len, flags, self.next_desc));
        }
        head
    }

    /// The same through an indirect table at `table`.
    pub fn describe_indirect(&mut self, guest: &Guest, table: u64, pieces: &[Piece]) -> u16 {
        for (i, &(addr, len, write)) in pieces.iter().enumerate() {
            let more = if i + 1 < pieces.len() { F_NEXT } else { 0 };
            let flags = more | if write { F_WRITE } else { 0 };
            guest.write(table + 16 * i as u64, &descriptor((addr, len, flags, i as u16 + 1)));
        }
        let head = self.next_desc;
        self.next_desc = (head + 1) % self.size;
        self.set_descriptor(guest, head, (table, 16 * pieces.len() as u32, F_INDIRECT, 0));
        head
    }

    /// Makes a chain available, without ringing.
    pub fn offer(&mut self, guest: &Guest, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.next_avail % self.size);
        guest.write(slot, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_idx(guest, self.next_avail);
    }

    pub fn set_avail_idx(&self, guest: &Guest, idx: u16) {
        let at = GuestAddress(self.avail + 2);
        guest.memory.store(idx.to_le(), at, std::sync::atomic::Ordering::SeqCst).unwrap();
    }

    /// Whether the device wants to be rung for what was offered last (2.7.10).
    pub fn wants_ring(&self, guest: &Guest) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        if self.event_idx {
            let event = guest.read(self.used + 4 + 8 * u64::from(self.size), 2);
            u16::from_le_bytes([event[0], event[1]]) == self.next_avail.wrapping_sub(1)
        } else {
            guest.read(self.used, 1)[0] & 1 == 0
        }
    }

    /// Asks for an interrupt for the next used buffer, and sends a request off.
    pub fn submit(&mut self, guest: &Guest, pieces: &[Piece]) -> u16 {
        self.set_used_event(guest, self.last_used);
        let head = self.describe(guest, pieces);
        self.offer(guest, head);
        guest.ring(self.index);
        head
    }

    pub fn set_used_event(&self, guest: &Guest, value: u16) {
        if self.event_idx {
            guest.write(self.avail + 4 + 2 * u64::from(self.size), &value.to_le_bytes());
        }
    }

    pub fn used_idx(&self, guest: &Guest) -> u16 {
        let at = GuestAddress(self.used + 2);
        u16::from_le(guest.memory.load(at, std::sync::atomic::Ordering::SeqCst).unwrap())
    }

    /// Takes the next used buffer: head and length.
    pub fn wait_used(&mut self, guest: &Guest) -> (u16, u32) {
        let last = self.last_used;
        guest.wait_until("a used buffer", |g| self.used_idx(g) != last);
        let slot = self.used + 4 + 8 * u64::from(last % self.size);
        self.last_used = last.wrapping_add(1);
        let entry = guest.read(slot, 8);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        (word(0) as u16, word(4))
    }

    /// Sends a request off and waits for the interrupt and the answer.
    pub fn request(&mut self, guest: &Guest, pieces: &[Piece]) -> u32 {
        let head = self.submit(guest, pieces);
        guest.wait_interrupt(u32::from(self.index) + 1);
        let (used, len) = self.wait_used(guest);
        assert_eq!(used, head);
        len
    }
}

pub fn descriptor((addr, len, flags, next): (u64, u32, u16, u16)) -> [u8; 16] {
    let mut d = [0; 16];
    d[..8].copy_from_slice(&addr.to_le_bytes());
    d[8..12].copy_from_slice(&len.to_le_bytes());
    d[12..14].copy_from_slice(&flags.to_le_bytes());
    d[14..].copy_from_slice(&next.to_le_bytes());
    d
}
