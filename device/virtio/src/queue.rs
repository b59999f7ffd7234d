//! A virtqueue in the hands of its worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mem::{GuestAddress, GuestMemory};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::Bytes;

use crate::chain::Chain;
use crate::shared::Shared;
use crate::spec::AVAIL_F_NO_INTERRUPT;

/// The driver broke the rules of its queue. The device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings themselves are unusable.
    #[error("the rings are unusable: {0}")]
    Ring(virtio_queue::Error),
    /// The chain leaves the descriptor table, or bites its own tail.
    #[error("the descriptor chain at {head} does not end")]
    Broken {
        /// Its first descriptor.
        head: u16,
    },
    /// The chain has more descriptors than the queue.
    #[error("the descriptor chain at {head} is longer than the queue")]
    TooLong {
        /// Its first descriptor.
        head: u16,
    },
    /// A device-readable descriptor follows a device-writable one (2.7.4.2).
    #[error("the descriptor chain at {head} has a readable buffer after a writable one")]
    Disorder {
        /// Its first descriptor.
        head: u16,
    },
    /// A buffer is not in guest RAM.
    #[error("the buffer at {0:#x} is not in guest memory")]
    NotMemory(u64),
    /// A request lacks a part without which it cannot even be refused.
    #[error("a request is too short")]
    TooShort,
}

/// A running queue: descriptor chains come out of it and go back used.
pub struct VirtQueue {
    queue: Queue,
    memory: GuestMemory,
    shared: Arc<Shared>,
    index: usize,
    stop: Arc<AtomicBool>,
}

impl VirtQueue {
    pub(crate) fn new(
        queue: Queue,
        memory: GuestMemory,
        shared: Arc<Shared>,
        index: usize,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self { queue, memory, shared, index, stop }
    }

    /// The queue as state, to go on from later.
    pub(crate) fn into_state(self) -> QueueState {
        self.queue.state()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The guest memory that chains lie in.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Whether the queue is called home. [`VirtQueue::pop`] then yields nothing.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The next chain that the driver has made available.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        if self.stopping() {
            return Ok(None);
        }
        let limit = self.queue.max_size();
        let mut available = self.queue.iter(&self.memory).map_err(QueueError::Ring)?;
        match available.next() {
            Some(descriptors) => Chain::new(&self.memory, descriptors, limit).map(Some),
            None => Ok(None),
        }
    }

    /// How many chains the driver has made available that were not popped.
    pub fn waiting(&self) -> Result<u16, QueueError> {
        let available = self.queue.avail_idx(&self.memory, Ordering::Acquire);
        Ok(available.map_err(QueueError::Ring)?.0.wrapping_sub(self.queue.next_avail()))
    }

    /// Puts back the chain that was popped last.
    pub fn unpop(&mut self, chain: Chain) {
        drop(chain);
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with its first `written` writable bytes written.
    pub fn push(&mut self, chain: Chain, written: u32) -> Result<(), QueueError> {
        self.queue.add_used(&self.memory, chain.head(), written).map_err(QueueError::Ring)
    }

    /// Interrupts the driver about what was pushed, if it wants to know.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        // With EVENT_IDX this looks at used_event (2.7.7.2), else it always says yes.
        let mut wanted = self.queue.needs_notification(&self.memory).map_err(QueueError::Ring)?;
        if !self.queue.event_idx_enabled() {
            let flags = GuestAddress(self.queue.avail_ring());
            let flags: u16 = self
                .memory
                .load(flags, Ordering::Relaxed)
                .map_err(|e| QueueError::Ring(virtio_queue::Error::GuestMemory(e)))?;
            wanted = u16::from_le(flags) & AVAIL_F_NO_INTERRUPT == 0;
        }
        if wanted {
            self.shared.used_buffers(self.index);
        }
        Ok(())
    }

    /// Asks the driver to ring the doorbell for the next chain. `true`: one has come meanwhile,
    /// for which it may not ring.
    pub fn arm(&mut self) -> Result<bool, QueueError> {
        let more = self.queue.enable_notification(&self.memory).map_err(QueueError::Ring)?;
        Ok(more && !self.stopping())
    }

    /// What says that the queue is called home, for those who cannot hold the queue.
    pub(crate) fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// The next chain. If there is none, the driver rings the doorbell for the next.
    pub fn pop_or_arm(&mut self) -> Result<Option<Chain>, QueueError> {
        loop {
            if let Some(chain) = self.pop()? {
                return Ok(Some(chain));
            }
            if !self.arm()? {
                return Ok(None);
            }
        }
    }

    /// Serves chains until there are none: `serve` returns how many bytes it wrote, or `None` if
    /// it left off, because the queue is called home or it is not yet time; then the chain stays for
    /// the next time. The
    /// driver is notified of each as it wishes, and afterwards rings the doorbell for the next.
    pub fn drain(
        &mut self,
        mut serve: impl FnMut(&GuestMemory, &Chain) -> Result<Option<u32>, QueueError>,
    ) -> Result<(), QueueError> {
        loop {
            self.queue.disable_notification(&self.memory).map_err(QueueError::Ring)?;
            while let Some(chain) = self.pop()? {
                let Some(written) = serve(&self.memory, &chain)? else {
                    self.unpop(chain);
                    return Ok(());
                };
                self.push(chain, written)?;
                self.notify()?;
            }
            if !self.arm()? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mem::RamRange;

    fn queue(event_idx_enabled: bool) -> VirtQueue {
        let state = QueueState {
            max_size: 4,
            size: 4,
            ready: true,
            event_idx_enabled,
            desc_table: 0x1000,
            avail_ring: 0x2000,
            used_ring: 0x3000,
            ..QueueState::default()
        };
        let memory = mem::allocate(&[RamRange { start: 0, len: 0x1_0000 }]).unwrap();
        let shared = Arc::new(Shared::new(1));
        VirtQueue::new(Queue::try_from(state).unwrap(), memory, shared, 0, Arc::default())
    }

    fn offer(queue: &VirtQueue, idx: u16) {
        queue.memory.write_obj(idx.to_le(), GuestAddress(0x2002)).unwrap();
    }

    /// The driver does not ring for a chain that it offers just before notifications are on, so
    /// arming must find it.
    #[test]
    fn arming_finds_what_came_meanwhile() {
        for event_idx in [false, true] {
            let mut queue = queue(event_idx);
            assert!(!queue.arm().unwrap());
            offer(&queue, 1);
            assert!(queue.arm().unwrap());
            let chain = queue.pop().unwrap().unwrap();
            assert!(!queue.arm().unwrap());
            queue.unpop(chain);
            assert!(queue.arm().unwrap());
        }
    }

    #[test]
    fn a_queue_that_is_called_home_yields_nothing_and_keeps_its_place() {
        let mut queue = queue(false);
        offer(&queue, 2);
        let chain = queue.pop().unwrap().unwrap();
        queue.push(chain, 0).unwrap();
        queue.stop.store(true, Ordering::Release);
        assert!(queue.pop().unwrap().is_none());
        assert!(!queue.arm().unwrap());
        let state = queue.into_state();
        assert_eq!((state.next_avail, state.next_used), (1, 1));
    }
}
