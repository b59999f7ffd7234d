//! What a running VMM counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Accelerator;

/// The number in [`ProcessorStatistics::counts`] that each accelerator's processors have: for how
/// many nanoseconds the thread that runs the processor has had one of the host's.
pub const PROCESSOR_TIME_NS: &str = "processor_time_ns";

/// What was counted about a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// The guest's name.
    pub name: String,
    /// What runs its processors: never [`Accelerator::Auto`].
    pub accelerator: Accelerator,
    /// How often the machine was reset. A reset makes it anew, and all counts begin at zero.
    pub resets: u64,
    /// For how many nanoseconds of the host's time the machine has been there since it was started
    /// or last reset. The difference between two answers is what rates are made from.
    pub running_ns: u64,
    /// The host's memory.
    #[serde(default)]
    pub memory: MemoryStatistics,
    /// Each processor, in order.
    pub processors: Vec<ProcessorStatistics>,
    /// Each disk, in order.
    #[serde(default)]
    pub disks: Vec<DiskStatistics>,
    /// Each network card, in order.
    #[serde(default)]
    pub nets: Vec<NetStatistics>,
    /// Each shared folder, in order.
    #[serde(default)]
    pub folders: Vec<FolderStatistics>,
}

/// What was counted about one disk. Only what was carried out counts, but for `failed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatistics {
    /// Reads.
    pub reads: u64,
    /// The bytes that they read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// The bytes that they wrote.
    pub written_bytes: u64,
    /// Requests to write zeroes, or to give room back.
    pub discards: u64,
    /// The bytes that they concerned.
    pub discarded_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests that were refused: wrong ones, and those that the host could not carry out.
    pub failed: u64,
}

/// What was counted about one network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatistics {
    /// Frames that the guest received.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that were lost because they did not fit into what the guest has room for.
    pub received_dropped: u64,
    /// Frames that the guest sent.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that were lost because the network had no room, or could not carry them.
    pub sent_dropped: u64,
}

/// What was counted about one shared folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderStatistics {
    /// Requests of all kinds.
    pub requests: u64,
    /// Those that read files.
    pub reads: u64,
    /// The bytes that they read.
    pub read_bytes: u64,
    /// Those that wrote files.
    pub writes: u64,
    /// The bytes that they wrote.
    pub written_bytes: u64,
    /// Requests that made no sense, and those that the host could not carry out.
    pub failed: u64,
}

/// How much of the host's memory a guest takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatistics {
    /// The guest's RAM as configured, in bytes.
    pub guest_bytes: u64,
    /// What its VMM process has in the host's memory, all included, in bytes (proc(5), VmRSS).
    pub resident_bytes: u64,
}

/// What was counted about one processor. docs/stats.md says what each name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorStatistics {
    /// The numbers are from now. If not, the processor could not be asked, because it waits for a
    /// device or for a processor of the host, and they are what it said last.
    pub current: bool,
    /// Numbers that only grow: how often something happened.
    pub counts: BTreeMap<String, u64>,
    /// Numbers that grow and shrink: how much there is of something, or may be.
    pub levels: BTreeMap<String, u64>,
}
