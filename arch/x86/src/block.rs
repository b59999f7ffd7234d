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
const SLOTS: usize = 1 << 15;
/// How many operations are kept. When there is no more room, all are forgotten.
const CAPACITY: usize = 1 << 16;

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

/// A direct-mapped cache of blocks. Their operations stand in one list, in the order in which
/// they were decoded: code that runs together lies together.
pub(crate) struct BlockCache<E: Env> {
    blocks: Box<[Block]>,
    pub ops: Vec<Op<E>>,
}

impl<E: Env> Default for BlockCache<E> {
    /// A stand-in that holds nothing, for while the processor uses the real one.
    fn default() -> Self {
        Self { blocks: Box::default(), ops: Vec::new() }
    }
}

impl<E: Env> BlockCache<E> {
    pub fn new() -> Self {
        // Never moved, so that there are never two of it.
        let ops = Vec::with_capacity(CAPACITY);
        Self { blocks: (0..SLOTS).map(|_| Block::EMPTY).collect(), ops }
    }

    #[inline(always)]
    fn slot(key: Key) -> usize {
        let hash = key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
        hash as usize % SLOTS
    }

    /// The block with this key, if it is there.
    #[inline(always)]
    pub fn find(&self, key: Key) -> Option<&Block> {
        self.blocks.get(Self::slot(key)).filter(|block| block.key == key)
    }

    /// Makes sure that the operations of one more block find room.
    pub fn reserve(&mut self) {
        if self.ops.len() + MAX_OPS > CAPACITY {
            self.ops.clear();
            self.blocks.fill(Block::EMPTY);
        }
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
        if let Some(slot) = self.blocks.get_mut(Self::slot(key)) {
            *slot = block;
        }
        block
    }
}
