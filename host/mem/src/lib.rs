//! Guest memory: one file descriptor, mapped into the VMM.
//!
//! Everything that touches guest memory goes through [`GuestMemory`] (`vm-memory`'s type, which
//! checks every address) or, in an accelerator, through pointers got from
//! [`vm_memory::GuestMemoryRegion`]s. Memory is a memfd, so that other processes of Lodge can
//! map it as well.

mod copied;
mod from_file;
mod give_back;
mod huge;
mod marks;

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use vm_memory::mmap::{GuestRegionMmap, MmapRegion};
use vm_memory::{FileOffset, GuestMemoryMmap};

pub use copied::{Patch, copy_on_write};
pub use from_file::fill_from_file;
pub use give_back::give_back;
pub use huge::allocate_huge;
pub use marks::{CodeMarks, MarksFrom};
pub use vm_memory::{self, GuestAddress};

/// A guest's RAM, in one or more regions. Cheap to clone: the mappings are shared.
pub type GuestMemory = GuestMemoryMmap<CodeMarks>;

type Region = GuestRegionMmap<CodeMarks>;

/// Bytes of a huge page: what an entry of the second level of page tables maps.
const HUGE_PAGE: u64 = 2 << 20;

/// A run of RAM in the guest's physical address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First guest physical address; page-aligned.
    pub start: u64,
    /// Length in bytes; page-aligned, not zero.
    pub len: u64,
}

/// Guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has no room or forbids it.
    #[error(
        "cannot allocate {mib} MiB of guest memory: {source}; \
         choose a smaller --memory or free memory on the host"
    )]
    Allocate {
        /// How much was asked for.
        mib: u64,
        /// What the host said.
        source: io::Error,
    },
    /// More than the host has: the guest would end in the middle of its work, when it touches
    /// what is not there.
    #[error(
        "a guest with {mib} MiB of memory does not fit this host, which has {host_mib} MiB with \
         its swap space; choose a smaller --memory"
    )]
    TooMuch {
        /// How much was asked for.
        mib: u64,
        /// How much there is.
        host_mib: u64,
    },
    /// The host's reserve of huge pages is too small.
    #[error(
        "the guest needs {needed} huge pages of 2 MiB, and this host has {free} to spare; reserve \
         more (as root: sysctl vm.nr_hugepages={wanted}, best soon after the host's start), choose a \
         smaller --memory, or leave out --hugepages"
    )]
    HugePages {
        /// How many are needed.
        needed: u64,
        /// How many the host has left.
        free: u64,
        /// How many the host would have to reserve in all.
        wanted: u64,
    },
    /// The host has no huge pages of 2 MiB.
    #[error("this host has no huge pages of 2 MiB: {source}; leave out --hugepages")]
    NoHugePages {
        /// What the host said.
        source: io::Error,
    },
    /// Ranges overlap, are empty, or are not page-aligned: a fault in the memory map.
    #[error("the memory map is invalid: {0}")]
    Layout(String),
}

/// Allocates RAM for `ranges`, all zero. The host hands out pages as the guest touches them, huge
/// ones where it is set up to do so.
pub fn allocate(ranges: &[RamRange]) -> Result<GuestMemory, Error> {
    let mib = check(ranges)?;
    let allocate_error = |source| Error::Allocate { mib, source };
    let mut file = Backing::new(libc::MFD_CLOEXEC).map_err(allocate_error)?;
    let map = |range: &RamRange| file.map(range, libc::MAP_NORESERVE);
    let regions: Result<Vec<_>, _> = ranges.iter().map(map).collect();
    GuestMemory::from_regions(regions.map_err(|e| e.of(mib))?)
        .map_err(|e| Error::Layout(e.to_string()))
}

/// Whether what is stored to a region shows in its file, and in other mappings of it.
pub fn is_shared(region: &GuestRegionMmap<CodeMarks>) -> bool {
    region.flags() & libc::MAP_SHARED != 0
}

/// Refuses what no host could have; how much it is in MiB.
fn check(ranges: &[RamRange]) -> Result<u64, Error> {
    let total = ranges
        .iter()
        .try_fold(0u64, |sum, r| sum.checked_add(r.len))
        .filter(|&t| t <= i64::MAX as u64)
        .ok_or_else(|| Error::Layout("sizes add up to more than 2^63 bytes".to_owned()))?;
    // Rounded up, to what the person asked for: a PC has no RAM in the VGA window.
    let mib = total.div_ceil(1 << 20);
    let host = host_memory();
    if total > host {
        return Err(Error::TooMuch { mib, host_mib: host >> 20 });
    }
    Ok(mib)
}

/// A file in memory, of which RAM is made.
struct Backing {
    file: Arc<File>,
    len: u64,
}

/// Why a part of it cannot be mapped.
enum Unmapped {
    Host(io::Error),
    Layout(String),
}

impl Unmapped {
    /// As an error of a guest with so much memory.
    fn of(self, mib: u64) -> Error {
        match self {
            Self::Host(source) => Error::Allocate { mib, source },
            Self::Layout(what) => Error::Layout(what),
        }
    }
}

impl Backing {
    fn new(flags: libc::c_uint) -> io::Result<Self> {
        // SAFETY: the name is a NUL-terminated literal; the call has no other preconditions.
        let fd = unsafe { libc::memfd_create(c"lodge-guest-ram".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just created and belongs to nobody else.
        Ok(Self { file: Arc::new(unsafe { File::from_raw_fd(fd) }), len: 0 })
    }

    /// Maps the next part of the file as a run of RAM, shared.
    ///
    /// A place in a huge page of the guest has the same place in one of the file, and so, where the
    /// host offers them for files in memory (Documentation/admin-guide/mm/transhuge.rst,
    /// `shmem_enabled`), at its own address: only then can the one be mapped as the other.
    fn map(&mut self, range: &RamRange, flags: libc::c_int) -> Result<Region, Unmapped> {
        let offset = self.len + range.start.wrapping_sub(self.len) % HUGE_PAGE;
        let end = offset.checked_add(range.len);
        let end = end.ok_or_else(|| Unmapped::Layout("sizes add up to too much".to_owned()))?;
        self.file.set_len(end).map_err(Unmapped::Host)?;
        self.len = end;
        let from = FileOffset::from_arc(self.file.clone(), offset);
        map_region(range, from, libc::MAP_SHARED | flags)
    }
}

/// Maps a part of a file as a run of RAM.
fn map_region(range: &RamRange, from: FileOffset, flags: libc::c_int) -> Result<Region, Unmapped> {
    let mapping = MmapRegion::build(
        Some(from),
        range.len as usize,
        libc::PROT_READ | libc::PROT_WRITE,
        flags,
    )
    .map_err(|e| match e {
        vm_memory::mmap::MmapRegionError::Mmap(source) => Unmapped::Host(source),
        other => Unmapped::Layout(other.to_string()),
    })?;
    // SAFETY: the mapping was just made, with this length. That the host may use huge pages for
    // it changes nothing that can be seen; where it does not, it says so, and nobody minds.
    unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_HUGEPAGE) };
    GuestRegionMmap::new(mapping, GuestAddress(range.start))
        .ok_or_else(|| Unmapped::Layout(format!("{range:x?} ends past 2^64")))
}

/// The host's RAM and swap space in bytes, used or not; no bound if the host does not say.
fn host_memory() -> u64 {
    // SAFETY: all of the structure's fields are integers, for which zero is a value.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is valid for writing.
    if unsafe { libc::sysinfo(&mut info) } != 0 {
        return u64::MAX;
    }
    info.totalram.saturating_add(info.totalswap).saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn regions_are_zero_and_independent() {
        let m = allocate(&[
            RamRange { start: 0, len: 0x3000 },
            RamRange { start: 0x1_0000_0000, len: 0x2000 },
        ])
        .unwrap();
        assert_eq!(m.read_obj::<u64>(GuestAddress(0x2ff8)).unwrap(), 0);
        m.write_obj(7u64, GuestAddress(0x1_0000_0000)).unwrap();
        assert_eq!(m.read_obj::<u64>(GuestAddress(0)).unwrap(), 0);
        assert_eq!(m.read_obj::<u64>(GuestAddress(0x1_0000_0000)).unwrap(), 7);
        assert!(m.read_obj::<u64>(GuestAddress(0x2ffc)).is_err());
        assert_eq!(m.num_regions(), 2);
    }

    #[test]
    fn huge_pages_could_be_mapped_as_such() {
        let ranges = [
            RamRange { start: 0, len: 0xa_0000 },
            RamRange { start: 0xc_0000, len: 0x74_0000 },
            RamRange { start: 0x1_0000_0000, len: 0x40_1000 },
        ];
        let memory = allocate(&ranges).unwrap();
        let mut last = 0;
        for (region, range) in memory.iter().zip(ranges) {
            let offset = region.file_offset().unwrap().start();
            assert_eq!(offset % HUGE_PAGE, range.start % HUGE_PAGE);
            assert!(offset >= last);
            last = offset + range.len;
        }
    }

    #[test]
    fn overlaps_and_absurd_sizes_are_refused() {
        let overlap = [RamRange { start: 0, len: 0x3000 }, RamRange { start: 0x2000, len: 0x1000 }];
        assert!(matches!(allocate(&overlap), Err(Error::Layout(_))));
        let huge = [RamRange { start: 0, len: (1 << 62) - (128 << 10) }];
        assert!(matches!(allocate(&huge), Err(Error::TooMuch { mib, .. }) if mib == 1 << 42));
        let sum = [RamRange { start: 0, len: 1 << 63 }, RamRange { start: 1 << 63, len: 1 << 63 }];
        assert!(matches!(allocate(&sum), Err(Error::Layout(_))));
    }
}
