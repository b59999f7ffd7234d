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
const SLOTS: usize = 1 << 14;

pub(crate) struct Block<E: Env> {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Default operand and address size: 16, 32 or 64.
    pub code_bits: u32,
    /// The bytes that were decoded. They lie in one page.
    pub bytes: Vec<u8>,
    pub ops: Vec<Op<E>>,
}

/// A direct-mapped cache of blocks.
pub(crate) struct BlockCache<E: Env> {
    slots: Box<[Option<Box<Block<E>>>]>,
}

impl<E: Env> BlockCache<E> {
    pub fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| None).collect() }
    }

    fn slot(&mut self, gpa: u64) -> &mut Option<Box<Block<E>>> {
        let hash = gpa.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
        &mut self.slots[hash as usize % SLOTS]
    }

    /// Takes the block out, if it is there. Whoever took it puts it back.
    #[inline]
    pub fn take(&mut self, gpa: u64, code_bits: u32) -> Option<Box<Block<E>>> {
        let slot = self.slot(gpa);
        match slot {
            Some(block) if block.gpa == gpa && block.code_bits == code_bits => slot.take(),
            _ => None,
        }
    }

    /// Keeps a block, in place of another one that falls on the same slot.
    #[inline]
    pub fn put(&mut self, block: Box<Block<E>>) {
        let gpa = block.gpa;
        *self.slot(gpa) = Some(block);
    }
}
