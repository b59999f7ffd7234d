//! The socket device (5.10): streams between programs in the guest and on the host.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

/// How long packets may wait for a guest to forget its connections, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_micros(500);

/// A socket device in front of `host`, for [`pci::PciRoot::add`]. It is the only one there: the
/// connections of any other end.
pub fn vsock(host: Arc<Vsock>, memory: GuestMemory) -> Result<VirtioPci, Error> {
    host.reset();
    VirtioPci::new(Box::new(Socket { host, cut: Arc::default() }), memory)
}

struct Socket {
    host: Arc<Vsock>,
    cut: Arc<Mutex<Cut>>,
}

/// How far the guest is with forgetting its connections, as the copy of one that keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Cut {
    /// It has none to forget.
    #[default]
    Done,
    /// It is to be told.
    Untold,
    /// It was told, and left so many buffers for further events.
    Told { buffers: u16 },
}

fn lock(cut: &Mutex<Cut>) -> MutexGuard<'_, Cut> {
    cut.lock().unwrap_or_else(PoisonError::into_inner)
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
            *lock(&self.cut) = Cut::Done;
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
        self.host.hold();
        *lock(&self.cut) = Cut::Untold;
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
            _ => Box::new(Events { host, cut: self.cut.clone(), since: Instant::now() }),
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

/// Tells the guest that it lost its connections. Its address never changes while it runs (5.10.6.7).
///
/// The guest ends all that it has when it gets to the event, those included that are made until then. So
/// the host makes none before: not until the guest gives the event's buffer back. It need not ring for that,
/// as there are others.
struct Events {
    host: Arc<Vsock>,
    cut: Arc<Mutex<Cut>>,
    since: Instant,
}

impl QueueTask for Events {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        let mut cut = lock(&self.cut);
        if *cut == Cut::Untold
            && let Some(chain) = queue.pop_or_arm()?
        {
            let event = spec::EVENT_TRANSPORT_RESET.to_le_bytes();
            if chain.writable.len() < event.len() {
                return Err(QueueError::TooShort);
            }
            chain.writable.write(queue.memory(), 0, &event)?;
            *cut = Cut::Told { buffers: queue.waiting()? };
            queue.push(chain, event.len() as u32)?;
            queue.notify()?;
        }
        if let Cut::Told { buffers } = *cut
            && queue.waiting()? > buffers
        {
            *cut = Cut::Done;
        }
        if *cut == Cut::Done || self.since.elapsed() > PATIENCE {
            self.host.go_on();
            return Ok(Wake::Doorbell);
        }
        Ok(Wake::After(LOOK))
    }
}
