//! The socket device (5.10): streams between programs in the guest and on the host.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bus::BadState;
use hybrid_vsock::{GUEST_CID, HEADER, Header, MAX_PAYLOAD, Vsock};
use mem::GuestMemory;
use runtime::thread::Role;
use serde_json::Value;

use crate::Error;
use crate::device::{DeviceType, VirtioDevice};
use crate::pci_transport::VirtioPci;
use crate::queue::{QueueError, VirtQueue};
use crate::worker::{QueueTask, Wake};

/// Numbers from 5.10.
mod spec {
    /// Streams (5.10.3).
    pub const F_STREAM: u64 = 1;
    pub const RECEIVEQ: usize = 0;
    pub const TRANSMITQ: usize = 1;
    pub const EVENTQ: usize = 2;
    /// The connections are gone, and the guest's address may be another one (5.10.6.7).
    pub const EVENT_TRANSPORT_RESET: u32 = 0;
}

const QUEUE_SIZE: u16 = 128;

/// A socket device in front of `host`, for [`pci::PciRoot::add`]. It is the only one there: the
/// connections of any other end.
pub fn vsock(host: Arc<Vsock>, memory: GuestMemory) -> Result<VirtioPci, Error> {
    host.reset();
    VirtioPci::new(Box::new(Socket { host, was_cut: Arc::default() }), memory)
}

struct Socket {
    host: Arc<Vsock>,
    /// The guest is to be told that its connections are gone.
    was_cut: Arc<AtomicBool>,
}

impl VirtioDevice for Socket {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn features(&self) -> u64 {
        spec::F_STREAM
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    /// `struct virtio_vsock_config` (5.10.4).
    fn config(&self) -> Vec<u8> {
        GUEST_CID.to_le_bytes().to_vec()
    }

    /// Without one of its queues, no connection is what it was.
    fn queue_reset(&mut self, queue: usize) {
        self.host.reset();
        if queue == spec::EVENTQ {
            self.was_cut.store(false, Ordering::Relaxed);
        }
    }

    /// Its connections end with programs outside of the machine, so that nothing of them can be saved.
    fn save(&self) -> Result<Value, BadState> {
        Ok(Value::Null)
    }

    fn restore(&mut self, state: Value) -> Result<(), BadState> {
        if state != Value::Null {
            return Err(BadState::new("a socket device saves nothing"));
        }
        self.host.reset();
        self.was_cut.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn task(&self, queue: usize, _features: u64) -> Box<dyn QueueTask> {
        let host = self.host.clone();
        let buffer = |len| vec![0; len];
        match queue {
            spec::RECEIVEQ => {
                host.start();
                Box::new(Receive { host, buffer: buffer(HEADER + MAX_PAYLOAD) })
            }
            spec::TRANSMITQ => Box::new(Transmit { host, buffer: buffer(MAX_PAYLOAD) }),
            _ => Box::new(Events { was_cut: self.was_cut.clone() }),
        }
    }
}

/// From the host to the guest. Data waits in the host's sockets until the guest has room.
struct Receive {
    host: Arc<Vsock>,
    buffer: Vec<u8>,
}

impl QueueTask for Receive {
    fn role(&self) -> Role {
        Role::Sockets
    }

    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        while self.host.has_packets() {
            let Some(chain) = queue.pop_or_arm()? else { return Ok(Wake::Doorbell) };
            // Without room for data there would be no end of packets that come to nothing.
            if chain.writable.len() <= HEADER {
                return Err(QueueError::TooShort);
            }
            let room = chain.writable.len().min(self.buffer.len());
            match self.buffer.get_mut(..room).and_then(|room| self.host.receive(room)) {
                Some(len) => {
                    let packet = self.buffer.get(..len).unwrap_or_default();
                    chain.writable.write(queue.memory(), 0, packet)?;
                    queue.push(chain, len as u32)?; // at most HEADER + MAX_PAYLOAD
                    queue.notify()?;
                }
                // It came to nothing.
                None => queue.unpop(chain),
            }
        }
        Ok(Wake::DoorbellOrSource)
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.as_fd())
    }
}

/// From the guest to the host.
struct Transmit {
    host: Arc<Vsock>,
    buffer: Vec<u8>,
}

impl QueueTask for Transmit {
    fn role(&self) -> Role {
        Role::Sockets
    }

    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        queue.drain(|memory, chain| {
            let mut header = [0; HEADER];
            if chain.readable.len() < HEADER {
                // Nobody can be told.
                return Ok(Some(0));
            }
            chain.readable.read(memory, 0, &mut header)?;
            let len = Header::read(&header).len as usize;
            // A packet that promises more than there is, or than any packet has, is lost.
            if let Some(data) = self.buffer.get_mut(..len)
                && len <= chain.readable.len() - HEADER
            {
                chain.readable.read(memory, HEADER, data)?;
                self.host.transmit(&header, data);
            }
            Ok(Some(0))
        })?;
        Ok(Wake::Doorbell)
    }
}

/// Tells the guest that it lost its connections, as the copy of one that keeps them. Its address
/// never changes while it runs (5.10.6.7).
struct Events {
    was_cut: Arc<AtomicBool>,
}

impl QueueTask for Events {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        while self.was_cut.load(Ordering::Relaxed) {
            let Some(chain) = queue.pop_or_arm()? else { break };
            let event = spec::EVENT_TRANSPORT_RESET.to_le_bytes();
            if chain.writable.len() < event.len() {
                return Err(QueueError::TooShort);
            }
            chain.writable.write(queue.memory(), 0, &event)?;
            queue.push(chain, event.len() as u32)?;
            self.was_cut.store(false, Ordering::Relaxed);
            queue.notify()?;
        }
        Ok(Wake::Doorbell)
    }
}
