//! A machine's memory as a file: its regions one after the other, page by page, with holes for zeroes.
//! Restored, it is mapped from there, so that nothing is read before the guest needs it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use mem::{CodeMarks, GuestMemory};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vm_memory::mmap::GuestRegionMmap;
use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// How many bytes have a checksum of their own.
pub const PIECE: usize = 1 << 20;
const PAGE: usize = 4096;

/// What a memory file must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// The regions, in the order in which they lie in the file.
    pub regions: Vec<Region>,
    /// The CRC-32C of each [`PIECE`] of the file; `None` where it is zero.
    pub sums: Vec<Option<u32>>,
}

/// A run of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// The guest physical address of its first byte.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A memory file cannot be written or is not what it must be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host failed.
    #[error(transparent)]
    Host(#[from] io::Error),
    /// It does not hold what was written to it.
    #[error("{what}, at byte {offset} of the memory file")]
    Damaged {
        /// The first byte that may be wrong.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// The runs of RAM in `memory`. Regions that differ only in how the host backs them are one.
pub fn regions(memory: &GuestMemory) -> Vec<Region> {
    let mut runs: Vec<Region> = Vec::new();
    for region in memory.iter() {
        let (start, len) = (region.start_addr().raw_value(), GuestMemoryRegion::len(region));
        match runs.last_mut() {
            Some(last) if last.start + last.len == start => last.len += len,
            _ => runs.push(Region { start, len }),
        }
    }
    runs
}

/// Writes `memory`, which nobody changes meanwhile, to an empty file.
///
/// # Errors
///
/// The host's.
pub fn write(memory: &GuestMemory, file: &File) -> Result<Contents, Error> {
    let regions = regions(memory);
    let total: u64 = regions.iter().map(|region| region.len).sum();
    file.set_len(total)?;
    let mut writer = Writer { file, at: 0, piece: vec![0; PIECE], filled: 0, sums: Vec::new() };
    for region in memory.iter() {
        writer.region(region)?;
    }
    writer.finish_piece()?;
    Ok(Contents { regions, sums: writer.sums })
}

/// Looks whether a file holds what it must.
///
/// # Errors
///
/// If it does not, and the host's.
pub fn verify(file: &File, contents: &Contents) -> Result<(), Error> {
    check_size(file, contents)?;
    let len = file.metadata()?.len();
    let mut piece = vec![0; PIECE];
    for (n, sum) in contents.sums.iter().enumerate() {
        let offset = (n * PIECE) as u64;
        let end = len.min(offset + PIECE as u64);
        let damaged = |what| Error::Damaged { offset, what };
        let Some(sum) = sum else {
            if next_data(file, offset)?.is_some_and(|data| data < end) {
                let bytes = &mut piece[..(end - offset) as usize];
                file.read_exact_at(bytes, offset)?;
                if !is_zero(bytes) {
                    return Err(damaged("there is something where nothing was"));
                }
            }
            continue;
        };
        let bytes = &mut piece[..(end - offset) as usize];
        file.read_exact_at(bytes, offset)?;
        if crc32c::crc32c(bytes) != *sum {
            return Err(damaged("a checksum is wrong"));
        }
    }
    Ok(())
}

/// Looks whether a file has the size that it must have: what can be seen without reading it.
///
/// # Errors
///
/// If it has not, and the host's.
pub fn check_size(file: &File, contents: &Contents) -> Result<(), Error> {
    let len = file.metadata()?.len();
    let total = contents.regions.iter().try_fold(0u64, |sum, r| sum.checked_add(r.len));
    if total != Some(len) {
        return Err(Error::Damaged { offset: len, what: "the file has another length" });
    }
    if len.div_ceil(PIECE as u64) != contents.sums.len() as u64 {
        return Err(Error::Damaged { offset: len, what: "there is no checksum for each piece" });
    }
    Ok(())
}

struct Writer<'a> {
    file: &'a File,
    /// Where in the file the piece begins.
    at: u64,
    piece: Vec<u8>,
    /// How many bytes of it there are yet.
    filled: usize,
    sums: Vec<Option<u32>>,
}

impl Writer<'_> {
    fn region(&mut self, region: &GuestRegionMmap<CodeMarks>) -> Result<(), Error> {
        let len = region.len();
        // What was never touched is a hole of the memory's file; reading it would fill it. A private
        // mapping may differ from its file.
        let backing = region.file_offset().filter(|_| mem::is_shared(region));
        let mut offset = 0;
        while offset < len {
            let room = ((PIECE - self.filled) as u64).min(len - offset);
            let data = match backing {
                Some(backing) => next_data(backing.file(), backing.start() + offset)?
                    .map(|data| data - backing.start()),
                None => Some(offset),
            };
            let to = &mut self.piece[self.filled..self.filled + room as usize];
            if data.is_some_and(|data| data < offset + room) {
                region
                    .read_slice(to, MemoryRegionAddress(offset))
                    .map_err(|e| io::Error::other(e.to_string()))?;
            } else {
                to.fill(0);
            }
            self.filled += room as usize;
            offset += room;
            if self.filled == PIECE {
                self.finish_piece()?;
            }
        }
        Ok(())
    }

    fn finish_piece(&mut self) -> Result<(), Error> {
        if self.filled == 0 {
            return Ok(());
        }
        let piece = &self.piece[..self.filled];
        let is_empty = is_zero(piece);
        self.sums.push((!is_empty).then(|| crc32c::crc32c(piece)));
        if !is_empty {
            // Runs of pages that are not zero.
            let mut pages = piece.chunks(PAGE).enumerate().peekable();
            while let Some((first, page)) = pages.next() {
                if is_zero(page) {
                    continue;
                }
                let mut len = page.len();
                while let Some((_, page)) = pages.next_if(|(_, page)| !is_zero(page)) {
                    len += page.len();
                }
                let from = first * PAGE;
                self.file.write_all_at(&piece[from..from + len], self.at + from as u64)?;
            }
        }
        self.at += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// Where data begins in a file at or behind `offset`; `None`: nowhere.
fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        // A file system without holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}
