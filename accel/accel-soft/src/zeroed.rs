//! Tables that take no memory until something is in them.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// What zero bytes are a value of.
///
/// # Safety
///
/// They are.
pub unsafe trait Zero {}

/// A table in pages of its own, whose entries are zero bytes at first. The host gives memory for a page when it
/// is written to. Rust's allocator would do likewise, but for types that are aligned to more than 16 bytes:
/// for those, it writes the zeroes itself.
pub struct Table<T> {
    entries: NonNull<T>,
    count: usize,
}

// SAFETY: the table owns its pages, which nobody else knows and which are not bound to a thread.
unsafe impl<T: Send> Send for Table<T> {}

impl<T: Zero> Table<T> {
    /// A table of so many entries. Fails if the host gives no more address space.
    pub fn new(count: usize) -> io::Result<Self> {
        const { assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0) };
        let size = count.checked_mul(size_of::<T>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { entries, count })
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has so many entries, aligned, as pages are; zero bytes are a value of T, as `new`
        // asks for.
        unsafe { std::slice::from_raw_parts(self.entries.as_ptr(), self.count) }
    }
}

impl<T> DerefMut for Table<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.entries.as_ptr(), self.count) }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        // SAFETY: `new` made this mapping with this size, and nobody has it any more.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), self.count * size_of::<T>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(64))]
    struct Line([u8; 64]);

    // SAFETY: its bytes are numbers.
    unsafe impl Zero for Line {}

    #[test]
    fn a_table_is_zero_and_keeps_what_is_written() {
        let mut table = Table::<Line>::new(1000).unwrap();
        assert_eq!(table.len(), 1000);
        assert!(table.iter().all(|line| line.0 == [0; 64]));
        table[999].0[63] = 7;
        assert_eq!((table[999].0[63], table[998].0[63]), (7, 0));
    }

    /// Bytes of the pages from `at` on that are in memory.
    fn resident<T>(table: &Table<T>) -> usize {
        let size = table.count * size_of::<T>();
        let mut pages = vec![0u8; size.div_ceil(4096)];
        // SAFETY: the mapping has this size, and there is a byte for each of its pages.
        let done =
            unsafe { libc::mincore(table.entries.as_ptr().cast(), size, pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        pages.iter().filter(|&page| page & 1 != 0).count() * 4096
    }

    #[test]
    fn only_pages_that_are_written_take_memory() {
        let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        if huge.is_ok_and(|huge| huge.contains("[always]")) {
            eprintln!("SKIPPED: what a table takes: this host gives huge pages unasked");
            return;
        }
        let mut table = Table::<Line>::new(1 << 14).unwrap();
        assert_eq!(resident(&table), 0);
        table[100].0[0] = 1;
        assert!(resident(&table) < 1 << 19, "{}", resident(&table));
    }

    #[test]
    fn too_large_a_table_is_an_error() {
        assert!(Table::<Line>::new(usize::MAX / 2).is_err());
        assert!(Table::<Line>::new(1 << 56).is_err());
    }
}
