//! CMPXCHG, XADD, CMPXCHG8B and CMPXCHG16B.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::operand::{Target, one_operand, operand_size, sized};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::Exec;
use crate::paging::Access;
use crate::state::Rflags;
use crate::state::gpr::{RAX, RBX, RCX, RDX};

/// The handler for an exchange.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let size = operand_size(insn, 0);
    match insn.mnemonic() {
        Mnemonic::Cmpxchg => one_operand!(insn, D => sized!(size, W => cmpxchg::<E, W, D>)),
        Mnemonic::Xadd => one_operand!(insn, D => sized!(size, W => xadd::<E, W, D>)),
        Mnemonic::Cmpxchg8b => Some(cmpxchg8b),
        Mnemonic::Cmpxchg16b => Some(cmpxchg16b),
        _ => None,
    }
}

fn cmpxchg<E: Env, W: Word, D: Target>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let expected: W = cpu.reg(RAX as u8);
    let replacement: W = cpu.reg(op.regs[1]);
    let old = if op.insn.op0_kind() == OpKind::Register {
        // A register that does not compare equal stays as it is, the upper half included.
        let old: W = D::get(cpu, op)?;
        if old == expected {
            D::set(cpu, op, replacement)?;
        }
        old
    } else {
        D::update(cpu, op, |old: W| (if old == expected { replacement } else { old }, old))?
    };
    let (_, flags) = expected.sub(old);
    cpu.set_status(flags);
    if old != expected {
        cpu.set_reg(RAX as u8, old);
    }
    Ok(())
}

fn xadd<E: Env, W: Word, D: Target>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let b: W = cpu.reg(op.regs[1]);
    let (old, sum, flags) = D::update(cpu, op, |old: W| {
        let (sum, flags) = old.add(b);
        (sum, (old, sum, flags))
    })?;
    cpu.set_reg(op.regs[1], old);
    if op.insn.op0_kind() == OpKind::Register {
        // XADD r, r with one register: the sum stays.
        cpu.set_reg(op.regs[0], sum);
    }
    cpu.set_status(flags);
    Ok(())
}

fn cmpxchg8b<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let gpr = &cpu.state.gpr;
    let pair = |high: usize, low: usize| gpr[high] << 32 | gpr[low] & 0xffff_ffff;
    let expected = pair(RDX, RAX);
    let replacement = pair(RCX, RBX);
    let linear = cpu.operand_address(op, 8, Access::Write)?;
    let old = cpu.update(linear, op.locked, |old: u64| {
        (if old == expected { replacement } else { old }, old)
    })?;
    cpu.set_flag(Rflags::ZF, old == expected);
    if old != expected {
        cpu.set_reg(RAX as u8, old as u32);
        cpu.set_reg(RDX as u8, (old >> 32) as u32);
    }
    Ok(())
}

fn cmpxchg16b<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let gpr = &cpu.state.gpr;
    let pair = |high: usize, low: usize| u128::from(gpr[high]) << 64 | u128::from(gpr[low]);
    let expected = pair(RDX, RAX);
    let replacement = pair(RCX, RBX);
    let linear = cpu.aligned_address(op, 16, 16, Access::Write)?;
    let old = cpu.update_128(linear, expected, replacement)?;
    cpu.set_flag(Rflags::ZF, old == expected);
    if old != expected {
        cpu.state.gpr[RAX] = old as u64;
        cpu.state.gpr[RDX] = (old >> 64) as u64;
    }
    Ok(())
}
