//! Decoded straight-line code, kept for the next time.
//!
//! Blocks are found by the physical address and the code size they were decoded for. Nothing
//! tells the cache when code is written: entering a block compares its bytes with memory, which
//! is right whoever wrote them (this processor, another one, or a device).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use crate::decode::Op;
use crate::env::Env;

/// A block never holds more operations than this, so that events are seen in time.
pub(crate) const MAX_OPS: usize = 32;
/// Nor does it cover more bytes: with them, a [`Slot`] fills a cache line.
pub(crate) const MAX_BYTES: usize = 48;
/// How many slots a cache begins with and may come to have, powers of two.
const FEWEST_SLOTS: usize = 1 << 10;
const MOST_SLOTS: usize = 1 << 15;
/// How many operations are kept. When there is no more room, all are forgotten.
const CAPACITY: usize = 1 << 16;
/// The same where somebody else runs what is run often.
const LITTLE: usize = 1 << 14;

/// What a block is found by: the guest physical address of its first byte, and the code size it
/// was decoded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Key {
    /// The key for code of 16, 32 or 64 bits at `gpa`, which has at most
    /// [`MAX_PHYSICAL_BITS`](crate::MAX_PHYSICAL_BITS).
    #[inline(always)]
    pub fn new(gpa: u64, code_bits: u32) -> Self {
        Self(gpa | u64::from(code_bits) << 56)
    }

    const NONE: Self = Self(u64::MAX);
}

/// A block: all that is needed to find it and to see whether it is still right.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Block {
    key: Key,
    /// Its operations.
    start: u32,
    count: u8,
    /// The bytes that were decoded, which lie in one page, and how many they are.
    len: u8,
    bytes: [u8; MAX_BYTES],
}

impl Block {
    const EMPTY: Self = Self { key: Key::NONE, start: 0, count: 0, len: 0, bytes: [0; MAX_BYTES] };

    /// The bytes that were decoded.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Where its operations stand in [`BlockCache::ops`].
    #[inline(always)]
    pub fn range(&self) -> Range<usize> {
        let start = self.start as usize;
        start..start + usize::from(self.count)
    }
}

/// Blocks by their keys, each in the one slot where it belongs. It grows with their number: a guest that idles
/// has few.
#[derive(Default)]
struct Table {
    slots: Box<[Block]>,
    /// How many slots are taken.
    taken: usize,
}

impl Table {
    fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| Block::EMPTY).collect(), taken: 0 }
    }

    #[inline(always)]
    fn slot(&self, key: Key) -> usize {
        let hash = key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
        hash as usize & self.slots.len().wrapping_sub(1)
    }

    #[inline(always)]
    fn find(&self, key: Key) -> Option<&Block> {
        self.slots.get(self.slot(key)).filter(|block| block.key == key)
    }

    /// Puts a block where it belongs, in place of another one that is there.
    fn put(&mut self, block: Block) {
        let at = self.slot(block.key);
        if let Some(slot) = self.slots.get_mut(at) {
            self.taken += usize::from(slot.key == Key::NONE);
            *slot = block;
        }
    }

    /// Makes it twice as large if it fills up, to [`MOST_SLOTS`].
    #[inline]
    fn make_room(&mut self) {
        if self.taken > self.slots.len() / 2 && self.slots.len() < MOST_SLOTS {
            self.grow();
        }
    }

    #[cold]
    fn grow(&mut self) {
        let more = Self::new(self.slots.len() * 2);
        let less = core::mem::replace(self, more);
        less.slots.iter().filter(|block| block.key != Key::NONE).for_each(|block| self.put(*block));
    }

    fn clear(&mut self) {
        self.slots.fill(Block::EMPTY);
        self.taken = 0;
    }
}

/// A cache of blocks. Their operations stand in one list, in the order in which they were decoded: code that
/// runs together lies together.
pub(crate) struct BlockCache<E: Env> {
    blocks: Table,
    pub ops: Vec<Op<E>>,
    /// How many operations are kept.
    capacity: usize,
}

impl<E: Env> Default for BlockCache<E> {
    /// A stand-in that holds nothing, for while the processor uses the real one.
    fn default() -> Self {
        Self { blocks: Table::default(), ops: Vec::new(), capacity: 0 }
    }
}

impl<E: Env> BlockCache<E> {
    pub fn new() -> Self {
        // Never moved, so that there are never two of it.
        let ops = Vec::with_capacity(CAPACITY);
        Self { blocks: Table::new(FEWEST_SLOTS), ops, capacity: CAPACITY }
    }

    /// Keeps less from now on: most of it is not asked for again.
    pub fn keep_little(&mut self) {
        self.capacity = LITTLE;
    }

    /// The block with this key, if it is there.
    #[inline(always)]
    pub fn find(&self, key: Key) -> Option<&Block> {
        self.blocks.find(key)
    }

    /// Makes sure that one more block and its operations find room.
    pub fn reserve(&mut self) {
        if self.ops.len() + MAX_OPS > self.capacity {
            self.ops.clear();
            self.blocks.clear();
        }
        self.blocks.make_room();
    }

    /// Keeps the block whose operations are those from `start` on, decoded from `bytes` (at most
    /// [`MAX_BYTES`]), in place of another one that falls on the same slot.
    pub fn insert(&mut self, key: Key, start: usize, bytes: &[u8]) -> Block {
        let mut block = Block {
            key,
            start: start as u32,
            count: (self.ops.len() - start) as u8,
            len: bytes.len() as u8,
            bytes: [0; MAX_BYTES],
        };
        block.bytes[..bytes.len()].copy_from_slice(bytes);
        self.blocks.put(block);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stay_while_the_table_grows() {
        let mut table = Table::new(4);
        let block = |n: u64| Block { key: Key::new(n << 4, 64), start: n as u32, ..Block::EMPTY };
        let mut kept = Vec::new();
        for n in 0..1000 {
            table.make_room();
            // What is put on another's slot takes that one's place; it grows before many must go.
            let at = table.slot(block(n).key);
            kept.retain(|&old| table.slot(block(old).key) != at);
            table.put(block(n));
            kept.push(n);
            assert_eq!(table.taken, kept.len());
        }
        assert!(table.slots.len() >= 1024 && kept.len() > 500, "{} kept", kept.len());
        for n in kept {
            assert_eq!(table.find(block(n).key).map(|block| block.start), Some(n as u32));
        }
        table.clear();
        assert!(table.find(block(999).key).is_none() && table.taken == 0);
    }

    #[test]
    fn a_table_grows_no_further_than_it_may() {
        let mut table = Table::new(FEWEST_SLOTS);
        for n in 0..4 * MOST_SLOTS as u64 {
            table.make_room();
            table.put(Block { key: Key::new(n, 64), ..Block::EMPTY });
        }
        assert_eq!(table.slots.len(), MOST_SLOTS);
        assert!(table.taken <= MOST_SLOTS);
        assert!(Table::default().find(Key::new(0, 64)).is_none());
    }
}
