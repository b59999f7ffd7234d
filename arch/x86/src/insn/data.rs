//! Moves, extensions, exchanges and address arithmetic.

use iced_x86::{Instruction, Mnemonic, Register};

use super::operand::{
    Source, Target, by_size, one_operand, operand_size, sized, sized_wide, two_operands,
};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::Exec;
use crate::paging::Access;
use crate::state::gpr::{RAX, RBX, RDX};

/// The handler for a data movement instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let size = operand_size(insn, 0);
    match insn.mnemonic() {
        Mnemonic::Mov if !touches_system_register(insn) => {
            two_operands!(insn, D, S => sized!(size, W => mov::<E, W, D, S>))
        }
        Mnemonic::Movnti => two_operands!(insn, D, S => sized!(size, W => mov::<E, W, D, S>)),
        Mnemonic::Movzx => {
            let from = operand_size(insn, 1);
            two_operands!(insn, _D, S => by_size!(from, F => sized_wide!(size, T =>
                extend::<E, F, T, S, false>)))
        }
        Mnemonic::Movsx | Mnemonic::Movsxd => {
            let from = operand_size(insn, 1);
            two_operands!(insn, _D, S => by_size!(from, F => sized_wide!(size, T =>
                extend::<E, F, T, S, true>)))
        }
        Mnemonic::Lea => sized_wide!(size, W => lea::<E, W>),
        Mnemonic::Xchg => one_operand!(insn, D => sized!(size, W => xchg::<E, W, D>)),
        Mnemonic::Bswap => Some(if size == 8 { bswap::<E, true> } else { bswap::<E, false> }),
        Mnemonic::Movbe => {
            two_operands!(insn, D, S => sized_wide!(size, W => movbe::<E, W, D, S>))
        }
        Mnemonic::Xlatb => Some(xlat),
        Mnemonic::Cbw => Some(sign_extend_accumulator::<E, u8, u16>),
        Mnemonic::Cwde => Some(sign_extend_accumulator::<E, u16, u32>),
        Mnemonic::Cdqe => Some(sign_extend_accumulator::<E, u32, u64>),
        Mnemonic::Cwd => Some(spread_sign::<E, u16>),
        Mnemonic::Cdq => Some(spread_sign::<E, u32>),
        Mnemonic::Cqo => Some(spread_sign::<E, u64>),
        // Hints, and markers of features that this processor does not have.
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Pause
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Lfence
        | Mnemonic::Sfence => Some(|_, _| Ok(())),
        Mnemonic::Serialize => Some(|cpu, op| cpu.require_offered(op)),
        Mnemonic::Mfence => Some(|_, _| {
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
            Ok(())
        }),
        _ => None,
    }
}

/// Whether a MOV names a segment, control, debug or test register.
fn touches_system_register(insn: &Instruction) -> bool {
    let is_system = |i: u32| {
        let reg = insn.op_register(i);
        insn.op_kind(i) == iced_x86::OpKind::Register && reg != Register::None && !reg.is_gpr()
    };
    is_system(0) || is_system(1)
}

fn mov<E: Env, W: Word, D: Target, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let value: W = S::get(cpu, op)?;
    D::set(cpu, op, value)
}

fn extend<E: Env, F: Word, T: Word, S: Source, const SIGNED: bool>(
    cpu: &mut Cpu<E>,
    op: &Op<E>,
) -> Exec {
    let value: F = S::get(cpu, op)?;
    let value = if SIGNED { value.sign_extend() } else { value.into() };
    cpu.set_reg(op.regs[0], T::truncate(value));
    Ok(())
}

fn lea<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.set_reg(op.regs[0], W::truncate(cpu.effective_address(op)));
    Ok(())
}

/// XCHG with memory is always locked (SDM Vol. 3, 9.1.2.1).
fn xchg<E: Env, W: Word, D: Target>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let value: W = cpu.reg(op.regs[1]);
    let old = if op.insn.op_kind(0) == iced_x86::OpKind::Memory {
        let linear = cpu.operand_address(op, W::SIZE, Access::Write)?;
        cpu.update(linear, true, |old: W| (value, old))?
    } else {
        D::update(cpu, op, |old: W| (value, old))?
    };
    cpu.set_reg(op.regs[1], old);
    Ok(())
}

/// BSWAP of a 16-bit register, which the manuals leave undefined, clears it.
fn bswap<E: Env, const WIDE: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    if WIDE {
        let value: u64 = cpu.reg(op.regs[0]);
        cpu.set_reg(op.regs[0], value.swap_bytes());
    } else if operand_size(&op.insn, 0) == 2 {
        cpu.set_reg(op.regs[0], 0u16);
    } else {
        let value: u32 = cpu.reg(op.regs[0]);
        cpu.set_reg(op.regs[0], value.swap_bytes());
    }
    Ok(())
}

fn movbe<E: Env, W: Word, D: Target, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let value: W = S::get(cpu, op)?;
    let value: u64 = value.into();
    D::set(cpu, op, W::truncate(value.swap_bytes() >> (64 - W::BITS)))
}

fn xlat<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let al: u8 = cpu.reg(RAX as u8);
    let offset = op.wrap_address(cpu.state.gpr[RBX].wrapping_add(al.into()));
    let linear = cpu.linear(op.seg, offset, 1, Access::Read)?;
    let value: u8 = cpu.read(linear)?;
    cpu.set_reg(RAX as u8, value);
    Ok(())
}

fn sign_extend_accumulator<E: Env, F: Word, T: Word>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    let value: F = cpu.reg(RAX as u8);
    cpu.set_reg(RAX as u8, T::truncate(value.sign_extend()));
    Ok(())
}

fn spread_sign<E: Env, W: Word>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    let value: W = cpu.reg(RAX as u8);
    let sign = ((value.sign_extend() as i64) >> 63) as u64;
    cpu.set_reg(RDX as u8, W::truncate(sign));
    Ok(())
}
