//! The block device (5.2).

mod request;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::Disk;
use bus::BadState;
use mem::GuestMemory;
use serde_json::Value;

use self::request::BlockTask;
use crate::Error;
use crate::counters::BlockCounters;
use crate::device::{DeviceType, VirtioDevice};
use crate::pci_transport::VirtioPci;
use crate::rate::{Limit, Rate};
use crate::worker::QueueTask;

/// Numbers from 5.2.
mod spec {
    pub const F_SEG_MAX: u64 = 1 << 2;
    pub const F_RO: u64 = 1 << 5;
    pub const F_BLK_SIZE: u64 = 1 << 6;
    pub const F_FLUSH: u64 = 1 << 9;
    pub const F_MQ: u64 = 1 << 12;
    pub const F_DISCARD: u64 = 1 << 13;
    pub const F_WRITE_ZEROES: u64 = 1 << 14;

    pub const T_IN: u32 = 0;
    pub const T_OUT: u32 = 1;
    pub const T_FLUSH: u32 = 4;
    pub const T_GET_ID: u32 = 8;
    pub const T_DISCARD: u32 = 11;
    pub const T_WRITE_ZEROES: u32 = 13;

    pub const FLAG_UNMAP: u32 = 1;

    pub const ID_LEN: usize = 20;
}

/// The unit of all sector numbers, whatever the block size.
const SECTOR: u64 = 512;
const QUEUE_SIZE: u16 = 256;
const MAX_QUEUES: u16 = 64;
/// 2 GiB: the host frees that in one go.
const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// 32 MiB: the host may have to write that, and a reset waits for it.
const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 16;
/// 4 KiB, below which the host's file systems free nothing.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

/// How the guest sees a disk.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// The number of request queues, each with a worker of its own: best one per processor.
    /// Taken as 1 to 64.
    pub queues: u16,
    /// The serial number that the guest reads: 1 to 20 characters of ASCII.
    pub serial: Option<String>,
    /// What is told when the host has no room for what the guest writes. Such a request is not answered:
    /// it is served anew when the device goes on after a pause, or the driver makes another. `None`: the
    /// guest is told of an I/O error.
    pub when_full: Option<WhenFull>,
    /// What the guest may ask for.
    pub limits: BlockLimits,
    /// What is counted.
    pub counters: Arc<BlockCounters>,
}

/// How much a guest may ask of a disk, reading and writing together.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockLimits {
    /// Bytes.
    pub bytes: Option<Rate>,
    /// Requests.
    pub requests: Option<Rate>,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            serial: None,
            when_full: None,
            limits: BlockLimits::default(),
            counters: Arc::default(),
        }
    }
}

/// Tells somebody that the host has no room. Called on workers' threads, perhaps again and again.
#[derive(Clone)]
pub struct WhenFull(Arc<dyn Fn() + Send + Sync>);

impl WhenFull {
    /// Calls `tell`, which must not wait.
    pub fn new(tell: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }
}

impl fmt::Debug for WhenFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WhenFull")
    }
}

/// A block device in front of `disk`, for [`pci::PciRoot::add`].
pub fn block(
    disk: Arc<dyn Disk>,
    options: BlockOptions,
    memory: GuestMemory,
) -> Result<VirtioPci, Error> {
    let mut id = [0; spec::ID_LEN];
    if let Some(serial) = options.serial {
        let fits = (1..=id.len()).contains(&serial.len()) && serial.is_ascii();
        if !fits {
            return Err(Error::Serial(serial));
        }
        id[..serial.len()].copy_from_slice(serial.as_bytes());
    }
    let queues = options.queues.clamp(1, MAX_QUEUES);
    let when_full = options.when_full;
    let BlockLimits { bytes, requests } = options.limits;
    let meters = Meters {
        bytes: bytes.map(Limit::new).map(Arc::new),
        requests: requests.map(Limit::new).map(Arc::new),
        counters: options.counters,
    };
    VirtioPci::new(Box::new(Block { disk, id, queues, when_full, meters }), memory)
}

struct Block {
    disk: Arc<dyn Disk>,
    id: [u8; spec::ID_LEN],
    queues: u16,
    when_full: Option<WhenFull>,
    meters: Meters,
}

/// What limits and counts the requests of all queues.
#[derive(Clone, Default)]
struct Meters {
    bytes: Option<Arc<Limit>>,
    requests: Option<Arc<Limit>>,
    counters: Arc<BlockCounters>,
}

impl Meters {
    /// How long the next request has to wait.
    fn wait(&self) -> Option<Duration> {
        let limits = [&self.bytes, &self.requests].into_iter().flatten();
        limits.filter_map(|limit| limit.wait(Instant::now())).max()
    }

    /// A request was made, with so many bytes of data.
    fn passed(&self, bytes: usize) {
        let now = Instant::now();
        for (limit, amount) in [(&self.bytes, bytes as u64), (&self.requests, 1)] {
            if let Some(limit) = limit {
                limit.spend(amount, now);
            }
        }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let always = spec::F_SEG_MAX | spec::F_BLK_SIZE | spec::F_FLUSH | spec::F_MQ;
        let by_access = if self.disk.is_readonly() {
            spec::F_RO
        } else {
            spec::F_DISCARD | spec::F_WRITE_ZEROES
        };
        always | by_access
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    /// `struct virtio_blk_config` (5.2.4), up to the write zeroes fields.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, value: &[u8]| config[at..at + value.len()].copy_from_slice(value);
        put(0, &(self.disk.size() / SECTOR).to_le_bytes());
        // A request also has a header and a status, and needs no more descriptors than a queue.
        put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &1u32.to_le_bytes()); // segments per discard
        put(44, &DISCARD_ALIGNMENT_SECTORS.to_le_bytes());
        put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        put(52, &1u32.to_le_bytes()); // segments per write zeroes
        put(56, &[1]); // write zeroes may unmap
        config
    }

    fn save(&self) -> Result<Value, BadState> {
        Ok(Value::Null)
    }

    fn restore(&mut self, _state: Value) -> Result<(), BadState> {
        Ok(())
    }

    fn task(&self, _queue: usize, features: u64) -> Box<dyn QueueTask> {
        // A driver without flush has no way to make data safe, so each write must (5.2.6.2).
        let write_through = features & spec::F_FLUSH == 0;
        let (meters, when_full) = (self.meters.clone(), self.when_full.clone());
        Box::new(BlockTask::new(self.disk.clone(), self.id, write_through, meters, when_full))
    }
}
