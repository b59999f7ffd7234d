//! What a function tells the bus about itself.

use std::sync::Arc;

use runtime::Event;

use crate::Interrupts;
use crate::spec::{BARS, msix};

/// Everything that the bus needs to know about a function.
#[derive(Debug)]
pub struct Description {
    /// Who made it and what it is.
    pub identity: Identity,
    /// Its base address registers. A 64-bit one takes its index and the next.
    pub bars: Vec<Bar>,
    /// Registers in memory BARs to which every store, of whatever value, raises an event and does
    /// nothing else. Who can rings them in the device's place.
    pub doorbells: Vec<Doorbell>,
    /// Capabilities besides PCI Express and MSI-X, in the order in which the guest finds them.
    pub capabilities: Vec<Capability>,
    /// Its interrupts; `None` for a function that raises none.
    pub interrupts: Option<Interrupts>,
    /// Where the MSI-X table lies; `None` if it has only INTx, or nothing.
    pub msix: Option<MsixLayout>,
}

/// The identifying registers of a header (PCI Local Bus 3.0, 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who made the function.
    pub vendor_id: u16,
    /// Which one it is, numbered by the vendor.
    pub device_id: u16,
    /// Revision, numbered by the vendor.
    pub revision: u8,
    /// What it does.
    pub class: Class,
    /// Who made the card.
    pub subsystem_vendor_id: u16,
    /// Which card, numbered by its vendor.
    pub subsystem_id: u16,
}

/// A class code (PCI Local Bus 3.0, appendix D).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// Base class: 0x01 is mass storage, 0x02 network, 0x06 bridge.
    pub base: u8,
    /// Subclass.
    pub sub: u8,
    /// Programming interface.
    pub interface: u8,
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which register, 0 to 5.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Size of the window in bytes: a power of two, at least 16 (memory) or 4 (I/O).
    pub size: u64,
}

/// A register that only wakes somebody.
#[derive(Clone, Debug)]
pub struct Doorbell {
    /// The memory BAR that it is in.
    pub bar: u8,
    /// Where in the BAR.
    pub offset: u64,
    /// What a store raises.
    pub event: Arc<Event>,
}

/// What a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere.
    Memory64 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
}

/// A capability of the first 256 bytes, without its ID and next pointer.
#[derive(Clone, Debug)]
pub struct Capability {
    /// Its ID: 0x09 is vendor-specific.
    pub id: u8,
    /// What follows ID and next pointer.
    pub body: Vec<u8>,
    /// Which bits of the body the guest may write; as long as `body` or shorter.
    pub writable: Vec<u8>,
}

/// Where the MSI-X structures of a function lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// The memory BAR that holds both.
    pub bar: u8,
    /// Offset of the table, which has 16 bytes for each vector; a multiple of 8.
    pub table_offset: u32,
    /// Offset of the pending bits, 8 bytes for each 64 vectors; a multiple of 8.
    pub pba_offset: u32,
}

/// A description that no PCI function could have: a fault in a device model.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// Wrong index, size, or overlap of registers.
    #[error("BAR {0} has a bad index, a size that is no power of two, or overlaps another")]
    Bar(u8),
    /// The capabilities need more than the 192 bytes there are.
    #[error("the capabilities do not fit into 256 bytes of configuration space")]
    CapabilitySpace,
    /// The table does not fit.
    #[error("the MSI-X table or pending bits do not fit into BAR {0}")]
    Msix(u8),
}

impl BarKind {
    /// How many registers it takes.
    pub(crate) fn registers(self) -> u8 {
        if matches!(self, Self::Memory64 { .. }) { 2 } else { 1 }
    }
}

impl Description {
    /// Checks what the types cannot: that registers, sizes and offsets fit together.
    pub(crate) fn check(&self) -> Result<(), DescriptionError> {
        let mut taken = [false; BARS];
        for bar in &self.bars {
            let error = DescriptionError::Bar(bar.index);
            let (smallest, largest) = match bar.kind {
                BarKind::Io => (4, 256),
                BarKind::Memory32 => (16, 1 << 31),
                BarKind::Memory64 { .. } => (16, 1 << 62),
            };
            if !bar.size.is_power_of_two() || bar.size < smallest || bar.size > largest {
                return Err(error);
            }
            let first = usize::from(bar.index);
            let Some(slots) = taken.get_mut(first..first + usize::from(bar.kind.registers()))
            else {
                return Err(error);
            };
            if slots.contains(&true) {
                return Err(error);
            }
            slots.fill(true);
        }
        let Some(layout) = self.msix else { return Ok(()) };
        let error = DescriptionError::Msix(layout.bar);
        let vectors = self.interrupts.as_ref().map_or(0, Interrupts::vectors);
        let Some(bar) = self.bars.iter().find(|b| b.index == layout.bar && b.kind != BarKind::Io)
        else {
            return Err(error);
        };
        let table = layout.table_range(vectors);
        let pba = layout.pba_range(vectors);
        let apart = table.end <= pba.start || pba.end <= table.start;
        if vectors == 0
            || vectors > msix::MAX_VECTORS
            || !(table.start | pba.start).is_multiple_of(8)
            || table.end.max(pba.end) > bar.size
            || !apart
        {
            return Err(error);
        }
        Ok(())
    }
}

impl MsixLayout {
    /// The bytes of the BAR that the table takes.
    pub(crate) fn table_range(&self, vectors: u16) -> std::ops::Range<u64> {
        let start = u64::from(self.table_offset);
        start..start + u64::from(vectors) * msix::ENTRY as u64
    }

    /// The bytes of the BAR that the pending bits take.
    pub(crate) fn pba_range(&self, vectors: u16) -> std::ops::Range<u64> {
        let start = u64::from(self.pba_offset);
        start..start + u64::from(vectors).div_ceil(64) * 8
    }
}
