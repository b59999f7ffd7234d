//! Moves of whole vector registers, which need no arithmetic unit: most vector instructions that
//! a guest executes are these, so they are done here and fast.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Avx, Avx512, Class, Kind, Sse, class, wants_alignment};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::Exec;
use crate::paging::Access;

/// The handler for a move of a whole register without a mask.
pub(super) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    if !is_whole_move(insn.mnemonic()) || insn.op_mask() != Register::None {
        return None;
    }
    let register = insn.op_register(u32::from(insn.op0_kind() == OpKind::Memory));
    let is_aligned = wants_alignment(insn);
    macro_rules! by_operands {
        ($class:ty, $len:literal) => {
            match (insn.op0_kind(), insn.op1_kind(), is_aligned) {
                (OpKind::Register, OpKind::Register, _) => copy::<E, $class, $len>,
                (OpKind::Register, OpKind::Memory, false) => load::<E, $class, $len, false>,
                (OpKind::Register, OpKind::Memory, true) => load::<E, $class, $len, true>,
                (OpKind::Memory, OpKind::Register, false) => store::<E, $class, $len, false>,
                (OpKind::Memory, OpKind::Register, true) => store::<E, $class, $len, true>,
                _ => return None,
            }
        };
    }
    Some(match (class(insn)?, register.size()) {
        (Kind::Sse, 16) => by_operands!(Sse, 16),
        (Kind::Avx, 16) => by_operands!(Avx, 16),
        (Kind::Avx, 32) => by_operands!(Avx, 32),
        (Kind::Avx512, 16) => by_operands!(Avx512, 16),
        (Kind::Avx512, 32) => by_operands!(Avx512, 32),
        (Kind::Avx512, 64) => by_operands!(Avx512, 64),
        _ => return None,
    })
}

fn is_whole_move(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Movaps
            | Mnemonic::Movapd
            | Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movdqa
            | Mnemonic::Movdqu
            | Mnemonic::Lddqu
            | Mnemonic::Movntdqa
            | Mnemonic::Movntdq
            | Mnemonic::Movntps
            | Mnemonic::Movntpd
            | Mnemonic::Vmovaps
            | Mnemonic::Vmovapd
            | Mnemonic::Vmovups
            | Mnemonic::Vmovupd
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovdqu
            | Mnemonic::Vlddqu
            | Mnemonic::Vmovdqa32
            | Mnemonic::Vmovdqa64
            | Mnemonic::Vmovdqu8
            | Mnemonic::Vmovdqu16
            | Mnemonic::Vmovdqu32
            | Mnemonic::Vmovdqu64
            | Mnemonic::Vmovntdqa
            | Mnemonic::Vmovntdq
            | Mnemonic::Vmovntps
            | Mnemonic::Vmovntpd
    )
}

/// Replaces the low `LEN` bytes of a register. The rest stays with legacy encoding and becomes
/// zero with VEX and EVEX.
#[inline(always)]
fn set<E: Env, C: Class, const LEN: usize>(cpu: &mut Cpu<E>, reg: Register, value: &[u64; 8]) {
    let register = &mut cpu.state.vector.zmm[reg.number() & 31];
    register[..LEN / 8].copy_from_slice(&value[..LEN / 8]);
    if C::CLEARS_ABOVE {
        register[LEN / 8..].fill(0);
    }
}

fn copy<E: Env, C: Class, const LEN: usize>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    C::check(cpu, op)?;
    let value = cpu.state.vector.zmm[op.insn.op1_register().number() & 31];
    set::<E, C, LEN>(cpu, op.insn.op0_register(), &value);
    Ok(())
}

fn load<E: Env, C: Class, const LEN: usize, const ALIGNED: bool>(
    cpu: &mut Cpu<E>,
    op: &Op<E>,
) -> Exec {
    C::check(cpu, op)?;
    let linear = if ALIGNED {
        cpu.aligned_address(op, LEN, LEN, Access::Read)?
    } else {
        cpu.operand_address(op, LEN, Access::Read)?
    };
    let offset = (linear & 0xfff) as usize;
    let mut value = [0; 8];
    if offset <= 0x1000 - LEN
        && let Some(page) = cpu.tlb.read(cpu.mode.fast_view, linear)
    {
        let mut data = [0; LEN];
        cpu.env.load_bytes(page, offset, &mut data);
        for (q, bytes) in value.iter_mut().zip(data.as_chunks::<8>().0) {
            *q = u64::from_le_bytes(*bytes);
        }
    } else {
        cpu.load_operand(linear, LEN)?;
        for (q, bytes) in value.iter_mut().zip(cpu.native.operand.0.as_chunks::<8>().0) {
            *q = u64::from_le_bytes(*bytes);
        }
    }
    set::<E, C, LEN>(cpu, op.insn.op0_register(), &value);
    Ok(())
}

fn store<E: Env, C: Class, const LEN: usize, const ALIGNED: bool>(
    cpu: &mut Cpu<E>,
    op: &Op<E>,
) -> Exec {
    C::check(cpu, op)?;
    let linear = if ALIGNED {
        cpu.aligned_address(op, LEN, LEN, Access::Write)?
    } else {
        cpu.operand_address(op, LEN, Access::Write)?
    };
    let value = cpu.state.vector.zmm[op.insn.op1_register().number() & 31];
    let mut data = [0; LEN];
    for (bytes, q) in data.as_chunks_mut::<8>().0.iter_mut().zip(value) {
        *bytes = q.to_le_bytes();
    }
    let offset = (linear & 0xfff) as usize;
    if offset <= 0x1000 - LEN
        && let Some(page) = cpu.tlb.write(cpu.mode.fast_view, linear)
    {
        cpu.env.store_bytes(page, offset, &data);
        if Some(page) == cpu.code_page {
            cpu.leave_block = true;
        }
        return Ok(());
    }
    cpu.check_access(linear, LEN, Access::Write)?;
    cpu.write_bytes(linear, &data)
}
