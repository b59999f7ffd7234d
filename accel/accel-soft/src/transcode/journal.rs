//! Which entries of a table are to be emptied.
//!
//! Kernels that keep programs' page tables apart from their own change the address space twice for
//! each system call, and those that fork give up all translations of a program at once. To empty
//! tables of thousands of entries each time would take longer than the call.

use std::mem::offset_of;

use x86::View;

use super::assembler::{Alu, Assembler, Mem, Reg};

/// How many entries a journal names, unless something else is said; a power of two.
pub const CAPACITY: usize = 256;

/// Names the entries of a table that were filled since it was emptied; where address spaces are changed,
/// but for those that hold in all of them.
#[repr(C)]
pub struct Journal<const N: usize = CAPACITY> {
    /// How many were filled. If there are more than `entries` has room for, any may have been.
    count: u64,
    /// Twice the number of each, as code that is generated indexes tables.
    entries: [u64; N],
}

impl<const N: usize> Journal<N> {
    /// Notes that an entry was filled.
    pub fn note(&mut self, index: usize) {
        self.entries[self.count as usize % N] = index as u64 * 2;
        self.count += 1;
    }

    /// Empties the journal.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// Empties the journal and calls `forget` for each entry that it names; `false` if it does not
    /// know them all.
    pub fn drain(&mut self, mut forget: impl FnMut(usize)) -> bool {
        let count = std::mem::take(&mut self.count);
        let noted = usize::try_from(count).ok().and_then(|count| self.entries.get(..count));
        let Some(noted) = noted else { return false };
        noted.iter().for_each(|&index| forget(index as usize / 2));
        true
    }
}

/// Emits what [`Journal::note`] does for the journal of `N` entries that lies at `at` from the stack
/// pointer. `index` holds twice the number of the entry. Changes flags and `scratch`; `index` is lost.
pub fn emit_note<const N: usize>(asm: &mut Assembler, at: i32, index: Reg, scratch: Reg) {
    const COUNT: i32 = offset_of!(Journal, count) as i32;
    const ENTRIES: i32 = offset_of!(Journal, entries) as i32;
    const { assert!(N.is_power_of_two()) };
    asm.load32(scratch, Mem::Context(at + COUNT));
    asm.alu32_imm(Alu::And, scratch, N as i32 - 1);
    asm.store(Mem::ContextIndexed(scratch, at + ENTRIES), index);
    asm.load(index, Mem::Context(at + COUNT));
    asm.lea(index, Mem::Base(index, 1));
    asm.store(Mem::Context(at + COUNT), index);
}

/// Whether a view of memory has the kernel's half, much of which is the same in every address space.
/// Second levels find that under address space 0, which is nobody's.
pub fn has_global(view: View) -> bool {
    view != View::User
}

/// The number of the address space under which what is global is found.
pub const GLOBAL: u64 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_knows_when_it_does_not_know() {
        let mut journal = Journal { count: 0, entries: [0; CAPACITY] };
        for filled in [0, 1, CAPACITY] {
            (0..filled).for_each(|index| journal.note(index));
            let mut named = Vec::new();
            assert!(journal.drain(|index| named.push(index)));
            assert_eq!(named, (0..filled).collect::<Vec<_>>());
        }
        (0..=CAPACITY).for_each(|index| journal.note(index));
        assert!(!journal.drain(|_| ()));
        assert!(journal.drain(|_| unreachable!("it was emptied")));
    }
}
