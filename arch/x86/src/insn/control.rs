//! Near jumps, calls, returns and loops.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::operand::{Source, sized_wide, source_operand};
use crate::cpu::{Cpu, is_canonical};
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::{Exception, Exec};
use crate::paging::Access;
use crate::state::gpr::{RCX, RSP};
use crate::state::{Rflags, SegReg};

/// The handler for a near control transfer.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let is_relative = matches!(
        insn.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    );
    match insn.mnemonic() {
        Mnemonic::Jmp if is_relative => {
            Some(if branch_mask(insn) == u64::MAX { jmp_64 } else { jmp_legacy })
        }
        Mnemonic::Jmp if insn.is_jmp_near_indirect() => {
            let size = super::operand::operand_size(insn, 0);
            source_operand!(insn, 0, S => sized_wide!(size, W => jmp_indirect::<E, W, S>))
        }
        Mnemonic::Call if is_relative => match insn.op0_kind() {
            OpKind::NearBranch16 => Some(call_relative::<E, u16>),
            OpKind::NearBranch32 => Some(call_relative::<E, u32>),
            _ => Some(call_relative::<E, u64>),
        },
        Mnemonic::Call if insn.is_call_near_indirect() => {
            let size = super::operand::operand_size(insn, 0);
            source_operand!(insn, 0, S => sized_wide!(size, W => call_indirect::<E, W, S>))
        }
        Mnemonic::Ret => match insn.code() {
            Code::Retnw | Code::Retnw_imm16 => Some(ret::<E, u16>),
            Code::Retnd | Code::Retnd_imm16 => Some(ret::<E, u32>),
            _ => Some(ret::<E, u64>),
        },
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => Some(loop_),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => Some(jump_if_counter_zero),
        _ => None,
    }
}

/// What the instruction pointer is cut to by a relative branch.
pub(crate) fn branch_mask(insn: &Instruction) -> u64 {
    match insn.op0_kind() {
        OpKind::NearBranch16 => 0xffff,
        OpKind::NearBranch32 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

fn jmp_64<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.branch(cpu.state.rip.wrapping_add(op.imm))
}

fn jmp_legacy<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.branch(cpu.state.rip.wrapping_add(op.imm) & branch_mask(&op.insn))
}

fn jmp_indirect<E: Env, W: Word, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let target: W = S::get(cpu, op)?;
    cpu.branch(target.into())
}

impl<E: Env> Cpu<E> {
    /// Whether a near branch may go to `target`.
    fn check_target(&mut self, target: u64) -> Exec {
        let ok = if self.mode.code_bits == 64 {
            is_canonical(target)
        } else {
            target <= u64::from(self.state.segment(SegReg::Cs).limit)
        };
        if ok { Ok(()) } else { Err(self.raise(Exception::GP0)) }
    }
}

#[inline(always)]
fn call<E: Env, W: Word>(cpu: &mut Cpu<E>, target: W) -> Exec {
    let target = target.into();
    if let Err(raised) = cpu.check_target(target) {
        // A stack that cannot take the return address comes first.
        let sp = cpu.state.gpr[RSP].wrapping_sub(W::SIZE as u64) & cpu.mode.stack_mask;
        let linear = cpu.linear(SegReg::Ss, sp, W::SIZE, Access::Write)?;
        cpu.check_access(linear, W::SIZE, Access::Write)?;
        cpu.probe_write(linear, W::SIZE)?;
        cpu.raise(Exception::GP0);
        return Err(raised);
    }
    cpu.push(W::truncate(cpu.state.rip))?;
    cpu.state.rip = target;
    Ok(())
}

fn call_relative<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    call(cpu, W::truncate(cpu.state.rip.wrapping_add(op.imm)))
}

fn call_indirect<E: Env, W: Word, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let target: W = S::get(cpu, op)?;
    call(cpu, target)
}

fn ret<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let target: W = cpu.peek(0)?;
    cpu.branch(target.into())?;
    let released = (W::SIZE as u64).wrapping_add(op.imm & 0xffff);
    cpu.set_stack_pointer(cpu.state.gpr[crate::state::gpr::RSP].wrapping_add(released));
    Ok(())
}

/// The bits of the counter that LOOP and JCXZ use: CX, ECX or RCX.
fn counter_mask(code: Code) -> u64 {
    use Code::*;
    match code {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX
        | Loopne_rel8_16_CX | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => 0xffff,
        Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX
        | Loopne_rel8_16_RCX | Loopne_rel8_64_RCX | Jrcxz_rel8_16 | Jrcxz_rel8_64 => u64::MAX,
        _ => 0xffff_ffff,
    }
}

fn loop_<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let mask = counter_mask(op.insn.code());
    let count = cpu.state.gpr[RCX].wrapping_sub(1) & mask;
    let taken = count != 0
        && match op.insn.mnemonic() {
            Mnemonic::Loope => cpu.flag(Rflags::ZF),
            Mnemonic::Loopne => !cpu.flag(Rflags::ZF),
            _ => true,
        };
    if taken {
        cpu.branch(cpu.state.rip.wrapping_add(op.imm) & branch_mask(&op.insn))?;
    }
    cpu.set_counter(mask, count);
    Ok(())
}

fn jump_if_counter_zero<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    if cpu.state.gpr[RCX] & counter_mask(op.insn.code()) == 0 {
        cpu.branch(cpu.state.rip.wrapping_add(op.imm) & branch_mask(&op.insn))?;
    }
    Ok(())
}

impl<E: Env> Cpu<E> {
    /// Writes CX, ECX or RCX, as `mask` says.
    pub(crate) fn set_counter(&mut self, mask: u64, count: u64) {
        self.set_masked(RCX, mask, count);
    }

    /// Writes the low 16, 32 or 64 bits of a register, as `mask` says.
    pub(crate) fn set_masked(&mut self, reg: usize, mask: u64, value: u64) {
        match mask {
            0xffff => self.set_reg(reg as u8, value as u16),
            0xffff_ffff => self.set_reg(reg as u8, value as u32),
            _ => self.set_reg(reg as u8, value),
        }
    }
}
