//! 32-bit code, as 64-bit code would say it.
//!
//! What differs is the form of a few instructions, and how wide words are: addresses, and what lies
//! on the stack. The forms become those of 64-bit code here, so that nothing else has to know of
//! the others. How wide words are is in the block's [`Setting`].

use iced_x86::{Code, OpKind, Register};

use super::Instruction;

/// The instruction with code, memory operand and branch target as 64-bit code has them. What
/// 64-bit code cannot say stays as it is.
pub(super) fn widen(insn: &Instruction) -> Instruction {
    let mut wide = *insn;
    wide.set_code(code(insn.code()));
    let whole = |reg: Register| if reg.is_gpr32() { reg.full_register() } else { reg };
    wide.set_memory_base(whole(insn.memory_base()));
    wide.set_memory_index(whole(insn.memory_index()));
    let displacement = insn.memory_displacement32() as i32;
    wide.set_memory_displacement64(i64::from(displacement) as u64);
    if insn.op0_kind() == OpKind::NearBranch32 {
        let target = insn.near_branch32() as i32;
        wide.set_op0_kind(OpKind::NearBranch64);
        wide.set_near_branch64(i64::from(target) as u64);
    }
    wide
}

/// The form that does in 64-bit code what `code` does in 32-bit code, but for the width of words.
fn code(code: Code) -> Code {
    use Code as C;
    match code {
        C::Inc_r16 => C::Inc_rm16,
        C::Inc_r32 => C::Inc_rm32,
        C::Dec_r16 => C::Dec_rm16,
        C::Dec_r32 => C::Dec_rm32,
        C::Mov_AL_moffs8 => C::Mov_r8_rm8,
        C::Mov_AX_moffs16 => C::Mov_r16_rm16,
        C::Mov_EAX_moffs32 => C::Mov_r32_rm32,
        C::Mov_moffs8_AL => C::Mov_rm8_r8,
        C::Mov_moffs16_AX => C::Mov_rm16_r16,
        C::Mov_moffs32_EAX => C::Mov_rm32_r32,
        C::Push_r32 => C::Push_r64,
        C::Push_rm32 => C::Push_rm64,
        C::Pushd_imm8 => C::Pushq_imm8,
        C::Pushd_imm32 => C::Pushq_imm32,
        C::Pop_r32 => C::Pop_r64,
        C::Leaved => C::Leaveq,
        C::Pushfd => C::Pushfq,
        C::Jmp_rm32 => C::Jmp_rm64,
        C::Call_rm32 => C::Call_rm64,
        C::Retnd => C::Retnq,
        C::Retnd_imm16 => C::Retnq_imm16,
        code => code,
    }
}
