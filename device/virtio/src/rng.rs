//! The entropy device (5.4): random bytes from the host's kernel.

use bus::BadState;
use mem::GuestMemory;
use rustix::rand::{GetRandomFlags, getrandom};

use serde_json::Value;

use crate::Error;
use crate::chain::Chain;
use crate::device::{DeviceType, VirtioDevice};
use crate::pci_transport::VirtioPci;
use crate::queue::{QueueError, VirtQueue};
use crate::worker::{QueueTask, Wake};

const QUEUE_SIZE: u16 = 64;
/// Bytes are made in pieces of this many.
const PIECE: usize = 4096;
/// No request gets more than this, so that none keeps the worker for long.
const MAX_REQUEST: usize = 64 * 1024;

/// An entropy device, for [`pci::PciRoot::add`].
pub fn rng(memory: GuestMemory) -> Result<VirtioPci, Error> {
    VirtioPci::new(Box::new(Rng), memory)
}

struct Rng;

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn save(&self) -> Result<Value, BadState> {
        Ok(Value::Null)
    }

    fn restore(&mut self, _state: Value) -> Result<(), BadState> {
        Ok(())
    }

    fn task(&self, _queue: usize, _features: u64) -> Box<dyn QueueTask> {
        Box::new(RngTask)
    }
}

struct RngTask;

impl QueueTask for RngTask {
    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        queue.drain(fill)?;
        Ok(Wake::Doorbell)
    }
}

/// Fills a request as far as it goes and returns how far that is.
fn fill(memory: &GuestMemory, chain: &Chain) -> Result<Option<u32>, QueueError> {
    let len = chain.writable.len().min(MAX_REQUEST);
    let mut piece = [0; PIECE];
    let mut done = 0;
    while done < len {
        let wanted = &mut piece[..PIECE.min(len - done)];
        // Interrupted by a signal, or not at all: the guest asks again for what is missing.
        let Ok(got) = getrandom(&mut *wanted, GetRandomFlags::empty()) else { break };
        chain.writable.write(memory, done, &wanted[..got])?;
        done += got;
    }
    Ok(Some(done as u32)) // at most MAX_REQUEST
}
