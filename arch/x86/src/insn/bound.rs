//! BOUND.

use iced_x86::{Instruction, Mnemonic};

use super::operand::{Mem, Source};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec, vector};

/// The handler for BOUND.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match (insn.mnemonic(), insn.op0_register().size()) {
        (Mnemonic::Bound, 2) => Some(bound_16),
        (Mnemonic::Bound, _) => Some(bound_32),
        _ => None,
    }
}

/// The lower bound lies before the upper one.
fn bound_16<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let bounds: u32 = Mem::get(cpu, op)?;
    let index = cpu.reg::<u16>(op.regs[0]) as i16;
    check(cpu, (bounds as i16..=(bounds >> 16) as i16).contains(&index))
}

fn bound_32<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let bounds: u64 = Mem::get(cpu, op)?;
    let index = cpu.reg::<u32>(op.regs[0]) as i32;
    check(cpu, (bounds as i32..=(bounds >> 32) as i32).contains(&index))
}

fn check<E: Env>(cpu: &mut Cpu<E>, is_within: bool) -> Exec {
    if is_within { Ok(()) } else { Err(cpu.raise(Exception::new(vector::BR))) }
}
