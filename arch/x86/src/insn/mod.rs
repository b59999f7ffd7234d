//! The instructions: for each, the function that executes it.
//!
//! A module covers a family of instructions. Its `select` looks at a decoded instruction and
//! returns the handler for just its operand size and operand kinds, so that a handler decides
//! nothing more when it runs.

use iced_x86::Instruction;

use crate::decode::Handler;
use crate::env::Env;

pub(crate) mod operand;

mod arith;

/// The handler for `insn`, or `None` if this processor does not have it.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    None.or_else(|| arith::select(insn))
}
