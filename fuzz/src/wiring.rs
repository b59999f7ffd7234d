//! What devices are wired to.

use std::sync::{Arc, LazyLock};

use irqchip::{IrqLine, IrqSink, Msi, MsiTarget};
use mem::vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};
use mem::{GuestAddress, GuestMemory, RamRange};
use runtime::{Clock, Timers};

struct Nobody;

impl IrqSink for Nobody {
    fn set_gsi(&self, _: u32, _: bool) {}
    fn send_msi(&self, _: Msi) {}
}

/// An interrupt line that leads nowhere.
pub fn line() -> IrqLine {
    IrqLine::new(Arc::new(Nobody), 5)
}

/// A receiver of messages that drops them.
pub fn msi() -> MsiTarget {
    MsiTarget::new(Arc::new(Nobody))
}

/// Timers over a clock that stands still at `start`, so that runs can be repeated. A guest's clock
/// comes nowhere near the end of its range: the time is cut to 18 years.
pub fn timers(start: u64) -> Timers {
    Timers::new(Arc::new(Clock::stopped_at(start & ((1 << 59) - 1)))).unwrap()
}

/// How much of [`ram`] is below 4 GiB.
pub const RAM: u64 = 0x1_0000;
/// The other part of [`ram`].
pub const HIGH_RAM: RamRange = RamRange { start: 1 << 32, len: 0x1000 };

/// RAM, all zero: the same for each input, wiped.
pub fn ram() -> GuestMemory {
    static MEMORY: LazyLock<GuestMemory> =
        LazyLock::new(|| mem::allocate(&[RamRange { start: 0, len: RAM }, HIGH_RAM]).unwrap());
    for region in MEMORY.iter() {
        let zeroes = vec![0; region.len() as usize];
        MEMORY.write_slice(&zeroes, region.start_addr()).unwrap();
    }
    MEMORY.clone()
}

/// Writes what fits of `data` to `at`.
pub fn fill(memory: &GuestMemory, at: u64, data: &[u8]) {
    let _ = memory.write(data, GuestAddress(at));
}
