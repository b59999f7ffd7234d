//! A disk whose image can be exchanged for another with the same contents.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use crate::Disk;

/// A disk in front of an image that may be exchanged while the guest has the disk: for an overlay of
/// it, so that the image stays as it is from then on.
pub struct Switch {
    /// `None` after an exchange that failed.
    image: RwLock<Option<Arc<dyn Disk>>>,
    size: u64,
    readonly: bool,
}

impl Switch {
    /// A disk that shows this image.
    pub fn new(image: Arc<dyn Disk>) -> Self {
        let (size, readonly) = (image.size(), image.is_readonly());
        Self { image: RwLock::new(Some(image)), size, readonly }
    }

    /// Closes the image, which has been flushed, and goes on with what `next` opens, which must read the same. Where
    /// `next` fails, the disk has no image any more, and all its requests fail, until this is called
    /// again. Requests wait meanwhile.
    ///
    /// # Errors
    ///
    /// That of `next`.
    pub fn exchange<E>(&self, next: impl FnOnce() -> Result<Arc<dyn Disk>, E>) -> Result<(), E> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        // Its locks are released with it.
        *image = None;
        *image = Some(next()?);
        Ok(())
    }

    fn with(&self, act: impl FnOnce(&dyn Disk) -> io::Result<()>) -> io::Result<()> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        match &*image {
            Some(image) => act(&**image),
            None => Err(io::Error::other("the disk's image could not be opened again")),
        }
    }
}

impl Disk for Switch {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_readonly(&self) -> bool {
        self.readonly
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.with(|image| image.read_at(offset, data))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|image| image.write_at(offset, data))
    }

    fn flush(&self) -> io::Result<()> {
        self.with(|image| image.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.with(|image| image.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.with(|image| image.write_zeroes(offset, len, unmap))
    }
}
