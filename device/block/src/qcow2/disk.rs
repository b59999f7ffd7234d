//! A qcow2 image as a disk.

use super::header::Header;
use super::storage::ImageFile;
use crate::disk::{Disk, SECTOR, check_range, readonly, write_zeroes};
use crate::file::HostFile;
use imago::{FormatAccess, ShallowMapping};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// imago's image over our files.
pub(super) type Image = FormatAccess<ImageFile>;

/// Discards go in pieces of this size, so that other requests get their turn in between.
const DISCARD_PIECE: u64 = 1 << 30;

/// An open qcow2 image.
pub(crate) struct Qcow2Disk {
    /// Reads, writes and flushes share the image. What unmaps clusters has it alone: imago asks for
    /// that when it discards, and when it zeroes a part of a cluster it looks at the rest and then
    /// marks the whole, which would lose a write that comes between.
    image: RwLock<Option<Image>>,
    host: Arc<HostFile>,
    size: u64,
    readonly: bool,
    cluster_size: u64,
    /// Whether the image can say that a cluster reads as zeroes (version 3).
    zero_clusters: bool,
    /// imago panicked. What it has in memory can't be trusted any more, so nothing more is read or
    /// written; what is on disk is as after a crash.
    failed: AtomicBool,
}

impl Qcow2Disk {
    pub(super) fn new(
        image: Image,
        host: Arc<HostFile>,
        header: &Header,
        size: u64,
        readonly: bool,
    ) -> Self {
        Qcow2Disk {
            image: RwLock::new(Some(image)),
            host,
            size,
            readonly,
            cluster_size: 1 << header.cluster_bits,
            zero_clusters: header.version >= 3,
            failed: AtomicBool::new(false),
        }
    }

    fn shared<T>(&self, act: impl FnOnce(&Image) -> io::Result<T>) -> io::Result<T> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        self.guarded(|| image.as_ref().map_or_else(closed, act))
    }

    fn alone<T>(&self, act: impl FnOnce(&mut Image) -> io::Result<T>) -> io::Result<T> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        self.guarded(|| image.as_mut().map_or_else(closed, act))
    }

    /// The metadata were checked when the image was opened, so imago should never panic. If it does
    /// all the same, the guest loses its disk, but not its other devices.
    fn guarded<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.failed.load(Ordering::Acquire) {
            return Err(failed());
        }
        catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
            self.failed.store(true, Ordering::Release);
            tracing::error!(
                image = %self.host.path().display(),
                "the qcow2 driver failed on this image, which is out of use now; check it with \
                 `qemu-img check`"
            );
            Err(failed())
        })
    }

    fn check_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.readonly {
            return Err(readonly());
        }
        check_range(offset, len, self.size)
    }

    /// Takes the clusters that lie wholly in a range out of the image, and gives their room back to
    /// the host; the rest of the range is zeroed if `zero` asks for it.
    fn unmap(&self, offset: u64, len: u64, zero: bool) -> io::Result<()> {
        self.alone(|image| {
            let freed = self.owned_extents(image, offset, len)?;
            image.discard_to_any(offset, len)?;
            // Before anything else can be put into the clusters that have become free.
            for (host_offset, len) in freed {
                self.host.punch_hole(host_offset, len)?;
            }
            if zero {
                image.write_zeroes(offset, len)?;
            }
            Ok(())
        })
    }

    /// Where the whole clusters of a range lie in the file, if they are the image's alone.
    fn owned_extents(&self, image: &Image, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut extents = Vec::new();
        let mut at = offset.next_multiple_of(self.cluster_size);
        let end = (offset + len) / self.cluster_size * self.cluster_size;
        while at < end {
            let (mapping, len) = image.get_shallow_mapping(at, end - at)?;
            if len == 0 {
                break;
            }
            if let ShallowMapping::Raw { offset, writable: true, .. } = mapping {
                extents.push((offset, len));
            }
            at += len;
        }
        Ok(extents)
    }
}

/// Cuts a range where pieces of `DISCARD_PIECE` end.
fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let next = (at / DISCARD_PIECE + 1).saturating_mul(DISCARD_PIECE).min(end);
        let piece = (at < end).then_some((at, next.saturating_sub(at)));
        at = next;
        piece
    })
}

fn closed<T>() -> io::Result<T> {
    Err(io::Error::other("the image is closed"))
}

fn failed() -> io::Error {
    io::Error::other("the image is out of use, since the qcow2 driver failed on it")
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_readonly(&self) -> bool {
        self.readonly
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        check_range(offset, data.len() as u64, self.size)?;
        self.shared(|image| image.read(data, offset))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_write(offset, data.len() as u64)?;
        self.shared(|image| image.write(data, offset))
    }

    fn flush(&self) -> io::Result<()> {
        if self.readonly {
            return Ok(());
        }
        self.shared(|image| {
            image.flush()?;
            image.sync()
        })
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        // Without zero clusters, what a discarded cluster's backing file holds would show through.
        if self.zero_clusters {
            for (offset, len) in pieces(offset, len) {
                self.unmap(offset, len, false)?;
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check_write(offset, len)?;
        if !self.zero_clusters {
            return write_zeroes(offset, len, |offset, zeroes| {
                self.shared(|image| image.write(zeroes, offset))
            });
        }
        for (offset, len) in pieces(offset, len) {
            if unmap {
                self.unmap(offset, len, true)?;
            } else {
                self.alone(|image| image.write_zeroes(offset, len))?;
            }
        }
        Ok(())
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        if !self.readonly
            && let Err(error) = self.flush()
        {
            tracing::error!(
                image = %self.host.path().display(), %error,
                "cannot write the image's tables on closing; clusters may be leaked, and what was \
                 not flushed may be lost"
            );
        }
        let image = self.image.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.failed.load(Ordering::Acquire) {
            // Dropping it would flush it.
            std::mem::forget(image);
        }
    }
}

const _: () = assert!(DISCARD_PIECE.is_multiple_of(SECTOR));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_the_range() {
        let all = |offset, len| pieces(offset, len).collect::<Vec<_>>();
        assert_eq!(all(5, 0), []);
        assert_eq!(all(5, 7), [(5, 7)]);
        assert_eq!(
            all(DISCARD_PIECE - 512, DISCARD_PIECE + 1024),
            [(DISCARD_PIECE - 512, 512), (DISCARD_PIECE, DISCARD_PIECE), (2 * DISCARD_PIECE, 512)]
        );
    }
}
