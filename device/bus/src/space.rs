//! The routing table of one address space.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::BusDevice;

/// A device could not be attached because the range is taken, empty, or already there.
#[derive(Debug, thiserror::Error)]
#[error("{name}: addresses {start:#x}..={end:#x} are empty or overlap those of {other}")]
pub struct Conflict {
    name: String,
    start: u64,
    end: u64,
    other: String,
}

struct Window {
    range: RangeInclusive<u64>,
    name: String,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// One address space: a set of disjoint windows, each with a device behind it.
#[derive(Default)]
pub struct AddressSpace {
    /// Sorted by start.
    windows: RwLock<Vec<Window>>,
}

impl AddressSpace {
    /// An empty space, where every read returns all ones.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `range`. `name` serves messages only.
    pub fn attach(
        &self,
        name: &str,
        range: RangeInclusive<u64>,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), Conflict> {
        let mut windows = self.windows.write().unwrap_or_else(PoisonError::into_inner);
        let at = windows.partition_point(|w| w.range.start() < range.start());
        let clash = windows[..at]
            .last()
            .filter(|w| w.range.end() >= range.start())
            .or_else(|| windows.get(at).filter(|w| w.range.start() <= range.end()));
        if clash.is_some() || range.is_empty() {
            return Err(Conflict {
                name: name.to_owned(),
                start: *range.start(),
                end: *range.end(),
                other: clash.map_or_else(|| "nobody".to_owned(), |w| w.name.clone()),
            });
        }
        windows.insert(at, Window { range, name: name.to_owned(), device });
        Ok(())
    }

    /// Takes away the window that starts at `start`, if there is one.
    pub fn detach(&self, start: u64) {
        let mut windows = self.windows.write().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|w| *w.range.start() != start);
    }

    /// Reads `data.len()` bytes at `addr`. What no device claims reads as all ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((device, offset)) => {
                device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Writes `data` at `addr`. What no device claims is dropped.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(addr, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }

    /// The device behind `addr`, and how far into its window `addr` lies. The table's lock is
    /// released before the device is called, so a device may attach and detach windows.
    fn find(&self, addr: u64, len: usize) -> Option<(Arc<Mutex<dyn BusDevice>>, u64)> {
        let last = addr.checked_add(len.checked_sub(1)? as u64)?;
        let windows = self.windows.read().unwrap_or_else(PoisonError::into_inner);
        let at = windows.partition_point(|w| *w.range.start() <= addr).checked_sub(1)?;
        let window = &windows[at];
        (last <= *window.range.end()).then(|| (window.device.clone(), addr - window.range.start()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn echo() -> Arc<Mutex<Echo>> {
        Arc::new(Mutex::new(Echo(Vec::new())))
    }

    #[test]
    fn routes_by_address_and_floats_elsewhere() {
        let space = AddressSpace::new();
        let device = echo();
        space.attach("a", 0x10..=0x1f, device.clone()).unwrap();
        let mut data = [0; 2];
        space.read(0x13, &mut data);
        assert_eq!(data, [3, 3]);
        space.read(0x20, &mut data);
        assert_eq!(data, [0xff, 0xff]);
        space.read(0x1f, &mut data); // straddles the end
        assert_eq!(data, [0xff, 0xff]);
        space.write(0x12, &[7]);
        space.write(0xf, &[8]);
        assert_eq!(device.lock().unwrap().0, [(2, vec![7])]);
    }

    #[test]
    fn refuses_overlaps_until_detached() {
        let space = AddressSpace::new();
        space.attach("a", 0x10..=0x1f, echo()).unwrap();
        assert!(space.attach("b", 0x1f..=0x2f, echo()).is_err());
        assert!(space.attach("b", 0x0..=0x10, echo()).is_err());
        space.attach("b", 0x20..=0x2f, echo()).unwrap();
        space.detach(0x10);
        space.attach("c", 0x0..=0x1f, echo()).unwrap();
    }

    #[test]
    fn the_end_of_the_space_does_not_wrap() {
        let space = AddressSpace::new();
        space.attach("top", u64::MAX - 7..=u64::MAX, echo()).unwrap();
        let mut data = [0; 8];
        space.read(u64::MAX - 7, &mut data);
        assert_eq!(data, [0; 8]);
        space.read(u64::MAX - 3, &mut data);
        assert_eq!(data, [0xff; 8]);
    }
}
