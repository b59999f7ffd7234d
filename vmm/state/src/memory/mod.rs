//! A machine's memory as files: its regions one after the other, page by page, with holes for zeroes.
//! Restored, it is mapped from there, so that nothing is read before the guest needs it.
//!
//! What has not changed since an older snapshot is left in the older one's file.

mod base;
mod flat;
mod pages;
mod verify;
mod write;

use std::io;

use mem::{CodeMarks, GuestMemory};
use serde::{Deserialize, Serialize};
use vm_memory::mmap::GuestRegionMmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

pub use base::{Base, Part};
pub use pages::Pages;
pub use write::write;

/// How many bytes have a checksum of their own.
pub const PIECE: usize = 1 << 20;
/// How many older files there are at most.
pub const MAX_OLDER: usize = 15;
/// How many runs of pages in older files there are at most: the host maps each by itself.
pub const MAX_RUNS: usize = 16384;
/// How many checksums a snapshot with older files has at most: they fit a section of the state file, in which
/// each takes up to 11 bytes.
const MAX_SUMS: usize = 1 << 20;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
const PAGE_LEN: usize = PAGE as usize;
const PAGES_OF_PIECE: u64 = PIECE as u64 / PAGE;

/// The name of a snapshot's own memory file.
pub const FILE: &str = "memory";

/// What memory files must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// The regions, in the order in which they lie in each file.
    pub regions: Vec<Region>,
    /// The CRC-32C of each [`PIECE`] of the snapshot's own file; `None` where it is zero.
    pub sums: Vec<Option<u32>>,
    /// Files of older snapshots, in which pages are that have not changed since. All other pages are
    /// in the snapshot's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<Older>,
}

/// A memory file of an older snapshot, to which the snapshot has a link of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Older {
    /// Its number: the oldest has the lowest.
    pub number: u32,
    /// The checksums of its pieces, as in [`Contents`].
    pub sums: Vec<Option<u32>>,
    /// The pages that are as they are there.
    pub pages: Pages,
}

impl Older {
    /// The name of the link.
    pub fn name(&self) -> String {
        Self::name_of(self.number)
    }

    /// The name of the link to the file with this number.
    pub fn name_of(number: u32) -> String {
        format!("{FILE}.{number}")
    }
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
    #[error("{what}, at byte {offset} of the memory file {file}")]
    Damaged {
        /// Its name.
        file: String,
        /// The first byte that may be wrong.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// What is said of the files contradicts itself.
    #[error("{0}")]
    Contradictory(&'static str),
}

impl Contents {
    /// The length of each file; `None`: no file is so long.
    fn len(&self) -> Option<u64> {
        self.regions.iter().try_fold(0u64, |sum, region| sum.checked_add(region.len))
    }

    /// The number that this snapshot's own file has as an older one.
    pub fn number(&self) -> u32 {
        let highest = self.older.iter().map(|older| older.number).max();
        highest.map_or(1, |number| number.saturating_add(1))
    }

    /// The pages that are in the snapshot's own file.
    fn own_pages(&self) -> Pages {
        let all = Pages::all(self.len().unwrap_or(0).div_ceil(PAGE));
        self.older.iter().fold(all, |left, older| left.without(&older.pages))
    }

    /// Refuses what no [`write()`] says of files.
    fn check(&self) -> Result<u64, Error> {
        let len = self.len().ok_or(Error::Contradictory("the regions of memory have no sum"))?;
        let pages = len / PAGE;
        let mut runs = 0;
        let mut free = Pages::all(pages);
        if self.older.len() > MAX_OLDER {
            return Err(Error::Contradictory("there are too many older memory files"));
        }
        for older in &self.older {
            if !older.pages.are_among(pages) {
                return Err(Error::Contradictory("pages in older files are none of the memory's"));
            }
            runs += older.pages.run_count();
            if runs > MAX_RUNS {
                return Err(Error::Contradictory(
                    "there are too many runs of pages in older files",
                ));
            }
            let before = free.count();
            free = free.without(&older.pages);
            if before - free.count() != older.pages.count() {
                return Err(Error::Contradictory("a page is in two older memory files"));
            }
        }
        Ok(len)
    }
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

type RamRegion = GuestRegionMmap<CodeMarks>;

fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}
