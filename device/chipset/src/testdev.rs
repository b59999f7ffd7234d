//! QEMU's pc-testdev, for kvm-unit-tests and other test kernels.
//!
//! | where | what | device |
//! |---|---|---|
//! | ports E0h-E3h | a 32-bit value, written and read in any part | [`TestPorts`] |
//! | ports E4h-E7h | page flush: no effect | [`TestPorts`] |
//! | ports E8h-EBh | the same value, where no debug console is | [`TestPorts`] |
//! | ports 2000h-2017h | levels of GSIs 0 to 23 | [`TestIrqs`] |
//! | memory FF00_0000h | 64 KiB that read as written | [`TestMemory`] |

use bus::{BadState, BusDevice, Hex, Snapshot};
use irqchip::IrqLine;

/// Ports E0h to EBh. Attach 8 or 12 ports.
#[derive(Default)]
pub struct TestPorts {
    value: [u8; 4],
}

impl TestPorts {
    /// The ports, with value zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// The byte of the value that port E0h + `offset` shows.
    fn byte(offset: u64) -> Option<usize> {
        matches!(offset, 0..4 | 8..12).then_some((offset & 3) as usize)
    }
}

impl BusDevice for TestPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, to) in (offset..).zip(data) {
            *to = Self::byte(offset).map_or(0xff, |n| self.value[n]);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, from) in (offset..).zip(data) {
            // The flush port made KVM drop a page from its shadow page tables; nothing that a
            // guest can see depends on it.
            if let Some(n) = Self::byte(offset) {
                self.value[n] = *from;
            }
        }
    }
}

/// Ports 2000h and up: a byte written to port 2000h + n sets line n high (not zero) or low.
pub struct TestIrqs {
    lines: Vec<IrqLine>,
}

impl TestIrqs {
    /// The ports, one for each of `lines` (QEMU: 24).
    pub fn new(lines: Vec<IrqLine>) -> Self {
        Self { lines }
    }
}

impl BusDevice for TestIrqs {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let line = usize::try_from(offset).ok().and_then(|n| self.lines.get(n));
        if let (Some(line), &[value]) = (line, data) {
            line.set_level(value != 0);
        }
    }
}

/// Memory that is reached as a device is: for tests of MMIO accesses of each width.
pub struct TestMemory {
    bytes: Vec<u8>,
}

impl TestMemory {
    /// The length of the window in bytes.
    pub const LEN: u64 = 0x1_0000;

    /// The memory, all zero.
    pub fn new() -> Self {
        Self { bytes: vec![0; Self::LEN as usize] }
    }

    fn range(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(offset).ok()?;
        Some(start..start.checked_add(len)?)
    }
}

impl Default for TestMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for TestMemory {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match Self::range(offset, data.len()).and_then(|r| self.bytes.get(r)) {
            Some(bytes) => data.copy_from_slice(bytes),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(bytes) = Self::range(offset, data.len()).and_then(|r| self.bytes.get_mut(r)) {
            bytes.copy_from_slice(data);
        }
    }
}

impl Snapshot for TestPorts {
    /// The value.
    type State = [u8; 4];

    fn save(&self) -> [u8; 4] {
        self.value
    }

    fn restore(&mut self, value: [u8; 4]) -> Result<(), BadState> {
        self.value = value;
        Ok(())
    }
}

/// The levels are the interrupt controllers'.
impl Snapshot for TestIrqs {
    type State = ();

    fn save(&self) {}

    fn restore(&mut self, (): ()) -> Result<(), BadState> {
        Ok(())
    }
}

impl Snapshot for TestMemory {
    /// All of it.
    type State = Hex;

    fn save(&self) -> Hex {
        Hex(self.bytes.clone())
    }

    fn restore(&mut self, Hex(bytes): Hex) -> Result<(), BadState> {
        if bytes.len() as u64 != Self::LEN {
            return Err(BadState::new("the test memory has another length"));
        }
        self.bytes = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_wiring::Pins;
    use proptest::prelude::*;

    #[test]
    fn the_value_is_written_and_read_in_parts() {
        let mut ports = TestPorts::new();
        ports.write(0, &[1, 2, 3, 4]);
        ports.write(1, &[9]);
        ports.write(4, &[7, 7, 7, 7]);
        let mut data = [0; 2];
        ports.read(1, &mut data);
        assert_eq!(data, [9, 3]);
        ports.read(10, &mut data);
        assert_eq!(data, [3, 4]);
    }

    #[test]
    fn lines_follow() {
        let pins = Pins::new();
        let mut irqs = TestIrqs::new((0..24).map(|gsi| pins.line(gsi)).collect());
        irqs.write(23, &[1]);
        assert!(pins.level(23));
        irqs.write(23, &[0]);
        irqs.write(24, &[1]);
        irqs.write(3, &[1, 0]);
        assert!(!pins.level(23) && !pins.level(24) && !pins.level(3));
    }

    proptest! {
        #[test]
        fn memory_reads_as_written_and_nothing_panics(
            accesses in prop::collection::vec((any::<bool>(), 0u64..0x1_0010, 1usize..9, any::<u64>()), 1..100)
        ) {
            let mut memory = TestMemory::new();
            let mut ports = TestPorts::new();
            for (write, offset, len, value) in accesses {
                let mut data = value.to_le_bytes();
                if write {
                    ports.write(offset & 15, &data[..len.min(4)]);
                    memory.write(offset, &data[..len]);
                    let mut back = [0; 8];
                    memory.read(offset, &mut back[..len]);
                    if offset + len as u64 <= TestMemory::LEN {
                        prop_assert_eq!(&back[..len], &data[..len]);
                    } else {
                        prop_assert_eq!(&back[..len], &[0xff; 8][..len]);
                    }
                } else {
                    ports.read(offset & 15, &mut data[..len.min(4)]);
                    memory.read(offset, &mut data[..len]);
                }
            }
        }
    }
}
