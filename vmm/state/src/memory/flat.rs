//! A guest's memory, in the order in which files have it.

use std::fs::File;
use std::io;
use std::ops::Range;

use mem::GuestMemory;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{Error, PIECE, RamRegion};

/// All of RAM as one row of bytes.
pub struct Flat<'a> {
    /// Where each region begins in the row.
    regions: Vec<(u64, &'a RamRegion)>,
    len: u64,
}

impl<'a> Flat<'a> {
    /// Of this memory, which nobody changes meanwhile.
    pub fn of(memory: &'a GuestMemory) -> Self {
        let mut len = 0;
        let place = |region: &'a RamRegion| {
            let start = len;
            len += region.len();
            (start, region)
        };
        let regions = memory.iter().map(place).collect();
        Self { regions, len }
    }

    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Where the pieces lie.
    pub fn pieces(&self) -> impl Iterator<Item = Range<u64>> {
        let len = self.len;
        (0..len).step_by(PIECE).map(move |at| at..len.min(at + PIECE as u64))
    }

    /// Reads what lies at `from`. If that is nothing but zeroes for sure, it reads nothing, and says so
    /// by `false`.
    pub fn read(&self, from: u64, to: &mut [u8]) -> Result<bool, Error> {
        let end = from + to.len() as u64;
        let mut has_any = false;
        for &(start, region) in &self.regions {
            let part = from.max(start)..end.min(start + region.len());
            if part.is_empty() {
                continue;
            }
            let at = part.start - start;
            let bytes = &mut to[(part.start - from) as usize..(part.end - from) as usize];
            // What was never touched is a hole of the memory's file; reading it would fill it. A private
            // mapping may differ from its file.
            let data = match region.file_offset().filter(|_| mem::is_shared(region)) {
                Some(backing) => next_data(backing.file(), backing.start() + at)?
                    .map(|data| data - backing.start()),
                None => Some(at),
            };
            if data.is_some_and(|data| data < at + bytes.len() as u64) {
                region
                    .read_slice(bytes, MemoryRegionAddress(at))
                    .map_err(|e| io::Error::other(e.to_string()))?;
                if !has_any {
                    to[..(part.start - from) as usize].fill(0);
                }
                has_any = true;
            } else if has_any {
                bytes.fill(0);
            }
        }
        Ok(has_any)
    }
}

/// Where data begins in a file at or behind `offset`; `None`: nowhere.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        // A file system without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}
