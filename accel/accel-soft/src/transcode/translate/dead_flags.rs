//! Which status flags nobody will read.
//!
//! A check destroys the host's flags. If what an instruction left in them is overwritten before it
//! is read, then it need not be saved first, as long as it can be computed again where the block
//! is left in between: from the same operands, or from what the instruction made of them.

use super::*;

/// Where the flags that are given up come from: so many bytes before the instruction, which is at
/// most [`MAX_BACK`]; 0 if they are not given up.
pub(super) type Back = u8;

const MAX_BACK: u16 = Back::MAX as u16;

/// How an instruction uses the status flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlagUse {
    /// It leaves them alone.
    None,
    /// It writes all of them and reads none.
    Overwrites,
    /// It reads some, keeps some, or needs them all in their place.
    Reads,
}

/// What the flags of an instruction can be computed from again: the registers, bit by bit.
fn operands(insn: &Instruction) -> Option<u16> {
    lost_flags::is_recoverable(insn).then(|| {
        (0..insn.op_count())
            .filter(|&i| insn.op_kind(i) == OpKind::Register)
            .fold(0, |set, i| set | 1 << number(insn.op_register(i)))
    })
}

/// Registers that an instruction writes, bit by bit.
fn written(insn: &Instruction, fact: &Fact) -> u16 {
    match fact.kind {
        Kind::Plain | Kind::Lea => {
            (0..16).filter(|&n| fact.uses[n].1).fold(0, |set, n| set | 1 << n)
        }
        Kind::Push => 1 << 4,
        Kind::Pop => 1 << 4 | 1 << number(insn.op0_register()),
        Kind::Leave => 1 << 4 | 1 << 5,
        Kind::Nothing | Kind::JumpIf => 0,
        _ => u16::MAX,
    }
}

/// Sets `back` of all facts.
pub(super) fn find(insns: &[Instruction], facts: &mut [Fact]) {
    let mut producer: Option<(usize, u16)> = None;
    for i in 0..insns.len() {
        if let Some((from, operands)) = producer {
            let distance = insns[i].ip() as u16 - insns[from].ip() as u16;
            let are_dead = distance <= MAX_BACK && are_overwritten(insns, facts, i, from, operands);
            facts[i].back = if are_dead { distance as Back } else { 0 };
        }
        match facts[i].flags {
            FlagUse::Overwrites => producer = operands(&insns[i]).map(|set| (i, set)),
            FlagUse::Reads => producer = None,
            FlagUse::None => {}
        }
    }
}

/// Whether the flags that instruction `from` leaves are overwritten from `start` on before they
/// are read, and can be computed again wherever the block may be left till then.
fn are_overwritten(
    insns: &[Instruction],
    facts: &[Fact],
    start: usize,
    from: usize,
    operands: u16,
) -> bool {
    let mut changed = (from + 1..start).fold(0, |set, j| set | written(&insns[j], &facts[j]));
    for (insn, fact) in insns.iter().zip(facts).skip(start) {
        let may_leave =
            fact.access.is_some() || matches!(fact.kind, Kind::Push | Kind::Pop | Kind::Leave);
        if fact.flags == FlagUse::Reads || may_leave && changed & operands != 0 {
            return false;
        }
        if fact.flags == FlagUse::Overwrites {
            return true;
        }
        changed |= written(insn, fact);
    }
    false
}
