//! Memory for generated code: the same pages mapped twice, writable at one address and executable
//! at another, never both at one.

use std::io;
use std::ptr::NonNull;

use crate::host_pages::{map, memory_file, unmap};

/// A region of generated code, filled from its start.
pub(crate) struct CodeMemory {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    size: usize,
    used: usize,
}

// SAFETY: the region owns its two mappings; nothing else knows their addresses, and they are not
// bound to a thread.
unsafe impl Send for CodeMemory {}

/// Stubs start at multiples of this, so that fetching one touches no line more than it must.
const ALIGNMENT: usize = 16;

impl CodeMemory {
    /// Maps `size` bytes, a multiple of the page size.
    pub fn new(size: usize) -> io::Result<Self> {
        let file = memory_file(c"lodge-code", size)?;
        let writable = map(&file, size, libc::PROT_READ | libc::PROT_WRITE)?;
        match map(&file, size, libc::PROT_READ | libc::PROT_EXEC) {
            Ok(executable) => Ok(Self { writable, executable, size, used: 0 }),
            Err(error) => {
                unmap(writable, size);
                Err(error)
            }
        }
    }

    /// Adds `code` and returns the address to call it at, or `None` if there is no room left.
    pub fn add(&mut self, code: &[u8]) -> Option<NonNull<u8>> {
        let at = self.used;
        let end = at.checked_add(code.len()).filter(|&end| end <= self.size)?;
        // SAFETY: `at..end` lies within both mappings. No reference into them exists, and this
        // thread, which owns the region, is not executing from it now.
        let entry = unsafe {
            std::ptr::copy_nonoverlapping(
                code.as_ptr(),
                self.writable.as_ptr().add(at),
                code.len(),
            );
            self.executable.add(at)
        };
        self.used = end.next_multiple_of(ALIGNMENT).min(self.size);
        // The bytes may have been fetched under their other address before: code that was written
        // through an alias is safe to run after a serializing instruction (SDM Vol. 3, 8.1.3).
        std::arch::x86_64::__cpuid(0);
        Some(entry)
    }

    /// How many bytes are in use from the start, and how many there are.
    pub fn fill(&self) -> (usize, usize) {
        (self.used, self.size)
    }

    /// The address at which the byte at `offset` is executed.
    pub fn address(&self, offset: usize) -> u64 {
        self.executable.as_ptr() as u64 + offset as u64
    }

    /// Adds `code` like [`add`](Self::add), for a thread that gets to it by an indirect jump
    /// only, and returns its offset. Processors notice stores to what they have fetched by its
    /// physical address; what they have not even predicted needs no serializing instruction, which
    /// would cost a virtualized host two world switches.
    pub fn append(&mut self, code: &[u8]) -> Option<usize> {
        let at = self.used;
        let end = at.checked_add(code.len()).filter(|&end| end <= self.size)?;
        self.write(at, code);
        self.used = end.next_multiple_of(ALIGNMENT).min(self.size);
        Some(at)
    }

    /// Overwrites code at `offset`, which this thread is not executing.
    pub fn write(&mut self, offset: usize, code: &[u8]) {
        assert!(offset <= self.size && code.len() <= self.size - offset, "outside of code memory");
        // SAFETY: the range lies within the mapping, into which no reference exists.
        unsafe {
            let to = self.writable.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
    }

    /// The distance of a branch, which stands at `offset`.
    pub fn read_distance(&self, offset: usize) -> i32 {
        assert!(offset <= self.size && self.size - offset >= 4, "outside of code memory");
        // SAFETY: the bytes lie within the mapping, to which only `self` writes; they may have any
        // alignment.
        unsafe { self.writable.as_ptr().add(offset).cast::<i32>().read_unaligned() }
    }

    /// Forgets all code from `offset` on. Nobody may go there any more.
    pub fn truncate(&mut self, offset: usize) {
        self.used = self.used.min(offset);
    }

    /// Forgets all code. Nobody may call what `add` returned before.
    pub fn clear(&mut self) {
        self.used = 0;
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        unmap(self.writable, self.size);
        unmap(self.executable, self.size);
    }
}
