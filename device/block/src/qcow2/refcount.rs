//! Where the refcount of a cluster stands (section "Host cluster management").

/// The widths that say how refcounts are laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths {
    /// log2 of the cluster size in bytes.
    pub cluster_bits: u32,
    /// log2 of the width of a refcount in bits, 0 to 6.
    pub refcount_order: u32,
}

/// The place of one refcount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the refcount table's entry that points to the refcount block.
    pub table_index: u64,
    /// Byte of the refcount block at which the bytes that hold the refcount start.
    pub byte: u64,
    /// How many bytes hold the refcount: 1, 2, 4 or 8.
    pub len: usize,
    /// Where it starts in its byte, counted from the least significant bit.
    shift: u32,
    /// The refcount's bits, before the shift.
    mask: u64,
}

impl Widths {
    /// Where the refcount of the cluster with this index stands.
    pub(super) fn place(self, cluster: u64) -> Place {
        let Widths { cluster_bits, refcount_order } = self;
        let index_bits = cluster_bits + 3 - refcount_order;
        let index = cluster & ((1 << index_bits) - 1);
        let bit = index << refcount_order;
        Place {
            table_index: cluster >> index_bits,
            byte: bit / 8,
            len: 1 << refcount_order.saturating_sub(3),
            shift: if refcount_order < 3 { (bit % 8) as u32 } else { 0 },
            mask: u64::MAX >> (64 - (1 << refcount_order)),
        }
    }
}

impl Place {
    /// The refcount in `bytes`, which are the `len` bytes at `byte`.
    pub(super) fn get(&self, bytes: &[u8]) -> u64 {
        (big_endian(bytes) >> self.shift) & self.mask
    }

    /// Sets the refcount in `bytes` to 1.
    pub(super) fn set_one(&self, bytes: &mut [u8]) {
        let value = big_endian(bytes) & !(self.mask << self.shift) | 1 << self.shift;
        for (i, byte) in bytes.iter_mut().rev().enumerate() {
            *byte = (value >> (8 * i)) as u8;
        }
    }
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_has_its_place() {
        let place =
            |order, cluster| Widths { cluster_bits: 16, refcount_order: order }.place(cluster);
        // 16 bits: 32768 refcounts to a block.
        assert_eq!(place(4, 32768 * 5 + 7).table_index, 5);
        assert_eq!((place(4, 32768 * 5 + 7).byte, place(4, 7).len), (14, 2));
        // 1 bit: 524288 to a block, the first in the lowest bit.
        assert_eq!(place(0, 524288 + 10).table_index, 1);
        assert_eq!(place(0, 10).byte, 1);
        assert_eq!(place(0, 10).get(&[0b100]), 1);
        assert_eq!(place(0, 10).get(&[0b1011]), 0);
        // 64 bits.
        assert_eq!((place(6, 3).byte, place(6, 3).len), (24, 8));
        assert_eq!(place(6, 3).get(&u64::MAX.to_be_bytes()), u64::MAX);
    }

    #[test]
    fn setting_one_leaves_the_neighbours_alone() {
        for order in 0..=6 {
            let place = Widths { cluster_bits: 16, refcount_order: order }.place(1);
            let mut bytes = vec![0xff; place.len];
            place.set_one(&mut bytes);
            assert_eq!(place.get(&bytes), 1, "order {order}");
            if order < 3 {
                let first = Widths { cluster_bits: 16, refcount_order: order }.place(0);
                assert_eq!(first.get(&bytes), first.mask, "order {order}");
            }
        }
    }
}
