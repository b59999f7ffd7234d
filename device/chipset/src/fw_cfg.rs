//! QEMU's firmware configuration device (QEMU, docs/specs/fw_cfg.rst).
//!
//! The machine adds items; the guest reads them, byte by byte or by DMA. All are read-only.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bus::{BadState, BusDevice, Snapshot};
use mem::GuestMemory;
use mem::vm_memory::{Bytes, GuestAddress};
use serde::{Deserialize, Serialize};

/// First port of the device on a PC.
pub const PORT: u16 = 0x510;
/// How many ports the device takes.
pub const LEN: u64 = 12;

/// Keys of items that are not files (QEMU, include/standard-headers/linux/qemu_fw_cfg.h).
pub mod key {
    /// Size of RAM in bytes, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// Number of processors at the start, 16 bits.
    pub const NB_CPUS: u16 = 0x05;
    /// Largest number of processors, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// The whole E820 table is in the file `etc/e820`; this key is architecture-specific.
    pub const E820_TABLE: u16 = 0x8003;
}

mod spec {
    use bitflags::bitflags;

    pub const SELECTOR: u64 = 0;
    pub const DATA: u64 = 1;
    pub const DMA_HIGH: u64 = 4;
    pub const DMA_LOW: u64 = 8;
    /// What the DMA address register reads as.
    pub const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";

    pub const KEY_SIGNATURE: u16 = 0x00;
    pub const KEY_ID: u16 = 0x01;
    pub const KEY_FILE_DIR: u16 = 0x19;
    pub const KEY_FILE_FIRST: u16 = 0x20;
    pub const KEY_FILE_LAST: u16 = 0x3fff;
    /// Selector bit 14, "writing", has no meaning any more.
    pub const WRITE_CHANNEL: u16 = 1 << 14;

    pub const SIGNATURE: &[u8; 4] = b"QEMU";
    /// The traditional interface (bit 0) and DMA (bit 1).
    pub const FEATURES: u32 = 0b11;
    /// The length of a name in the directory, its final NUL included.
    pub const NAME_LEN: usize = 56;

    bitflags! {
        /// The control field of FWCfgDmaAccess.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct DmaControl: u32 {
            const ERROR = 1 << 0;
            const READ = 1 << 1;
            const SKIP = 1 << 2;
            const SELECT = 1 << 3;
            const WRITE = 1 << 4;
        }
    }
}

use spec::DmaControl;

/// A file could not be added.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory has no room for the name.
    #[error("the fw_cfg name {0:?} is not 1 to 55 bytes of ASCII; choose another")]
    Name(String),
    /// There is one of this name.
    #[error("there is a fw_cfg file {0:?} already; choose another name")]
    Duplicate(String),
    /// The directory counts in 32 bits.
    #[error("the fw_cfg file {0:?} is 4 GiB or more; give it in parts")]
    TooLarge(String),
    /// All keys are taken.
    #[error("there are too many fw_cfg files to add {0:?}; give fewer")]
    TooMany(String),
}

/// The device: [`LEN`] ports.
pub struct FwCfg {
    // Configuration.
    items: BTreeMap<u16, Arc<[u8]>>,
    files: Vec<String>,

    // Wiring.
    memory: GuestMemory,

    // Volatile state.
    selected: u16,
    offset: usize,
    dma_address_high: u32,
}

impl FwCfg {
    /// A device without files that reads and writes `memory` in its DMA.
    pub fn new(memory: GuestMemory) -> Self {
        let items = BTreeMap::from([
            (spec::KEY_SIGNATURE, Arc::from(spec::SIGNATURE.as_slice())),
            (spec::KEY_ID, Arc::from(spec::FEATURES.to_le_bytes().as_slice())),
            (spec::KEY_FILE_DIR, Arc::from(0u32.to_be_bytes().as_slice())),
        ]);
        Self { items, files: Vec::new(), memory, selected: 0, offset: 0, dma_address_high: 0 }
    }

    /// Adds or replaces the item of a key below the files' (see [`key`]) or an
    /// architecture-specific one. Numbers in items are little-endian.
    pub fn add(&mut self, key: u16, data: impl Into<Arc<[u8]>>) {
        self.items.insert(key & !spec::WRITE_CHANNEL, data.into());
    }

    /// Adds a file, which the guest finds by `name` in the directory.
    pub fn add_file(&mut self, name: &str, data: impl Into<Arc<[u8]>>) -> Result<(), Error> {
        let data = data.into();
        if name.is_empty() || name.len() >= spec::NAME_LEN || !name.is_ascii() {
            return Err(Error::Name(name.to_owned()));
        }
        if self.files.iter().any(|file| file == name) {
            return Err(Error::Duplicate(name.to_owned()));
        }
        if u32::try_from(data.len()).is_err() {
            return Err(Error::TooLarge(name.to_owned()));
        }
        let key = u16::try_from(self.files.len())
            .ok()
            .and_then(|n| spec::KEY_FILE_FIRST.checked_add(n))
            .filter(|&key| key <= spec::KEY_FILE_LAST)
            .ok_or_else(|| Error::TooMany(name.to_owned()))?;
        self.items.insert(key, data);
        self.files.push(name.to_owned());
        self.items.insert(spec::KEY_FILE_DIR, self.directory().into());
        Ok(())
    }

    /// struct FWCfgFiles: a count, then size, key and name of each file; all big-endian.
    fn directory(&self) -> Vec<u8> {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (key, name) in (spec::KEY_FILE_FIRST..).zip(&self.files) {
            let size = self.items.get(&key).map_or(0, |data| data.len()) as u32;
            directory.extend(size.to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(name.bytes().chain(std::iter::repeat(0)).take(spec::NAME_LEN));
        }
        directory
    }

    /// Back to the state after power-on. Items stay.
    pub fn reset(&mut self) {
        self.select(0);
        self.dma_address_high = 0;
    }

    fn select(&mut self, key: u16) {
        self.selected = key & !spec::WRITE_CHANNEL;
        self.offset = 0;
    }

    /// What is left of the selected item from the offset on. Nothing, if there is none.
    fn rest(&self) -> &[u8] {
        self.items.get(&self.selected).and_then(|item| item.get(self.offset..)).unwrap_or(&[])
    }

    fn advance(&mut self, by: usize) {
        self.offset = self.offset.saturating_add(by);
    }

    /// Carries out the DMA operation that the structure at `address` describes, and reports there.
    fn dma(&mut self, address: u64) {
        let address = GuestAddress(address);
        let mut access = [0; 16];
        if self.memory.read_slice(&mut access, address).is_err() {
            tracing::debug!("fw_cfg DMA structure outside of RAM");
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, target @ ..] = access;
        let control_bits = u32::from_be_bytes([c0, c1, c2, c3]);
        let control = DmaControl::from_bits_truncate(control_bits);
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;

        if control.contains(DmaControl::SELECT) {
            self.select((control_bits >> 16) as u16);
        }
        let done = if control.contains(DmaControl::READ) {
            self.dma_read(u64::from_be_bytes(target), length)
        } else if control.contains(DmaControl::WRITE) {
            ControlFlow::Break(()) // no item is writable
        } else if control.contains(DmaControl::SKIP) {
            self.advance(length);
            ControlFlow::Continue(())
        } else {
            ControlFlow::Continue(())
        };
        let result = if done.is_break() { DmaControl::ERROR } else { DmaControl::empty() };
        // The structure was readable; if it is not writable there is nobody to tell.
        let _ = self.memory.write_slice(&result.bits().to_be_bytes(), address);
    }

    /// Copies `length` bytes of the item to `target`; beyond its end there are zeroes.
    fn dma_read(&mut self, target: u64, length: usize) -> ControlFlow<()> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let rest = self.rest();
        let present = &rest[..rest.len().min(length)];
        let mut to = target;
        let mut put = |bytes: &[u8]| match self.memory.write_slice(bytes, GuestAddress(to)) {
            Ok(()) => {
                to = to.wrapping_add(bytes.len() as u64);
                ControlFlow::Continue(())
            }
            Err(_) => ControlFlow::Break(()),
        };
        put(present)?;
        let mut missing = length - present.len();
        while missing > 0 {
            let n = missing.min(ZEROES.len());
            put(&ZEROES[..n])?;
            missing -= n;
        }
        self.advance(length);
        ControlFlow::Continue(())
    }
}

impl BusDevice for FwCfg {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match offset {
            spec::DATA => {
                // The port is 8 bits wide; wider reads see the next bytes as a string.
                let rest = self.rest();
                let n = rest.len().min(data.len());
                data[..n].copy_from_slice(&rest[..n]);
                data[n..].fill(0);
                self.advance(data.len());
            }
            spec::DMA_HIGH.. => {
                for (n, byte) in (offset - spec::DMA_HIGH..).zip(data) {
                    let n = usize::try_from(n).unwrap_or(usize::MAX);
                    *byte = spec::DMA_SIGNATURE.get(n).copied().unwrap_or(0xff);
                }
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (spec::SELECTOR, &[low, high]) => self.select(u16::from_le_bytes([low, high])),
            (spec::DMA_HIGH, &[a, b, c, d]) => {
                self.dma_address_high = u32::from_be_bytes([a, b, c, d]);
            }
            (spec::DMA_LOW, &[a, b, c, d]) => {
                let high = std::mem::take(&mut self.dma_address_high);
                let low = u32::from_be_bytes([a, b, c, d]);
                self.dma(u64::from(high) << 32 | u64::from(low));
            }
            _ => {}
        }
    }
}

/// How far the guest is with reading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FwCfgState {
    selected: u16,
    offset: u64,
    dma_address_high: u32,
}

impl Snapshot for FwCfg {
    type State = FwCfgState;

    fn save(&self) -> FwCfgState {
        FwCfgState {
            selected: self.selected,
            offset: self.offset as u64,
            dma_address_high: self.dma_address_high,
        }
    }

    fn restore(&mut self, state: FwCfgState) -> Result<(), BadState> {
        self.select(state.selected);
        self.offset = usize::try_from(state.offset).map_err(BadState::new)?;
        self.dma_address_high = state.dma_address_high;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mem::RamRange;
    use proptest::prelude::*;

    fn memory() -> GuestMemory {
        mem::allocate(&[RamRange { start: 0, len: 0x4000 }]).unwrap()
    }

    fn read(device: &mut FwCfg, key: u16, n: usize) -> Vec<u8> {
        device.write(0, &key.to_le_bytes());
        let mut data = vec![0xaa; n];
        data.iter_mut().for_each(|b| device.read(1, std::slice::from_mut(b)));
        data
    }

    fn dma(device: &mut FwCfg, memory: &GuestMemory, control: u32, len: u32, to: u64) -> u32 {
        let mut access = control.to_be_bytes().to_vec();
        access.extend(len.to_be_bytes());
        access.extend(to.to_be_bytes());
        memory.write_slice(&access, GuestAddress(0x100)).unwrap();
        device.write(4, &0u32.to_be_bytes());
        device.write(8, &0x100u32.to_be_bytes());
        let mut result = [0; 4];
        memory.read_slice(&mut result, GuestAddress(0x100)).unwrap();
        u32::from_be_bytes(result)
    }

    #[test]
    fn a_guest_finds_the_device_and_its_files() {
        let mut device = FwCfg::new(memory());
        device.add(key::NB_CPUS, 2u16.to_le_bytes().as_slice());
        device.add_file("etc/one", b"first".as_slice()).unwrap();
        device.add_file("opt/two", b"second file".as_slice()).unwrap();
        assert_eq!(read(&mut device, 0, 6), b"QEMU\0\0");
        assert_eq!(read(&mut device, 1, 4), [3, 0, 0, 0]);
        assert_eq!(read(&mut device, key::NB_CPUS, 2), [2, 0]);
        let directory = read(&mut device, 0x19, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        let second = &directory[4 + 64..];
        assert_eq!(second[..8], [0, 0, 0, 11, 0, 0x21, 0, 0]);
        assert_eq!(&second[8..16], b"opt/two\0");
        assert_eq!(read(&mut device, 0x21, 11), b"second file");
        let mut signature = [0; 4];
        device.read(4, &mut signature);
        assert_eq!(&signature, b"QEMU");
        device.read(8, &mut signature);
        assert_eq!(&signature, b" CFG");
    }

    #[test]
    fn reading_goes_on_in_another_one() {
        let device = || {
            let mut device = FwCfg::new(memory());
            device.add_file("f", b"0123456789".as_slice()).unwrap();
            device
        };
        let mut a = device();
        assert_eq!(read(&mut a, 0x20, 4), b"0123");
        let mut b = device();
        b.restore(a.save()).unwrap();
        let mut data = [0; 3];
        b.read(1, &mut data);
        assert_eq!(&data, b"456");
    }

    #[test]
    fn names_are_checked() {
        let mut device = FwCfg::new(memory());
        let long = "x".repeat(56);
        for bad in ["", "é", &long] {
            assert!(matches!(device.add_file(bad, [].as_slice()), Err(Error::Name(_))));
        }
        device.add_file(&long[..55], [].as_slice()).unwrap();
        assert!(matches!(device.add_file(&long[..55], [].as_slice()), Err(Error::Duplicate(_))));
    }

    #[test]
    fn dma_reads_skips_and_refuses() {
        let memory = memory();
        let mut device = FwCfg::new(memory.clone());
        device.add_file("f", b"0123456789".as_slice()).unwrap();
        memory.write_slice(&[0xee; 32], GuestAddress(0x1000)).unwrap();
        let select_read = 0x20 << 16 | (DmaControl::SELECT | DmaControl::READ).bits();
        assert_eq!(dma(&mut device, &memory, select_read, 4, 0x1000), 0);
        assert_eq!(dma(&mut device, &memory, DmaControl::SKIP.bits(), 2, 0), 0);
        assert_eq!(dma(&mut device, &memory, DmaControl::READ.bits(), 8, 0x1004), 0);
        let mut got = [0; 13];
        memory.read_slice(&mut got, GuestAddress(0x1000)).unwrap();
        assert_eq!(&got, b"01236789\0\0\0\0\xee");
        assert_eq!(dma(&mut device, &memory, DmaControl::WRITE.bits(), 1, 0x1000), 1);
        assert_eq!(dma(&mut device, &memory, select_read, 8, 0x3ffc), 1);
        assert_eq!(dma(&mut device, &memory, select_read, u32::MAX, 0x1000), 1);
        assert_eq!(dma(&mut device, &memory, select_read, 1, u64::MAX), 1);
    }

    proptest! {
        #[test]
        fn any_access_is_harmless(accesses in prop::collection::vec(
            (any::<bool>(), 0u64..12, 1usize..=4, any::<u32>()), 1..100),
            access in prop::array::uniform16(any::<u8>()),
        ) {
            let memory = memory();
            let mut device = FwCfg::new(memory.clone());
            device.add_file("f", b"0123456789".as_slice()).unwrap();
            for (write, offset, len, value) in accesses {
                memory.write_slice(&access, GuestAddress(u64::from(value) & 0xff0)).unwrap();
                let mut data = (value & 0xfff).to_be_bytes();
                if write {
                    device.write(offset, &data[..len]);
                    device.write(8, &data);
                } else {
                    device.read(offset, &mut data[..len]);
                }
            }
        }
    }
}
