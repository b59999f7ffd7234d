//! Which guest memory holds code that an accelerator has translated.
//!
//! An accelerator marks what it translates; every store by a device, which goes through
//! [`GuestMemory`](crate::GuestMemory), looks at the marks, takes those that it hits and tells the
//! accelerator. So a DMA into translated code needs no device's help.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// Bytes that one mark stands for.
const GRANULE: usize = 64;
const PAGE: usize = 4096;

/// Called with the index of a page whose marks were taken, on the thread that stored.
pub type Listener = Box<dyn Fn(usize) + Send + Sync>;

/// The marks of one region of RAM: for each page, a bit for each 64 bytes.
#[derive(Default)]
pub struct CodeMarks {
    pages: Box<[AtomicU64]>,
    listener: OnceLock<Listener>,
}

impl CodeMarks {
    /// Has `listener` called from now on; only the first one counts.
    pub fn listen(&self, listener: Listener) {
        // A second accelerator on the same memory would translate nothing itself.
        let _ = self.listener.set(listener);
    }

    /// The marks of page `index`.
    pub fn page(&self, index: usize) -> Option<&AtomicU64> {
        self.pages.get(index)
    }

    /// The bits of one page's marks that stand for `len` bytes at `offset`; both within the page.
    pub fn bits(offset: usize, len: usize) -> u64 {
        let first = (offset / GRANULE).min(63);
        let last = (offset.saturating_add(len.max(1)) - 1) / GRANULE;
        (u64::MAX >> (63 - last.min(63))) & (u64::MAX << first)
    }

    #[cold]
    fn take(&self, index: usize, marks: &AtomicU64, offset: usize, len: usize) {
        if marks.load(Ordering::SeqCst) & Self::bits(offset, len) != 0
            && marks.swap(0, Ordering::SeqCst) != 0
            && let Some(listener) = self.listener.get()
        {
            listener(index);
        }
    }
}

impl fmt::Debug for CodeMarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeMarks").field("pages", &self.pages.len()).finish_non_exhaustive()
    }
}

/// The marks from some offset on.
#[derive(Clone, Copy, Debug)]
pub struct MarksFrom<'a> {
    marks: &'a CodeMarks,
    start: usize,
}

impl<'a> MarksFrom<'a> {
    /// The marks of the whole region.
    pub fn marks(self) -> &'a CodeMarks {
        self.marks
    }
}

impl<'a> WithBitmapSlice<'a> for CodeMarks {
    type S = MarksFrom<'a>;
}

impl<'a> WithBitmapSlice<'a> for MarksFrom<'_> {
    type S = Self;
}

impl BitmapSlice for MarksFrom<'_> {}

impl Bitmap for CodeMarks {
    /// `vm-memory` calls this after each store.
    fn mark_dirty(&self, offset: usize, len: usize) {
        // The store must be seen before the marks are looked at.
        std::sync::atomic::fence(Ordering::SeqCst);
        let Some(last) = offset.checked_add(len.max(1)).map(|end| (end - 1) / PAGE) else { return };
        for index in offset / PAGE..=last.min(self.pages.len().saturating_sub(1)) {
            let Some(marks) = self.pages.get(index) else { return };
            if marks.load(Ordering::Relaxed) != 0 {
                let from = offset.max(index * PAGE);
                let to = (offset + len.max(1)).min((index + 1) * PAGE);
                self.take(index, marks, from - index * PAGE, to - from);
            }
        }
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> MarksFrom<'_> {
        MarksFrom { marks: self, start: offset }
    }
}

impl Bitmap for MarksFrom<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.marks.mark_dirty(self.start.saturating_add(offset), len);
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { marks: self.marks, start: self.start.saturating_add(offset) }
    }
}

impl NewBitmap for CodeMarks {
    fn with_len(len: usize) -> Self {
        let pages = (0..len.div_ceil(PAGE)).map(|_| AtomicU64::new(0)).collect();
        Self { pages, listener: OnceLock::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{GuestAddress, RamRange, allocate};
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn stores_take_just_the_marks_that_they_hit() {
        let memory = allocate(&[RamRange { start: 0x10_0000, len: 0x4000 }]).unwrap();
        let region = memory.iter().next().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = heard.clone();
        region.bitmap().marks().listen(Box::new(move |page| listener.lock().unwrap().push(page)));
        let mark = |page: usize, bits: u64| {
            region.bitmap().marks().page(page).unwrap().fetch_or(bits, Ordering::SeqCst);
        };
        mark(1, CodeMarks::bits(0x80, 0x41));
        mark(2, 1);
        memory.write_slice(&[1; 0x40], GuestAddress(0x10_1040)).unwrap();
        memory.write_slice(&[1; 0x40], GuestAddress(0x10_1100)).unwrap();
        assert!(heard.lock().unwrap().is_empty());
        memory.write_obj(7u8, GuestAddress(0x10_10c0)).unwrap();
        assert_eq!(*heard.lock().unwrap(), [1]);
        mark(1, 1 << 63);
        memory.write_slice(&[1; 0x1000], GuestAddress(0x10_1ff0)).unwrap();
        assert_eq!(*heard.lock().unwrap(), [1, 1, 2]);
        memory.write_slice(&[1; 0x1000], GuestAddress(0x10_1ff0)).unwrap();
        assert_eq!(*heard.lock().unwrap(), [1, 1, 2]);
    }

    #[test]
    fn bits_cover_their_bytes() {
        assert_eq!(CodeMarks::bits(0, 1), 1);
        assert_eq!(CodeMarks::bits(63, 2), 3);
        assert_eq!(CodeMarks::bits(0, 4096), u64::MAX);
        assert_eq!(CodeMarks::bits(4095, 1), 1 << 63);
    }
}
