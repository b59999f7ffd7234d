//! The balloon (5.5): memory that the guest gives back to the host, because it is asked to, or because it
//! does not use it.

mod host;
mod statistics;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use bus::BadState;
use mem::{GuestAddress, GuestMemory};
use runtime::thread::Role;
use serde_json::Value;

pub use host::{Balloon, BalloonSize};
pub use statistics::MemoryUse;

use crate::Error;
use crate::chain::Chain;
use crate::device::{DeviceType, VirtioDevice};
use crate::pci_transport::VirtioPci;
use crate::queue::{QueueError, VirtQueue};
use crate::shared::ConfigChange;
use crate::worker::{QueueTask, Wake};

/// Numbers from 5.5.
mod spec {
    /// There is a queue for statistics (5.5.3).
    pub const F_STATS_VQ: u64 = 1 << 1;
    /// The guest may take memory back from the balloon before it runs out.
    pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
    /// There is a queue for memory that is not in use.
    pub const F_REPORTING: u64 = 1 << 5;
    pub const INFLATEQ: usize = 0;
    pub const DEFLATEQ: usize = 1;
    pub const STATSQ: usize = 2;
    /// `struct virtio_balloon_config` (5.5.4): `num_pages` and `actual`.
    pub const CONFIG_LEN: usize = 8;
    pub const ACTUAL: usize = 4;
    /// The unit of the protocol, whatever pages the guest has (5.5.6).
    pub const PAGE: u64 = 4096;
}

const QUEUE_SIZE: u16 = 128;
/// So many bytes of page numbers are looked at in a request; drivers send 1 KiB. Pages behind stay with the
/// guest's host as they are.
const MAX_REQUEST: usize = 64 << 10;

/// A balloon whose other end is `host`, for [`pci::PciRoot::add`].
pub fn balloon(host: Arc<Balloon>, memory: GuestMemory) -> Result<VirtioPci, Error> {
    host.forget();
    VirtioPci::new(Box::new(Device { host }), memory)
}

struct Device {
    host: Arc<Balloon>,
}

impl VirtioDevice for Device {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        spec::F_STATS_VQ | spec::F_DEFLATE_ON_OOM | spec::F_REPORTING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 4]
    }

    fn config(&self) -> Vec<u8> {
        let BalloonSize { wanted, actual } = self.host.size();
        [wanted.to_le_bytes(), actual.to_le_bytes()].concat()
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        let mut config = [0; spec::CONFIG_LEN];
        config.copy_from_slice(&self.config());
        if let Some(place) = config.get_mut(offset..offset + data.len()) {
            place.copy_from_slice(data);
        }
        // The driver tells the size; what is wanted is the host's to say.
        let [.., a, b, c, d] = config;
        if offset + data.len() > spec::ACTUAL {
            self.host.set_actual(u32::from_le_bytes([a, b, c, d]));
        }
    }

    fn connect(&mut self, change: ConfigChange) {
        self.host.connect(change);
    }

    fn queue_reset(&mut self, queue: usize) {
        if queue == spec::STATSQ {
            self.host.forget();
        }
    }

    fn save(&self) -> Result<Value, BadState> {
        serde_json::to_value(self.host.size()).map_err(BadState::new)
    }

    fn restore(&mut self, state: Value) -> Result<(), BadState> {
        self.host.restore(serde_json::from_value(state).map_err(BadState::new)?);
        Ok(())
    }

    fn task(&self, queue: usize, _features: u64) -> Box<dyn QueueTask> {
        let host = self.host.clone();
        match queue {
            spec::INFLATEQ => Box::new(Inflate { host, numbers: vec![0; MAX_REQUEST] }),
            spec::DEFLATEQ => Box::new(Deflate),
            spec::STATSQ => Box::new(Statistics { host, is_read: false }),
            // Numbers are given to the queues that there are, as drivers count them: the one for hints,
            // which is before this one in the specification, is not.
            _ => Box::new(Report { host }),
        }
    }
}

/// Pages go into the balloon (5.5.6.1).
struct Inflate {
    host: Arc<Balloon>,
    numbers: Vec<u8>,
}

impl QueueTask for Inflate {
    fn role(&self) -> Role {
        Role::Disk
    }

    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        queue.drain(|memory, chain| {
            let len = chain.readable.len().min(MAX_REQUEST) & !3;
            let numbers = &mut self.numbers[..len];
            chain.readable.read(memory, 0, numbers)?;
            for (first, count) in runs(numbers) {
                self.host.take(memory, GuestAddress(first * spec::PAGE), count * spec::PAGE);
            }
            Ok(Some(0))
        })?;
        Ok(Wake::Doorbell)
    }
}

/// Numbers of pages that follow each other, up or down, as the first of them and how many there are.
fn runs(numbers: &[u8]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers.chunks_exact(4) {
        let page = u64::from(number.first_chunk().copied().map_or(0, u32::from_le_bytes));
        match runs.last_mut() {
            Some((first, count)) if *first + *count == page => *count += 1,
            Some((first, count)) if page + 1 == *first => (*first, *count) = (page, *count + 1),
            _ => runs.push((page, 1)),
        }
    }
    runs
}

/// Pages come out of the balloon. The host gives them when they are touched; nothing is to be done.
struct Deflate;

impl QueueTask for Deflate {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        queue.drain(|_, _| Ok(Some(0)))?;
        Ok(Wake::Doorbell)
    }
}

/// The driver leaves a buffer with statistics, and fills it anew when it gets it back (5.5.6.3).
struct Statistics {
    host: Arc<Balloon>,
    /// The buffer that is there has been read.
    is_read: bool,
}

impl QueueTask for Statistics {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        let is_wanted = self.host.asked().clear();
        if self.is_read && is_wanted {
            if let Some(chain) = queue.pop()? {
                queue.push(chain, 0)?;
                queue.notify()?;
            }
            self.is_read = false;
        }
        if !self.is_read
            && let Some(chain) = queue.pop_or_arm()?
        {
            let read = statistics::read(queue.memory(), &chain);
            // It stays where it is until somebody asks: so nothing of it has to be remembered.
            queue.unpop(chain);
            self.host.set_statistics(read?);
            self.is_read = true;
        }
        Ok(Wake::DoorbellOrSource)
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.asked().as_fd())
    }
}

/// Free pages, which the guest does without until it gets the buffer back (5.5.6.5).
struct Report {
    host: Arc<Balloon>,
}

impl QueueTask for Report {
    fn role(&self) -> Role {
        Role::Disk
    }

    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        queue.drain(|memory, Chain { writable, .. }| {
            for (start, len) in writable.pieces() {
                self.host.take(memory, start, len as u64);
            }
            Ok(Some(0))
        })?;
        Ok(Wake::Doorbell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_follow_each_other_go_together() {
        let bytes =
            |pages: &[u32]| pages.iter().flat_map(|page| page.to_le_bytes()).collect::<Vec<_>>();
        assert_eq!(runs(&bytes(&[])), []);
        assert_eq!(runs(&bytes(&[5, 6, 7, 9])), [(5, 3), (9, 1)]);
        assert_eq!(runs(&bytes(&[7, 6, 5, 4, 4])), [(4, 4), (4, 1)]);
        let ends = [u32::MAX, 0, u32::MAX];
        let max = u64::from(u32::MAX);
        assert_eq!(runs(&bytes(&ends)), [(max, 1), (0, 1), (max, 1)]);
        assert_eq!(runs(&[1, 0, 0, 0, 2, 0, 0]), [(1, 1)]);
    }
}
