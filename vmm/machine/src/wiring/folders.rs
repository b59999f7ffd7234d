//! Shared folders.

use std::sync::Arc;

use folder::{Folder, Limits, Options, Root};
use virtio::FolderCounters;
use vmm_api::FolderConfig;

use super::Board;
use crate::BuildError;

/// A folder that the guest shares.
pub struct SharedFolder {
    /// The directory, open.
    pub root: Root,
    /// How it is shared.
    pub config: FolderConfig,
    /// How much the guest can make the process hold of it.
    limits: Limits,
}

/// Opens the folders.
pub fn open(folders: &[FolderConfig]) -> Result<Vec<SharedFolder>, BuildError> {
    let limits = Limits::with_descriptors(descriptors() / folders.len().max(1));
    let open = |config: &FolderConfig| {
        Ok(SharedFolder { root: Root::open(&config.path)?, config: config.clone(), limits })
    };
    folders.iter().map(open).collect()
}

/// Puts the folders on the bus, behind all other devices. What they count.
pub fn attach(board: &Board) -> Result<Vec<Arc<FolderCounters>>, BuildError> {
    let folders = &board.parts.files.folders;
    let mut all = Vec::new();
    for (index, SharedFolder { root, config, limits }) in folders.iter().enumerate() {
        let options = Options {
            readonly: config.readonly,
            uid: config.uid,
            gid: config.gid,
            limits: *limits,
        };
        let folder = Folder::new(root.clone(), options).map_err(BuildError::Event)?;
        let counters = Arc::<FolderCounters>::default();
        let memory = board.parts.memory.clone();
        let device = virtio::fs(&FolderConfig::tag(index), folder, counters.clone(), memory)?;
        board.pci.add(None, Box::new(device))?;
        all.push(counters);
    }
    Ok(all)
}

/// How many descriptors there are for all folders together: half of what the process may have, so that a
/// guest cannot take those of its other devices.
fn descriptors() -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 2).unwrap_or(usize::MAX).clamp(64, MAX_DESCRIPTORS)
}

/// More than these only cost memory of the host's kernel.
const MAX_DESCRIPTORS: usize = 16384;
