//! Proves of blocks of translated code that they touch nothing but what was given to them.
//!
//! Translation is driven by the guest, which makes a translator part of the wall between guest
//! and host. This crate is a second wall, built apart from the first: it knows nothing of guest
//! instructions and of how they are translated. It decodes the host code of a block and follows
//! by abstract interpretation what its registers hold, to prove that
//!
//! - each memory operand is a field of the context that translated code may touch in this way, an
//!   entry of one of its tables under an index that is within bounds, or guest memory behind a
//!   complete check against the soft TLB: of the right view, for as many bytes, for stores if it
//!   stores;
//! - each branch leads to an instruction of the block or to one of the places listed for it;
//! - each instruction is of a kind that can do no harm otherwise;
//! - no host address, and no vector register of the host's own, gets to where the guest sees it.
//!
//! What holds for a value is forgotten as soon as a register is written, and where ways meet,
//! only what all of them agree on remains. What the code does for the guest is not looked at: a
//! block that passes may still compute nonsense, or fault by a division, but harms its own
//! guest only.

#![forbid(unsafe_code)]

mod allowed;
mod blocks;
mod layout;
mod memory;
mod registers;
mod state;
mod violation;

pub use blocks::{Block, Checker, Retry, Stubs};
pub use layout::{Field, Layout, ViewTables};
pub use violation::{Problem, Violation};

/// Checks one block. Who checks many keeps a [`Checker`].
pub fn check(block: &Block<'_>, layout: &Layout) -> Result<(), Violation> {
    Checker::new(layout.clone()).check(block)
}
