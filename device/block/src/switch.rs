//! A disk whose image can be exchanged for another with the same contents.

use std::fs::File;
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

    fn with<T>(&self, act: impl FnOnce(&dyn Disk) -> io::Result<T>) -> io::Result<T> {
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

    fn read_in_file(
        &self,
        offset: u64,
        len: u64,
        read: &mut dyn FnMut(&File, u64) -> io::Result<()>,
    ) -> io::Result<bool> {
        self.with(|image| image.read_in_file(offset, len, read))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, Format, OpenOptions, create_qcow2, open, open_overlay};
    use std::fs;

    /// What a snapshot does: the image gets another name, and an overlay takes its place.
    #[test]
    fn a_disk_goes_on_in_an_overlay_and_its_directory_can_be_moved() {
        let home = tempfile::tempdir().unwrap();
        let guest = home.path().join("guest");
        fs::create_dir(&guest).unwrap();
        let base = home.path().join("base.raw");
        fs::write(&base, vec![b'b'; 1 << 20]).unwrap();
        let base = OpenOptions::new(&base).format(Format::Raw);
        let (disk, layer, next) =
            (guest.join("disk.qcow2"), guest.join("layer.qcow2"), guest.join("next"));
        let switch = Switch::new(open_overlay(&disk, &base).unwrap());
        switch.write_at(0, &[b'1'; 512]).unwrap();
        switch.flush().unwrap();
        switch
            .exchange(|| {
                fs::hard_link(&disk, &layer).unwrap();
                let backing =
                    Backing { path: layer.clone(), relative: true, format: Format::Qcow2 };
                create_qcow2(&next, switch.size, Some(&backing)).unwrap();
                let image = open(&OpenOptions::new(&next).format(Format::Qcow2))?;
                fs::rename(&next, &disk).unwrap();
                Ok::<_, crate::Error>(image)
            })
            .unwrap();
        switch.write_at(512, &[b'2'; 512]).unwrap();
        let mut sectors = [0; 1536];
        switch.read_at(0, &mut sectors).unwrap();
        assert_eq!([sectors[0], sectors[512], sectors[1024]], *b"12b");

        // An exchange that fails leaves a disk that says so, until one succeeds.
        assert_eq!(switch.exchange(|| Err::<Arc<dyn Disk>, _>("no")), Err("no"));
        assert!(switch.read_at(0, &mut sectors).is_err() && switch.flush().is_err());
        switch.exchange(|| open_overlay(&disk, &base)).unwrap();
        switch.read_at(0, &mut sectors).unwrap();
        assert_eq!([sectors[0], sectors[512], sectors[1024]], *b"12b");
        drop(switch);

        let moved = home.path().join("moved");
        fs::rename(&guest, &moved).unwrap();
        let disk = open_overlay(&moved.join("disk.qcow2"), &base).unwrap();
        disk.read_at(0, &mut sectors).unwrap();
        assert_eq!([sectors[0], sectors[512], sectors[1024]], *b"12b");
        drop(disk);
        let layer = open(&OpenOptions::new(moved.join("layer.qcow2")).readonly(true)).unwrap();
        layer.read_at(0, &mut sectors).unwrap();
        assert_eq!([sectors[0], sectors[512], sectors[1024]], *b"1bb");
        let other = home.path().join("other.raw");
        fs::write(&other, vec![0; 1 << 20]).unwrap();
        assert!(open_overlay(&moved.join("disk.qcow2"), &OpenOptions::new(&other)).is_err());
        // A file elsewhere has no relative name.
        let backing = Backing { path: other, relative: true, format: Format::Raw };
        assert!(create_qcow2(&moved.join("x.qcow2"), 1 << 20, Some(&backing)).is_err());
    }
}
