//! The guest's RAM as the engine reaches it: through host pointers, in accesses that other
//! processors see whole.

use std::arch::asm;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use mem::vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use mem::{CodeMarks, GuestAddress, GuestMemory};
use x86::Word;

/// A page of RAM in the VMM's address space. It stays mapped as long as the [`Ram`] it came
/// from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    host: NonNull<u8>,
    /// Which parts of the page hold code that was translated, a bit for each 64 bytes.
    code: NonNull<AtomicU64>,
}

// SAFETY: a page is shared memory, alike from every thread; whoever keeps one keeps its `Ram`.
unsafe impl Send for Page {}

struct Region {
    start: u64,
    len: u64,
    host: NonNull<u8>,
    marks: NonNull<CodeMarks>,
}

/// All of the guest's RAM.
pub struct Ram {
    regions: Vec<Region>,
    /// Keeps the mappings and the marks.
    memory: GuestMemory,
}

// SAFETY: the pointers are to shared mappings that `_memory` keeps alive; every access through
// them is one that may race with others (a single instruction, or a copy whose content only the
// guest relies on).
unsafe impl Send for Ram {}
// SAFETY: as above; `Ram` itself is never changed.
unsafe impl Sync for Ram {}

impl Ram {
    /// Takes hold of all regions of `memory`.
    pub fn new(memory: &GuestMemory) -> Self {
        let regions = memory
            .iter()
            .filter_map(|region| {
                Some(Region {
                    start: region.start_addr().raw_value(),
                    len: region.len(),
                    host: NonNull::new(region.as_ptr())?,
                    marks: NonNull::from(region.bitmap().marks()),
                })
            })
            .collect();
        Self { regions, memory: memory.clone() }
    }

    /// The page that holds `gpa`.
    #[inline]
    pub fn page(&self, gpa: u64) -> Option<Page> {
        let region = self.regions.iter().find(|r| gpa.wrapping_sub(r.start) < r.len)?;
        let offset = (gpa - region.start) & !0xfff;
        // SAFETY: `memory` keeps its regions where they are.
        let marks = unsafe { region.marks.as_ref() };
        let code = NonNull::from(marks.page((offset >> 12) as usize)?);
        // SAFETY: `offset` is less than the region's length, as `gpa` lies in it.
        Some(Page { host: unsafe { region.host.add(offset as usize) }, code })
    }

    /// Has `changed` called with the address of each page in which a device overwrites marked
    /// code, on the device's thread.
    pub fn listen(&self, changed: impl Fn(u64) + Clone + Send + Sync + 'static) {
        for region in self.memory.iter() {
            let (changed, start) = (changed.clone(), region.start_addr().raw_value());
            region
                .bitmap()
                .marks()
                .listen(Box::new(move |page| changed(start + ((page as u64) << 12))));
        }
    }

    /// Where `len` bytes at `gpa` lie in the file of RAM: its descriptor and the offset.
    pub fn file(&self, gpa: u64, len: usize) -> Option<(RawFd, u64)> {
        let region = self.memory.find_region(GuestAddress(gpa))?;
        let offset = gpa - region.start_addr().raw_value();
        let file = region.file_offset().filter(|_| mem::is_shared(region))?;
        let fits = offset.checked_add(len as u64)? <= region.len();
        fits.then(|| (file.file().as_raw_fd(), file.start() + offset))
    }

    /// The guest physical address of a page.
    pub fn address(&self, page: Page) -> Option<u64> {
        let host = page.host.as_ptr() as u64;
        self.regions.iter().find_map(|region| {
            let offset = host.wrapping_sub(region.host.as_ptr() as u64);
            (offset < region.len).then(|| region.start + offset)
        })
    }
}

impl Page {
    /// Where the page lies in the VMM's address space.
    pub fn host(self) -> u64 {
        self.host.as_ptr() as u64
    }

    fn code(&self) -> &AtomicU64 {
        // SAFETY: the mask belongs to the `Ram` that the page came from, which outlives it.
        unsafe { self.code.as_ref() }
    }

    /// Notes that `len` bytes at `offset` were translated; `true` if the page had no code before.
    pub fn add_code(self, offset: usize, len: usize) -> bool {
        self.code().fetch_or(CodeMarks::bits(offset, len), Ordering::SeqCst) == 0
    }

    /// Whether any of the page was translated.
    #[inline(always)]
    pub fn has_code(self) -> bool {
        self.code().load(Ordering::Relaxed) != 0
    }

    /// Whether a store of `len` bytes at `offset` changed code that was translated. If so, the
    /// page counts as having none any more: the caller sees to it that all translations go.
    #[inline(always)]
    pub fn take_code(self, offset: usize, len: usize) -> bool {
        self.has_code() && self.take_code_slowly(offset, len)
    }

    #[cold]
    fn take_code_slowly(self, offset: usize, len: usize) -> bool {
        self.code().load(Ordering::SeqCst) & CodeMarks::bits(offset, len) != 0
            && self.code().swap(0, Ordering::SeqCst) != 0
    }

    /// The address of `len` bytes at `offset`, which must lie in the page.
    #[inline(always)]
    fn at(self, offset: usize, len: usize) -> *mut u8 {
        assert!(len <= 4096 && offset <= 4096 - len, "access leaves its page");
        // SAFETY: a page is 4096 mapped bytes, and the assertion keeps the result in it.
        unsafe { self.host.as_ptr().add(offset) }
    }

    /// Loads, in one access.
    #[inline(always)]
    pub fn load<W: Word>(self, offset: usize) -> W {
        let at = self.at(offset, W::SIZE);
        let value: u64;
        // SAFETY: `at` is valid for `W::SIZE` bytes. Assembly, since the memory is shared with
        // other processors and devices: the compiler must neither split nor repeat the access.
        unsafe {
            match W::SIZE {
                1 => {
                    asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags))
                }
                2 => {
                    asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags))
                }
                4 => {
                    asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags))
                }
                _ => {
                    asm!("mov {0}, [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags))
                }
            }
        }
        W::truncate(value)
    }

    /// Stores, in one access.
    #[inline(always)]
    pub fn store<W: Word>(self, offset: usize, value: W) {
        let at = self.at(offset, W::SIZE);
        let value: u64 = value.into();
        // SAFETY: as in `load`.
        unsafe {
            match W::SIZE {
                1 => {
                    asm!("mov [{1}], {0}", in(reg_byte) value as u8, in(reg) at, options(nostack, preserves_flags))
                }
                2 => {
                    asm!("mov [{1}], {0:x}", in(reg) value, in(reg) at, options(nostack, preserves_flags))
                }
                4 => {
                    asm!("mov [{1}], {0:e}", in(reg) value, in(reg) at, options(nostack, preserves_flags))
                }
                _ => {
                    asm!("mov [{1}], {0}", in(reg) value, in(reg) at, options(nostack, preserves_flags))
                }
            }
        }
    }

    /// Compares and exchanges atomically, aligned or not.
    #[inline]
    pub fn compare_exchange<W: Word>(self, offset: usize, current: W, new: W) -> Result<W, W> {
        let at = self.at(offset, W::SIZE);
        let new: u64 = new.into();
        let mut old: u64 = current.into();
        // SAFETY: `at` is valid for `W::SIZE` bytes; LOCK CMPXCHG is atomic at any alignment,
        // which Rust's atomics do not promise.
        unsafe {
            match W::SIZE {
                1 => {
                    asm!("lock cmpxchg [{0}], {1}", in(reg) at, in(reg_byte) new as u8, inout("rax") old, options(nostack))
                }
                2 => {
                    asm!("lock cmpxchg [{0}], {1:x}", in(reg) at, in(reg) new, inout("rax") old, options(nostack))
                }
                4 => {
                    asm!("lock cmpxchg [{0}], {1:e}", in(reg) at, in(reg) new, inout("rax") old, options(nostack))
                }
                _ => {
                    asm!("lock cmpxchg [{0}], {1}", in(reg) at, in(reg) new, inout("rax") old, options(nostack))
                }
            }
        }
        let old = W::truncate(old);
        if old == current { Ok(old) } else { Err(old) }
    }

    /// CMPXCHG16B at a multiple of 16.
    pub fn compare_exchange_128(
        self,
        offset: usize,
        current: u128,
        new: u128,
    ) -> Result<u128, u128> {
        let at = self.at(offset, 16);
        assert!(offset.is_multiple_of(16), "CMPXCHG16B needs alignment");
        let (mut low, mut high) = (current as u64, (current >> 64) as u64);
        // SAFETY: `at` is valid for 16 bytes and aligned, as pages are. RBX, which cannot be named
        // as an operand, is restored. The address has a register of its own, as the compiler may
        // choose RBX for any operand that has none; for `new_low` that does no harm.
        unsafe {
            asm!(
                "xchg {new_low}, rbx",
                "lock cmpxchg16b [rdi]",
                "mov rbx, {new_low}",
                in("rdi") at,
                new_low = inout(reg) new as u64 => _,
                in("rcx") (new >> 64) as u64,
                inout("rax") low,
                inout("rdx") high,
                options(nostack),
            );
        }
        let old = u128::from(high) << 64 | u128::from(low);
        if old == current { Ok(old) } else { Err(old) }
    }

    /// Copies out.
    pub fn load_bytes(self, offset: usize, data: &mut [u8]) {
        let at = self.at(offset, data.len());
        // SAFETY: `at` is valid for `data.len()` bytes, and `data` is not guest memory.
        unsafe { at.copy_to_nonoverlapping(data.as_mut_ptr(), data.len()) };
    }

    /// Copies in.
    pub fn store_bytes(self, offset: usize, data: &[u8]) {
        let at = self.at(offset, data.len());
        // SAFETY: as in `load_bytes`.
        unsafe { at.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
    }

    /// Whether the page holds `bytes` at `offset`.
    #[inline(always)]
    pub fn matches(self, offset: usize, bytes: &[u8]) -> bool {
        let at = self.at(offset, bytes.len());
        let word = |i: usize| -> u64 {
            let word;
            // SAFETY: only called with `i + 8 <= bytes.len()`, so this stays in what `at` checked.
            unsafe {
                asm!("mov {0}, [{1}]", out(reg) word, in(reg) at.add(i), options(nostack, preserves_flags, readonly))
            };
            word
        };
        let expected = |i: usize| {
            bytes[i..].first_chunk().map_or(0, |chunk: &[u8; 8]| u64::from_le_bytes(*chunk))
        };
        if bytes.len() < 8 {
            return bytes.iter().enumerate().all(|(i, &b)| self.load::<u8>(offset + i) == b);
        }
        // The last word overlaps the one before it.
        let last = bytes.len() - 8;
        let mut difference = word(last) ^ expected(last);
        let mut i = 0;
        while i < last {
            difference |= word(i) ^ expected(i);
            i += 8;
        }
        difference == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mem::RamRange;

    fn page() -> (Ram, Page) {
        let memory = mem::allocate(&[RamRange { start: 0x10_0000, len: 0x2000 }]).unwrap();
        let ram = Ram::new(&memory);
        let page = ram.page(0x10_1234).unwrap();
        (ram, page)
    }

    #[test]
    fn only_ram_has_pages() {
        let (ram, page) = page();
        assert_eq!(ram.page(0x10_1fff), Some(page));
        assert_ne!(ram.page(0x10_0fff), Some(page));
        assert_eq!(ram.page(0xf_ffff), None);
        assert_eq!(ram.page(0x10_2000), None);
        assert_eq!(ram.page(u64::MAX), None);
    }

    #[test]
    fn accesses_of_all_widths() {
        let (_ram, page) = page();
        page.store(0x10, 0x1122_3344_5566_7788u64);
        assert_eq!(page.load::<u8>(0x17), 0x11);
        assert_eq!(page.load::<u16>(0x11), 0x6677);
        assert_eq!(page.load::<u32>(0x13), 0x2233_4455);
        page.store(0x11, 0xaau8);
        page.store(0x12, 0xbbccu16);
        assert_eq!(page.load::<u64>(0x10), 0x1122_3344_bbcc_aa88);
        assert!(page.matches(0x10, &0x1122_3344_bbcc_aa88u64.to_le_bytes()));
        assert!(!page.matches(0x0f, &[1]));
    }

    #[test]
    fn exchanges() {
        let (_ram, page) = page();
        page.store(0x21, 5u32);
        assert_eq!(page.compare_exchange(0x21, 5u32, 6), Ok(5));
        assert_eq!(page.compare_exchange(0x21, 5u32, 7), Err(6));
        assert_eq!(page.compare_exchange(0x21, 6u8, 7), Ok(6));
        let big = 0x0123_4567_89ab_cdef_u128 << 64 | 42;
        assert_eq!(page.compare_exchange_128(0x40, 0, big), Ok(0));
        assert_eq!(page.compare_exchange_128(0x40, 0, 1), Err(big));
    }

    #[test]
    #[should_panic(expected = "leaves its page")]
    fn no_access_leaves_its_page() {
        page().1.load::<u64>(0xffc);
    }
}
