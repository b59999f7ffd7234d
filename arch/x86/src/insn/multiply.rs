//! Multiplication and division.

use iced_x86::{Instruction, Mnemonic};

use super::operand::{Source, one_operand, operand_size, sized_wide, two_operands};
use crate::alu::{self, WideAlu};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec};
use crate::state::gpr::{RAX, RDX};

/// The handler for a multiplication or division.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let size = operand_size(insn, 0);
    match (insn.mnemonic(), insn.op_count()) {
        (Mnemonic::Mul, _) if size == 1 => {
            one_operand!(insn, S => Some(multiply_byte::<E, S, false> as Handler<E>))
        }
        (Mnemonic::Imul, 1) if size == 1 => {
            one_operand!(insn, S => Some(multiply_byte::<E, S, true> as Handler<E>))
        }
        (Mnemonic::Mul, _) => {
            one_operand!(insn, S => sized_wide!(size, W => multiply::<E, W, S, false>))
        }
        (Mnemonic::Imul, 1) => {
            one_operand!(insn, S => sized_wide!(size, W => multiply::<E, W, S, true>))
        }
        (Mnemonic::Imul, 2) => {
            two_operands!(insn, _D, S => sized_wide!(size, W => imul_2::<E, W, S>))
        }
        (Mnemonic::Imul, 3) => {
            two_operands!(insn, _D, S => sized_wide!(size, W => imul_3::<E, W, S>))
        }
        (Mnemonic::Div, _) if size == 1 => {
            one_operand!(insn, S => Some(divide_byte::<E, S, false> as Handler<E>))
        }
        (Mnemonic::Idiv, _) if size == 1 => {
            one_operand!(insn, S => Some(divide_byte::<E, S, true> as Handler<E>))
        }
        (Mnemonic::Div, _) => {
            one_operand!(insn, S => sized_wide!(size, W => divide::<E, W, S>))
        }
        (Mnemonic::Idiv, _) => {
            one_operand!(insn, S => sized_wide!(size, W => divide_signed::<E, W, S>))
        }
        _ => None,
    }
}

fn multiply_byte<E: Env, S: Source, const SIGNED: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let b: u8 = S::get(cpu, op)?;
    let a: u8 = cpu.reg(RAX as u8);
    let (product, flags) = alu::multiply_bytes(a, b, SIGNED, cpu.state.rflags);
    cpu.set_reg(RAX as u8, product);
    cpu.set_status(flags);
    Ok(())
}

fn multiply<E: Env, W: Word + WideAlu, S: Source, const SIGNED: bool>(
    cpu: &mut Cpu<E>,
    op: &Op<E>,
) -> Exec {
    let b: W = S::get(cpu, op)?;
    let a: W = cpu.reg(RAX as u8);
    let flags = cpu.state.rflags;
    let (low, high, flags) = if SIGNED { a.imul_wide(b, flags) } else { a.mul_wide(b, flags) };
    cpu.set_reg(RAX as u8, low);
    cpu.set_reg(RDX as u8, high);
    cpu.set_status(flags);
    Ok(())
}

fn imul_2<E: Env, W: Word + WideAlu, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let b: W = S::get(cpu, op)?;
    let a: W = cpu.reg(op.regs[0]);
    let (result, flags) = a.imul(b, cpu.state.rflags);
    cpu.set_reg(op.regs[0], result);
    cpu.set_status(flags);
    Ok(())
}

fn imul_3<E: Env, W: Word + WideAlu, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let a: W = S::get(cpu, op)?;
    let (result, flags) = a.imul(W::truncate(op.imm), cpu.state.rflags);
    cpu.set_reg(op.regs[0], result);
    cpu.set_status(flags);
    Ok(())
}

// Division leaves the status flags undefined (SDM) or as they were (what processors do).

fn divide_byte<E: Env, S: Source, const SIGNED: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let divisor: u8 = S::get(cpu, op)?;
    let dividend: u16 = cpu.reg(RAX as u8);
    let result = if SIGNED {
        let (a, b) = (i32::from(dividend as i16), i32::from(divisor as i8));
        a.checked_div(b).filter(|q| i8::try_from(*q).is_ok()).map(|q| (q as u8, (a % b) as u8))
    } else {
        let (a, b) = (dividend, u16::from(divisor));
        a.checked_div(b).filter(|q| *q <= 0xff).map(|q| (q as u8, (a % b) as u8))
    };
    let Some((quotient, remainder)) = result else {
        return Err(cpu.raise(Exception::DE));
    };
    cpu.set_reg(RAX as u8, u16::from_le_bytes([quotient, remainder]));
    Ok(())
}

fn divide<E: Env, W: Word, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let divisor: W = S::get(cpu, op)?;
    let divisor: u64 = divisor.into();
    let (low, high): (W, W) = (cpu.reg(RAX as u8), cpu.reg(RDX as u8));
    let (low, high): (u64, u64) = (low.into(), high.into());
    // The quotient fits just if the high half is smaller than the divisor.
    if high >= divisor {
        return Err(cpu.raise(Exception::DE));
    }
    let (quotient, remainder) = if high == 0 {
        (low / divisor, low % divisor)
    } else {
        let dividend = u128::from(high) << W::BITS | u128::from(low);
        ((dividend / u128::from(divisor)) as u64, (dividend % u128::from(divisor)) as u64)
    };
    cpu.set_reg(RAX as u8, W::truncate(quotient));
    cpu.set_reg(RDX as u8, W::truncate(remainder));
    Ok(())
}

fn divide_signed<E: Env, W: Word, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let divisor: W = S::get(cpu, op)?;
    let divisor = i128::from(divisor.sign_extend() as i64);
    let (low, high): (W, W) = (cpu.reg(RAX as u8), cpu.reg(RDX as u8));
    let low: u64 = low.into();
    let dividend = i128::from(high.sign_extend() as i64) << W::BITS | i128::from(low);
    let limit = 1i128 << (W::BITS - 1);
    let result = dividend
        .checked_div(divisor)
        .filter(|q| (-limit..limit).contains(q))
        .map(|q| (q as u64, (dividend % divisor) as u64));
    let Some((quotient, remainder)) = result else {
        return Err(cpu.raise(Exception::DE));
    };
    cpu.set_reg(RAX as u8, W::truncate(quotient));
    cpu.set_reg(RDX as u8, W::truncate(remainder));
    Ok(())
}
