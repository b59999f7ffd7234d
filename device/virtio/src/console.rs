//! The console (5.3): one port, over a character back end.
//!
//! Nothing is lost: input waits until the guest has buffers, output until the back end has room.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bus::{BadState, Hex};
use chardev::{Chardev, FrontEnd};
use mem::GuestMemory;
use runtime::Event;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Error;
use crate::device::{DeviceType, VirtioDevice};
use crate::pci_transport::VirtioPci;
use crate::queue::{QueueError, VirtQueue};
use crate::worker::{QueueTask, Wake};

const RECEIVEQ: usize = 0;
const TRANSMITQ: usize = 1;
const QUEUE_SIZE: u16 = 64;
/// How much input waits for the guest here; the rest waits in the back end.
const INPUT: usize = 4096;
/// Bytes move in pieces of at most this many.
const PIECE: usize = 4096;

/// A console in front of `chardev`, for [`pci::PciRoot::add`].
pub fn console(chardev: Arc<Chardev>, memory: GuestMemory) -> Result<VirtioPci, Error> {
    let port = Arc::new(Port {
        input: Mutex::default(),
        arrived: Event::new().map_err(Error::Doorbell)?,
        sent: AtomicUsize::new(0),
        room: Event::new().map_err(Error::Doorbell)?,
    });
    let front: Weak<dyn FrontEnd> = Arc::<Port>::downgrade(&port);
    chardev.attach(front);
    VirtioPci::new(Box::new(Console { chardev, port }), memory)
}

/// What of the console is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleState {
    /// Input that waits for the guest.
    input: Hex,
    /// How much of the chain at the head of the transmit queue has left.
    sent: u64,
}

struct Console {
    chardev: Arc<Chardev>,
    port: Arc<Port>,
}

/// What lies between the back end's thread and the workers of the queues.
struct Port {
    input: Mutex<VecDeque<u8>>,
    /// Raised when input has come.
    arrived: Event,
    /// How much of the chain at the head of the transmit queue the back end has taken already.
    sent: AtomicUsize,
    /// Raised when the back end has room again.
    room: Event,
}

impl Port {
    fn input(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FrontEnd for Port {
    fn can_receive(&self) -> usize {
        INPUT.saturating_sub(self.input().len())
    }

    fn receive(&self, data: &[u8]) {
        self.input().extend(data);
        self.arrived.signal();
    }

    fn room(&self) {
        self.room.signal();
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    /// `struct virtio_console_config` (5.3.4): size, number of ports and emergency write, all of
    /// which belong to features that are not offered.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn queue_reset(&mut self, queue: usize) {
        if queue == TRANSMITQ {
            self.port.sent.store(0, Ordering::Relaxed);
        }
    }

    fn save(&self) -> Result<Value, BadState> {
        let state = ConsoleState {
            input: Hex(self.port.input().iter().copied().collect()),
            sent: self.port.sent.load(Ordering::Relaxed) as u64,
        };
        serde_json::to_value(state).map_err(BadState::new)
    }

    fn restore(&mut self, state: Value) -> Result<(), BadState> {
        let state: ConsoleState = serde_json::from_value(state).map_err(BadState::new)?;
        if state.input.0.len() > INPUT {
            return Err(BadState::new("more input waits than can"));
        }
        *self.port.input() = state.input.0.into();
        let sent = usize::try_from(state.sent).map_err(BadState::new)?;
        self.port.sent.store(sent, Ordering::Relaxed);
        Ok(())
    }

    fn task(&self, queue: usize, _features: u64) -> Box<dyn QueueTask> {
        let (chardev, port) = (self.chardev.clone(), self.port.clone());
        let piece = vec![0; PIECE];
        if queue == RECEIVEQ {
            Box::new(Receive { chardev, port, piece })
        } else {
            Box::new(Transmit { chardev, port, piece })
        }
    }
}

/// Keyboard to guest.
struct Receive {
    chardev: Arc<Chardev>,
    port: Arc<Port>,
    piece: Vec<u8>,
}

impl QueueTask for Receive {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        loop {
            // Cleared before the input is looked at, so that no arrival goes unnoticed.
            self.port.arrived.clear();
            if self.port.input().is_empty() {
                return Ok(Wake::DoorbellOrSource);
            }
            let Some(chain) = queue.pop_or_arm()? else { return Ok(Wake::Doorbell) };
            let mut len = 0;
            {
                let mut input = self.port.input();
                let count = input.len().min(chain.writable.len());
                for (to, from) in self.piece.iter_mut().zip(input.drain(..count.min(PIECE))) {
                    *to = from;
                    len += 1;
                }
            }
            chain.writable.write(queue.memory(), 0, &self.piece[..len])?;
            queue.push(chain, len as u32)?; // at most PIECE
            queue.notify()?;
            self.chardev.accept_input();
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.port.arrived.as_fd())
    }
}

/// Guest to screen.
struct Transmit {
    chardev: Arc<Chardev>,
    port: Arc<Port>,
    piece: Vec<u8>,
}

impl QueueTask for Transmit {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        loop {
            let Some(chain) = queue.pop_or_arm()? else { return Ok(Wake::Doorbell) };
            let mut sent = self.port.sent.load(Ordering::Relaxed);
            while sent < chain.readable.len() {
                let piece = &mut self.piece[..PIECE.min(chain.readable.len() - sent)];
                chain.readable.read(queue.memory(), sent, piece)?;
                // Cleared before the back end is asked, so that no news of room goes unnoticed.
                self.port.room.clear();
                let taken = self.chardev.write(piece);
                sent += taken;
                if taken < piece.len() {
                    self.port.sent.store(sent, Ordering::Relaxed);
                    queue.unpop(chain);
                    return Ok(Wake::DoorbellOrSource);
                }
            }
            self.port.sent.store(0, Ordering::Relaxed);
            queue.push(chain, 0)?;
            queue.notify()?;
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.port.room.as_fd())
    }
}
