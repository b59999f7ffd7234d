//! What a guest says of its memory (5.5.6.4).

use mem::GuestMemory;

use crate::chain::Chain;
use crate::queue::QueueError;

/// What a guest says of its memory, as far as it does. Amounts are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// All that it has. (Linux counts in what is in the balloon, if it may take that back.)
    pub total: Option<u64>,
    /// What is not in use at all.
    pub free: Option<u64>,
    /// What programs could have without swapping.
    pub available: Option<u64>,
    /// What holds the contents of files, and could be had.
    pub caches: Option<u64>,
    /// Read from swap space so far.
    pub swapped_in: Option<u64>,
    /// Written to swap space so far.
    pub swapped_out: Option<u64>,
    /// Page faults for which something had to be read.
    pub major_faults: Option<u64>,
    /// Other page faults.
    pub minor_faults: Option<u64>,
}

/// A tag of 16 bits and a value of 64, without padding.
const ENTRY: usize = 10;
/// Tags that a driver may send; more are not looked at.
const MAX_ENTRIES: usize = 64;

/// Reads the statistics in a buffer. Tags that are not known are skipped.
pub fn read(memory: &GuestMemory, chain: &Chain) -> Result<MemoryUse, QueueError> {
    let mut bytes = [0; ENTRY * MAX_ENTRIES];
    let len = chain.readable.len().min(bytes.len());
    let bytes = &mut bytes[..len];
    chain.readable.read(memory, 0, bytes)?;
    let mut it = MemoryUse::default();
    for entry in bytes.chunks_exact(ENTRY) {
        let [t0, t1, value @ ..] = entry else { continue };
        let value = value.first_chunk().copied().map(u64::from_le_bytes);
        match u16::from_le_bytes([*t0, *t1]) {
            0 => it.swapped_in = value,
            1 => it.swapped_out = value,
            2 => it.major_faults = value,
            3 => it.minor_faults = value,
            4 => it.free = value,
            5 => it.total = value,
            6 => it.available = value,
            7 => it.caches = value,
            _ => {}
        }
    }
    Ok(it)
}
