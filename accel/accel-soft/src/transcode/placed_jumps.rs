//! The second level of all jump caches: blocks by where they lie in guest physical memory.
//!
//! What a linear address means is another thing in each address space, but a page of a program or
//! library is the same for all who run it. So two questions are asked: the *code TLB* says where the page
//! lies that a branch goes to, and [`PlacedJumps`], which all address spaces share, what block is
//! there. A new process misses once for each page, not once for each branch.

use super::context::jump_hash;

/// Entries of each code TLB, a power of two.
pub const CODE_TLB_ENTRIES: usize = 1024;
/// Entries of [`PlacedJumps`], a power of two.
pub const PLACED_JUMPS: usize = 1 << 18;

/// Where a linear page of code lies.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct CodePage {
    /// The page's linear address, with the number of the address space in the low bits, or
    /// [`GLOBAL`](super::journal::GLOBAL).
    pub tag: u64,
    /// Its guest physical address.
    pub gpa: u64,
}

/// The code TLB of one jump cache. The linear page `n` belongs to entry `n % CODE_TLB_ENTRIES`.
#[repr(C)]
pub struct CodeTlb([CodePage; CODE_TLB_ENTRIES]);

impl CodeTlb {
    fn index(linear: u64) -> usize {
        (linear >> 12) as usize % CODE_TLB_ENTRIES
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        // Numbers of address spaces are below 4095.
        self.0.fill(CodePage { tag: u64::MAX, gpa: 0 });
    }

    /// Forgets the page at `linear`.
    pub fn clear_page(&mut self, linear: u64) {
        self.0[Self::index(linear)].tag = u64::MAX;
    }

    /// Remembers that the page at `linear` lies at `gpa` in the address space of this number.
    pub fn fill(&mut self, linear: u64, space: u64, gpa: u64) {
        self.0[Self::index(linear)] = CodePage { tag: linear & !0xfff | space, gpa: gpa & !0xfff };
    }

    /// The guest physical address of what is at `linear` in one of these address spaces.
    pub fn find(&self, linear: u64, spaces: [u64; 2]) -> Option<u64> {
        let page = &self.0[Self::index(linear)];
        let is_there = spaces.iter().any(|space| page.tag == linear & !0xfff | space);
        is_there.then_some(page.gpa | linear & 0xfff)
    }
}

/// What all keys here have, which those of blocks lack: so that zero is no key, and a new table takes no
/// memory.
pub const PLACED: u64 = 1 << 55;

/// A block that branches go to.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub struct PlacedJump {
    /// The bits of the block's [`Key`](super::cache::Key), and [`PLACED`]; or zero.
    pub key: u64,
    /// Its far entry.
    pub host: u64,
}

/// Blocks by their keys. One may be in the entry where it belongs or in that whose number differs in
/// the lowest bit.
#[repr(C)]
pub struct PlacedJumps([PlacedJump; PLACED_JUMPS]);

impl PlacedJumps {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.fill(PlacedJump { key: 0, host: 0 });
    }

    /// Remembers that the block of this key is entered at `host`.
    pub fn fill(&mut self, key: u64, host: u64) {
        let key = key | PLACED;
        let index = jump_hash(key) % PLACED_JUMPS;
        if self.0[index].key != key {
            self.0[index ^ 1] = self.0[index];
        }
        self.0[index] = PlacedJump { key, host };
    }

    /// The far entry of the block of this key.
    pub fn find(&self, key: u64) -> Option<u64> {
        let key = key | PLACED;
        let index = jump_hash(key) % PLACED_JUMPS;
        let found = [index, index ^ 1].map(|index| &self.0[index]);
        found.iter().find(|jump| jump.key == key).map(|jump| jump.host)
    }
}

#[cfg(test)]
mod tests {
    use super::super::context::ContextCell;

    #[test]
    fn pages_are_told_apart_by_address_space() {
        let cell = ContextCell::new(0).unwrap();
        // SAFETY: nobody else has the context.
        let tlb = unsafe { &mut (*cell.get()).code_tlb[0] };
        assert_eq!(tlb.find(0x40_1234, [7, 0]), None);
        tlb.fill(0x40_1234, 7, 0x9_9234);
        assert_eq!(tlb.find(0x40_1567, [7, 0]), Some(0x9_9567));
        assert_eq!(tlb.find(0x40_1567, [8, 0]), None);
        let kernel = 0xffff_ffff_8000_1000;
        tlb.fill(kernel, 0, 0x140_1000);
        assert_eq!(tlb.find(kernel + 2, [8, 0]), Some(0x140_1002));
        assert_eq!(tlb.find(0x40_1567, [7, 0]), None, "both have the same entry");
        tlb.clear_page(kernel + 0xfff);
        assert_eq!(tlb.find(kernel + 2, [8, 0]), None);
    }

    #[test]
    fn two_blocks_share_a_pair_of_entries() {
        let cell = ContextCell::new(0).unwrap();
        // SAFETY: nobody else has the context.
        let jumps = unsafe { &mut (*cell.get()).placed_jumps };
        // The upper part of a number does not tell entries apart.
        let [first, second, third] = [0, 1, 2].map(|n| n << 40);
        assert_eq!(jumps.find(first), None);
        jumps.fill(first, 1);
        jumps.fill(first, 2);
        jumps.fill(second, 3);
        assert_eq!([first, second].map(|key| jumps.find(key)), [Some(2), Some(3)]);
        jumps.fill(third, 4);
        assert_eq!([first, second, third].map(|key| jumps.find(key)), [None, Some(3), Some(4)]);
        jumps.clear();
        assert_eq!(jumps.find(third), None);
    }
}
