//! The file system device (5.11): a directory of the host, by FUSE's protocol.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::BadState;
use folder::{Folder, MAX_REQUEST, Outcome, REPLY_HEADER, REQUEST_HEADER};
use mem::GuestMemory;
use runtime::thread::Role;
use serde_json::Value;

use crate::Error;
use crate::chain::Chain;
use crate::counters::FolderCounters;
use crate::device::{DeviceType, VirtioDevice};
use crate::pci_transport::VirtioPci;
use crate::queue::{QueueError, VirtQueue};
use crate::worker::{QueueTask, Wake};

/// `struct virtio_fs_config` (5.11.4).
const TAG: usize = 36;
/// Besides the queue for what is urgent, of which Linux makes no use but to forget. Until 6.11 it uses one
/// of the others only.
const REQUEST_QUEUES: u32 = 1;
/// Linux sends at most as many pages at once as a queue has descriptors, less four: 256.
const QUEUE_SIZE: u16 = 512;

/// A file system device in front of `folder`, for [`pci::PciRoot::add`]. The driver knows it by its tag.
///
/// # Errors
///
/// The tag does not fit; the process is out of file descriptors.
pub fn fs(
    tag: &str,
    folder: Folder,
    counters: Arc<FolderCounters>,
    memory: GuestMemory,
) -> Result<VirtioPci, Error> {
    let mut config = vec![0; TAG];
    match config.get_mut(..tag.len()) {
        Some(place) if !tag.is_empty() => place.copy_from_slice(tag.as_bytes()),
        _ => return Err(Error::Tag(tag.to_owned())),
    }
    config.extend(REQUEST_QUEUES.to_le_bytes());
    let folder = Arc::new(Mutex::new(folder));
    VirtioPci::new(Box::new(FileSystem { config, folder, counters }), memory)
}

struct FileSystem {
    config: Vec<u8>,
    folder: Arc<Mutex<Folder>>,
    counters: Arc<FolderCounters>,
}

impl VirtioDevice for FileSystem {
    fn device_type(&self) -> DeviceType {
        DeviceType::Fs
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 1 + REQUEST_QUEUES as usize]
    }

    fn config(&self) -> Vec<u8> {
        self.config.clone()
    }

    /// A driver that begins anew has nothing open.
    fn queue_reset(&mut self, _queue: usize) {
        lock(&self.folder).reset();
    }

    fn save(&self) -> Result<Value, BadState> {
        let state = lock(&self.folder).save().map_err(BadState::new)?;
        serde_json::to_value(state).map_err(BadState::new)
    }

    fn restore(&mut self, state: Value) -> Result<(), BadState> {
        let state = serde_json::from_value(state).map_err(BadState::new)?;
        lock(&self.folder).restore(state).map_err(BadState::new)
    }

    fn task(&self, _queue: usize, _features: u64) -> Box<dyn QueueTask> {
        Box::new(Requests {
            folder: self.folder.clone(),
            counters: self.counters.clone(),
            request: Vec::new(),
            reply: Vec::new(),
        })
    }
}

fn lock(folder: &Mutex<Folder>) -> MutexGuard<'_, Folder> {
    folder.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the requests of one queue, one after the other.
struct Requests {
    folder: Arc<Mutex<Folder>>,
    counters: Arc<FolderCounters>,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl QueueTask for Requests {
    fn role(&self) -> Role {
        Role::Folder
    }

    fn serve(&mut self, queue: &mut VirtQueue) -> Result<Wake, QueueError> {
        queue.drain(|memory, chain| self.serve_one(memory, chain).map(Some))?;
        Ok(Wake::Doorbell)
    }
}

impl Requests {
    /// Serves a request and returns how many bytes its answer has.
    fn serve_one(&mut self, memory: &GuestMemory, chain: &Chain) -> Result<u32, QueueError> {
        // Without a header, nobody can be told what was wrong. One that is too long is cut, and thereby
        // no longer as long as it says.
        if chain.readable.len() < REQUEST_HEADER {
            return Err(QueueError::TooShort);
        }
        self.request.resize(chain.readable.len().min(MAX_REQUEST + 1), 0);
        chain.readable.read(memory, 0, &mut self.request)?;
        let room = chain.writable.len();
        let outcome = lock(&self.folder).serve(&self.request, room, &mut self.reply);
        if room >= REPLY_HEADER {
            self.counters.requests.add(1);
        }
        match outcome {
            Outcome::Done => {}
            Outcome::Read(bytes) => self.counters.reads.count(bytes as u64),
            Outcome::Written(bytes) => self.counters.writes.count(bytes as u64),
            Outcome::Failed => self.counters.failed.add(1),
        }
        chain.writable.write(memory, 0, &self.reply)?;
        Ok(self.reply.len() as u32) // at most MAX_REQUEST
    }
}
