//! Address spaces that route guest accesses to devices.
//!
//! A machine has two: memory-mapped registers and ports. An access goes to one device, under
//! that device's own lock; what nobody claims reads as all ones and swallows writes, as on a PC.

#![forbid(unsafe_code)]

mod snapshot;
mod space;

pub use snapshot::{BadState, Hex, Saved, Snapshot};
pub use space::{AddressSpace, Conflict};

/// A device as seen from an address space: a window of registers.
///
/// `offset` counts from the start of the window that the access hit; `data` is 1, 2, 4 or 8
/// bytes long (ports: 1, 2 or 4) and lies inside the window. Values are little-endian. Called on
/// a vCPU thread, so it must not wait for I/O.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes what the guest wrote.
    fn write(&mut self, offset: u64, data: &[u8]);
}
