//! A set of interrupt vectors: the shape of ISR, TMR and IRR (SDM Vol. 3, 11.8.4).

/// 256 bits, seen by software as eight 32-bit registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VectorSet(pub(super) [u32; 8]);

impl VectorSet {
    fn position(vector: u8) -> (usize, u32) {
        (usize::from(vector >> 5), 1 << (vector & 31))
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::position(vector);
        self.0[word] & bit != 0
    }

    /// Adds `vector`; says whether it is new.
    pub(super) fn insert(&mut self, vector: u8) -> bool {
        let (word, bit) = Self::position(vector);
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    pub(super) fn remove(&mut self, vector: u8) {
        let (word, bit) = Self::position(vector);
        self.0[word] &= !bit;
    }

    pub(super) fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&bits| bits != 0)?;
        Some((word as u32 * 32 + self.0[word].ilog2()) as u8)
    }

    /// The 32 bits that register `index % 8` of the set shows.
    pub(super) fn register(&self, index: u8) -> u32 {
        self.0[usize::from(index % 8)]
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_btree_set(ops: std::vec::Vec<(bool, u8)>) {
            let mut set = VectorSet::default();
            let mut model = BTreeSet::new();
            for (insert, vector) in ops {
                if insert {
                    prop_assert_eq!(set.insert(vector), model.insert(vector));
                } else {
                    set.remove(vector);
                    model.remove(&vector);
                }
                prop_assert_eq!(set.highest(), model.last().copied());
                prop_assert_eq!(set.contains(vector), model.contains(&vector));
            }
            let bits: u32 = (0..8).map(|i| set.register(i).count_ones()).sum();
            prop_assert_eq!(bits as usize, model.len());
        }
    }
}
