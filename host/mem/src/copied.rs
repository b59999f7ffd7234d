//! Memory that begins as files say, and leaves them as they are.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestMemoryRegion};

use crate::{Error, GuestMemory, RamRange, Region, Unmapped, check, map_region};

/// Whole pages that begin as another file than the rest of memory says. It has them at the same places.
#[derive(Debug)]
pub struct Patch {
    /// The file.
    pub file: File,
    /// The places, in bytes from the beginning of the file.
    pub places: Vec<Range<u64>>,
}

/// RAM for `ranges` that begins as `file` says, which has them one after the other, but for what
/// `patches` say otherwise. The files themselves are not changed; they must stay as they are. Pages are
/// read when the guest touches them, and those that it only reads it shares with everybody else who has
/// mapped the file.
pub fn copy_on_write(
    ranges: &[RamRange],
    file: File,
    patches: &[Patch],
) -> Result<GuestMemory, Error> {
    const FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let mib = check(ranges)?;
    let file = Arc::new(file);
    let mut offset = 0;
    let map = |range: &RamRange| {
        let from = FileOffset::from_arc(file.clone(), offset);
        let region = map_region(range, from, FLAGS)?;
        for patch in patches {
            for place in &patch.places {
                let part = place.start.max(offset)..place.end.min(offset + range.len);
                if !part.is_empty() {
                    let at = part.start - offset;
                    map_over(&region, at, &patch.file, part).map_err(Unmapped::Host)?;
                }
            }
        }
        offset += range.len; // `check` has added them up.
        Ok(region)
    };
    let regions: Result<Vec<_>, Unmapped> = ranges.iter().map(map).collect();
    GuestMemory::from_regions(regions.map_err(|e| e.of(mib))?)
        .map_err(|e| Error::Layout(e.to_string()))
}

/// Maps a part of a file over what lies at `at` in a region, copied on write.
fn map_over(region: &Region, at: u64, file: &File, part: Range<u64>) -> io::Result<()> {
    let len = part.end - part.start;
    if at.checked_add(len).is_none_or(|end| end > region.len()) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let offset = libc::off_t::try_from(part.start).map_err(io::Error::other)?;
    // SAFETY: the place lies within the region's mapping, as was just checked, which lives as long as it
    // and is taken away as a whole. Nobody uses the region yet.
    let mapped = unsafe {
        libc::mmap(
            region.as_ptr().add(at as usize).cast(),
            len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::{allocate, is_shared};

    const RANGES: [RamRange; 2] =
        [RamRange { start: 0, len: 0x3000 }, RamRange { start: 0x10_0000, len: 0x3000 }];

    /// A file of six pages, each full of its number and `plus`.
    fn file(plus: u8) -> File {
        let shared = allocate(&[RamRange { start: 0, len: 0x6000 }]).unwrap();
        for page in 0..6u8 {
            let at = GuestAddress(u64::from(page) << 12);
            shared.write_slice(&[page + plus; 0x1000], at).unwrap();
        }
        let region = shared.iter().next().unwrap();
        region.file_offset().unwrap().file().try_clone().unwrap()
    }

    fn bytes(memory: &GuestMemory) -> Vec<u8> {
        let places = RANGES.iter().flat_map(|range| (0..3).map(|page| range.start + (page << 12)));
        places.map(|at| memory.read_obj(GuestAddress(at + 7)).unwrap()).collect()
    }

    #[test]
    fn files_are_left_alone() {
        let own = file(0);
        let [a, b] =
            [(); 2].map(|()| copy_on_write(&RANGES, own.try_clone().unwrap(), &[]).unwrap());
        a.write_obj(8u8, GuestAddress(0x10_0007)).unwrap();
        assert_eq!(bytes(&a), [0, 1, 2, 8, 4, 5]);
        assert_eq!(bytes(&b), [0, 1, 2, 3, 4, 5]);
        let mut byte = [0];
        own.read_exact_at(&mut byte, 0x3007).unwrap();
        assert_eq!(byte, [3]);
        assert!(!a.iter().any(is_shared));
    }

    #[test]
    fn parts_are_of_other_files() {
        // One lies across both ranges.
        let [ten, twenty] = [vec![(0x2000, 0x4000)], vec![(0, 0x1000), (0x5000, 0x6000)]]
            .map(|places| places.into_iter().map(|(start, end)| start..end).collect());
        let patches =
            [Patch { file: file(10), places: ten }, Patch { file: file(20), places: twenty }];
        let memory = copy_on_write(&RANGES, file(0), &patches).unwrap();
        assert_eq!(bytes(&memory), [20, 1, 12, 13, 4, 25]);
        memory.write_slice(&[1; 0x3000], GuestAddress(0)).unwrap();
        assert_eq!(bytes(&memory), [1, 1, 1, 13, 4, 25]);
    }
}
