//! A qcow2 image as a disk.

use super::header::{self, Header};
use super::storage::{ImageFile, WriteOrder};
use crate::disk::{Disk, check_range, readonly, write_zeroes};
use crate::file::HostFile;
use imago::format::PreallocateMode;
use imago::{FormatAccess, Mapping, ShallowMapping};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// imago's image over our files.
pub(super) type Image = FormatAccess<ImageFile>;

/// An open qcow2 image.
pub(crate) struct Qcow2Disk {
    /// Reads, writes and flushes share the image. What unmaps clusters has it alone: imago asks for
    /// that when it discards, and when it zeroes a part of a cluster it looks at the rest and then
    /// marks the whole, which would lose a write that comes between. So has what makes a new L2
    /// table, see `with_room_for_tables`.
    image: RwLock<Option<Image>>,
    host: Arc<HostFile>,
    size: u64,
    /// Present if the image may be written.
    order: Option<Arc<WriteOrder>>,
    cluster_size: u64,
    /// How long the backing file's disk is; 0 without one.
    backing_size: u64,
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
        (size, backing_size): (u64, u64),
        order: Option<Arc<WriteOrder>>,
    ) -> Self {
        Qcow2Disk {
            image: RwLock::new(Some(image)),
            host,
            size,
            order,
            cluster_size: 1 << header.cluster_bits,
            backing_size,
            zero_clusters: header.version >= 3,
            failed: AtomicBool::new(false),
        }
    }

    /// The file under the image, for the test of power failures.
    #[cfg(test)]
    pub(super) fn host(&self) -> &HostFile {
        &self.host
    }

    /// Makes the disk `size` bytes long, a multiple of 512, in an image that can say that clusters read
    /// as zeroes. What is new reads as zeroes. The image is on stable storage then.
    pub(super) fn resize(self, size: u64) -> io::Result<()> {
        let old = self.size;
        if size < old {
            self.shrink(size)?;
        } else {
            // Where the backing file goes on it must not show.
            let hidden = size.min(self.backing_size);
            self.alone(|image| {
                if hidden > old {
                    image.resize_grow(hidden, PreallocateMode::Zero)?;
                }
                image.resize_grow(size, PreallocateMode::None)
            })?;
        }
        self.flush()
    }

    /// imago's own way would make L2 tables for all of a disk, however empty, to note that nothing is there.
    fn shrink(&self, size: u64) -> io::Result<()> {
        // Zeroes, lest the rest of the last cluster come back if the disk grows again.
        let whole = size.next_multiple_of(self.cluster_size).min(self.size);
        self.write_zeroes(size, whole - size, false)?;
        let mut freed = Vec::new();
        for piece in self.pieces(whole, self.size - whole)? {
            if piece.order.has_l2_table(piece.offset) {
                self.alone(|image| {
                    freed.extend(self.owned_extents(image, piece.offset, piece.len)?);
                    image.discard_to_backing(piece.offset, piece.len)
                })?;
            }
        }
        self.flush()?;
        freed.into_iter().try_for_each(|(offset, len)| self.host.punch_hole(offset, len))?;
        self.host.write_at(header::SIZE_AT, &size.to_be_bytes())?;
        self.host.sync()
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

    /// Refuses a write that can't be; otherwise cuts it into pieces that need one L2 table each.
    fn pieces(&self, offset: u64, len: u64) -> io::Result<impl Iterator<Item = Piece<'_>>> {
        let order = self.order.as_deref().ok_or_else(readonly)?;
        check_range(offset, len, self.size)?;
        let cut = cut(offset, len, order.l2_reach());
        Ok(cut.map(move |(offset, len)| Piece { order, offset, len }))
    }

    /// Acts alone. imago takes the cluster for a new L2 table without regard to the tables that it
    /// has yet to write, of which one may have pointed to that very cluster. If there is to be a
    /// new table, they are written first.
    fn with_room_for_tables(
        &self,
        piece: &Piece<'_>,
        act: impl FnOnce(&mut Image) -> io::Result<()>,
    ) -> io::Result<()> {
        self.alone(|image| {
            if !piece.order.has_l2_table(piece.offset) {
                image.flush()?;
            }
            act(image)
        })
    }

    fn write_piece(&self, piece: &Piece<'_>, data: &[u8]) -> io::Result<()> {
        if piece.order.has_l2_table(piece.offset) {
            self.shared(|image| image.write(data, piece.offset))
        } else {
            self.with_room_for_tables(piece, |image| image.write(data, piece.offset))
        }
    }

    /// Takes the clusters that lie wholly in a range out of the image, and gives their room back to
    /// the host; the rest of the range is zeroed if `zero` asks for it.
    fn unmap(&self, piece: &Piece<'_>, zero: bool) -> io::Result<()> {
        let Piece { offset, len, .. } = *piece;
        self.with_room_for_tables(piece, |image| {
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

/// A part of a request whose clusters are mapped by one L2 table.
struct Piece<'a> {
    order: &'a WriteOrder,
    offset: u64,
    len: u64,
}

/// Cuts a range at the multiples of `reach`.
fn cut(offset: u64, len: u64, reach: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let next = (at / reach + 1).saturating_mul(reach).min(end);
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
        self.order.is_none()
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        check_range(offset, data.len() as u64, self.size)?;
        self.shared(|image| image.read(data, offset))
    }

    fn read_in_file(
        &self,
        offset: u64,
        len: u64,
        read: &mut dyn FnMut(&File, u64) -> io::Result<()>,
    ) -> io::Result<bool> {
        check_range(offset, len, self.size)?;
        // What would move the data elsewhere waits for the image.
        self.shared(|image| match image.get_mapping(offset, len)? {
            (Mapping::Raw { storage, offset, .. }, there) if there >= len => {
                read(storage.file(), offset).map(|()| true)
            }
            _ => Ok(false),
        })
    }

    fn write_at(&self, offset: u64, mut data: &[u8]) -> io::Result<()> {
        for piece in self.pieces(offset, data.len() as u64)? {
            let (now, rest) = data.split_at(data.len().min(piece.len as usize));
            self.write_piece(&piece, now)?;
            data = rest;
        }
        Ok(())
    }

    fn next_data(&self, mut offset: u64) -> io::Result<Option<Range<u64>>> {
        while offset < self.size {
            let (is_zero, len) = self.shared(|image| {
                let (mapping, len) = image.get_mapping(offset, self.size - offset)?;
                Ok((matches!(mapping, Mapping::Zero { .. } | Mapping::Eof { .. }), len))
            })?;
            // A length of zero, which is the end, is left to whoever reads.
            let end = if len == 0 { self.size } else { offset + len };
            if !is_zero {
                return Ok(Some(offset..end));
            }
            offset = end;
        }
        Ok(None)
    }

    fn flush(&self) -> io::Result<()> {
        if self.is_readonly() {
            return Ok(());
        }
        self.shared(|image| {
            image.flush()?;
            image.sync()
        })
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let pieces = self.pieces(offset, len)?;
        // Without zero clusters, what a discarded cluster's backing file holds would show through.
        if self.zero_clusters {
            for piece in pieces {
                self.unmap(&piece, false)?;
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let pieces = self.pieces(offset, len)?;
        if !self.zero_clusters {
            return write_zeroes(offset, len, |offset, zeroes| self.write_at(offset, zeroes));
        }
        for piece in pieces {
            if unmap {
                self.unmap(&piece, true)?;
            } else {
                self.with_room_for_tables(&piece, |image| {
                    image.write_zeroes(piece.offset, piece.len)
                })?;
            }
        }
        Ok(())
    }
}

impl Drop for Qcow2Disk {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_the_range() {
        let all = |offset, len| cut(offset, len, 1000).collect::<Vec<_>>();
        assert_eq!(all(5, 0), []);
        assert_eq!(all(5, 7), [(5, 7)]);
        assert_eq!(all(990, 1020), [(990, 10), (1000, 1000), (2000, 10)]);
        assert_eq!(all(1000, 1000), [(1000, 1000)]);
        assert_eq!(all(u64::MAX - 10, 10), [(u64::MAX - 10, 10)]);
    }
}
