//! Decoded straight-line code, kept for the next time.
//!
//! Blocks are found by the physical address and the code size they were decoded for. Nothing
//! tells the cache when code is written: entering a block compares its bytes with memory, which
//! is right whoever wrote them (this processor, another one, or a device).

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::decode::Op;
use crate::env::Env;

/// A block never holds more operations than this, so that events are seen in time.
pub(crate) const MAX_OPS: usize = 32;
/// Nor does it cover more bytes.
pub(crate) const MAX_BYTES: usize = 64;
const SLOTS: usize = 1 << 15;

pub(crate) struct Block<E: Env> {
    pub key: Key,
    /// The bytes that were decoded, which lie in one page, and how many they are.
    bytes: [u8; MAX_BYTES],
    len: u8,
    pub ops: Vec<Op<E>>,
}

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

impl<E: Env> Block<E> {
    /// A block of `ops`, decoded from `bytes`: at most [`MAX_BYTES`].
    pub fn new(key: Key, bytes: &[u8], ops: Vec<Op<E>>) -> Self {
        let mut copy = [0; MAX_BYTES];
        copy[..bytes.len()].copy_from_slice(bytes);
        Self { key, bytes: copy, len: bytes.len() as u8, ops }
    }

    /// The bytes that were decoded.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A direct-mapped cache of blocks. Keys stand in the table itself, so that a miss touches
/// nothing else.
pub(crate) struct BlockCache<E: Env> {
    slots: Box<[Slot<E>]>,
}

struct Slot<E: Env> {
    key: Key,
    block: Option<Box<Block<E>>>,
}

impl<E: Env> BlockCache<E> {
    pub fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Slot { key: Key::NONE, block: None }).collect() }
    }

    #[inline(always)]
    fn slot(&mut self, key: Key) -> &mut Slot<E> {
        let hash = key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
        &mut self.slots[hash as usize % SLOTS]
    }

    /// Takes the block out, if it is there. Whoever took it puts it back.
    #[inline(always)]
    pub fn take(&mut self, key: Key) -> Option<Box<Block<E>>> {
        let slot = self.slot(key);
        if slot.key == key { slot.block.take() } else { None }
    }

    /// Keeps a block, in place of another one that falls on the same slot.
    #[inline(always)]
    pub fn put(&mut self, block: Box<Block<E>>) {
        let slot = self.slot(block.key);
        slot.key = block.key;
        slot.block = Some(block);
    }
}
