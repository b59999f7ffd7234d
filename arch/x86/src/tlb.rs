//! The translation lookaside buffer, in software.
//!
//! A direct-mapped table for each way to look at memory ([`View`]). An entry's tag holds the
//! linear page and, in the page-offset bits, the address-space number under which it was filled,
//! so that a change of CR3 costs nothing and a hit is one comparison.

use alloc::boxed::Box;
use alloc::vec;

use crate::paging::Translation;

/// How an access looks at memory: what decides its rights besides the page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum View {
    /// CPL 3.
    User = 0,
    /// CPL 0 to 2 with SMAP in force, and implicit accesses to system tables.
    Supervisor = 1,
    /// CPL 0 to 2 where SMAP is off or suspended by RFLAGS.AC.
    SupervisorAc = 2,
    /// A view whose entries never match: every access takes the slow path, which looks at
    /// alignment and data breakpoints.
    Checked = 3,
}

const ENTRIES: usize = 1024;
const VIEWS: usize = 4;
const PAGE_MASK: u64 = !0xfff;
/// No tag looks like this: address spaces are numbered below it.
const NO_TAG: u64 = u64::MAX;
const ADDRESS_SPACES: u16 = 0xfff;

#[derive(Clone, Copy)]
struct Entry<P> {
    /// Tag under which loads hit.
    read: u64,
    /// Tag under which stores hit: the page is writable and already dirty.
    write: u64,
    page: Option<P>,
    /// The translation holds in every address space.
    global: bool,
}

/// What was forgotten since somebody last asked. Who keeps translations of their own, which they
/// got by [`Cpu::translate`](crate::Cpu::translate), forgets the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Everything.
    pub all: bool,
    /// All but global pages: another address space was entered.
    pub space: bool,
    pages: [u64; 8],
    count: usize,
}

impl Forgotten {
    /// The linear addresses of single pages, in every address space.
    pub fn pages(&self) -> &[u64] {
        &self.pages[..self.count]
    }

    /// Nothing was forgotten.
    pub fn is_empty(&self) -> bool {
        !self.all && !self.space && self.count == 0
    }

    fn note_page(&mut self, linear: u64) {
        match self.pages.get_mut(self.count) {
            Some(slot) => {
                *slot = linear & PAGE_MASK;
                self.count += 1;
            }
            None => self.all = true,
        }
    }
}

#[derive(Clone, Copy)]
struct CodeEntry<P> {
    tag: u64,
    gpa: u64,
    page: Option<P>,
    global: bool,
}

const CODE_ENTRIES: usize = 256;

pub(crate) struct Tlb<P> {
    entries: Box<[Entry<P>]>,
    /// For instruction fetches: user and supervisor.
    code: Box<[CodeEntry<P>]>,
    /// The number of the current address space, below [`ADDRESS_SPACES`].
    asid: u16,
    next_asid: u16,
    /// The address-space number of each PCID, 0 if it has none.
    pcids: Box<[u16]>,
    /// Regions of 2 MiB and of 1 GiB that large pages were cached for, hashed. INVLPG must drop
    /// all of a large page, whose parts lie scattered.
    large: [Box<[u64]>; 2],
    pub forgotten: Forgotten,
}

const FILTER_BITS: u64 = 4096;

impl<P: Copy> Tlb<P> {
    pub fn new() -> Self {
        let empty = Entry { read: NO_TAG, write: NO_TAG, page: None, global: false };
        let empty_code = CodeEntry { tag: NO_TAG, gpa: 0, page: None, global: false };
        let filter = || vec![0; (FILTER_BITS / 64) as usize].into_boxed_slice();
        Self {
            entries: vec![empty; ENTRIES * VIEWS].into_boxed_slice(),
            code: vec![empty_code; CODE_ENTRIES * 2].into_boxed_slice(),
            asid: 1,
            next_asid: 2,
            pcids: vec![0; 4096].into_boxed_slice(),
            large: [filter(), filter()],
            forgotten: Forgotten::default(),
        }
    }

    #[inline(always)]
    fn index(view: View, linear: u64) -> usize {
        // The mask on the view lets the compiler see that the index is in bounds.
        (view as usize & (VIEWS - 1)) * ENTRIES + (linear >> 12) as usize % ENTRIES
    }

    #[inline(always)]
    fn tag(&self, linear: u64) -> u64 {
        (linear & PAGE_MASK) | u64::from(self.asid)
    }

    /// The page to load from, on a hit. The access must not leave the page.
    #[inline(always)]
    pub fn read(&self, view: View, linear: u64) -> Option<P> {
        let entry = &self.entries[Self::index(view, linear)];
        if entry.read == self.tag(linear) { entry.page } else { None }
    }

    /// The page to store to, on a hit. The access must not leave the page.
    #[inline(always)]
    pub fn write(&self, view: View, linear: u64) -> Option<P> {
        let entry = &self.entries[Self::index(view, linear)];
        if entry.write == self.tag(linear) { entry.page } else { None }
    }

    /// Where instructions of the page at `linear` lie: physical address of the page, and the page.
    #[inline(always)]
    pub fn code(&self, user: bool, linear: u64) -> Option<(u64, P)> {
        let at = usize::from(user) * CODE_ENTRIES + (linear >> 12) as usize % CODE_ENTRIES;
        let entry = &self.code[at];
        if entry.tag == self.tag(linear) { entry.page.map(|page| (entry.gpa, page)) } else { None }
    }

    /// Remembers a translation for data.
    pub fn fill(&mut self, view: View, linear: u64, page: P, translation: &Translation) {
        if view == View::Checked {
            return;
        }
        self.note_large(linear, translation.page_size);
        let tag = self.tag(linear);
        self.entries[Self::index(view, linear)] = Entry {
            read: tag,
            write: if translation.writable { tag } else { NO_TAG },
            page: Some(page),
            global: translation.global,
        };
    }

    /// The number of the current address space.
    pub fn address_space(&self) -> u16 {
        self.asid
    }

    /// Whether the translation that the last hit or fill at `linear` used is a global one.
    pub fn is_global(&self, view: View, linear: u64) -> bool {
        self.entries[Self::index(view, linear)].global
    }

    /// Remembers a translation for instruction fetches.
    pub fn fill_code(&mut self, user: bool, linear: u64, page: P, translation: &Translation) {
        self.note_large(linear, translation.page_size);
        let at = Self::code_index(user, linear);
        self.code[at] = CodeEntry {
            tag: self.tag(linear),
            gpa: translation.gpa & PAGE_MASK,
            page: Some(page),
            global: translation.global,
        };
    }

    fn code_index(user: bool, linear: u64) -> usize {
        usize::from(user) * CODE_ENTRIES + (linear >> 12) as usize % CODE_ENTRIES
    }

    /// Whether the translation that the last hit or fill of code at `linear` used is global.
    pub fn is_code_global(&self, user: bool, linear: u64) -> bool {
        self.code[Self::code_index(user, linear)].global
    }

    fn filter_bit(linear: u64, level: usize) -> (usize, u64) {
        let hash = (linear >> [21, 30][level]).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
        ((hash % FILTER_BITS / 64) as usize, 1 << (hash % 64))
    }

    fn note_large(&mut self, linear: u64, page_size: u64) {
        if page_size > 0x1000 {
            // A 4 MiB page counts by the GiB as well: two 2 MiB regions would miss one half.
            let level = usize::from(page_size > 0x20_0000);
            let (word, bit) = Self::filter_bit(linear, level);
            self.large[level][word] |= bit;
        }
    }

    /// Forgets everything (a change of CR0, CR4 or EFER; INVPCID of all).
    pub fn flush_all(&mut self) {
        for entry in &mut self.entries {
            entry.read = NO_TAG;
            entry.write = NO_TAG;
        }
        for entry in &mut self.code {
            entry.tag = NO_TAG;
        }
        self.pcids.fill(0);
        for filter in &mut self.large {
            filter.fill(0);
        }
        self.asid = 1;
        self.next_asid = 2;
        self.forgotten.all = true;
    }

    /// Forgets the page at `linear` in every address space (INVLPG).
    pub fn flush_page(&mut self, linear: u64) {
        let is_large = (0..2).any(|level| {
            let (word, bit) = Self::filter_bit(linear, level);
            self.large[level][word] & bit != 0
        });
        if is_large {
            let asid = self.asid;
            let pcid = self.pcids.iter().position(|&a| a == asid);
            self.flush_all();
            if let Some(pcid) = pcid {
                self.pcids[pcid] = self.asid;
            }
            return;
        }
        self.forgotten.note_page(linear);
        let page = linear & PAGE_MASK;
        for view in [View::User, View::Supervisor, View::SupervisorAc] {
            let entry = &mut self.entries[Self::index(view, linear)];
            if entry.read & PAGE_MASK == page {
                entry.read = NO_TAG;
                entry.write = NO_TAG;
            }
        }
        for user in [0, 1] {
            let at = user * CODE_ENTRIES + (linear >> 12) as usize % CODE_ENTRIES;
            if self.code[at].tag & PAGE_MASK == page {
                self.code[at].tag = NO_TAG;
            }
        }
    }

    /// Enters the address space of `pcid` (0 without CR4.PCIDE). Unless `keep`, translations that
    /// were cached for it before are forgotten. Global pages are forgotten with them, which the
    /// architecture allows.
    pub fn switch(&mut self, pcid: u16, keep: bool) {
        let pcid = usize::from(pcid & 0xfff);
        if !keep || self.pcids[pcid] == 0 {
            if self.next_asid >= ADDRESS_SPACES {
                self.flush_all();
            }
            self.pcids[pcid] = self.next_asid;
            self.next_asid += 1;
        }
        self.asid = self.pcids[pcid];
        self.forgotten.space = true;
    }

    /// Forgets the address space of `pcid` (INVPCID); `current` says that it is the one in use.
    pub fn flush_pcid(&mut self, pcid: u16, current: bool) {
        if current {
            self.switch(pcid, false);
        } else {
            self.pcids[usize::from(pcid & 0xfff)] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(writable: bool, page_size: u64) -> Translation {
        Translation { gpa: 0, writable, page_size, global: false }
    }

    #[test]
    fn hits_only_what_was_filled_in_the_same_view_and_space() {
        let mut tlb = Tlb::new();
        tlb.switch(0, false);
        tlb.fill(View::User, 0x1234_5000, 7u32, &page(false, 0x1000));
        assert_eq!(tlb.read(View::User, 0x1234_5678), Some(7));
        assert_eq!(tlb.write(View::User, 0x1234_5678), None);
        assert_eq!(tlb.read(View::Supervisor, 0x1234_5678), None);
        assert_eq!(tlb.read(View::User, 0x1234_6000), None);
        tlb.switch(0, false);
        assert_eq!(tlb.read(View::User, 0x1234_5678), None);
    }

    #[test]
    fn a_kept_address_space_is_found_again() {
        let mut tlb = Tlb::new();
        tlb.switch(1, false);
        tlb.fill(View::Supervisor, 0x5000, 1u32, &page(true, 0x1000));
        tlb.switch(2, false);
        assert_eq!(tlb.read(View::Supervisor, 0x5000), None);
        tlb.switch(1, true);
        assert_eq!(tlb.write(View::Supervisor, 0x5000), Some(1));
        tlb.flush_pcid(1, true);
        assert_eq!(tlb.write(View::Supervisor, 0x5000), None);
    }

    #[test]
    fn invlpg_of_one_part_drops_all_of_a_large_page() {
        let mut tlb = Tlb::new();
        tlb.fill(View::User, 0x20_0000, 1u32, &page(true, 0x20_0000));
        tlb.fill(View::User, 0x3f_f000, 2u32, &page(true, 0x20_0000));
        tlb.flush_page(0x30_0000);
        assert_eq!(tlb.read(View::User, 0x20_0000), None);
        assert_eq!(tlb.read(View::User, 0x3f_f000), None);
    }

    #[test]
    fn numbers_of_address_spaces_are_reused_only_after_a_flush() {
        let mut tlb = Tlb::new();
        tlb.switch(5, false);
        tlb.fill(View::User, 0x1000, 1u32, &page(true, 0x1000));
        for _ in 0..10_000 {
            tlb.switch(6, false);
            assert_eq!(tlb.read(View::User, 0x1000), None);
        }
    }
}
