//! Shifts and rotates.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::operand::{Target, one_operand, operand_size, sized, sized_wide};
use crate::alu::{Flags, Shift, WideAlu};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::Exec;
use crate::state::gpr;

trait Shifter {
    fn apply<W: Word>(a: W, count: u8, flags: Flags) -> (W, Flags);
}

macro_rules! shifters {
    ($($name:ident = $method:ident;)*) => {$(
        struct $name;
        impl Shifter for $name {
            #[inline(always)]
            fn apply<W: Word>(a: W, count: u8, flags: Flags) -> (W, Flags) {
                Shift::$method(a, count, flags)
            }
        }
    )*};
}

shifters! {
    Shl = shl;
    Shr = shr;
    Sar = sar;
    Rol = rol;
    Ror = ror;
    Rcl = rcl;
    Rcr = rcr;
}

/// The handler for a shift or rotate.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => select_shift::<E, Shl>(insn),
        Mnemonic::Shr => select_shift::<E, Shr>(insn),
        Mnemonic::Sar => select_shift::<E, Sar>(insn),
        Mnemonic::Rol => select_shift::<E, Rol>(insn),
        Mnemonic::Ror => select_shift::<E, Ror>(insn),
        Mnemonic::Rcl => select_shift::<E, Rcl>(insn),
        Mnemonic::Rcr => select_shift::<E, Rcr>(insn),
        Mnemonic::Shld => {
            let size = operand_size(insn, 0);
            one_operand!(insn, D => sized_wide!(size, W => double::<E, W, D, true>))
        }
        Mnemonic::Shrd => {
            let size = operand_size(insn, 0);
            one_operand!(insn, D => sized_wide!(size, W => double::<E, W, D, false>))
        }
        _ => None,
    }
}

fn select_shift<E: Env, O: Shifter>(insn: &Instruction) -> Option<Handler<E>> {
    let size = operand_size(insn, 0);
    if insn.op_kind(1) == OpKind::Register {
        one_operand!(insn, D => sized!(size, W => by_cl::<E, W, O, D>))
    } else {
        one_operand!(insn, D => sized!(size, W => by_immediate::<E, W, O, D>))
    }
}

fn by_cl<E: Env, W: Word, O: Shifter, D: Target>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let count = cpu.state.gpr[gpr::RCX] as u8;
    shift::<E, W, O, D>(cpu, op, count)
}

fn by_immediate<E: Env, W: Word, O: Shifter, D: Target>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    shift::<E, W, O, D>(cpu, op, op.imm as u8)
}

#[inline(always)]
fn shift<E: Env, W: Word, O: Shifter, D: Target>(cpu: &mut Cpu<E>, op: &Op<E>, count: u8) -> Exec {
    let flags = cpu.state.rflags;
    let flags = D::update(cpu, op, |a: W| O::apply(a, count, flags))?;
    cpu.set_status(flags);
    Ok(())
}

fn double<E: Env, W: Word + WideAlu, D: Target, const LEFT: bool>(
    cpu: &mut Cpu<E>,
    op: &Op<E>,
) -> Exec {
    let b: W = cpu.reg(op.regs[1]);
    let count = if op.insn.op_kind(2) == OpKind::Register {
        cpu.state.gpr[gpr::RCX] as u8
    } else {
        op.imm as u8
    };
    let flags = cpu.state.rflags;
    let flags =
        D::update(
            cpu,
            op,
            |a: W| {
                if LEFT { a.shld(b, count, flags) } else { a.shrd(b, count, flags) }
            },
        )?;
    cpu.set_status(flags);
    Ok(())
}
