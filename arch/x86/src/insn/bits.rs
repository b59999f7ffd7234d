//! Bit tests, scans, counts, BMI, ADX and CRC32.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::operand::{
    Source, Target, operand_size, sized, sized_wide, source_operand, two_operands,
};
use crate::alu::{self, Flags, WideAlu};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::Exec;
use crate::paging::Access;
use crate::state::{Rflags, gpr};

/// The handler for a bit instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let size = operand_size(insn, 0);
    macro_rules! scan {
        ($method:ident, $always:literal) => {
            two_operands!(insn, _D, S => sized_wide!(size, W =>
                |cpu, op| scan::<E, W, S, $always>(cpu, op, WideAlu::$method)))
        };
    }
    macro_rules! test {
        ($method:ident, $writes:literal) => {
            match (insn.op_kind(0), insn.op_kind(1)) {
                (OpKind::Memory, OpKind::Register) => sized_wide!(size, W =>
                    |cpu, op| bit_in_memory::<E, W, $writes>(cpu, op, WideAlu::$method)),
                _ => two_operands!(insn, D, S => sized_wide!(size, W =>
                    |cpu, op| bit::<E, W, D, S, $writes>(cpu, op, WideAlu::$method))),
            }
        };
    }
    // The operand that is in a register or in memory comes second here.
    macro_rules! bmi {
        ($n:literal, $function:path) => {
            source_operand!(insn, $n, S => sized_wide!(size, W => |cpu, op| {
                let value: W = S::get(cpu, op)?;
                let (result, flags) = $function(value, cpu.state.rflags);
                cpu.set_reg(op.regs[0], result);
                cpu.set_status(flags);
                Ok(())
            }))
        };
    }
    // Three operands; the last one is always a register.
    macro_rules! bmi3 {
        ($n:literal, $other:literal, $function:expr) => {
            source_operand!(insn, $n, S => sized_wide!(size, W => |cpu, op| {
                let value: W = S::get(cpu, op)?;
                let other: W = cpu.reg(op.regs[$other]);
                let (result, flags) = $function(value, other, cpu.state.rflags);
                cpu.set_reg(op.regs[0], result);
                cpu.set_status(flags);
                Ok(())
            }))
        };
    }
    match insn.mnemonic() {
        Mnemonic::Bsf => scan!(bsf, false),
        Mnemonic::Bsr => scan!(bsr, false),
        Mnemonic::Tzcnt => scan!(tzcnt, true),
        Mnemonic::Lzcnt => scan!(lzcnt, true),
        Mnemonic::Popcnt => scan!(popcnt, true),
        Mnemonic::Bt => test!(bt, false),
        Mnemonic::Bts => test!(bts, true),
        Mnemonic::Btr => test!(btr, true),
        Mnemonic::Btc => test!(btc, true),
        // ANDN r, a, r/m: the complemented operand is the register.
        Mnemonic::Andn => bmi3!(2, 1, |b, a, flags| alu::andn(a, b, flags)),
        Mnemonic::Bextr => bmi3!(1, 2, alu::bextr),
        Mnemonic::Bzhi => bmi3!(1, 2, alu::bzhi),
        Mnemonic::Pdep => bmi3!(2, 1, |mask, a, flags| alu::pdep(a, mask, flags)),
        Mnemonic::Pext => bmi3!(2, 1, |mask, a, flags| alu::pext(a, mask, flags)),
        Mnemonic::Blsi => bmi!(1, alu::blsi),
        Mnemonic::Blsmsk => bmi!(1, alu::blsmsk),
        Mnemonic::Blsr => bmi!(1, alu::blsr),
        Mnemonic::Shlx => bmi3!(1, 2, |a, c, f| (shift_left(a, c), f)),
        Mnemonic::Shrx => bmi3!(1, 2, |a, c, f| (shift_right(a, c), f)),
        Mnemonic::Sarx => bmi3!(1, 2, |a, c, f| (shift_arithmetic(a, c), f)),
        Mnemonic::Rorx => {
            two_operands!(insn, _D, S => sized_wide!(size, W => rorx::<E, W, S>))
        }
        Mnemonic::Mulx => {
            source_operand!(insn, 2, S => sized_wide!(size, W => mulx::<E, W, S>))
        }
        Mnemonic::Adcx => two_operands!(insn, _D, S =>
            sized_wide!(size, W => add_with::<E, W, S, { Rflags::CF.bits() }>)),
        Mnemonic::Adox => two_operands!(insn, _D, S =>
            sized_wide!(size, W => add_with::<E, W, S, { Rflags::OF.bits() }>)),
        Mnemonic::Crc32 => {
            let size = operand_size(insn, 1);
            two_operands!(insn, _D, S => sized!(size, W => crc32::<E, W, S>))
        }
        _ => None,
    }
}

/// BSF and BSR leave their target alone, the upper half included, if the source is zero (APM
/// Vol. 3, BSF); the others `ALWAYS` write it.
fn scan<E: Env, W: Word, S: Source, const ALWAYS: bool>(
    cpu: &mut Cpu<E>,
    op: &Op<E>,
    f: impl Fn(W, W, Flags) -> (W, Flags),
) -> Exec {
    let b: W = S::get(cpu, op)?;
    let (result, flags) = f(cpu.reg(op.regs[0]), b, cpu.state.rflags);
    if ALWAYS || b != W::truncate(0) {
        cpu.set_reg(op.regs[0], result);
    }
    cpu.set_status(flags);
    Ok(())
}

fn bit<E: Env, W: Word, D: Target, S: Source, const WRITES: bool>(
    cpu: &mut Cpu<E>,
    op: &Op<E>,
    f: impl Fn(W, W, Flags) -> (W, Flags),
) -> Exec {
    let index: W = S::get(cpu, op)?;
    let flags = cpu.state.rflags;
    let flags = if WRITES {
        D::update(cpu, op, |a: W| f(a, index, flags))?
    } else {
        f(D::get(cpu, op)?, index, flags).1
    };
    cpu.set_status(flags);
    Ok(())
}

/// With a register index, the bit string in memory extends beyond the operand in both
/// directions (SDM Vol. 2, BT).
fn bit_in_memory<E: Env, W: Word, const WRITES: bool>(
    cpu: &mut Cpu<E>,
    op: &Op<E>,
    f: impl Fn(W, W, Flags) -> (W, Flags),
) -> Exec {
    let index: W = cpu.reg(op.regs[1]);
    let distance = ((index.sign_extend() as i64) >> W::BITS.trailing_zeros()) * W::SIZE as i64;
    let offset = op.wrap_address(cpu.effective_address(op).wrapping_add(distance as u64));
    let access = if WRITES { Access::Write } else { Access::Read };
    let linear = cpu.linear(op.seg, offset, W::SIZE, access)?;
    let flags = cpu.state.rflags;
    let flags = if WRITES {
        cpu.update(linear, op.locked, |a: W| f(a, index, flags))?
    } else {
        f(cpu.read(linear)?, index, flags).1
    };
    cpu.set_status(flags);
    Ok(())
}

fn count<W: Word>(c: W) -> u32 {
    let c: u64 = c.into();
    c as u32 & (W::BITS - 1)
}

fn shift_left<W: Word>(a: W, c: W) -> W {
    let a: u64 = a.into();
    W::truncate(a << count(c))
}

fn shift_right<W: Word>(a: W, c: W) -> W {
    let a: u64 = a.into();
    W::truncate(a >> count(c))
}

fn shift_arithmetic<W: Word>(a: W, c: W) -> W {
    W::truncate(((a.sign_extend() as i64) >> count(c)) as u64)
}

fn rorx<E: Env, W: Word, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let a: W = S::get(cpu, op)?;
    let (result, _) = crate::alu::Shift::ror(a, op.imm as u8, 0);
    cpu.set_reg(op.regs[0], result);
    Ok(())
}

fn mulx<E: Env, W: Word + WideAlu, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let b: W = S::get(cpu, op)?;
    let a: W = cpu.reg(gpr::RDX as u8);
    let (low, high, _) = a.mul_wide(b, 0);
    // If both targets are the same register, it holds the high half.
    cpu.set_reg(op.regs[1], low);
    cpu.set_reg(op.regs[0], high);
    Ok(())
}

/// ADCX and ADOX: addition whose carry in and out is the one flag `CARRY`.
fn add_with<E: Env, W: Word, S: Source, const CARRY: u64>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let b: W = S::get(cpu, op)?;
    let a: W = cpu.reg(op.regs[0]);
    let carry = u64::from(cpu.state.rflags & CARRY != 0);
    let (result, flags) = a.adc(b, carry);
    cpu.set_reg(op.regs[0], result);
    let rest = cpu.state.rflags & !CARRY;
    cpu.state.rflags = if flags & Rflags::CF.bits() != 0 { rest | CARRY } else { rest };
    Ok(())
}

fn crc32<E: Env, W: Word, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let data: W = S::get(cpu, op)?;
    let crc: u32 = cpu.reg(op.regs[0]);
    // The upper half of a 64-bit target is cleared, too.
    cpu.set_reg(op.regs[0], alu::crc32(crc, data));
    Ok(())
}
