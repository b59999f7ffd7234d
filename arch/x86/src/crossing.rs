//! Decoded instructions that lie in two pages.
//!
//! No block holds them, and a loop may have one.

use alloc::boxed::Box;

use crate::decode::{MAX_LEN, Op};
use crate::env::Env;

/// What such an instruction is found by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crossing {
    /// The guest physical address of its first byte.
    pub first: u64,
    /// Code size.
    pub bits: u32,
    /// Its bytes, and what follows, as memory has them now.
    pub bytes: [u8; MAX_LEN],
}

const ENTRIES: usize = 512;

/// The instructions, direct-mapped. They are taken out while they are executed.
pub(crate) struct CrossingCache<E: Env>(Box<[Slot<E>]>);

type Slot<E> = Option<(Crossing, Op<E>)>;

impl<E: Env> CrossingCache<E> {
    pub fn new() -> Self {
        Self((0..ENTRIES).map(|_| None).collect())
    }

    fn slot(&mut self, first: u64) -> &mut Slot<E> {
        // The page and, of the last bytes in it, which one.
        &mut self.0[(first >> 12 ^ first << 5) as usize % ENTRIES]
    }

    /// Whether the instruction at `first`, whose first page ends with `bytes`, is likely to be
    /// known.
    pub fn expects(&mut self, first: u64, bits: u32, bytes: &[u8]) -> bool {
        self.slot(first).as_ref().is_some_and(|(key, _)| {
            key.first == first && key.bits == bits && key.bytes.starts_with(bytes)
        })
    }

    /// Takes an instruction out.
    pub fn take(&mut self, crossing: &Crossing) -> Option<Op<E>> {
        let slot = self.slot(crossing.first);
        match slot {
            Some((key, op))
                if key.first == crossing.first
                    && key.bits == crossing.bits
                    && key.bytes[..usize::from(op.len)]
                        == crossing.bytes[..usize::from(op.len)] =>
            {
                slot.take().map(|(_, op)| op)
            }
            _ => None,
        }
    }

    /// Keeps an instruction for the next time.
    pub fn keep(&mut self, crossing: &Crossing, op: Op<E>) {
        *self.slot(crossing.first) = Some((*crossing, op));
    }
}
