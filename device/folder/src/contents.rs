//! The contents of files.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom, openat2};
use rustix::io::{Errno, ReadWriteFlags, Result, pread, pwrite, pwritev2};

use crate::attributes::checked_mode;
use crate::handles::Handle;
use crate::nodes::{BENEATH, kind, stat};
use crate::serve::{Folder, MAX_DATA};
use crate::spec::{FSYNC_FDATASYNC, WRITE_CACHE};
use crate::wire::{Fields, Reply};

/// What of the client's flags means something here. O_APPEND comes with each write.
const OPEN_FLAGS: OFlags =
    OFlags::ACCMODE.union(OFlags::TRUNC).union(OFlags::SYNC).union(OFlags::DSYNC);
/// What only happens when a file is opened.
const ONCE: OFlags = OFlags::TRUNC;
/// So much is copied at once, so that no request takes for ever. The client asks for the rest.
const MAX_COPY: u64 = 64 << 20;

/// lseek(2).
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Folder {
    /// Opens the contents of a file that a node's descriptor stands for.
    pub(crate) fn open_contents(&self, file: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
        match kind(&stat(file)?) {
            FileType::RegularFile => self.root.reopen(file, flags),
            FileType::Directory => Err(Errno::ISDIR),
            FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::ACCESS),
        }
    }

    fn checked_flags(&self, flags: u32) -> Result<OFlags> {
        let flags = OFlags::from_bits_retain(flags) & OPEN_FLAGS;
        let access = flags & OFlags::ACCMODE;
        if access == OFlags::ACCMODE {
            return Err(Errno::INVAL);
        }
        if access != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            self.check_writable()?;
        }
        Ok(flags)
    }

    /// `struct fuse_open_in`.
    pub(crate) fn open(&mut self, node: u64, fields: &mut Fields, reply: &mut Reply) -> Result<()> {
        let flags = self.checked_flags(fields.u32()?)?;
        self.handles.check_room()?;
        let file = self.nodes.descriptor(node)?;
        let file = self.open_contents(file.as_fd(), flags)?;
        let handle = self.add_handle(node, flags - ONCE, file);
        self.opened(handle, reply)
    }

    /// `struct fuse_open_out`.
    pub(crate) fn opened(&mut self, handle: u64, reply: &mut Reply) -> Result<()> {
        let told = reply.u64(handle).and_then(|()| reply.u64(0));
        told.inspect_err(|_| self.close(handle))
    }

    pub(crate) fn add_handle(&mut self, node: u64, flags: OFlags, file: OwnedFd) -> u64 {
        self.nodes.count_handle(node, true);
        self.handles.add(Handle { node, flags, file: Some(file), position: 0 })
    }

    fn close(&mut self, handle: u64) {
        if let Ok(handle) = self.handles.remove(handle) {
            self.nodes.count_handle(handle.node, false);
        }
    }

    /// `struct fuse_create_in`.
    pub(crate) fn create(
        &mut self,
        parent: u64,
        fields: &mut Fields,
        reply: &mut Reply,
    ) -> Result<()> {
        self.check_writable()?;
        let (raw_flags, raw_mode) = (fields.u32()?, fields.u32()?);
        fields.skip(8)?;
        let name = fields.name()?;
        let flags = self.checked_flags(raw_flags)?;
        let mode = checked_mode(raw_mode, FileType::RegularFile)?;
        self.handles.check_room()?;
        let directory = self.nodes.descriptor(parent)?;
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat2(directory.as_fd(), name, flags | new, mode, BENEATH);
        let (node, stat, file) = match made {
            Ok(file) => {
                // The very file that was made, whatever became of its name.
                let known = self.root.reopen(file.as_fd(), OFlags::PATH)?;
                let (node, _) = self.nodes.add(parent, name, known)?;
                let stat = self.complete_mode(node, mode);
                (node, stat, Ok(file))
            }
            // Somebody on the host was first.
            Err(Errno::EXIST) if raw_flags & OFlags::EXCL.bits() == 0 => {
                let (node, now) = self.nodes.look_up(parent, name)?;
                let known = self.nodes.descriptor(node);
                (node, Ok(now), known.and_then(|known| self.open_contents(known.as_fd(), flags)))
            }
            Err(error) => return Err(error),
        };
        let told = stat.and_then(|stat| self.entry(node, &stat, reply)).and_then(|()| {
            let handle = self.add_handle(node, flags - ONCE, file?);
            self.opened(handle, reply)
        });
        told.inspect_err(|_| self.nodes.forget(node, 1))
    }

    /// The file of a handle, opened again if it was restored.
    pub(crate) fn open_file(&mut self, handle: u64) -> Result<BorrowedFd<'_>> {
        let it = self.handles.get_mut(handle)?;
        if it.file.is_none() {
            let (node, flags) = (it.node, it.flags);
            let known = self.nodes.descriptor(node)?;
            let file = match flags.contains(OFlags::DIRECTORY) {
                true => self.root.reopen(known.as_fd(), flags),
                false => self.open_contents(known.as_fd(), flags),
            }?;
            self.handles.get_mut(handle)?.file = Some(file);
        }
        self.handles.get_mut(handle)?.file.as_ref().map(AsFd::as_fd).ok_or(Errno::STALE)
    }

    /// Whether there is a handle of this node.
    pub(crate) fn handle_is_of(&mut self, handle: u64, node: u64) -> bool {
        self.handles.get_mut(handle).is_ok_and(|handle| handle.node == node)
    }

    /// `struct fuse_read_in`. The value is how many bytes were read.
    pub(crate) fn read(&mut self, fields: &mut Fields, reply: &mut Reply) -> Result<usize> {
        let (handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let file = self.open_file(handle)?;
        reply.fill((size as usize).min(MAX_DATA), |room| {
            let mut done = 0;
            while done < room.len() {
                let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
                match pread(file, room.get_mut(done..).unwrap_or_default(), at) {
                    Ok(0) => break,
                    Ok(count) => done += count,
                    Err(Errno::INTR) => {}
                    Err(_) if done > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(done)
        })
    }

    /// `struct fuse_write_in`. The value is how many bytes were written.
    pub(crate) fn write(&mut self, fields: &mut Fields, reply: &mut Reply) -> Result<usize> {
        self.check_writable()?;
        let (handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let write_flags = fields.u32()?;
        fields.skip(8)?;
        let flags = OFlags::from_bits_retain(fields.u32()?);
        fields.skip(4)?;
        let data = std::mem::replace(fields, Fields::new(&[])).rest();
        if data.len() != size as usize {
            return Err(Errno::INVAL);
        }
        // Where the end is, the host knows best. But a page that was mapped goes where it belongs.
        let appends = flags.contains(OFlags::APPEND) && write_flags & WRITE_CACHE == 0;
        let file = self.open_file(handle)?;
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            let result = match appends {
                true => pwritev2(file, &[IoSlice::new(rest)], 0, ReadWriteFlags::APPEND),
                false => pwrite(file, rest, at),
            };
            match result {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        reply.u32(done as u32)?; // at most `size`
        reply.u32(0)?;
        Ok(done)
    }

    /// `struct fuse_release_in`.
    pub(crate) fn release(&mut self, fields: &mut Fields) -> Result<()> {
        let handle = self.handles.remove(fields.u64()?)?;
        self.nodes.count_handle(handle.node, false);
        Ok(())
    }

    /// `struct fuse_fsync_in`.
    pub(crate) fn sync(&mut self, fields: &mut Fields) -> Result<()> {
        let (handle, flags) = (fields.u64()?, fields.u32()?);
        let file = self.open_file(handle)?;
        match flags & FSYNC_FDATASYNC {
            0 => rustix::fs::fsync(file),
            _ => rustix::fs::fdatasync(file),
        }
    }

    /// `struct fuse_fallocate_in`.
    pub(crate) fn allocate(&mut self, fields: &mut Fields) -> Result<()> {
        self.check_writable()?;
        let (handle, offset, len) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let mode = FallocateFlags::from_bits_retain(fields.u32()?);
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::fallocate(self.open_file(handle)?, mode, offset, len)
    }

    /// `struct fuse_lseek_in`.
    pub(crate) fn seek(&mut self, fields: &mut Fields, reply: &mut Reply) -> Result<()> {
        let (handle, offset, whence) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let to = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        reply.u64(rustix::fs::seek(self.open_file(handle)?, to)?)
    }

    /// `struct fuse_copy_file_range_in`.
    pub(crate) fn copy_range(&mut self, fields: &mut Fields, reply: &mut Reply) -> Result<()> {
        self.check_writable()?;
        let (from, mut from_offset) = (fields.u64()?, fields.u64()?);
        fields.skip(8)?;
        let (to, mut to_offset) = (fields.u64()?, fields.u64()?);
        let (len, flags) = (fields.u64()?, fields.u64()?);
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        self.open_file(to)?;
        let from = self.open_file(from)?.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        let to = self.open_file(to)?;
        let len = len.min(MAX_COPY) as usize;
        let copied = rustix::fs::copy_file_range(
            from,
            Some(&mut from_offset),
            to,
            Some(&mut to_offset),
            len,
        )?;
        reply.u32(copied as u32)?; // at most MAX_COPY
        reply.u32(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_opened_for_is_left() {
        assert!(!(OPEN_FLAGS - ONCE).contains(OFlags::TRUNC));
        assert!(!OPEN_FLAGS.intersects(OFlags::CREATE | OFlags::PATH | OFlags::DIRECT));
    }
}
