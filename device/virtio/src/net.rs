//! The network card (5.1): one receive and one transmit queue. What a guest sends is left unfinished
//! where the back end does not mind (checksums, segmentation).

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::BadState;
use mem::GuestMemory;
use net::Backend;

use serde_json::Value;

use crate::Error;
use crate::counters::NetCounters;
use crate::device::{DeviceType, VirtioDevice};
use crate::pci_transport::VirtioPci;
use crate::queue::{QueueError, VirtQueue};
use crate::rate::{Limit, Rate};
use crate::worker::{QueueTask, Wake};

/// Numbers from 5.1.
mod spec {
    pub const F_CSUM: u64 = 1 << 0;
    pub const F_MAC: u64 = 1 << 5;
    pub const F_HOST_TSO4: u64 = 1 << 11;
    pub const F_HOST_TSO6: u64 = 1 << 12;
    pub const F_STATUS: u64 = 1 << 16;
    pub const S_LINK_UP: u16 = 1;
    pub const RECEIVEQ: usize = 0;
}

const QUEUE_SIZE: u16 = 256;
/// `struct virtio_net_hdr`. Its last field, num_buffers, is there in any modern device (5.1.6.1).
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;
/// An Ethernet header.
const MIN_FRAME: usize = 14;
/// The longest IP packet behind an Ethernet header with a VLAN tag.
const MAX_FRAME: usize = 65535 + 18;

/// How the guest sees a card, and what passes through it.
#[derive(Clone, Debug, Default)]
pub struct NetOptions {
    /// Its address.
    pub mac: [u8; 6],
    /// How many bytes of frames the guest may receive.
    pub receive: Option<Rate>,
    /// How many bytes of frames the guest may send.
    pub send: Option<Rate>,
    /// What is counted.
    pub counters: Arc<NetCounters>,
}

/// A network card in front of `backend`, for [`pci::PciRoot::add`].
pub fn net(
    backend: Arc<dyn Backend>,
    options: NetOptions,
    memory: GuestMemory,
) -> Result<VirtioPci, Error> {
    let NetOptions { mac, receive, send, counters } = options;
    let limits = [receive, send].map(|rate| rate.map(Limit::new).map(Arc::new));
    VirtioPci::new(Box::new(Net { backend, mac, limits, counters }), memory)
}

struct Net {
    backend: Arc<dyn Backend>,
    mac: [u8; 6],
    /// Of each queue. They outlive the tasks: a driver that resets its queues gains nothing.
    limits: [Option<Arc<Limit>>; 2],
    counters: Arc<NetCounters>,
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        let always = spec::F_MAC | spec::F_STATUS;
        if self.backend.takes_unfinished() {
            always | spec::F_CSUM | spec::F_HOST_TSO4 | spec::F_HOST_TSO6
        } else {
            always
        }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    /// `struct virtio_net_config` (5.1.4), as far as the features go.
    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        config.extend(spec::S_LINK_UP.to_le_bytes());
        config
    }

    fn save(&self) -> Result<Value, BadState> {
        Ok(Value::Null)
    }

    fn restore(&mut self, _state: Value) -> Result<(), BadState> {
        Ok(())
    }

    fn task(&self, queue: usize, _features: u64) -> Box<dyn QueueTask> {
        let way = Way {
            backend: self.backend.clone(),
            buffer: vec![0; HEADER + MAX_FRAME],
            limit: self.limits.get(queue).cloned().flatten(),
            counters: self.counters.clone(),
        };
        if queue == spec::RECEIVEQ {
            Box::new(Receive { way, failed: false })
        } else {
            Box::new(Transmit { way })
        }
    }
}

/// What both directions have.
struct Way {
    backend: Arc<dyn Backend>,
    buffer: Vec<u8>,
    limit: Option<Arc<Limit>>,
    counters: Arc<NetCounters>,
}

impl Way {
    /// How long the next frame has to wait.
    fn wait(&self) -> Option<Duration> {
        self.limit.as_ref().and_then(|limit| limit.wait(Instant::now()))
    }

    /// A frame of so many bytes has passed.
    fn passed(&self, len: usize) {
        if let Some(limit) = &self.limit {
            limit.spend(len as u64, Instant::now());
        }
    }
}

/// From the network to the guest. Frames wait in the back end until the guest has room.
struct Receive {
    way: Way,
    failed: bool,
}

impl QueueTask for Receive {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        loop {
            if let Some(time) = self.way.wait() {
                return Ok(Wake::After(time));
            }
            let Some(chain) = queue.pop_or_arm()? else { return Ok(Wake::Doorbell) };
            let (header, frame) = self.way.buffer.split_at_mut(HEADER);
            let len = match self.way.backend.receive(frame) {
                Ok(Some(len)) => HEADER + len.min(frame.len()),
                Ok(None) => {
                    queue.unpop(chain);
                    return Ok(Wake::DoorbellOrSource);
                }
                Err(error) => {
                    queue.unpop(chain);
                    if !std::mem::replace(&mut self.failed, true) {
                        tracing::warn!("the guest's network receives nothing any more: {error}");
                    }
                    return Ok(Wake::Doorbell);
                }
            };
            if len > chain.writable.len() {
                // A frame that does not fit into the guest's buffer is lost, as on a real wire.
                queue.unpop(chain);
                self.way.counters.received.count(false, 0);
                continue;
            }
            header[NUM_BUFFERS..].copy_from_slice(&1u16.to_le_bytes());
            chain.writable.write(queue.memory(), 0, &self.way.buffer[..len])?;
            self.way.counters.received.count(true, len - HEADER);
            self.way.passed(len - HEADER);
            queue.push(chain, len as u32)?; // at most HEADER + MAX_FRAME
            queue.notify()?;
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.way.backend.readable())
    }
}

/// From the guest to the network.
struct Transmit {
    way: Way,
}

impl QueueTask for Transmit {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        let mut wait = None;
        queue.drain(|memory, chain| {
            wait = self.way.wait();
            if wait.is_some() {
                return Ok(None);
            }
            // The header says what is left to do, which the back end does not want to know. A frame
            // that no network could carry is lost.
            let len = chain.readable.len().saturating_sub(HEADER);
            let mut taken = false;
            if (MIN_FRAME..=MAX_FRAME).contains(&len) {
                let frame = &mut self.way.buffer[..len];
                chain.readable.read(memory, HEADER, frame)?;
                taken = self.way.backend.transmit(frame);
                self.way.passed(len);
            }
            self.way.counters.sent.count(taken, len);
            Ok(Some(0))
        })?;
        Ok(wait.map_or(Wake::Doorbell, Wake::After))
    }
}
