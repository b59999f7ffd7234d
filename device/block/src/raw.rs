//! Raw images: the bytes of the disk as they are.

use crate::disk::{Disk, SECTOR, check_range, readonly};
use crate::error::{Cause, Error};
use crate::file::HostFile;
use crate::probe::{PROBE_LEN, Probed, probe};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, Once, PoisonError};

/// A raw image, or a block device.
pub(crate) struct RawDisk {
    host: HostFile,
    size: u64,
    readonly: bool,
    /// Present if the format was guessed: then the guest may not make the first sector the header
    /// of another format. Serialises the writes that touch that sector.
    guarded_header: Option<Mutex<()>>,
    /// Tells of the first refused write; a guest could fill the log.
    told: Once,
}

impl RawDisk {
    /// Serves `host`; `guessed` says that its format was not told but probed.
    pub(crate) fn new(host: HostFile, readonly: bool, guessed: bool) -> Result<Self, Error> {
        let len = host.len().map_err(|e| Error::host(host.path(), "measure", e))?;
        let size = disk_size(&host, len, readonly)?;
        Ok(RawDisk {
            host,
            size,
            readonly,
            guarded_header: guessed.then(|| Mutex::new(())),
            told: Once::new(),
        })
    }

    fn check_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.readonly {
            return Err(readonly());
        }
        check_range(offset, len, self.size)
    }

    /// Writes that touch the first sector of an image whose format was guessed.
    fn write_guarded(&self, lock: &Mutex<()>, offset: u64, data: &[u8]) -> io::Result<()> {
        let _lock = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sector = [0; PROBE_LEN];
        self.host.read_at(0, &mut sector)?;
        for (old, new) in sector.iter_mut().skip(offset as usize).zip(data) {
            *old = *new;
        }
        if probe(&sector) != Probed::Raw {
            self.told.call_once(|| {
                tracing::warn!(
                    image = %self.host.path().display(),
                    "refused a write that makes this raw disk look like another image format; to allow \
                     it, say that the format is raw"
                )
            });
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the write would turn a disk whose format was guessed into an image of another \
                 format; to allow it, say that the format is raw",
            ));
        }
        self.host.write_at(offset, data)
    }
}

/// The size of a disk that is `len` bytes long. The guest counts in sectors: where it only reads, a
/// last sector that is cut short is filled with zeroes; where it writes, there would be no telling
/// whether the file may grow, so it must be a whole number of sectors.
fn disk_size(host: &HostFile, len: u64, readonly: bool) -> Result<u64, Error> {
    let path = host.path();
    if len == 0 {
        return Err(Error::new(
            Cause::Misconfigured,
            path,
            "it is empty",
            format!(
                "give it a size first, for example with `truncate -s 10G '{}'`",
                path.display()
            ),
        ));
    }
    match len.checked_next_multiple_of(SECTOR) {
        Some(size) if size == len || readonly => Ok(size),
        _ => Err(Error::new(
            Cause::Misconfigured,
            path,
            format!("its size of {len} bytes is not a multiple of {SECTOR}"),
            format!(
                "open it read-only, or fill it up with `truncate -s %{SECTOR} '{}'`",
                path.display()
            ),
        )),
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_readonly(&self) -> bool {
        self.readonly
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        check_range(offset, data.len() as u64, self.size)?;
        self.host.read_at(offset, data)
    }

    fn read_in_file(
        &self,
        offset: u64,
        len: u64,
        read: &mut dyn FnMut(&File, u64) -> io::Result<()>,
    ) -> io::Result<bool> {
        check_range(offset, len, self.size)?;
        read(self.host.file(), offset).map(|()| true)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.host.next_data(offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_write(offset, data.len() as u64)?;
        match &self.guarded_header {
            Some(lock) if offset < PROBE_LEN as u64 => self.write_guarded(lock, offset, data),
            _ => self.host.write_at(offset, data),
        }
    }

    fn flush(&self) -> io::Result<()> {
        if self.readonly { Ok(()) } else { self.host.sync() }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        self.host.punch_hole(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check_write(offset, len)?;
        // Zeroes make no header, so the first sector needs no guard; but a guarded write that
        // composes the sector must not run at the same time.
        let _lock = self
            .guarded_header
            .as_ref()
            .filter(|_| offset < PROBE_LEN as u64)
            .map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.host.zero(offset, len, unmap)
    }
}
