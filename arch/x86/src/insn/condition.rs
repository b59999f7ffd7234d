//! What depends on a condition: Jcc, SETcc, CMOVcc.

use iced_x86::{ConditionCode, Instruction, Mnemonic};

use super::operand::{Source, Target, one_operand, operand_size, sized, two_operands};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::Exec;
use crate::state::Rflags;

/// Whether condition `CC`, as instructions encode it (SDM Vol. 1, appendix B), holds.
#[inline(always)]
pub(crate) fn holds<const CC: u8>(rflags: u64) -> bool {
    let any = |flags: Rflags| rflags & flags.bits() != 0;
    let less = || any(Rflags::SF) != any(Rflags::OF);
    let result = match CC >> 1 {
        0 => any(Rflags::OF),
        1 => any(Rflags::CF),
        2 => any(Rflags::ZF),
        3 => any(Rflags::CF.union(Rflags::ZF)),
        4 => any(Rflags::SF),
        5 => any(Rflags::PF),
        6 => less(),
        _ => any(Rflags::ZF) || less(),
    };
    result != (CC & 1 != 0)
}

/// Picks a handler by condition: `by_condition!(insn, CC => handler)`.
macro_rules! by_condition {
    ($insn:expr, $cc:ident => $handler:expr) => {
        match $insn.condition_code() {
            ConditionCode::o => {
                const $cc: u8 = 0;
                $handler
            }
            ConditionCode::no => {
                const $cc: u8 = 1;
                $handler
            }
            ConditionCode::b => {
                const $cc: u8 = 2;
                $handler
            }
            ConditionCode::ae => {
                const $cc: u8 = 3;
                $handler
            }
            ConditionCode::e => {
                const $cc: u8 = 4;
                $handler
            }
            ConditionCode::ne => {
                const $cc: u8 = 5;
                $handler
            }
            ConditionCode::be => {
                const $cc: u8 = 6;
                $handler
            }
            ConditionCode::a => {
                const $cc: u8 = 7;
                $handler
            }
            ConditionCode::s => {
                const $cc: u8 = 8;
                $handler
            }
            ConditionCode::ns => {
                const $cc: u8 = 9;
                $handler
            }
            ConditionCode::p => {
                const $cc: u8 = 10;
                $handler
            }
            ConditionCode::np => {
                const $cc: u8 = 11;
                $handler
            }
            ConditionCode::l => {
                const $cc: u8 = 12;
                $handler
            }
            ConditionCode::ge => {
                const $cc: u8 = 13;
                $handler
            }
            ConditionCode::le => {
                const $cc: u8 = 14;
                $handler
            }
            ConditionCode::g => {
                const $cc: u8 = 15;
                $handler
            }
            ConditionCode::None => None,
        }
    };
}

/// The handler for a conditional instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    if insn.is_jcc_short_or_near() {
        return if super::control::branch_mask(insn) == u64::MAX {
            by_condition!(insn, CC => Some(jcc_64::<E, CC> as Handler<E>))
        } else {
            by_condition!(insn, CC => Some(jcc_legacy::<E, CC> as Handler<E>))
        };
    }
    let is_cmov = matches!(
        insn.mnemonic(),
        Mnemonic::Cmova
            | Mnemonic::Cmovae
            | Mnemonic::Cmovb
            | Mnemonic::Cmovbe
            | Mnemonic::Cmove
            | Mnemonic::Cmovg
            | Mnemonic::Cmovge
            | Mnemonic::Cmovl
            | Mnemonic::Cmovle
            | Mnemonic::Cmovne
            | Mnemonic::Cmovno
            | Mnemonic::Cmovnp
            | Mnemonic::Cmovns
            | Mnemonic::Cmovo
            | Mnemonic::Cmovp
            | Mnemonic::Cmovs
    );
    if is_cmov {
        let size = operand_size(insn, 0);
        return two_operands!(insn, _D, S => by_condition!(insn, CC =>
            sized!(size, W => cmov::<E, W, S, CC>)));
    }
    let is_set = matches!(
        insn.mnemonic(),
        Mnemonic::Seta
            | Mnemonic::Setae
            | Mnemonic::Setb
            | Mnemonic::Setbe
            | Mnemonic::Sete
            | Mnemonic::Setg
            | Mnemonic::Setge
            | Mnemonic::Setl
            | Mnemonic::Setle
            | Mnemonic::Setne
            | Mnemonic::Setno
            | Mnemonic::Setnp
            | Mnemonic::Setns
            | Mnemonic::Seto
            | Mnemonic::Setp
            | Mnemonic::Sets
    );
    if is_set {
        return one_operand!(insn, D =>
            by_condition!(insn, CC => Some(set::<E, D, CC> as Handler<E>)));
    }
    None
}

fn jcc_64<E: Env, const CC: u8>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    if holds::<CC>(cpu.state.rflags) {
        cpu.branch(cpu.state.rip.wrapping_add(op.imm))?;
    }
    Ok(())
}

fn jcc_legacy<E: Env, const CC: u8>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    if holds::<CC>(cpu.state.rflags) {
        let mask = super::control::branch_mask(&op.insn);
        cpu.branch(cpu.state.rip.wrapping_add(op.imm) & mask)?;
    }
    Ok(())
}

fn cmov<E: Env, W: Word, S: Source, const CC: u8>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    // The source is read, and a 32-bit target cleared above, whatever the condition.
    let value: W = S::get(cpu, op)?;
    let old = cpu.reg(op.regs[0]);
    let new = if holds::<CC>(cpu.state.rflags) { value } else { old };
    cpu.set_reg(op.regs[0], new);
    Ok(())
}

fn set<E: Env, D: Target, const CC: u8>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let value = u8::from(holds::<CC>(cpu.state.rflags));
    D::set(cpu, op, value)
}
