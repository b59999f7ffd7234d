//! Instructions with one memory operand under a mask: EVEX-encoded ones with an opmask, VMASKMOV
//! and its kin, MASKMOVQ and MASKMOVDQU, compressing stores and expanding loads.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::lanes::Lanes;
use super::{Avx, Avx512, Class, Mmx, Sse, wants_alignment};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::Exec;
use crate::insn::native::{MemoryUse, memory_use};
use crate::paging::Access;
use crate::state::gpr;

/// The handler for an instruction whose memory operand is under a mask.
pub(super) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::Maskmovq => return Some(store_bytes_mmx),
        Mnemonic::Maskmovdqu => return Some(store_bytes::<E, Sse>),
        Mnemonic::Vmaskmovdqu => return Some(store_bytes::<E, Avx>),
        _ => {}
    }
    let usage = memory_use(insn)?;
    if usage == MemoryUse::None {
        return None;
    }
    let is_store = usage == MemoryUse::Store;
    if is_mask_move(insn.mnemonic()) {
        return Some(if is_store { mask_move_store } else { mask_move_load });
    }
    if insn.op_mask() == Register::None {
        return None;
    }
    if is_packing(insn.mnemonic()) {
        return Some(if is_store { compress } else { expand });
    }
    Some(match (is_store, wants_alignment(insn)) {
        (false, _) if !suppresses_faults(insn) => return None,
        (false, false) => load::<E, false>,
        (false, true) => load::<E, true>,
        (true, false) if is_extract(insn.mnemonic()) => extract,
        (true, false) => store::<E, false>,
        (true, true) => store::<E, true>,
    })
}

fn is_mask_move(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq
    )
}

/// Compressing and expanding: memory holds the selected lanes side by side.
fn is_packing(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Vcompressps
            | Mnemonic::Vcompresspd
            | Mnemonic::Vpcompressb
            | Mnemonic::Vpcompressw
            | Mnemonic::Vpcompressd
            | Mnemonic::Vpcompressq
            | Mnemonic::Vexpandps
            | Mnemonic::Vexpandpd
            | Mnemonic::Vpexpandb
            | Mnemonic::Vpexpandw
            | Mnemonic::Vpexpandd
            | Mnemonic::Vpexpandq
    )
}

/// Stores of a part of a register, whose masked-off lanes can fault (exception type E6NF).
fn is_extract(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Vextractf32x4
            | Mnemonic::Vextractf32x8
            | Mnemonic::Vextractf64x2
            | Mnemonic::Vextractf64x4
            | Mnemonic::Vextracti32x4
            | Mnemonic::Vextracti32x8
            | Mnemonic::Vextracti64x2
            | Mnemonic::Vextracti64x4
    )
}

fn is_broadcast_load(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Vbroadcastss
            | Mnemonic::Vbroadcastsd
            | Mnemonic::Vbroadcastf32x2
            | Mnemonic::Vbroadcastf32x4
            | Mnemonic::Vbroadcastf32x8
            | Mnemonic::Vbroadcastf64x2
            | Mnemonic::Vbroadcastf64x4
            | Mnemonic::Vbroadcasti32x2
            | Mnemonic::Vbroadcasti32x4
            | Mnemonic::Vbroadcasti32x8
            | Mnemonic::Vbroadcasti64x2
            | Mnemonic::Vbroadcasti64x4
            | Mnemonic::Vpbroadcastb
            | Mnemonic::Vpbroadcastw
            | Mnemonic::Vpbroadcastd
            | Mnemonic::Vpbroadcastq
    )
}

/// Whether a load's masked-off lanes cannot fault. They can where lanes of memory and of the
/// result do not correspond: exception types E4NF, E5NF, E6NF (SDM Vol. 2, 2.8).
fn suppresses_faults(insn: &Instruction) -> bool {
    if insn.op2_kind() == OpKind::Immediate8 && insn.op_count() == 3 && is_shift(insn.mnemonic()) {
        // Memory holds what is shifted, not the count.
        return true;
    }
    !is_shift(insn.mnemonic())
        && !matches!(
            insn.mnemonic(),
            Mnemonic::Valignd
                | Mnemonic::Valignq
                | Mnemonic::Vcvtne2ps2bf16
                | Mnemonic::Vdbpsadbw
                | Mnemonic::Vgf2p8affineinvqb
                | Mnemonic::Vgf2p8affineqb
                | Mnemonic::Vinsertf32x4
                | Mnemonic::Vinsertf32x8
                | Mnemonic::Vinsertf64x2
                | Mnemonic::Vinsertf64x4
                | Mnemonic::Vinserti32x4
                | Mnemonic::Vinserti32x8
                | Mnemonic::Vinserti64x2
                | Mnemonic::Vinserti64x4
                | Mnemonic::Vmovddup
                | Mnemonic::Vmovshdup
                | Mnemonic::Vmovsldup
                | Mnemonic::Vpackssdw
                | Mnemonic::Vpacksswb
                | Mnemonic::Vpackusdw
                | Mnemonic::Vpackuswb
                | Mnemonic::Vpalignr
                | Mnemonic::Vpconflictd
                | Mnemonic::Vpconflictq
                | Mnemonic::Vpermb
                | Mnemonic::Vpermd
                | Mnemonic::Vpermi2b
                | Mnemonic::Vpermi2d
                | Mnemonic::Vpermi2pd
                | Mnemonic::Vpermi2ps
                | Mnemonic::Vpermi2q
                | Mnemonic::Vpermi2w
                | Mnemonic::Vpermilpd
                | Mnemonic::Vpermilps
                | Mnemonic::Vpermpd
                | Mnemonic::Vpermps
                | Mnemonic::Vpermq
                | Mnemonic::Vpermt2b
                | Mnemonic::Vpermt2d
                | Mnemonic::Vpermt2pd
                | Mnemonic::Vpermt2ps
                | Mnemonic::Vpermt2q
                | Mnemonic::Vpermt2w
                | Mnemonic::Vpermw
                | Mnemonic::Vpmaddubsw
                | Mnemonic::Vpmaddwd
                | Mnemonic::Vpmultishiftqb
                | Mnemonic::Vpshufb
                | Mnemonic::Vpshufd
                | Mnemonic::Vpshufhw
                | Mnemonic::Vpshuflw
                | Mnemonic::Vpunpckhbw
                | Mnemonic::Vpunpckhdq
                | Mnemonic::Vpunpckhqdq
                | Mnemonic::Vpunpckhwd
                | Mnemonic::Vpunpcklbw
                | Mnemonic::Vpunpckldq
                | Mnemonic::Vpunpcklqdq
                | Mnemonic::Vpunpcklwd
                | Mnemonic::Vshuff32x4
                | Mnemonic::Vshuff64x2
                | Mnemonic::Vshufi32x4
                | Mnemonic::Vshufi64x2
                | Mnemonic::Vshufpd
                | Mnemonic::Vshufps
                | Mnemonic::Vunpckhpd
                | Mnemonic::Vunpckhps
                | Mnemonic::Vunpcklpd
                | Mnemonic::Vunpcklps
        )
}

/// Shifts by one count for all lanes.
fn is_shift(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Vpslld
            | Mnemonic::Vpsllq
            | Mnemonic::Vpsllw
            | Mnemonic::Vpsrad
            | Mnemonic::Vpsraq
            | Mnemonic::Vpsraw
            | Mnemonic::Vpsrld
            | Mnemonic::Vpsrlq
            | Mnemonic::Vpsrlw
    )
}

fn opmask<E: Env>(cpu: &Cpu<E>, insn: &Instruction) -> u64 {
    cpu.state.vector.k[insn.op_mask().number() & 7]
}

/// The lanes of an opmask's memory operand.
fn opmask_lanes<E: Env>(cpu: &Cpu<E>, insn: &Instruction) -> Lanes {
    let mask = opmask(cpu, insn);
    let memory = insn.memory_size();
    let size = memory.size();
    if insn.is_broadcast() {
        // One element for all lanes: it is read if any lane wants it.
        let mut whole = *insn;
        whole.set_is_broadcast(false);
        let count = whole.memory_size().size() / size.max(1);
        let any = Lanes::new(1, count, mask).selected != 0;
        return Lanes::new(size, 1, u64::from(any));
    }
    let element = match insn.mnemonic() {
        // Sums of products of smaller numbers: the mask goes by the sums.
        Mnemonic::Vpdpbusd | Mnemonic::Vpdpbusds | Mnemonic::Vpdpwssd | Mnemonic::Vpdpwssds => 4,
        // Products of the low halves of lanes.
        Mnemonic::Vpmuldq | Mnemonic::Vpmuludq => 8,
        _ => memory.element_size().max(1),
    };
    let count = size / element;
    if is_broadcast_load(insn.mnemonic()) && count != 0 {
        // Memory is repeated until the register is full.
        let all = Lanes::new(element, insn.op0_register().size() / element, mask).selected;
        let folded = (0..64).step_by(count).fold(0, |folded, shift| folded | all >> shift);
        return Lanes::new(element, count, folded);
    }
    Lanes::new(element, count, mask)
}

fn load<E: Env, const ALIGNED: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx512::check(cpu, op)?;
    let len = op.insn.memory_size().size();
    let lanes = opmask_lanes(cpu, &op.insn);
    if lanes.selected == 0 {
        // Not even the address matters.
        return cpu.execute_native(op);
    }
    let linear = if ALIGNED {
        cpu.aligned_address(op, len, len, Access::Read)?
    } else {
        cpu.operand_address(op, len, Access::Read)?
    };
    let lanes = cpu.check_whole(linear, len, lanes)?;
    cpu.load_lanes(linear, len, lanes)?;
    cpu.execute_native(op)
}

fn store<E: Env, const ALIGNED: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx512::check(cpu, op)?;
    let len = op.insn.memory_size().size();
    let lanes = opmask_lanes(cpu, &op.insn);
    if lanes.selected == 0 {
        // Not even the address matters.
        return Ok(());
    }
    let linear = if ALIGNED {
        cpu.aligned_address(op, len, len, Access::Write)?
    } else {
        cpu.operand_address(op, len, Access::Write)?
    };
    let lanes = cpu.check_whole(linear, len, lanes)?;
    cpu.store_lanes(linear, lanes, |cpu| cpu.execute_native(op))
}

fn extract<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx512::check(cpu, op)?;
    let len = op.insn.memory_size().size();
    let linear = cpu.operand_address(op, len, Access::Write)?;
    let lanes = opmask_lanes(cpu, &op.insn);
    let lanes = cpu.check_whole(linear, len, lanes)?;
    cpu.check_access(linear, len, Access::Write)?;
    cpu.probe_write(linear, len)?;
    cpu.store_lanes(linear, lanes, |cpu| cpu.execute_native(op))
}

/// The lanes side by side that a compressing store writes or an expanding load reads.
fn packed_lanes<E: Env>(cpu: &Cpu<E>, insn: &Instruction) -> Lanes {
    let element = insn.memory_size().element_size().max(1);
    let count = insn.memory_size().size() / element;
    let selected = Lanes::new(element, count, opmask(cpu, insn)).selected.count_ones();
    Lanes::new(element, selected as usize, u64::MAX)
}

fn compress<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx512::check(cpu, op)?;
    let lanes = packed_lanes(cpu, &op.insn);
    if lanes.selected == 0 {
        return Ok(());
    }
    let linear = cpu.operand_address(op, lanes.end(), Access::Write)?;
    let lanes = cpu.check_whole(linear, op.insn.memory_size().size(), lanes)?;
    cpu.store_lanes(linear, lanes, |cpu| cpu.execute_native(op))
}

fn expand<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx512::check(cpu, op)?;
    let lanes = packed_lanes(cpu, &op.insn);
    if lanes.selected != 0 {
        let linear = cpu.operand_address(op, lanes.end(), Access::Read)?;
        let lanes = cpu.check_whole(linear, op.insn.memory_size().size(), lanes)?;
        cpu.load_lanes(linear, lanes.end(), lanes)?;
    }
    cpu.execute_native(op)
}

/// VMASKMOV's lanes: those whose sign bit is set in the mask register, operand 1.
fn sign_lanes<E: Env>(cpu: &Cpu<E>, insn: &Instruction) -> (usize, Lanes) {
    let len = insn.memory_size().size();
    let size = match insn.mnemonic() {
        Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => 4,
        _ => 8,
    };
    let mask = cpu.state.vector.zmm[insn.op1_register().number() & 31];
    let count = len / size;
    let selected = (0..count).fold(0, |selected, i| {
        let top_bit = i * size * 8 + size * 8 - 1;
        selected | (mask[top_bit / 64] >> (top_bit % 64) & 1) << i
    });
    // Alignment is never checked.
    (len, Lanes { alignment: 1, ..Lanes::new(size, count, selected) })
}

fn mask_move_load<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx::check(cpu, op)?;
    let (len, lanes) = sign_lanes(cpu, &op.insn);
    if lanes.selected != 0 {
        let linear = cpu.operand_address(op, len, Access::Read)?;
        cpu.load_lanes(linear, len, lanes)?;
    }
    // Lanes that are not loaded become zero whatever the buffer holds.
    cpu.execute_native(op)
}

fn mask_move_store<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx::check(cpu, op)?;
    let (len, lanes) = sign_lanes(cpu, &op.insn);
    if lanes.selected == 0 {
        return Ok(());
    }
    let linear = cpu.operand_address(op, len, Access::Write)?;
    cpu.store_lanes(linear, lanes, |cpu| cpu.execute_native(op))
}

/// The address of MASKMOV's operand, at DS:rDI unless another segment is named.
fn string_address<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>, len: usize) -> Exec<u64> {
    let mask = match op.insn.op0_kind() {
        OpKind::MemorySegDI => 0xffff,
        OpKind::MemorySegEDI => 0xffff_ffff,
        _ => u64::MAX,
    };
    let offset = cpu.state.gpr[gpr::RDI] & mask;
    cpu.linear(op.seg, offset, len, Access::Write)
}

/// The bytes whose top bit is set.
fn selected_bytes(qwords: &[u64]) -> Lanes {
    let bytes = qwords.iter().flat_map(|q| q.to_le_bytes());
    let selected = bytes.enumerate().fold(0, |s, (i, byte)| s | u64::from(byte >> 7) << i);
    Lanes::new(1, qwords.len() * 8, selected)
}

fn store_bytes<E: Env, C: Class>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    C::check(cpu, op)?;
    let linear = string_address(cpu, op, 16)?;
    let zmm = &cpu.state.vector.zmm;
    let source = zmm[op.insn.op1_register().number() & 31];
    let lanes = selected_bytes(&zmm[op.insn.op2_register().number() & 31][..2]);
    cpu.store_lanes(linear, lanes, |cpu| {
        cpu.native.operand.0[..8].copy_from_slice(&source[0].to_le_bytes());
        cpu.native.operand.0[8..16].copy_from_slice(&source[1].to_le_bytes());
        Ok(())
    })
}

fn store_bytes_mmx<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Mmx::check(cpu, op)?;
    let linear = string_address(cpu, op, 8)?;
    let x87 = &cpu.state.vector.x87;
    let top = usize::from(x87.fsw >> 11 & 7);
    let mmx = |reg: Register| x87.st[reg.number().wrapping_sub(top) & 7][0];
    let source = mmx(op.insn.op1_register());
    let lanes = selected_bytes(&[mmx(op.insn.op2_register())]);
    cpu.store_lanes(linear, lanes, |cpu| {
        Mmx::enter(&mut cpu.state.vector);
        cpu.native.operand.0[..8].copy_from_slice(&source.to_le_bytes());
        Ok(())
    })
}
