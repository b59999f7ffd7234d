//! The network card (5.1): one receive and one transmit queue, no offloads.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bus::BadState;
use mem::GuestMemory;
use net::Backend;

use serde_json::Value;

use crate::Error;
use crate::device::{DeviceType, VirtioDevice};
use crate::pci_transport::VirtioPci;
use crate::queue::{QueueError, VirtQueue};
use crate::worker::{QueueTask, Wake};

/// Numbers from 5.1.
mod spec {
    pub const F_MAC: u64 = 1 << 5;
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

/// A network card with the address `mac` in front of `backend`, for [`pci::PciRoot::add`].
pub fn net(
    backend: Arc<dyn Backend>,
    mac: [u8; 6],
    memory: GuestMemory,
) -> Result<VirtioPci, Error> {
    VirtioPci::new(Box::new(Net { backend, mac }), memory)
}

struct Net {
    backend: Arc<dyn Backend>,
    mac: [u8; 6],
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        spec::F_MAC | spec::F_STATUS
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
        let backend = self.backend.clone();
        let buffer = vec![0; HEADER + MAX_FRAME];
        if queue == spec::RECEIVEQ {
            Box::new(Receive { backend, buffer, failed: false })
        } else {
            Box::new(Transmit { backend, buffer })
        }
    }
}

/// From the network to the guest. Frames wait in the back end until the guest has room.
struct Receive {
    backend: Arc<dyn Backend>,
    buffer: Vec<u8>,
    failed: bool,
}

impl QueueTask for Receive {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        loop {
            let Some(chain) = queue.pop_or_arm()? else { return Ok(Wake::Doorbell) };
            let (header, frame) = self.buffer.split_at_mut(HEADER);
            let len = match self.backend.receive(frame) {
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
                continue;
            }
            header[NUM_BUFFERS..].copy_from_slice(&1u16.to_le_bytes());
            chain.writable.write(queue.memory(), 0, &self.buffer[..len])?;
            queue.push(chain, len as u32)?; // at most HEADER + MAX_FRAME
            queue.notify()?;
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.backend.readable())
    }
}

/// From the guest to the network.
struct Transmit {
    backend: Arc<dyn Backend>,
    buffer: Vec<u8>,
}

impl QueueTask for Transmit {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        queue.drain(|memory, chain| {
            // The header speaks only of offloads, and none was offered. A frame that no network
            // could carry is lost.
            let len = chain.readable.len();
            if (HEADER + MIN_FRAME..=HEADER + MAX_FRAME).contains(&len) {
                let frame = &mut self.buffer[..len - HEADER];
                chain.readable.read(memory, HEADER, frame)?;
                self.backend.transmit(frame);
            }
            Ok(Some(0))
        })?;
        Ok(Wake::Doorbell)
    }
}
