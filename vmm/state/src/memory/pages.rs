//! Sets of pages.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Pages of a memory file, by their numbers from its beginning on: ascending runs, of which each has a
/// first page and a length, and which do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pages(Vec<(u64, u64)>);

impl Pages {
    /// The first `count` pages.
    pub fn all(count: u64) -> Self {
        Self(if count > 0 { vec![(0, count)] } else { Vec::new() })
    }

    /// Adds a run that lies behind all others, or at the end of the last.
    pub fn push(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some((first, len)) if *first + *len >= run.start => *len = run.end - *first,
            _ => self.0.push((run.start, run.end - run.start)),
        }
    }

    /// The runs.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|&(first, len)| first..first + len)
    }

    /// How many runs there are.
    pub fn run_count(&self) -> usize {
        self.0.len()
    }

    /// How many pages there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, len)| len).sum()
    }

    /// The runs within `window`, cut off at its ends.
    pub fn within(&self, window: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let from = self.0.partition_point(|&(first, len)| first + len <= window.start);
        let runs = self.0[from..].iter().map(|&(first, len)| first..first + len);
        let cut = move |run: Range<u64>| run.start.max(window.start)..run.end.min(window.end);
        runs.map(cut).take_while(|run| !run.is_empty())
    }

    /// The pages that `other` does not have.
    pub fn without(&self, other: &Pages) -> Pages {
        let mut left = Pages::default();
        for run in self.runs() {
            let mut at = run.start;
            for hole in other.within(run.clone()) {
                left.push(at..hole.start);
                at = hole.end;
            }
            left.push(at..run.end);
        }
        left
    }

    /// At most `most` runs, one at least, with these pages and as few others as that takes.
    pub fn in_runs(mut self, most: usize) -> Pages {
        let excess = self.0.len().saturating_sub(most.max(1));
        if excess == 0 {
            return self;
        }
        let gap = |pair: &[(u64, u64)]| pair[1].0 - (pair[0].0 + pair[0].1);
        let mut gaps: Vec<u64> = self.0.windows(2).map(gap).collect();
        let (_, &mut widest, _) = gaps.select_nth_unstable(excess - 1);
        let runs = std::mem::take(&mut self.0);
        for (first, len) in runs {
            match self.0.last_mut() {
                Some(last) if first - (last.0 + last.1) <= widest => last.1 = first + len - last.0,
                _ => self.0.push((first, len)),
            }
        }
        self
    }

    /// Whether these are pages of a file that has `count`, in the form that they must have.
    pub fn are_among(&self, count: u64) -> bool {
        let mut free = Some(0u64);
        self.0.iter().all(|&(first, len)| {
            let end = first.checked_add(len).filter(|&end| len > 0 && end <= count);
            let is_ascending = free.is_some_and(|free| first >= free);
            // One page at least lies between two runs.
            free = end.and_then(|end| end.checked_add(1));
            is_ascending && end.is_some()
        })
    }
}

impl FromIterator<Range<u64>> for Pages {
    /// Runs must ascend.
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(runs: T) -> Self {
        let mut pages = Self::default();
        runs.into_iter().for_each(|run| pages.push(run));
        pages
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn pages(set: &BTreeSet<u64>) -> Pages {
        set.iter().map(|&page| page..page + 1).collect()
    }

    fn set(pages: &Pages) -> BTreeSet<u64> {
        pages.runs().flatten().collect()
    }

    proptest! {
        #[test]
        fn they_are_sets(
            a in prop::collection::btree_set(0u64..200, 0..80),
            b in prop::collection::btree_set(0u64..200, 0..80),
            window in (0u64..200, 0u64..200),
            most in 1usize..20,
        ) {
            let (x, y) = (pages(&a), pages(&b));
            prop_assert!(x.are_among(200));
            prop_assert_eq!(set(&x), a.clone());
            prop_assert_eq!(x.count(), a.len() as u64);
            prop_assert_eq!(set(&x.without(&y)), a.difference(&b).copied().collect());
            let window = window.0.min(window.1)..window.0.max(window.1);
            let within: BTreeSet<u64> = x.within(window.clone()).flatten().collect();
            prop_assert_eq!(within, a.iter().copied().filter(|page| window.contains(page)).collect());
            let coarse = x.clone().in_runs(most);
            prop_assert!(coarse.run_count() <= most && coarse.are_among(200));
            prop_assert!(x.without(&coarse).count() == 0);
            prop_assert!(x.run_count() > most || coarse == x);
        }
    }

    #[test]
    fn other_forms_are_none() {
        for runs in [
            vec![(0, 0)],
            vec![(5, 6)],
            vec![(2, 1), (1, 1)],
            vec![(0, 5), (4, 1)],
            vec![(0, 2), (2, 2)],
            vec![(u64::MAX, 1)],
            vec![(1, u64::MAX)],
        ] {
            assert!(!Pages(runs.clone()).are_among(10), "{runs:?}");
        }
        assert!(Pages(vec![(0, 2), (3, 7)]).are_among(10));
        assert!(Pages::all(0).are_among(0));
        assert!(Pages(vec![(0, u64::MAX)]).are_among(u64::MAX));
    }
}
