//! virtio 1.2 devices over PCI: block, net, console, rng, vsock, balloon, fs.
//!
//! ```text
//!   vCPU: notify register -> doorbell (an eventfd)
//!   queue's worker: doorbell -> chains -> back end -> used ring -> MSI-X
//! ```
//!
//! Registers are served under the function's lock and never wait for I/O. A queue that the driver
//! has enabled moves into a worker thread of its own; when the device is reset, paused or loses
//! Bus Master Enable, the worker finishes the request in hand and the queue comes home as plain
//! state. So reset, pause and snapshot are one operation.
//!
//! A driver that breaks the rules (a descriptor chain without end, buffers outside RAM, rings in
//! the void) breaks only its device, which then sets DEVICE_NEEDS_RESET and waits for the reset.
//!
//! Section numbers in comments are those of VIRTIO 1.2.

#![forbid(unsafe_code)]

mod balloon;
mod block;
mod chain;
mod console;
mod counters;
mod device;
mod fs;
mod net;
mod pci_transport;
mod queue;
mod rate;
mod rng;
mod shared;
mod snapshot;
mod spec;
mod vsock;
mod worker;

pub use balloon::{Balloon, BalloonSize, MemoryUse, balloon};
pub use block::{BlockLimits, BlockOptions, WhenFull, block};
pub use chain::{Buffer, Chain};
pub use console::console;
pub use counters::{BlockCounters, Counter, FolderCounters, NetCounters, Traffic, Transfers};
pub use device::{DeviceType, VirtioDevice};
pub use fs::fs;
pub use net::{NetOptions, net};
pub use pci_transport::VirtioPci;
pub use queue::{QueueError, VirtQueue};
pub use rate::Rate;
pub use rng::rng;
pub use shared::ConfigChange;
pub use vsock::vsock;
pub use worker::{QueueTask, Wake};

use std::io;

/// A device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process is out of file descriptors.
    #[error("cannot make the doorbells of a virtio device: {0}; raise the limit on open files")]
    Doorbell(io::Error),
    /// The serial number does not fit into the 20 bytes that the protocol has for it.
    #[error("the disk's serial number {0:?} is not 1 to 20 characters of ASCII; shorten it")]
    Serial(String),
    /// The tag does not fit into the 36 bytes that the protocol has for it.
    #[error("the folder's tag {0:?} is not 1 to 36 bytes; shorten it")]
    Tag(String),
}
