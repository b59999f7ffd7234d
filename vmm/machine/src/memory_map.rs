//! Where things are in the guest's physical address space.

use mem::RamRange;

/// The map of one machine, as data. Everything else asks it for addresses.
///
/// ```text
/// 0                    RAM (640 KiB), the last KiB of it the extended BIOS data area
/// 0xa_0000             VGA window: no RAM
/// 0xc_0000             RAM that belongs to the firmware: ACPI tables
/// 0x10_0000            RAM up to 3 GiB
/// 0xc000_0000          32-bit PCI memory window
/// 0xe000_0000          PCI Express configuration space (ECAM)
/// 0xfec0_0000          I/O APIC
/// 0xfee0_0000          local APICs, message-signalled interrupts
/// 0x1_0000_0000        RAM beyond 3 GiB
/// above all RAM        64-bit PCI memory window
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    ram: Vec<RamRange>,
    /// RAM in which the firmware keeps its tables; the guest sees it as reserved.
    pub firmware: AddressRange,
    /// The window for PCI memory BARs that must lie below 4 GiB.
    pub pci_mmio32: AddressRange,
    /// The window for 64-bit PCI memory BARs.
    pub pci_mmio64: AddressRange,
    /// PCI Express configuration space: 1 MiB, which is one bus.
    pub ecam: AddressRange,
    /// The I/O APIC's registers.
    pub ioapic: AddressRange,
    /// The local APIC's registers.
    pub local_apic: AddressRange,
}

/// A run of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl AddressRange {
    /// The first address after the range. Ranges of a [`MemoryMap`] never reach 2^64.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// The last address.
    pub fn last(&self) -> u64 {
        self.end() - 1
    }
}

/// An entry of the memory map as firmware reports it (ACPI 6.5, 15.2 "E820").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What may be done with it.
    pub kind: E820Kind,
}

/// Address range types (ACPI 6.5, table 15.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// RAM that the guest may use.
    Usable = 1,
    /// Not for general use.
    Reserved = 2,
}

/// The memory asked for has no place in the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryMapError {
    /// Less than the firmware area ends at.
    #[error("{0} bytes of memory are too few: give the guest at least 1 MiB, in whole pages")]
    TooSmall(u64),
    /// More than the guest's processor can address.
    #[error(
        "{mib} MiB of memory are too many for a processor with {phys_bits} physical address bits; \
         choose a smaller --memory"
    )]
    TooLarge {
        /// How much was asked for.
        mib: u64,
        /// What CPUID tells the guest about its physical address width.
        phys_bits: u8,
    },
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const VGA_WINDOW: u64 = 640 * KIB;
const FIRMWARE_RAM: u64 = 768 * KIB;
const FIRMWARE_TABLES: u64 = 896 * KIB;
const HIGH_MEMORY: u64 = MIB;
const LOW_RAM_LIMIT: u64 = 3 * GIB;
/// The extended BIOS data area, at the end of the first 640 KiB.
pub(crate) const EBDA: AddressRange = AddressRange { start: 639 * KIB, len: KIB };

impl MemoryMap {
    /// The map of a machine with `ram_bytes` of memory (whole pages) whose processors have
    /// `phys_bits` physical address bits.
    pub fn new(ram_bytes: u64, phys_bits: u8) -> Result<Self, MemoryMapError> {
        if ram_bytes < HIGH_MEMORY || !ram_bytes.is_multiple_of(4 * KIB) {
            return Err(MemoryMapError::TooSmall(ram_bytes));
        }
        let low_end = ram_bytes.min(LOW_RAM_LIMIT);
        let above_4g = ram_bytes - low_end;
        let mut ram = vec![
            RamRange { start: 0, len: VGA_WINDOW },
            RamRange { start: FIRMWARE_RAM, len: low_end - FIRMWARE_RAM },
        ];
        if above_4g > 0 {
            ram.push(RamRange { start: 4 * GIB, len: above_4g });
        }

        let too_large = MemoryMapError::TooLarge { mib: ram_bytes / MIB, phys_bits };
        let limit = 1u64 << phys_bits.clamp(32, 52);
        let window = (64 * GIB).min(limit / 4);
        let start = (4 * GIB)
            .checked_add(above_4g)
            .and_then(|end| end.checked_next_multiple_of(window))
            .ok_or(too_large)?;
        if start.checked_add(window).is_none_or(|end| end > limit) {
            return Err(too_large);
        }
        Ok(Self {
            ram,
            firmware: AddressRange { start: FIRMWARE_TABLES, len: HIGH_MEMORY - FIRMWARE_TABLES },
            pci_mmio32: AddressRange { start: 0xc000_0000, len: 512 * MIB },
            pci_mmio64: AddressRange { start, len: window },
            ecam: AddressRange { start: 0xe000_0000, len: MIB },
            ioapic: AddressRange { start: 0xfec0_0000, len: 4 * KIB },
            local_apic: AddressRange { start: 0xfee0_0000, len: MIB },
        })
    }

    /// Where the generation ID is, 16 bytes in a page that the guest sees as reserved.
    pub fn generation_id(&self) -> u64 {
        self.firmware.end() - 4 * KIB
    }

    /// All RAM, also what the firmware keeps: what `mem::allocate` wants.
    pub fn ram(&self) -> &[RamRange] {
        &self.ram
    }

    /// Where RAM below 4 GiB ends.
    pub fn low_ram_end(&self) -> u64 {
        self.ram.iter().map(|r| r.start + r.len).filter(|&end| end <= 4 * GIB).max().unwrap_or(0)
    }

    /// The hole between RAM below 4 GiB and 4 GiB, where caching is off: 3 GiB to 4 GiB.
    pub(crate) fn mmio_hole(&self) -> AddressRange {
        AddressRange { start: LOW_RAM_LIMIT, len: 4 * GIB - LOW_RAM_LIMIT }
    }

    /// What the guest is told of its memory, sorted by address.
    pub fn e820(&self) -> Vec<E820Entry> {
        let reserved =
            |r: AddressRange| E820Entry { start: r.start, len: r.len, kind: E820Kind::Reserved };
        let usable =
            |start, end: u64| E820Entry { start, len: end - start, kind: E820Kind::Usable };
        let mut map = vec![usable(0, EBDA.start), reserved(EBDA), reserved(self.firmware)];
        for range in &self.ram {
            let end = range.start + range.len;
            if end > HIGH_MEMORY {
                map.push(usable(range.start.max(HIGH_MEMORY), end));
            }
        }
        // Linux wants to see the configuration space reserved before it uses it (PCI Firmware
        // Specification 3.3, 4.1.2, leaves that to the DSDT, which reserves it as well).
        map.push(reserved(self.ecam));
        map.sort_by_key(|e| e.start);
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_gibibyte_stays_below_the_hole() {
        let map = MemoryMap::new(GIB, 46).unwrap();
        assert_eq!(map.low_ram_end(), GIB);
        assert_eq!(map.ram().len(), 2);
        let usable: Vec<_> =
            map.e820().into_iter().filter(|e| e.kind == E820Kind::Usable).collect();
        assert_eq!(usable.len(), 2);
        assert_eq!((usable[1].start, usable[1].len), (MIB, GIB - MIB));
    }

    #[test]
    fn eight_gibibytes_continue_above_4_gib() {
        let map = MemoryMap::new(8 * GIB, 40).unwrap();
        assert_eq!(map.ram()[2], RamRange { start: 4 * GIB, len: 5 * GIB });
        assert_eq!(map.pci_mmio64.start, 64 * GIB);
    }

    #[test]
    fn what_has_no_place_is_refused() {
        assert!(matches!(MemoryMap::new(0, 46), Err(MemoryMapError::TooSmall(0))));
        assert!(matches!(MemoryMap::new(MIB + 1, 46), Err(MemoryMapError::TooSmall(_))));
        assert!(matches!(MemoryMap::new(1 << 40, 40), Err(MemoryMapError::TooLarge { .. })));
        assert!(matches!(MemoryMap::new(!0xfff, 52), Err(MemoryMapError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn ranges_are_apart_and_within_reach(pages in 256u64..1 << 30, phys_bits in 36u8..53) {
            let Ok(map) = MemoryMap::new(pages * 4096, phys_bits) else { return Ok(()) };
            let total: u64 = map.ram().iter().map(|r| r.len).sum();
            prop_assert_eq!(total, pages * 4096 - (FIRMWARE_RAM - VGA_WINDOW));
            let mut all: Vec<_> = map.ram().iter().map(|r| (r.start, r.start + r.len)).collect();
            for r in [map.pci_mmio32, map.pci_mmio64, map.ecam, map.ioapic, map.local_apic] {
                all.push((r.start, r.end()));
            }
            all.sort_unstable();
            prop_assert!(all.windows(2).all(|w| w[0].1 <= w[1].0), "{:x?}", all);
            prop_assert!(all.last().unwrap().1 <= 1 << phys_bits);
            prop_assert!(map.e820().windows(2).all(|w| w[0].start + w[0].len <= w[1].start));
        }
    }
}
