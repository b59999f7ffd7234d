//! Decimal arithmetic, which 64-bit mode does not have (SDM Vol. 2).

use iced_x86::{Instruction, Mnemonic};

use crate::alu::Alu;
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec};
use crate::state::Rflags;
use crate::state::gpr::RAX;

const AL: u8 = RAX as u8;

/// The handler for a decimal adjustment.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::Daa => Some(|cpu, _| decimal_adjust(cpu, Alu::add)),
        Mnemonic::Das => Some(|cpu, _| decimal_adjust(cpu, Alu::sub)),
        Mnemonic::Aaa => Some(|cpu, _| ascii_adjust(cpu, u16::wrapping_add)),
        Mnemonic::Aas => Some(|cpu, _| ascii_adjust(cpu, u16::wrapping_sub)),
        Mnemonic::Aam => Some(aam),
        Mnemonic::Aad => Some(aad),
        _ => None,
    }
}

impl<E: Env> Cpu<E> {
    /// Sets SF, ZF and PF by `al`, and CF and AF as given.
    fn set_decimal_flags(&mut self, al: u8, carry: bool, adjust: bool) {
        let (_, flags) = Alu::or(al, 0);
        let shown = flags & (Rflags::SF | Rflags::ZF | Rflags::PF).bits();
        self.set_status(shown);
        self.set_flag(Rflags::CF, carry);
        self.set_flag(Rflags::AF, adjust);
    }
}

fn decimal_adjust<E: Env>(cpu: &mut Cpu<E>, by: fn(u8, u8) -> (u8, u64)) -> Exec {
    let old: u8 = cpu.reg(AL);
    let old_carry = cpu.flag(Rflags::CF);
    let adjust = old & 0xf > 9 || cpu.flag(Rflags::AF);
    let mut al = old;
    let mut carry = false;
    if adjust {
        let (new, flags) = by(al, 6);
        carry = old_carry || flags & Rflags::CF.bits() != 0;
        al = new;
    }
    if old > 0x99 || old_carry {
        al = by(al, 0x60).0;
        carry = true;
    }
    cpu.set_reg(AL, al);
    cpu.set_decimal_flags(al, carry, adjust);
    Ok(())
}

fn ascii_adjust<E: Env>(cpu: &mut Cpu<E>, by: fn(u16, u16) -> u16) -> Exec {
    let mut ax: u16 = cpu.reg(AL);
    let adjust = ax & 0xf > 9 || cpu.flag(Rflags::AF);
    if adjust {
        ax = by(ax, 0x106);
    }
    ax &= 0xff0f;
    cpu.set_reg(AL, ax);
    cpu.set_decimal_flags(ax as u8, adjust, adjust);
    Ok(())
}

fn aam<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let base = op.imm as u8;
    let al: u8 = cpu.reg(AL);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(cpu.raise(Exception::DE));
    };
    cpu.set_reg(AL, u16::from_le_bytes([low, high]));
    cpu.set_decimal_flags(low, false, false);
    Ok(())
}

fn aad<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let [low, high] = cpu.reg::<u16>(AL).to_le_bytes();
    let al = low.wrapping_add(high.wrapping_mul(op.imm as u8));
    cpu.set_reg(AL, u16::from(al));
    cpu.set_decimal_flags(al, false, false);
    Ok(())
}
