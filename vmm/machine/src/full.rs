//! Disks that the host has no room for.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use runtime::Event;
use virtio::WhenFull;

/// The images that a request could not be carried out on, because the host has no room for more.
pub struct FullDisks {
    images: Mutex<BTreeSet<PathBuf>>,
    event: Event,
}

impl FullDisks {
    /// None.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { images: Mutex::default(), event: Event::new()? }))
    }

    /// What a disk says whose image is this.
    pub fn watch(self: &Arc<Self>, image: &Path) -> WhenFull {
        let (all, image) = (self.clone(), image.to_owned());
        WhenFull::new(move || {
            all.images.lock().unwrap_or_else(PoisonError::into_inner).insert(image.clone());
            all.event.signal();
        })
    }

    /// Those that were found full since this was last asked.
    pub fn take(&self) -> BTreeSet<PathBuf> {
        self.event.clear();
        std::mem::take(&mut *self.images.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Readable when [`FullDisks::take`] has something.
impl AsFd for FullDisks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
