//! BOUND.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec, vector};
use crate::paging::Access;

/// The handler for BOUND.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match (insn.mnemonic(), insn.op0_register().size()) {
        (Mnemonic::Bound, 2) => Some(bound_16),
        (Mnemonic::Bound, _) => Some(bound_32),
        _ => None,
    }
}

/// The lower bound, and after it the upper one.
fn bounds<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec<(W, W)> {
    let lower = cpu.operand_address(op, W::SIZE, Access::Read)?;
    let lower = cpu.read(lower)?;
    let offset = op.wrap_address(cpu.effective_address(op).wrapping_add(W::SIZE as u64));
    let upper = cpu.linear(op.seg, offset, W::SIZE, Access::Read)?;
    Ok((lower, cpu.read(upper)?))
}

fn bound_16<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let (lower, upper) = bounds::<E, u16>(cpu, op)?;
    let index = cpu.reg::<u16>(op.regs[0]) as i16;
    check(cpu, (lower as i16..=upper as i16).contains(&index))
}

fn bound_32<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let (lower, upper) = bounds::<E, u32>(cpu, op)?;
    let index = cpu.reg::<u32>(op.regs[0]) as i32;
    check(cpu, (lower as i32..=upper as i32).contains(&index))
}

fn check<E: Env>(cpu: &mut Cpu<E>, is_within: bool) -> Exec {
    if is_within { Ok(()) } else { Err(cpu.raise(Exception::new(vector::BR))) }
}
