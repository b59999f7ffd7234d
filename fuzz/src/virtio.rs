//! Drivers of virtio devices that break the rules.

use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use mem::vm_memory::Bytes;
use mem::{GuestAddress, GuestMemory};
use pci::PciDevice;
use virtio::VirtioPci;

use crate::registers::{Access, Bus};
use crate::wiring::{HIGH_RAM, RAM, fill};

// Where the rings are, and the data that descriptors are inclined to point at.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const INDIRECT: u64 = 0x4000;
const HEADERS: u64 = 0x5000;
const DATA: u64 = 0x6000;
/// The window of registers, without the MSI-X table.
const BAR_SIZE: u64 = 0x4000;

// VIRTIO 1.2, 2.1 and 4.1.4.3.
const ACKNOWLEDGE_DRIVER: u8 = 3;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
const DEVICE_NEEDS_RESET: u8 = 64;
const VERSION_1: u64 = 1 << 32;

/// How long a queue may take over what is in it. The receive queues of a silent line always do.
const PATIENCE: Duration = Duration::from_millis(2);

/// An address that is in RAM, or may be anywhere.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Address {
    /// In the data.
    Data(u8),
    /// In RAM, the rings included.
    Ram(u16),
    /// Near the end of RAM.
    End(u8),
    /// In the second piece of RAM.
    High(u16),
    /// Anywhere.
    Any(u64),
}

impl Address {
    fn get(self) -> u64 {
        match self {
            Self::Data(at) => DATA + u64::from(at),
            Self::Ram(at) => at.into(),
            Self::End(back) => RAM - u64::from(back),
            Self::High(at) => HIGH_RAM.start + u64::from(at),
            Self::Any(at) => at,
        }
    }
}

/// A buffer of a chain.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Buffer {
    address: Address,
    len: Length,
    is_writable: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Sectors(u8),
    Short(u8),
    Medium(u16),
    Any(u32),
}

impl Length {
    fn get(self) -> u32 {
        match self {
            Self::Sectors(count) => 512 * u32::from(count),
            Self::Short(len) => len.into(),
            Self::Medium(len) => len.into(),
            Self::Any(len) => len,
        }
    }
}

/// A request. Its parts are in order, as the device's type wants them; what is to be wrong about
/// them, [`Driver::damage`] says.
#[derive(Arbitrary, Clone, Debug)]
struct Request {
    /// Type and sector, as a block device reads them.
    header: Option<(u8, Sector)>,
    buffers: Vec<Buffer>,
    /// No byte for the status.
    lacks_status: bool,
    is_indirect: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Sector {
    Low(u8),
    Any(u64),
}

/// What a driver does: sets one queue up, rings, and then writes to registers at random.
#[derive(Arbitrary, Debug)]
pub struct Driver<'a> {
    features: u64,
    queue: u8,
    size_shift: u8,
    /// Instead of the usual places of the rings.
    rings: Option<[Address; 3]>,
    requests: Vec<Request>,
    /// What is added to the available index.
    index_error: Option<u16>,
    no_interrupt: bool,
    /// Places from the first descriptor on, and what is written there, after all.
    damage: Vec<(u16, u16)>,
    accesses: Vec<Access>,
    data: &'a [u8],
}

/// Where a device's structures are in its BAR (4.1.4).
struct Layout {
    common: u64,
    notify: u64,
}

impl Layout {
    fn of(device: &VirtioPci) -> Self {
        let mut layout = Self { common: 0, notify: 0 };
        for capability in device.description().capabilities {
            // What is behind ID and next pointer: length, type, BAR, padding, offset.
            let Some(offset) = capability.body[6..].first_chunk() else { continue };
            let offset = u32::from_le_bytes(*offset).into();
            match capability.body[1] {
                1 => layout.common = offset,
                2 => layout.notify = offset,
                _ => {}
            }
        }
        layout
    }
}

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// A descriptor table that is being filled.
struct Table<'a> {
    memory: &'a GuestMemory,
    at: u64,
    end: u64,
}

impl Table<'_> {
    /// Adds a chain; `start` is where descriptor 0 of the table is.
    fn write(&mut self, buffers: &[(u64, u32, bool)], start: u64) {
        for (n, (address, len, is_writable)) in buffers.iter().enumerate() {
            let write = if *is_writable { F_WRITE } else { 0 };
            let more = if n + 1 < buffers.len() { F_NEXT } else { 0 };
            let next = ((self.at - start) / 16 + 1) as u16;
            self.put(*address, *len, write | more, next);
        }
    }

    /// Adds a descriptor (2.7.5), if there is room.
    fn put(&mut self, address: u64, len: u32, flags: u16, next: u16) {
        if self.at < self.end {
            fill(self.memory, self.at, &address.to_le_bytes());
            fill(self.memory, self.at + 8, &len.to_le_bytes());
            fill(self.memory, self.at + 12, &flags.to_le_bytes());
            fill(self.memory, self.at + 14, &next.to_le_bytes());
            self.at += 16;
        }
    }
}

impl Request {
    /// Address, length and whether the device writes it, of each part; the header goes to `at`.
    fn buffers(&self, memory: &GuestMemory, at: u64) -> Vec<(u64, u32, bool)> {
        let mut buffers = Vec::new();
        if let Some((kind, sector)) = self.header {
            let sector = match sector {
                Sector::Low(sector) => sector.into(),
                Sector::Any(sector) => sector,
            };
            fill(memory, at, &u64::from(kind % 16).to_le_bytes());
            fill(memory, at + 8, &sector.to_le_bytes());
            buffers.push((at, 16, false));
        }
        let mut others = self.buffers.clone();
        others.sort_by_key(|buffer| buffer.is_writable);
        buffers.extend(others.iter().map(|b| (b.address.get(), b.len.get(), b.is_writable)));
        if !self.lacks_status {
            buffers.push((DATA, 1, true));
        }
        buffers
    }
}

impl Driver<'_> {
    /// Drives `device`, whose buffers are in `memory`.
    pub fn drive(&self, mut device: VirtioPci, memory: &GuestMemory) {
        let layout = Layout::of(&device);
        let device = &mut device;
        self.write_rings(memory);
        self.start(device, &layout);
        self.ring(device, &layout);
        self.wait(device, &layout, memory);
        for access in &self.accesses {
            access.perform(
                device,
                (BAR_SIZE, Bus::Memory),
                |device, offset, data| device.bar_read(0, offset, data),
                |device, offset, data| device.bar_write(0, offset, data),
            );
        }
        self.ring(device, &layout);
        // Whatever happened, a reset is possible and leaves a device that can be set up.
        device.bar_write(0, layout.common + 20, &[0]);
        assert_eq!(status(device, &layout), 0);
        self.start(device, &layout);
        device.reset();
    }

    fn size(&self) -> u16 {
        256 >> (self.size_shift % 9)
    }

    fn write_rings(&self, memory: &GuestMemory) {
        fill(memory, DATA, self.data);
        let mut table = Table { memory, at: DESCRIPTORS, end: AVAILABLE };
        let mut indirect = Table { memory, at: INDIRECT, end: HEADERS };
        let mut heads = 0u16;
        for (request, n) in self.requests.iter().zip(0..) {
            let head = ((table.at - DESCRIPTORS) / 16) as u16;
            let buffers = request.buffers(memory, HEADERS + 16 * n);
            if request.is_indirect {
                let start = indirect.at;
                indirect.write(&buffers, start);
                table.put(start, (indirect.at - start) as u32, F_INDIRECT, 0);
            } else {
                table.write(&buffers, DESCRIPTORS);
            }
            let slot = u64::from(heads % self.size());
            fill(memory, AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
            heads = heads.wrapping_add(1);
        }
        let index = heads.wrapping_add(self.index_error.unwrap_or(0));
        fill(memory, AVAILABLE, &[self.no_interrupt.into(), 0]);
        fill(memory, AVAILABLE + 2, &index.to_le_bytes());
        for (at, value) in &self.damage {
            fill(memory, DESCRIPTORS + u64::from(at % 0x5000), &value.to_le_bytes());
        }
    }

    /// 3.1.1, "Driver Requirements: Device Initialization".
    fn start(&self, device: &mut VirtioPci, layout: &Layout) {
        let features = self.features & offered(device, layout) | VERSION_1;
        let mut set = |register: u64, value: &[u8]| {
            device.bar_write(0, layout.common + register, value);
        };
        set(20, &[ACKNOWLEDGE_DRIVER]);
        for (word, value) in [features as u32, (features >> 32) as u32].into_iter().enumerate() {
            set(8, &(word as u32).to_le_bytes());
            set(12, &value.to_le_bytes());
        }
        set(20, &[ACKNOWLEDGE_DRIVER | FEATURES_OK]);
        set(22, &u16::from(self.queue % 4).to_le_bytes());
        set(24, &self.size().to_le_bytes());
        let usual = [DESCRIPTORS, AVAILABLE, USED];
        let rings = self.rings.map_or(usual, |rings| rings.map(Address::get));
        for (register, address) in [32, 40, 48].into_iter().zip(rings) {
            set(register, &address.to_le_bytes());
        }
        set(28, &1u16.to_le_bytes());
        set(20, &[ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK]);
        device.set_bus_master(true);
    }

    fn ring(&self, device: &mut VirtioPci, layout: &Layout) {
        let queue = u16::from(self.queue % 4);
        device.bar_write(0, layout.notify + 4 * u64::from(queue), &queue.to_le_bytes());
    }

    /// Waits until the queue is empty or the device is broken.
    fn wait(&self, device: &mut VirtioPci, layout: &Layout, memory: &GuestMemory) {
        let mut enabled = [0; 2];
        device.bar_read(0, layout.common + 28, &mut enabled);
        if enabled[0] == 0 || self.rings.is_some() {
            return;
        }
        let start = Instant::now();
        while status(device, layout) & DEVICE_NEEDS_RESET == 0 && start.elapsed() < PATIENCE {
            let used = memory.read_obj::<u16>(GuestAddress(USED + 2));
            let available = memory.read_obj::<u16>(GuestAddress(AVAILABLE + 2));
            if used.ok() == available.ok() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

fn offered(device: &mut VirtioPci, layout: &Layout) -> u64 {
    let mut word = |select: u32| {
        let mut word = [0; 4];
        device.bar_write(0, layout.common, &select.to_le_bytes());
        device.bar_read(0, layout.common + 4, &mut word);
        u64::from(u32::from_le_bytes(word))
    };
    word(0) | word(1) << 32
}

fn status(device: &mut VirtioPci, layout: &Layout) -> u8 {
    let mut status = [0];
    device.bar_read(0, layout.common + 20, &mut status);
    status[0]
}
