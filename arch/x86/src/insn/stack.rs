//! The stack: PUSH, POP, PUSHA, POPA, ENTER, LEAVE.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::operand::{Source, sized_wide, source_operand};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op, seg_reg};
use crate::env::{Env, Word};
use crate::exception::Exec;
use crate::paging::Access;
use crate::state::SegReg;
use crate::state::gpr::{RBP, RSP};

/// The handler for a stack instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let size = insn.stack_pointer_increment().unsigned_abs() as usize;
    match insn.mnemonic() {
        Mnemonic::Push if insn.op0_register().is_segment_register() => {
            sized_wide!(size, W => push_segment::<E, W>)
        }
        Mnemonic::Push => {
            source_operand!(insn, 0, S => sized_wide!(size, W => push::<E, W, S>))
        }
        Mnemonic::Pop if insn.op_kind(0) == OpKind::Memory => {
            sized_wide!(size, W => pop_memory::<E, W>)
        }
        Mnemonic::Pop if !insn.op0_register().is_segment_register() => {
            sized_wide!(size, W => pop_register::<E, W>)
        }
        Mnemonic::Pusha => Some(push_all::<E, u16>),
        Mnemonic::Pushad => Some(push_all::<E, u32>),
        Mnemonic::Popa => Some(pop_all::<E, u16>),
        Mnemonic::Popad => Some(pop_all::<E, u32>),
        Mnemonic::Leave => sized_wide!(size_of_frame_pointer(insn), W => leave::<E, W>),
        Mnemonic::Enter => sized_wide!(size_of_frame_pointer(insn), W => enter::<E, W>),
        _ => None,
    }
}

/// The operand size of ENTER and LEAVE.
fn size_of_frame_pointer(insn: &Instruction) -> usize {
    use iced_x86::Code;
    match insn.code() {
        Code::Leavew | Code::Enterw_imm16_imm8 => 2,
        Code::Leaved | Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    }
}

impl<E: Env> Cpu<E> {
    /// Pushes a value.
    #[inline(always)]
    pub(crate) fn push<W: Word>(&mut self, value: W) -> Exec {
        let sp = self.state.gpr[RSP].wrapping_sub(W::SIZE as u64) & self.mode.stack_mask;
        let linear = self.linear(SegReg::Ss, sp, W::SIZE, Access::Write)?;
        self.write(linear, value)?;
        self.set_stack_pointer(sp);
        Ok(())
    }

    /// The value `depth` bytes above the top of the stack.
    #[inline(always)]
    pub(crate) fn peek<W: Word>(&mut self, depth: u64) -> Exec<W> {
        let sp = self.state.gpr[RSP].wrapping_add(depth) & self.mode.stack_mask;
        let linear = self.linear(SegReg::Ss, sp, W::SIZE, Access::Read)?;
        self.read(linear)
    }

    /// Pops a value.
    #[inline(always)]
    pub(crate) fn pop<W: Word>(&mut self) -> Exec<W> {
        let value = self.peek(0)?;
        self.set_stack_pointer(self.state.gpr[RSP].wrapping_add(W::SIZE as u64));
        Ok(value)
    }
}

fn push<E: Env, W: Word, S: Source>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let value: W = S::get(cpu, op)?;
    cpu.push(value)
}

fn push_segment<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let reg = seg_reg(op.insn.op0_register());
    cpu.push(W::truncate(cpu.state.segment(reg).selector.into()))
}

fn pop_register<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let value: W = cpu.pop()?;
    cpu.set_reg(op.regs[0], value);
    Ok(())
}

/// The address of POP's memory operand is formed after RSP was incremented (SDM Vol. 2, POP).
fn pop_memory<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let before = cpu.state.gpr[RSP];
    let value: W = cpu.pop()?;
    let result =
        cpu.operand_address(op, W::SIZE, Access::Write).and_then(|linear| cpu.write(linear, value));
    if result.is_err() {
        cpu.state.gpr[RSP] = before;
    }
    result
}

fn push_all<E: Env, W: Word>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    let before = cpu.state.gpr[RSP];
    let mut all = || {
        for reg in 0..8 {
            let value = if reg == RSP { before } else { cpu.state.gpr[reg] };
            cpu.push(W::truncate(value))?;
        }
        Ok(())
    };
    let result = all();
    if result.is_err() {
        cpu.state.gpr[RSP] = before;
    }
    result
}

fn pop_all<E: Env, W: Word>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    let mut values = [W::truncate(0); 8];
    for (i, value) in values.iter_mut().enumerate() {
        *value = cpu.peek((i * W::SIZE) as u64)?;
    }
    cpu.set_stack_pointer(cpu.state.gpr[RSP].wrapping_add(8 * W::SIZE as u64));
    for (i, value) in values.into_iter().enumerate() {
        let reg = 7 - i;
        if reg != RSP {
            cpu.set_reg(reg as u8, value);
        }
    }
    Ok(())
}

fn leave<E: Env, W: Word>(cpu: &mut Cpu<E>, _: &Op<E>) -> Exec {
    let before = cpu.state.gpr[RSP];
    cpu.set_stack_pointer(cpu.state.gpr[RBP]);
    match cpu.pop::<W>() {
        Ok(value) => {
            cpu.set_reg(RBP as u8, value);
            Ok(())
        }
        Err(raised) => {
            cpu.state.gpr[RSP] = before;
            Err(raised)
        }
    }
}

fn enter<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let before = cpu.state.gpr[RSP];
    let result = make_frame::<E, W>(cpu, op);
    if result.is_err() {
        cpu.state.gpr[RSP] = before;
    }
    result
}

/// ENTER (SDM Vol. 2): the frame pointers of the enclosing levels are copied to the new frame.
fn make_frame<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let level = op.insn.immediate8_2nd() & 31;
    let locals = u64::from(op.insn.immediate16());
    cpu.push::<W>(cpu.reg(RBP as u8))?;
    let frame = cpu.state.gpr[RSP];
    if level > 0 {
        for i in 1..u64::from(level) {
            let at = cpu.state.gpr[RBP].wrapping_sub(i * W::SIZE as u64) & cpu.mode.stack_mask;
            let linear = cpu.linear(SegReg::Ss, at, W::SIZE, Access::Read)?;
            let value: W = cpu.read(linear)?;
            cpu.push(value)?;
        }
        cpu.push(W::truncate(frame))?;
    }
    cpu.set_stack_pointer(cpu.state.gpr[RSP].wrapping_sub(locals));
    // The new top of the stack must be writable.
    let sp = cpu.stack_pointer();
    let linear = cpu.linear(SegReg::Ss, sp, W::SIZE, Access::Write)?;
    cpu.check_access(linear, W::SIZE, Access::Write)?;
    cpu.probe_write(linear, W::SIZE)?;
    cpu.set_reg(RBP as u8, W::truncate(frame));
    Ok(())
}
