//! Memory that a guest does without for now, given back to the host.

use std::io;
use std::os::fd::AsRawFd;

use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::{GuestMemory, Region, is_shared};

/// What the host maps at once.
const PAGE: u64 = 4096;

/// Gives whole pages within `len` bytes at `start` back to the host, as far as they are RAM. When the guest
/// touches them again, they hold zeroes, or what they held when they were mapped from a file. What was
/// translated from them is forgotten, as after a store.
///
/// # Errors
///
/// The host's: then some pages may be as they were.
pub fn give_back(memory: &GuestMemory, start: GuestAddress, len: u64) -> io::Result<()> {
    let end = start.raw_value().saturating_add(len);
    for region in memory.iter() {
        let base = region.start_addr().raw_value();
        let region_end = base.saturating_add(GuestMemoryRegion::len(region));
        let first = start.raw_value().max(base).checked_next_multiple_of(PAGE);
        let last = end.min(region_end) / PAGE * PAGE;
        if let Some(first) = first.filter(|&first| first < last) {
            give_back_within(region, first - base, last - first)?;
        }
    }
    Ok(())
}

/// `offset` and `len` are whole pages within the region.
fn give_back_within(region: &Region, offset: u64, len: u64) -> io::Result<()> {
    let file = region.file_offset().filter(|_| is_shared(region));
    let result = match file {
        // All mappings of the file, wherever they are, see the hole.
        Some(file) => {
            let at = (file.start() + offset) as libc::off_t;
            let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: a call on an open file. What it changes is guest memory, into which there are no
            // references, and which the guest may change at any time.
            unsafe { libc::fallocate(file.file().as_raw_fd(), how, at, len as libc::off_t) }
        }
        None => {
            // SAFETY: within the region's mapping, which lives as long as it. As above.
            unsafe {
                let at = region.as_ptr().add(offset as usize);
                libc::madvise(at.cast(), len as usize, libc::MADV_DONTNEED)
            }
        }
    };
    let error = io::Error::last_os_error();
    region.bitmap().mark_dirty(offset as usize, len as usize);
    if result == 0 { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{CodeMarks, RamRange, allocate, copy_on_write};
    use vm_memory::Bytes;

    const RANGES: [RamRange; 2] =
        [RamRange { start: 0, len: 0x4000 }, RamRange { start: 0x10_0000, len: 0x4000 }];

    fn fill(memory: &GuestMemory, byte: u8) {
        for range in RANGES {
            memory.write_slice(&[byte; 0x4000], GuestAddress(range.start)).unwrap();
        }
    }

    fn byte(memory: &GuestMemory, at: u64) -> u8 {
        memory.read_obj(GuestAddress(at)).unwrap()
    }

    #[test]
    fn whole_pages_are_zero_again() {
        let memory = allocate(&RANGES).unwrap();
        fill(&memory, 7);
        give_back(&memory, GuestAddress(0x1001), 0x2000).unwrap();
        assert_eq!([0x1fff, 0x2000, 0x2fff, 0x3000].map(|at| byte(&memory, at)), [7, 0, 0, 7]);
        // Across both regions and what is no memory.
        give_back(&memory, GuestAddress(0x3000), 0x10_0000).unwrap();
        assert_eq!([0x3000, 0x10_0000, 0x10_3000].map(|at| byte(&memory, at)), [0, 0, 7]);
        for (start, len) in [(0, 0), (0x200_0000, 0x1000), (u64::MAX, u64::MAX), (0x1000, 0xfff)] {
            give_back(&memory, GuestAddress(start), len).unwrap();
        }
        assert_eq!(byte(&memory, 0x1000), 7);
    }

    #[test]
    fn what_was_mapped_from_a_file_is_there_again() {
        let shared = allocate(&[RamRange { start: 0, len: 0x8000 }]).unwrap();
        shared.write_slice(&[5; 0x8000], GuestAddress(0)).unwrap();
        let file = shared.iter().next().unwrap().file_offset().unwrap().file().try_clone().unwrap();
        let memory = copy_on_write(&RANGES, file, &[]).unwrap();
        fill(&memory, 7);
        give_back(&memory, GuestAddress(0x1000), 0x1000).unwrap();
        assert_eq!([0xfff, 0x1000, 0x2000].map(|at| byte(&memory, at)), [7, 5, 7]);
        assert_eq!(byte(&shared, 0x1000), 5);
    }

    #[test]
    fn what_was_translated_is_forgotten() {
        let memory = allocate(&RANGES).unwrap();
        let region = memory.iter().next().unwrap();
        let heard = Arc::new(AtomicUsize::new(0));
        let listener = heard.clone();
        region.bitmap().marks().listen(Box::new(move |page| {
            listener.fetch_add(page, Ordering::SeqCst);
        }));
        region.bitmap().marks().page(2).unwrap().store(CodeMarks::bits(0, 1), Ordering::SeqCst);
        give_back(&memory, GuestAddress(0), 0x2000).unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), 0);
        give_back(&memory, GuestAddress(0x1000), 0x2000).unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), 2);
    }
}
