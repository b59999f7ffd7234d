//! What cards, disks and shared folders count, for others to look at while they work.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

/// Frames in one direction.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Those that got through. One that the guest or the host leaves to be cut up counts as one.
    pub packets: Counter,
    /// Their bytes, without what virtio adds.
    pub bytes: Counter,
    /// Those that were lost here: there was no room for them, or no network could carry them.
    pub dropped: Counter,
}

impl Traffic {
    pub(crate) fn count(&self, taken: bool, len: usize) {
        if taken {
            self.packets.add(1);
            self.bytes.add(len as u64);
        } else {
            self.dropped.add(1);
        }
    }
}

/// What a network card counts.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// To the guest.
    pub received: Traffic,
    /// From the guest.
    pub sent: Traffic,
}

/// Requests of one kind.
#[derive(Debug, Default)]
pub struct Transfers {
    /// Those that were carried out.
    pub requests: Counter,
    /// The bytes of their data.
    pub bytes: Counter,
}

impl Transfers {
    pub(crate) fn count(&self, bytes: u64) {
        self.requests.add(1);
        self.bytes.add(bytes);
    }
}

/// What a disk counts.
#[derive(Debug, Default)]
pub struct BlockCounters {
    /// Reads.
    pub reads: Transfers,
    /// Writes.
    pub writes: Transfers,
    /// Zeroes that were written and blocks that were given back, without data of their own.
    pub discards: Transfers,
    /// Flushes.
    pub flushes: Counter,
    /// Requests that were refused: wrong ones, and those that the host could not carry out.
    pub failed: Counter,
}

/// What a shared folder counts.
#[derive(Debug, Default)]
pub struct FolderCounters {
    /// All requests but those by which the driver forgets.
    pub requests: Counter,
    /// Reads of files.
    pub reads: Transfers,
    /// Writes to files.
    pub writes: Transfers,
    /// Requests that made no sense, or that the host could not carry out.
    pub failed: Counter,
}
