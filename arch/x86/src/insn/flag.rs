//! Instructions on RFLAGS.

use iced_x86::{Instruction, Mnemonic};

use super::operand::sized_wide;
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec};
use crate::state::Rflags;
use crate::state::gpr::RAX;

/// The number that AH has as an operand.
const AH: u8 = crate::decode::HIGH_BYTE;

/// The handler for a flag instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let size = insn.stack_pointer_increment().unsigned_abs() as usize;
    match insn.mnemonic() {
        Mnemonic::Clc => Some(|cpu, _| {
            cpu.set_flag(Rflags::CF, false);
            Ok(())
        }),
        Mnemonic::Stc => Some(|cpu, _| {
            cpu.set_flag(Rflags::CF, true);
            Ok(())
        }),
        Mnemonic::Cmc => Some(|cpu, _| {
            cpu.state.rflags ^= Rflags::CF.bits();
            Ok(())
        }),
        Mnemonic::Cld => Some(|cpu, _| {
            cpu.set_flag(Rflags::DF, false);
            Ok(())
        }),
        Mnemonic::Std => Some(|cpu, _| {
            cpu.set_flag(Rflags::DF, true);
            Ok(())
        }),
        Mnemonic::Cli => Some(cli),
        Mnemonic::Sti => Some(sti),
        Mnemonic::Clac => Some(|cpu, _| set_ac(cpu, false)),
        Mnemonic::Stac => Some(|cpu, _| set_ac(cpu, true)),
        Mnemonic::Lahf => Some(|cpu, _| {
            cpu.set_reg(AH, (cpu.state.rflags & 0xd5 | 2) as u8);
            Ok(())
        }),
        Mnemonic::Sahf => Some(|cpu, _| {
            let ah: u8 = cpu.reg(AH);
            cpu.state.rflags = cpu.state.rflags & !0xd5 | u64::from(ah & 0xd5);
            Ok(())
        }),
        Mnemonic::Salc => Some(|cpu, _| {
            let value = if cpu.flag(Rflags::CF) { 0xffu8 } else { 0 };
            cpu.set_reg(RAX as u8, value);
            Ok(())
        }),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => {
            sized_wide!(size, W => pushf::<E, W>)
        }
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => sized_wide!(size, W => popf::<E, W>),
        _ => None,
    }
}

impl<E: Env> Cpu<E> {
    /// The I/O privilege level.
    pub(crate) fn iopl(&self) -> u8 {
        (self.state.rflags >> 12 & 3) as u8
    }

    /// Replaces RFLAGS by `new`, as far as the current privilege level lets POPF and IRET do
    /// that. `width` is the operand size in bits.
    pub(crate) fn load_flags(&mut self, new: u64, width: u32) {
        let mut writable =
            Rflags::STATUS | Rflags::TF | Rflags::DF | Rflags::NT | Rflags::AC | Rflags::ID;
        if self.mode.cpl == 0 {
            writable |= Rflags::IOPL;
        }
        if self.mode.cpl <= self.iopl() {
            writable |= Rflags::IF;
        }
        let mask = writable.bits() & (u64::MAX >> (64 - width));
        self.state.rflags = self.state.rflags & !mask | new & mask;
        self.update_mode();
    }
}

/// Without CR4.VME and CR4.PVI, which are not offered, IF belongs to those whose CPL is at most
/// IOPL.
fn cli<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    if cpu.mode.cpl > cpu.iopl() && cpu.state.is_protected() {
        return Err(cpu.raise(Exception::GP0));
    }
    cpu.set_flag(Rflags::IF, false);
    Ok(())
}

fn sti<E: Env>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    if cpu.mode.cpl > cpu.iopl() && cpu.state.is_protected() {
        return Err(cpu.raise(Exception::GP0));
    }
    if !cpu.flag(Rflags::IF) {
        cpu.set_flag(Rflags::IF, true);
        cpu.state.interrupt_shadow = true;
        cpu.update_mode();
    }
    Ok(())
}

fn set_ac<E: Env>(cpu: &mut Cpu<E>, on: bool) -> Exec {
    if cpu.mode.cpl != 0 {
        return Err(cpu.raise(Exception::UD));
    }
    cpu.set_flag(Rflags::AC, on);
    cpu.update_mode();
    Ok(())
}

fn pushf<E: Env, W: Word>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    if cpu.state.is_v8086() && cpu.iopl() < 3 {
        return Err(cpu.raise(Exception::GP0));
    }
    let shown = cpu.state.rflags & !(Rflags::VM | Rflags::RF).bits();
    cpu.push(W::truncate(shown))
}

fn popf<E: Env, W: Word>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    if cpu.state.is_v8086() && cpu.iopl() < 3 {
        return Err(cpu.raise(Exception::GP0));
    }
    let value: W = cpu.pop()?;
    cpu.load_flags(value.into(), W::BITS);
    Ok(())
}
