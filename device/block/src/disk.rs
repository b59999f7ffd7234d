//! What a block device reads and writes.

use std::fs::File;
use std::io;
use std::ops::Range;

/// An open disk image. Offsets and lengths are in bytes; a request that leaves the disk is an
/// error, not a truncation. Several workers may call at once: requests that do not overlap never
/// disturb each other, the outcome of overlapping ones is one or the other of them per sector.
pub trait Disk: Send + Sync {
    /// The size of the disk in bytes; a multiple of 512.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn is_readonly(&self) -> bool;

    /// Fills `data` from `offset`.
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// If `len` bytes from `offset` on lie in a file of the host as they are, calls `read` with that file and
    /// the place there, and returns whether it did. They stay there meanwhile. So they can be read to where
    /// they are wanted at once; whoever can't tell leaves it to [`read_at`](Self::read_at).
    fn read_in_file(
        &self,
        offset: u64,
        len: u64,
        read: &mut dyn FnMut(&File, u64) -> io::Result<()>,
    ) -> io::Result<bool> {
        let _ = (offset, len, read);
        Ok(false)
    }

    /// The next range from `offset` on that may hold anything but zeroes, if there is one before the
    /// disk's end. Whoever can't tell takes everything for data.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let size = self.size();
        Ok((offset < size).then_some(offset..size))
    }

    /// Writes `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns once all writes that were complete before are on stable storage. After it failed
    /// once it always fails: the host may have dropped the data that it could not write.
    fn flush(&self) -> io::Result<()>;

    /// Gives `len` bytes at `offset` back to the host; they may read as anything afterwards.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes `len` bytes at `offset` read as zeroes; with `unmap`, gives the room back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}

/// The unit in which guests address disks, and of which every disk's size is a multiple.
pub(crate) const SECTOR: u64 = 512;

/// Refuses a request that leaves a disk of `size` bytes.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a request for {len} bytes at {offset} leaves the disk of {size} bytes"),
        )),
    }
}

/// The error of a write to a read-only disk.
pub(crate) fn readonly() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the disk is read-only")
}

/// Writes zeroes as data, piece by piece, where there is no better way.
pub(crate) fn write_zeroes(
    mut offset: u64,
    mut len: u64,
    mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    while len > 0 {
        let piece = len.min(ZEROES.len() as u64);
        write(offset, ZEROES.get(..piece as usize).unwrap_or(&ZEROES))?;
        offset += piece;
        len -= piece;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_stay_on_the_disk() {
        assert!(check_range(0, 0, 0).is_ok());
        assert!(check_range(512, 512, 1024).is_ok());
        assert!(check_range(1024, 0, 1024).is_ok());
        assert!(check_range(513, 512, 1024).is_err());
        assert!(check_range(u64::MAX, 2, u64::MAX).is_err());
    }
}
