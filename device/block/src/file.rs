//! The host file or block device under an image.

use crate::disk::write_zeroes;
use crate::error::{Cause, Error};
use crate::lock::{self, Refused};
use rustix::fs::{FallocateFlags, fallocate, seek};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// An open and locked host file or block device. Reads past its end give zeroes.
#[derive(Debug)]
pub(crate) struct HostFile {
    file: File,
    path: PathBuf,
    /// A sync failed: the kernel has dropped dirty pages, and a later sync that succeeds would
    /// say nothing about them (fsync(2), `EIO`).
    lost_writes: AtomicBool,
    /// What reached the file and when it was synced, for the test of power failures.
    #[cfg(test)]
    pub(crate) journal: std::sync::Mutex<Vec<Event>>,
    /// Lets a test limit how much the file takes on the host, in bytes.
    #[cfg(test)]
    pub(crate) room: std::sync::atomic::AtomicU64,
    /// Lets a test hold up the next sync: waited for twice.
    #[cfg(test)]
    pub(crate) gate: std::sync::Mutex<Option<std::sync::Arc<std::sync::Barrier>>>,
}

/// An entry of the journal.
#[cfg(test)]
#[derive(Debug)]
pub(crate) enum Event {
    Write(u64, Vec<u8>),
    Sync,
}

/// What tells one host file from another, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

/// Opens `path`, which is not locked yet.
pub(crate) fn open_file(path: &Path, writable: bool) -> Result<File, Error> {
    let kind = fs::metadata(path).map_err(|e| Error::host(path, "open", e))?.file_type();
    check_kind(path, kind)?;
    // Non-blocking, lest a FIFO put in the file's place just now hang us. On a block device,
    // O_EXCL (open(2)) is the kernel's own claim: it fails while the device is mounted.
    let mut flags = libc::O_NONBLOCK;
    if writable && kind.is_block_device() {
        flags |= libc::O_EXCL;
    }
    fs::OpenOptions::new()
        .read(true)
        .write(writable)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| Error::host(path, if writable { "open for writing" } else { "open" }, e))
}

/// Refuses what cannot be an image.
fn check_kind(path: &Path, kind: fs::FileType) -> Result<(), Error> {
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let what = if kind.is_dir() { "a directory" } else { "neither a file nor a block device" };
    Err(Error::new(
        Cause::Misconfigured,
        path,
        format!("it is {what}"),
        "name a disk image or a block device",
    ))
}

/// Opens and locks an image by its path, for writing or not.
pub(crate) type Opener<'a> = dyn Fn(&Path, bool) -> Result<HostFile, Error> + 'a;

impl HostFile {
    /// Opens and locks `path`.
    pub(crate) fn open(path: &Path, writable: bool) -> Result<Self, Error> {
        Self::new(open_file(path, writable)?, path).locked(writable)
    }

    /// Takes a file that somebody has opened, who says that it is `path`, and locks it.
    pub(crate) fn given(file: File, path: &Path, writable: bool) -> Result<Self, Error> {
        let kind = file.metadata().map_err(|e| Error::host(path, "look at", e))?.file_type();
        check_kind(path, kind)?;
        Self::new(file, path).locked(writable)
    }

    fn locked(self, writable: bool) -> Result<Self, Error> {
        let path = self.path.as_path();
        match lock::lock(&self.file, writable) {
            Ok(()) => {}
            Err(Refused::Busy) => {
                return Err(Error::new(
                    Cause::Busy,
                    path,
                    "another process uses it",
                    "stop the guest or tool that has it open; `lsof` tells which it is",
                ));
            }
            // Some network and FUSE file systems have no locks at all.
            Err(Refused::Host(e))
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL)
                ) =>
            {
                tracing::warn!(
                    image = %path.display(), error = %e,
                    "the file system cannot lock this image: nothing keeps another program off it"
                );
            }
            Err(Refused::Host(e)) => return Err(Error::host(path, "lock", e)),
        }
        Ok(self)
    }

    /// Opens `path` to look at it, and says whether somebody writes to it at this moment.
    pub(crate) fn peek(path: &Path) -> Result<(Self, bool), Error> {
        let host = Self::new(open_file(path, false)?, path);
        let busy = matches!(lock::lock(&host.file, false), Err(Refused::Busy));
        lock::unlock(&host.file);
        Ok((host, busy))
    }

    fn new(file: File, path: &Path) -> Self {
        HostFile {
            file,
            path: path.to_owned(),
            lost_writes: AtomicBool::new(false),
            #[cfg(test)]
            journal: Default::default(),
            #[cfg(test)]
            room: u64::MAX.into(),
            #[cfg(test)]
            gate: Default::default(),
        }
    }

    /// The path that the file was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What tells this file from others.
    pub(crate) fn identity(&self) -> Result<Identity, Error> {
        let metadata = self.file.metadata().map_err(|e| Error::host(&self.path, "stat", e))?;
        Ok(if metadata.file_type().is_block_device() {
            // A device has many nodes (`/dev/dm-0`, `/dev/mapper/x`) but one number. No file
            // system has device number 0.
            Identity { device: 0, inode: metadata.rdev() }
        } else {
            Identity { device: metadata.dev(), inode: metadata.ino() }
        })
    }

    /// The size in bytes.
    pub(crate) fn len(&self) -> io::Result<u64> {
        // lseek(2) finds the end of files and block devices alike. The position itself is unused.
        (&self.file).seek(SeekFrom::End(0))
    }

    /// How many bytes it takes on the host; of a block device, what the device has.
    pub(crate) fn allocated(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata().map_err(|e| Error::host(&self.path, "stat", e))?;
        // stat(2): blocks of 512 bytes, whatever the file system's block size.
        if metadata.is_file() { Ok(metadata.blocks() * 512) } else { self.measure() }
    }

    /// The size in bytes, or an error that names the file.
    pub(crate) fn measure(&self) -> Result<u64, Error> {
        self.len().map_err(|e| Error::host(&self.path, "measure", e))
    }

    /// Makes a file `len` bytes long, on stable storage. What is new reads as zeroes.
    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.file.sync_all()
    }

    /// Whether this is a file, whose length can be changed.
    pub(crate) fn is_file(&self) -> Result<bool, Error> {
        self.file.metadata().map(|m| m.is_file()).map_err(|e| Error::host(&self.path, "stat", e))
    }

    /// The next range from `offset` on that is no hole, if there is one.
    pub(crate) fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        use rustix::fs::SeekFrom::{Data, Hole};
        use rustix::io::Errno;
        match seek(&self.file, Data(offset)) {
            Ok(start) => Ok(Some(start..seek(&self.file, Hole(start))?)),
            // lseek(2): there is no more data.
            Err(Errno::NXIO) => Ok(None),
            // A file system or device that can't tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let len = self.len()?;
                Ok((offset < len).then_some(offset..len))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The file itself, to read from.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Fills `data` from `offset`.
    pub(crate) fn read_at(&self, mut offset: u64, mut data: &mut [u8]) -> io::Result<()> {
        while !data.is_empty() {
            match self.file.read_at(data, offset) {
                Ok(0) => {
                    data.fill(0);
                    break;
                }
                Ok(n) => {
                    data = data.get_mut(n..).unwrap_or_default();
                    offset = offset.saturating_add(n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes `data` at `offset`, growing a file if need be.
    pub(crate) fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        let data = {
            let used = self.file.metadata()?.blocks() * 512;
            let room = self.room.load(Ordering::Relaxed).saturating_sub(used);
            let (fits, rest) = data.split_at(data.len().min(room.try_into().unwrap_or(usize::MAX)));
            if !rest.is_empty() {
                // As write(2) does: what there is room for is written.
                self.file.write_all_at(fits, offset)?;
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.record(Event::Write(offset, data.to_vec()));
            data
        };
        self.file.write_all_at(data, offset)
    }

    #[cfg(test)]
    fn record(&self, event: Event) {
        self.journal.lock().unwrap().push(event);
    }

    /// Returns once everything written is on stable storage.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if self.lost_writes.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "an earlier flush failed; what was written before it may be lost",
            ));
        }
        #[cfg(test)]
        if let Some(gate) = self.gate.lock().unwrap().take() {
            gate.wait();
            gate.wait();
        }
        self.file.sync_data().inspect_err(|_| self.lost_writes.store(true, Ordering::Release))?;
        #[cfg(test)]
        self.record(Event::Sync);
        Ok(())
    }

    /// Gives the room of a range back to the host, if it can take it. The range reads as zeroes or
    /// as before.
    pub(crate) fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::PUNCH_HOLE, offset, len).map(drop)
    }

    /// Makes a range within the file read as zeroes; with `unmap`, gives its room back.
    pub(crate) fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap && self.fallocate(FallocateFlags::PUNCH_HOLE, offset, len)?
            || self.fallocate(FallocateFlags::ZERO_RANGE, offset, len)?
        {
            return Ok(());
        }
        write_zeroes(offset, len, |offset, zeroes| self.write_at(offset, zeroes))
    }

    /// Whether the host did it; `false` when this file system or device can't.
    fn fallocate(&self, how: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        use rustix::io::Errno;
        if len == 0 {
            return Ok(true);
        }
        loop {
            match fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => {
                    // Both kinds that are used leave zeroes.
                    #[cfg(test)]
                    self.record(Event::Write(offset, vec![0; len as usize]));
                    return Ok(true);
                }
                Err(Errno::INTR) => {}
                // EINVAL: a block device whose sectors are larger than the request's alignment.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => {
                    return Ok(false);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        lock::unlock(&self.file);
    }
}
