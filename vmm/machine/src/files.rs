//! What a machine has open of the host's files.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use vmm_api::{Failure, VmConfig};

use crate::BuildError;
use crate::boot::BootFiles;
use crate::wiring::folders::{self, SharedFolder};
use crate::wiring::storage::{self, AttachedDisk, MadeFiles};

/// The files that a machine starts from, its disks and the folders that it shares. They stay open over resets: a VMM that has confined
/// itself could not open them again.
pub struct Files {
    pub(crate) boot: BootFiles,
    pub(crate) disks: Vec<AttachedDisk>,
    pub(crate) folders: Vec<SharedFolder>,
    /// The images that disks stand on.
    backing: Vec<PathBuf>,
    /// What is kept once the machine is there.
    made: Mutex<Option<MadeFiles>>,
}

impl Files {
    /// Opens what the configuration names. `restored`: for each disk, the layer that it stands on in the
    /// machine that was saved.
    ///
    /// # Errors
    ///
    /// One is missing, in use or damaged.
    pub fn open(
        config: &VmConfig,
        restored: Option<&[Option<String>]>,
    ) -> Result<Self, BuildError> {
        let boot = BootFiles::open(&config.boot)?;
        let folders = folders::open(&config.folders)?;
        let mut made = MadeFiles::default();
        let mut backing = Vec::new();
        let mut disks = Vec::new();
        for (index, disk) in config.disks.iter().enumerate() {
            let layer = restored.and_then(|layers| layers.get(index)?.as_deref());
            disks.push(storage::open(disk, layer, &mut made, &mut backing)?);
        }
        Ok(Self { boot, disks, folders, backing, made: Mutex::new(Some(made)) })
    }

    /// What may have to be opened for reading again: the images that overlays stand on.
    pub fn backing(&self) -> impl Iterator<Item = &Path> {
        self.backing.iter().map(PathBuf::as_path)
    }

    /// The folders that the guest shares, and whether it may only read.
    pub fn folders(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        self.folders.iter().map(|folder| (folder.root.as_fd(), folder.config.readonly))
    }

    /// The machine is there and stays: files that were made for it do as well, and what its disks were before
    /// it was restored is gone. Harmless if that was said before.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn keep(&self) -> Result<(), Failure> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(made.map_or(Ok(()), MadeFiles::keep)?)
    }
}
