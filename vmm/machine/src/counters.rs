//! What a machine's disks, cards and shared folders count, for others to look at while it runs.

use std::sync::Arc;

use virtio::{BlockCounters, FolderCounters, NetCounters};
use vmm_api::{DiskStatistics, FolderStatistics, NetStatistics};

/// The counters of a machine's devices, in the order of its configuration.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub(crate) disks: Vec<Arc<BlockCounters>>,
    pub(crate) nets: Vec<Arc<NetCounters>>,
    pub(crate) folders: Vec<Arc<FolderCounters>>,
}

impl Counters {
    /// What the disks have counted.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskStatistics> {
        let look = |it: &Arc<BlockCounters>| DiskStatistics {
            reads: it.reads.requests.get(),
            read_bytes: it.reads.bytes.get(),
            writes: it.writes.requests.get(),
            written_bytes: it.writes.bytes.get(),
            discards: it.discards.requests.get(),
            discarded_bytes: it.discards.bytes.get(),
            flushes: it.flushes.get(),
            failed: it.failed.get(),
        };
        self.disks.iter().map(look).collect()
    }

    /// What the network cards have counted.
    #[must_use]
    pub fn nets(&self) -> Vec<NetStatistics> {
        let look = |it: &Arc<NetCounters>| NetStatistics {
            received_packets: it.received.packets.get(),
            received_bytes: it.received.bytes.get(),
            received_dropped: it.received.dropped.get(),
            sent_packets: it.sent.packets.get(),
            sent_bytes: it.sent.bytes.get(),
            sent_dropped: it.sent.dropped.get(),
        };
        self.nets.iter().map(look).collect()
    }

    /// What the shared folders have counted.
    #[must_use]
    pub fn folders(&self) -> Vec<FolderStatistics> {
        let look = |it: &Arc<FolderCounters>| FolderStatistics {
            requests: it.requests.get(),
            reads: it.reads.requests.get(),
            read_bytes: it.reads.bytes.get(),
            writes: it.writes.requests.get(),
            written_bytes: it.writes.bytes.get(),
            failed: it.failed.get(),
        };
        self.folders.iter().map(look).collect()
    }
}
