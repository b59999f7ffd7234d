//! The instructions: for each, the function that executes it.
//!
//! A module covers a family of instructions. Its `select` looks at a decoded instruction and
//! returns the handler for just its operand size and operand kinds, so that a handler decides
//! nothing more when it runs.

use iced_x86::{EncodingKind, Instruction};

use crate::decode::Handler;
use crate::env::Env;

pub(crate) mod operand;

mod arith;
mod atomic;
mod bcd;
mod bits;
mod bound;
mod cache;
mod condition;
mod control;
mod data;
mod flag;
mod fxsave;
mod multiply;
mod mxcsr;
pub(crate) mod native;
mod shift;
mod stack;
pub(crate) mod string;
pub(crate) mod vector;
mod x87;
mod xsave;

/// The handler for `insn`, or `None` if this processor does not have it.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    if matches!(insn.code().encoding(), EncodingKind::XOP | EncodingKind::D3NOW) {
        return None;
    }
    arith::select(insn)
        .or_else(|| data::select(insn))
        .or_else(|| condition::select(insn))
        .or_else(|| control::select(insn))
        .or_else(|| stack::select(insn))
        .or_else(|| shift::select(insn))
        .or_else(|| multiply::select(insn))
        .or_else(|| bits::select(insn))
        .or_else(|| string::select(insn))
        .or_else(|| atomic::select(insn))
        .or_else(|| flag::select(insn))
        .or_else(|| bcd::select(insn))
        .or_else(|| bound::select(insn))
        .or_else(|| crate::system::select(insn))
        .or_else(|| vector::select(insn))
        .or_else(|| x87::select(insn))
        .or_else(|| cache::select(insn))
        .or_else(|| mxcsr::select(insn))
        .or_else(|| fxsave::select(insn))
        .or_else(|| xsave::select(insn))
}
