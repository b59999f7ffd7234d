//! Direct jumps between pages in code for mirrored memory.
//!
//! Blocks do not know their linear address, so a jump to another page looks in the jump cache, for who
//! knows what lies there. But code for mirrored memory is one program's at a time. While that is so, the
//! page that a direct jump leads to is always the same, as long as
//!
//! - the code with the jump runs at one linear address only, and
//! - the linear page that the jump leads to is not mapped anew.
//!
//! Then the jump is *linked*: its distance is overwritten, and it leads to the block by itself. Whoever
//! breaks one of these takes all links back.
//!
//! To link a jump takes longer than to find its target in the jump cache a hundred times. So links that
//! other programs had are not made again until the program has run for a while.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;

use super::cache::KeyHasher;

/// A program has run for a while: some hundred milliseconds.
const SETTLED: u64 = 500_000_000;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// A jump that is linked: where its distance stands, and what that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked {
    pub at: u32,
    pub before: i32,
}

/// What links are founded on. Pages are given by their addresses.
#[derive(Default)]
pub struct FarLinks {
    linked: Vec<Linked>,
    /// Those of other programs; meanwhile they go through the jump cache.
    retired: Vec<Linked>,
    /// How long the program has run, in ticks of the TSC.
    ticks: u64,
    /// The linear page at which code of a physical page runs; `None` if there are several.
    runs_at: Map<u64, Option<u64>>,
    /// The linear pages that links lead to, and the physical ones that they are.
    targets: Map<u64, u64>,
}

impl FarLinks {
    /// Code of the physical page `gpa` is going to run at the linear page `linear`. `false` if links
    /// took another one for granted: all must go.
    #[must_use]
    pub fn runs(&mut self, gpa: u64, linear: u64) -> bool {
        match self.runs_at.entry(gpa) {
            Entry::Vacant(entry) => {
                entry.insert(Some(linear));
                true
            }
            Entry::Occupied(mut entry) => {
                *entry.get() == Some(linear) || entry.insert(None).is_none()
            }
        }
    }

    /// Whether jumps in the code of the physical page `gpa` may be linked.
    pub fn may_link_from(&self, gpa: u64) -> bool {
        matches!(self.runs_at.get(&gpa), Some(Some(_)))
    }

    /// A jump was linked that leads to the linear page `linear`, which is the physical one at `gpa`.
    pub fn add(&mut self, link: Linked, linear: u64, gpa: u64) {
        self.linked.push(link);
        self.targets.insert(linear, gpa);
    }

    /// Whether links lead to the linear page.
    pub fn lead_to(&self, linear: u64) -> bool {
        self.targets.contains_key(&linear)
    }

    /// The linear pages that links lead to, and the physical ones that they are taken for.
    pub fn targets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.targets.iter().map(|(&linear, &gpa)| (linear, gpa))
    }

    /// All links, which are to be taken back.
    pub fn take(&mut self) -> Vec<Linked> {
        self.targets.clear();
        std::mem::take(&mut self.linked)
    }

    /// Another program is to run, of which nothing is known yet: no jump cache of code for mirrored memory
    /// may know anything, either. All links that there are, which are to go through the jump cache.
    pub fn retire(&mut self) -> &[Linked] {
        self.targets.clear();
        self.runs_at.clear();
        self.ticks = 0;
        let known = self.retired.len();
        self.retired.append(&mut self.linked);
        &self.retired[known..]
    }

    /// The program ran for so many ticks of the TSC. The links of other programs, if they are to be taken
    /// back now, so that they may be made again.
    #[must_use]
    pub fn ran(&mut self, ticks: u64) -> Vec<Linked> {
        self.ticks = self.ticks.saturating_add(ticks);
        if self.ticks < SETTLED || self.retired.is_empty() {
            return Vec::new();
        }
        std::mem::take(&mut self.retired)
    }

    /// All code is gone, and what jump caches know.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_at_two_places_is_not_linked() {
        let mut links = FarLinks::default();
        assert!(!links.may_link_from(0x5000));
        assert!(links.runs(0x5000, 0x40_0000) && links.runs(0x5000, 0x40_0000));
        assert!(links.may_link_from(0x5000));
        let link = Linked { at: 17, before: -5 };
        links.add(link, 0x40_1000, 0x6000);
        assert!(links.lead_to(0x40_1000) && !links.lead_to(0x40_0000));

        assert!(!links.runs(0x5000, 0x50_0000));
        assert_eq!(links.take(), [link]);
        assert!(!links.lead_to(0x40_1000) && !links.may_link_from(0x5000));
        // That is known now: nothing was taken for granted any more.
        assert!(links.runs(0x5000, 0x60_0000));

        links.forget();
        assert!(links.runs(0x5000, 0x50_0000) && links.may_link_from(0x5000));
    }

    #[test]
    fn links_of_other_programs_come_back_when_the_program_has_run_for_a_while() {
        let mut links = FarLinks::default();
        let [first, second] = [17, 18].map(|at| Linked { at, before: -5 });
        links.add(first, 0x40_1000, 0x6000);
        assert_eq!(links.retire(), [first]);
        links.add(second, 0x40_1000, 0x7000);
        assert_eq!(links.retire(), [second]);
        assert!(!links.lead_to(0x40_1000));
        assert_eq!(links.ran(SETTLED - 1), []);
        assert_eq!(links.ran(1), [first, second]);
        assert_eq!(links.ran(1), []);
    }
}
