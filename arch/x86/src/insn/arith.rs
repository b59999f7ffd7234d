//! Addition, subtraction, comparison and logic.

use iced_x86::{Instruction, Mnemonic};

use super::operand::{Source, Target, one_operand, operand_size, sized, two_operands};
use crate::alu::Flags;
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::Exec;

/// A binary operation that replaces its first operand.
trait Binary {
    fn apply<W: Word>(a: W, b: W, flags: Flags) -> (W, Flags);
}

macro_rules! binary {
    ($($name:ident: |$a:ident, $b:ident, $flags:pat_param| $result:expr;)*) => {$(
        struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<W: Word>($a: W, $b: W, $flags: Flags) -> (W, Flags) {
                $result
            }
        }
    )*};
}

binary! {
    Add: |a, b, _| a.add(b);
    Adc: |a, b, flags| a.adc(b, flags);
    Sub: |a, b, _| a.sub(b);
    Sbb: |a, b, flags| a.sbb(b, flags);
    And: |a, b, _| a.and(b);
    Or: |a, b, _| a.or(b);
    Xor: |a, b, _| a.xor(b);
}

/// A unary operation that replaces its operand. It returns all status flags, old or new.
trait Unary {
    fn apply<W: Word>(a: W, flags: Flags) -> (W, Flags);
}

macro_rules! unary {
    ($($name:ident: |$a:ident, $flags:pat_param| $result:expr;)*) => {$(
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<W: Word>($a: W, $flags: Flags) -> (W, Flags) {
                $result
            }
        }
    )*};
}

unary! {
    Inc: |a, flags| a.inc(flags);
    Dec: |a, flags| a.dec(flags);
    Neg: |a, _| a.neg();
}

/// The handler for an arithmetic instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::Add => select_binary::<E, Add>(insn),
        Mnemonic::Adc => select_binary::<E, Adc>(insn),
        Mnemonic::Sub => select_binary::<E, Sub>(insn),
        Mnemonic::Sbb => select_binary::<E, Sbb>(insn),
        Mnemonic::And => select_binary::<E, And>(insn),
        Mnemonic::Or => select_binary::<E, Or>(insn),
        Mnemonic::Xor => select_binary::<E, Xor>(insn),
        Mnemonic::Cmp => select_compare::<E, Sub>(insn),
        Mnemonic::Test => select_compare::<E, And>(insn),
        Mnemonic::Inc => select_unary::<E, Inc>(insn),
        Mnemonic::Dec => select_unary::<E, Dec>(insn),
        Mnemonic::Neg => select_unary::<E, Neg>(insn),
        Mnemonic::Not => {
            let size = operand_size(insn, 0);
            one_operand!(insn, D => sized!(size, W => not::<E, W, D>))
        }
        _ => None,
    }
}

fn select_binary<E: Env, O: Binary>(insn: &Instruction) -> Option<Handler<E>> {
    let size = operand_size(insn, 0);
    two_operands!(insn, D, S => sized!(size, W => binary::<E, W, O, D, S>))
}

fn select_compare<E: Env, O: Binary>(insn: &Instruction) -> Option<Handler<E>> {
    let size = operand_size(insn, 0);
    two_operands!(insn, D, S => sized!(size, W => compare::<E, W, O, D, S>))
}

fn select_unary<E: Env, O: Unary>(insn: &Instruction) -> Option<Handler<E>> {
    let size = operand_size(insn, 0);
    one_operand!(insn, D => sized!(size, W => unary::<E, W, O, D>))
}

fn binary<E: Env, W: Word, O: Binary, D: Target, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let b = S::get(cpu, op)?;
    let flags = cpu.state.rflags;
    let flags = D::update(cpu, op, |a: W| O::apply(a, b, flags))?;
    cpu.set_status(flags);
    Ok(())
}

fn compare<E: Env, W: Word, O: Binary, D: Source, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let b: W = S::get(cpu, op)?;
    let a: W = D::get(cpu, op)?;
    let (_, flags) = O::apply(a, b, 0);
    cpu.set_status(flags);
    Ok(())
}

fn unary<E: Env, W: Word, O: Unary, D: Target>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let flags = cpu.state.rflags;
    let flags = D::update(cpu, op, |a: W| O::apply(a, flags))?;
    cpu.set_status(flags);
    Ok(())
}

fn not<E: Env, W: Word, D: Target>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    D::update(cpu, op, |a: W| (a.not(), ()))
}
