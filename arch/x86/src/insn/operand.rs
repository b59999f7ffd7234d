//! Operands as types: a handler is written once and made for each combination.

use crate::cpu::Cpu;
use crate::decode::Op;
use crate::env::{Env, Word};
use crate::exception::Exec;
use crate::paging::Access;

/// An operand that can be read.
pub(crate) trait Source {
    fn get<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec<W>;
}

/// An operand that can be read and written.
pub(crate) trait Target: Source {
    fn set<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>, value: W) -> Exec;

    /// Replaces the operand by what `f` makes of it; atomically if the instruction is locked.
    /// `f` may be called more than once.
    fn update<E: Env, W: Word, T>(
        cpu: &mut Cpu<E>,
        op: &Op<E>,
        f: impl FnMut(W) -> (W, T),
    ) -> Exec<T>;
}

/// The general-purpose register that is operand `N`.
pub(crate) struct Reg<const N: usize>;

impl<const N: usize> Source for Reg<N> {
    #[inline(always)]
    fn get<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec<W> {
        Ok(cpu.reg(op.regs[N]))
    }
}

impl<const N: usize> Target for Reg<N> {
    #[inline(always)]
    fn set<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>, value: W) -> Exec {
        cpu.set_reg(op.regs[N], value);
        Ok(())
    }

    #[inline(always)]
    fn update<E: Env, W: Word, T>(
        cpu: &mut Cpu<E>,
        op: &Op<E>,
        mut f: impl FnMut(W) -> (W, T),
    ) -> Exec<T> {
        let (new, result) = f(cpu.reg(op.regs[N]));
        cpu.set_reg(op.regs[N], new);
        Ok(result)
    }
}

/// The immediate operand.
pub(crate) struct Imm;

impl Source for Imm {
    #[inline(always)]
    fn get<E: Env, W: Word>(_: &mut Cpu<E>, op: &Op<E>) -> Exec<W> {
        Ok(W::truncate(op.imm))
    }
}

/// The memory operand.
pub(crate) struct Mem;

impl Source for Mem {
    #[inline(always)]
    fn get<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec<W> {
        let linear = cpu.operand_address(op, W::SIZE, Access::Read)?;
        cpu.read(linear)
    }
}

impl Target for Mem {
    #[inline(always)]
    fn set<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>, value: W) -> Exec {
        let linear = cpu.operand_address(op, W::SIZE, Access::Write)?;
        cpu.write(linear, value)
    }

    #[inline(always)]
    fn update<E: Env, W: Word, T>(
        cpu: &mut Cpu<E>,
        op: &Op<E>,
        f: impl FnMut(W) -> (W, T),
    ) -> Exec<T> {
        let linear = cpu.operand_address(op, W::SIZE, Access::Write)?;
        cpu.update(linear, op.locked, f)
    }
}

/// The size in bytes of operand `i`: register, memory or immediate.
pub(crate) fn operand_size(insn: &iced_x86::Instruction, i: u32) -> usize {
    use iced_x86::OpKind;
    match insn.op_kind(i) {
        OpKind::Register => insn.op_register(i).size(),
        OpKind::Memory => insn.memory_size().size(),
        OpKind::Immediate8 | OpKind::Immediate8_2nd => 1,
        OpKind::Immediate16 | OpKind::Immediate8to16 => 2,
        OpKind::Immediate32 | OpKind::Immediate8to32 => 4,
        _ => 8,
    }
}

/// Names the type of an operand by its size in bytes: `by_size!(size, W => expression)`.
macro_rules! by_size {
    ($size:expr, $w:ident => $body:expr) => {
        match $size {
            1 => {
                type $w = u8;
                $body
            }
            2 => {
                type $w = u16;
                $body
            }
            4 => {
                type $w = u32;
                $body
            }
            8 => {
                type $w = u64;
                $body
            }
            _ => None,
        }
    };
}
pub(crate) use by_size;

/// Picks a handler by operand size in bytes: `sized!(size, W => handler::<E, W>)`.
macro_rules! sized {
    ($size:expr, $w:ident => $handler:expr) => {
        $crate::insn::operand::by_size!(
            $size, $w => Some($handler as $crate::decode::Handler<E>)
        )
    };
}
pub(crate) use sized;

/// Picks a handler by the kinds of a target and a source operand:
/// `two_operands!(insn, D, S => handler)`.
macro_rules! two_operands {
    ($insn:expr, $d:ident, $s:ident => $handler:expr) => {{
        use iced_x86::OpKind;
        use $crate::insn::operand::{Imm, Mem, Reg};
        match ($insn.op_kind(0), $insn.op_kind(1)) {
            (OpKind::Register, OpKind::Register) => {
                type $d = Reg<0>;
                type $s = Reg<1>;
                $handler
            }
            (OpKind::Register, OpKind::Memory) => {
                type $d = Reg<0>;
                type $s = Mem;
                $handler
            }
            (OpKind::Memory, OpKind::Register) => {
                type $d = Mem;
                type $s = Reg<1>;
                $handler
            }
            (OpKind::Register, _) => {
                type $d = Reg<0>;
                type $s = Imm;
                $handler
            }
            (OpKind::Memory, _) => {
                type $d = Mem;
                type $s = Imm;
                $handler
            }
            _ => None,
        }
    }};
}
pub(crate) use two_operands;

/// Picks a handler by the kind of operand 0, register or memory:
/// `one_operand!(insn, D => handler)`.
macro_rules! one_operand {
    ($insn:expr, $d:ident => $handler:expr) => {{
        use $crate::insn::operand::{Mem, Reg};
        match $insn.op_kind(0) {
            iced_x86::OpKind::Register => {
                type $d = Reg<0>;
                $handler
            }
            iced_x86::OpKind::Memory => {
                type $d = Mem;
                $handler
            }
            _ => None,
        }
    }};
}
pub(crate) use one_operand;

/// Like [`sized`], for what exists with 16, 32 and 64 bits only.
macro_rules! sized_wide {
    ($size:expr, $w:ident => $handler:expr) => {
        match $size {
            2 => {
                type $w = u16;
                Some($handler as $crate::decode::Handler<E>)
            }
            4 => {
                type $w = u32;
                Some($handler as $crate::decode::Handler<E>)
            }
            8 => {
                type $w = u64;
                Some($handler as $crate::decode::Handler<E>)
            }
            _ => None,
        }
    };
}
pub(crate) use sized_wide;

/// Picks a handler by the kind of operand `N`, which is read:
/// `source_operand!(insn, N, S => handler)`.
macro_rules! source_operand {
    ($insn:expr, $n:literal, $s:ident => $handler:expr) => {{
        use iced_x86::OpKind;
        use $crate::insn::operand::{Imm, Mem, Reg};
        match $insn.op_kind($n) {
            OpKind::Register => {
                type $s = Reg<$n>;
                $handler
            }
            OpKind::Memory => {
                type $s = Mem;
                $handler
            }
            _ => {
                type $s = Imm;
                $handler
            }
        }
    }};
}
pub(crate) use source_operand;
