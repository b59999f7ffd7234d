//! Instructions that belong to operating systems.

use iced_x86::Instruction;

use crate::decode::Handler;
use crate::env::Env;

mod arch_capabilities;
mod control;
mod far;
mod fast_call;
mod io;
mod msr;
mod privileged;
mod segment_insn;
pub(crate) mod task;

/// The handler for a system instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    control::select(insn)
        .or_else(|| segment_insn::select(insn))
        .or_else(|| far::select(insn))
        .or_else(|| fast_call::select(insn))
        .or_else(|| io::select(insn))
        .or_else(|| privileged::select(insn))
}
