//! MMX, SSE, AVX and AVX-512.
//!
//! This module checks what the architecture asks for before such an instruction may run and
//! moves its memory operand; the host's own vector unit computes. Instructions whose memory
//! access depends on data, under a mask or an index vector, are done element by element in the
//! modules below.

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

use super::native::{MemoryUse, memory_use};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec};
use crate::paging::Access;
use crate::state::{Cr0, Cr4, VectorState};

mod gather;
mod lanes;
mod masked;
mod moves;

/// XCR0: the components that AVX instructions need (SSE, AVX).
const XCR0_AVX: u64 = 0x06;
/// XCR0: the components that AVX-512 instructions need (those, opmask, ZMM_Hi256, Hi16_ZMM).
const XCR0_AVX512: u64 = 0xe6;

/// What an instruction needs enabled. A type, so that each check becomes part of its handler.
pub(crate) trait Class {
    /// A register that is written becomes zero above what is written.
    const CLEARS_ABOVE: bool;
    /// Raises #UD, #NM or #MF where the instruction may not run now (SDM Vol. 2, 2.4 to 2.8).
    fn check<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec;
    /// Enters the state that the instruction leaves behind, once nothing can fault any more.
    #[inline(always)]
    fn enter(_: &mut VectorState) {}
}

/// XMM registers, legacy encoding.
pub(crate) struct Sse;
/// MMX registers.
pub(crate) struct Mmx;
/// Both XMM and MMX registers.
pub(crate) struct SseMmx;
/// VEX encoding.
pub(crate) struct Avx;
/// EVEX encoding, and the VEX-encoded instructions on mask registers.
pub(crate) struct Avx512;

impl Class for Sse {
    const CLEARS_ABOVE: bool = false;
    #[inline(always)]
    fn check<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
        if cpu.state.cr0.intersects(Cr0::EM) || !cpu.state.cr4.contains(Cr4::OSFXSR) {
            return Err(cpu.raise(Exception::UD));
        }
        cpu.require_offered(op)?;
        check_task_switched(cpu)
    }
}

impl Class for Mmx {
    const CLEARS_ABOVE: bool = false;
    #[inline(always)]
    fn check<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
        if cpu.state.cr0.intersects(Cr0::EM) {
            return Err(cpu.raise(Exception::UD));
        }
        cpu.require_offered(op)?;
        check_task_switched(cpu)?;
        cpu.check_x87_pending()
    }
    #[inline(always)]
    fn enter(vector: &mut VectorState) {
        enter_mmx(vector);
    }
}

impl Class for SseMmx {
    const CLEARS_ABOVE: bool = false;
    #[inline(always)]
    fn check<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
        Sse::check(cpu, op)?;
        cpu.check_x87_pending()
    }
    #[inline(always)]
    fn enter(vector: &mut VectorState) {
        enter_mmx(vector);
    }
}

impl Class for Avx {
    const CLEARS_ABOVE: bool = true;
    #[inline(always)]
    fn check<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
        check_vex(cpu, XCR0_AVX)?;
        cpu.require_offered(op)?;
        check_task_switched(cpu)
    }
}

impl Class for Avx512 {
    const CLEARS_ABOVE: bool = true;
    #[inline(always)]
    fn check<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
        check_vex(cpu, XCR0_AVX512)?;
        cpu.require_offered(op)?;
        check_task_switched(cpu)
    }
}

#[inline(always)]
fn check_task_switched<E: Env>(cpu: &mut Cpu<E>) -> Exec {
    if cpu.state.cr0.intersects(Cr0::TS) {
        return Err(cpu.raise(Exception::NM));
    }
    Ok(())
}

/// VEX and EVEX need protected mode and an operating system that manages their state.
#[inline(always)]
fn check_vex<E: Env>(cpu: &mut Cpu<E>, xcr0: u64) -> Exec {
    let state = &cpu.state;
    if !state.is_protected()
        || state.is_v8086()
        || !state.cr4.contains(Cr4::OSXSAVE)
        || state.xcr0 & xcr0 != xcr0
    {
        return Err(cpu.raise(Exception::UD));
    }
    Ok(())
}

/// The transition to MMX state (SDM Vol. 1, 9.5): TOP becomes 0 and no register is empty. The
/// saved registers are in stack order, so they turn with TOP.
fn enter_mmx(vector: &mut VectorState) {
    let x87 = &mut vector.x87;
    let top = usize::from(x87.fsw >> 11 & 7);
    x87.st.rotate_right(top);
    x87.fsw &= !(7 << 11);
    x87.ftw = 0xff;
}

/// Makes the handler for each class: `by_class!(insn, C => handler)`.
macro_rules! by_class {
    ($insn:expr, $c:ident => $handler:expr) => {{
        use $crate::insn::vector::{Avx, Avx512, Mmx, Sse, SseMmx};
        match $crate::insn::vector::class($insn)? {
            $crate::insn::vector::Kind::Sse => {
                type $c = Sse;
                Some($handler as Handler<E>)
            }
            $crate::insn::vector::Kind::Mmx => {
                type $c = Mmx;
                Some($handler as Handler<E>)
            }
            $crate::insn::vector::Kind::SseMmx => {
                type $c = SseMmx;
                Some($handler as Handler<E>)
            }
            $crate::insn::vector::Kind::Avx => {
                type $c = Avx;
                Some($handler as Handler<E>)
            }
            $crate::insn::vector::Kind::Avx512 => {
                type $c = Avx512;
                Some($handler as Handler<E>)
            }
        }
    }};
}

/// The classes, as values.
pub(crate) enum Kind {
    Sse,
    Mmx,
    SseMmx,
    Avx,
    Avx512,
}

/// The class of a vector or mask instruction; `None` for any other.
pub(crate) fn class(insn: &Instruction) -> Option<Kind> {
    let (mut has_vector, mut has_mmx, mut has_mask) = (false, false, false);
    for i in 0..insn.op_count() {
        if insn.op_kind(i) == OpKind::Register {
            let reg = insn.op_register(i);
            has_vector |= reg.is_vector_register();
            has_mmx |= reg.is_mm();
            has_mask |= reg.is_k();
        }
    }
    has_vector |= is_conversion_to_integer(insn.mnemonic());
    // MASKMOVQ and MASKMOVDQU have a memory operand besides, at DS:rDI.
    Some(match insn.code().encoding() {
        EncodingKind::Legacy if has_vector && has_mmx => Kind::SseMmx,
        EncodingKind::Legacy if has_vector => Kind::Sse,
        EncodingKind::Legacy if has_mmx => Kind::Mmx,
        EncodingKind::VEX if has_mask => Kind::Avx512,
        EncodingKind::VEX if has_vector => Kind::Avx,
        EncodingKind::EVEX if has_vector || has_mask => Kind::Avx512,
        _ => return None,
    })
}

/// Conversions from vector registers or memory to general-purpose registers: with memory, no
/// operand tells what they belong to.
fn is_conversion_to_integer(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Cvtss2si
            | Mnemonic::Cvttss2si
            | Mnemonic::Cvtsd2si
            | Mnemonic::Cvttsd2si
            | Mnemonic::Vcvtss2si
            | Mnemonic::Vcvttss2si
            | Mnemonic::Vcvtsd2si
            | Mnemonic::Vcvttsd2si
            | Mnemonic::Vcvtss2usi
            | Mnemonic::Vcvttss2usi
            | Mnemonic::Vcvtsd2usi
            | Mnemonic::Vcvttsd2usi
    )
}

/// The handler for an MMX, SSE, AVX or AVX-512 instruction.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::Emms => return Some(emms),
        Mnemonic::Vzeroupper => return Some(zero_upper::<E, false>),
        Mnemonic::Vzeroall => return Some(zero_upper::<E, true>),
        _ => {}
    }
    class(insn)?;
    if insn.cpuid_features().contains(&CpuidFeature::KNC) {
        return None;
    }
    let special =
        moves::select(insn).or_else(|| gather::select(insn)).or_else(|| masked::select(insn));
    if special.is_some() {
        return special;
    }
    match memory_use(insn)? {
        MemoryUse::None => by_class!(insn, C => registers::<E, C>),
        MemoryUse::Load if wants_alignment(insn) => by_class!(insn, C => load::<E, C, true>),
        MemoryUse::Load => by_class!(insn, C => load::<E, C, false>),
        MemoryUse::Store if wants_alignment(insn) => by_class!(insn, C => store::<E, C, true>),
        MemoryUse::Store => by_class!(insn, C => store::<E, C, false>),
    }
}

/// Whether the memory operand must be aligned to its size: 16-byte operands of legacy SSE, and
/// the moves that say so (SDM Vol. 1, 14.9).
pub fn wants_alignment(insn: &Instruction) -> bool {
    match insn.mnemonic() {
        Mnemonic::Vmovaps
        | Mnemonic::Vmovapd
        | Mnemonic::Vmovdqa
        | Mnemonic::Vmovdqa32
        | Mnemonic::Vmovdqa64
        | Mnemonic::Vmovntps
        | Mnemonic::Vmovntpd
        | Mnemonic::Vmovntdq
        | Mnemonic::Vmovntdqa => true,
        Mnemonic::Movups
        | Mnemonic::Movupd
        | Mnemonic::Movdqu
        | Mnemonic::Lddqu
        | Mnemonic::Pcmpestri
        | Mnemonic::Pcmpestri64
        | Mnemonic::Pcmpestrm
        | Mnemonic::Pcmpestrm64
        | Mnemonic::Pcmpistri
        | Mnemonic::Pcmpistrm => false,
        _ => insn.code().encoding() == EncodingKind::Legacy && insn.memory_size().size() == 16,
    }
}

fn registers<E: Env, C: Class>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    C::check(cpu, op)?;
    C::enter(&mut cpu.state.vector);
    cpu.execute_native(op)
}

fn load<E: Env, C: Class, const ALIGNED: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    C::check(cpu, op)?;
    let len = op.insn.memory_size().size();
    let linear = if ALIGNED {
        cpu.aligned_address(op, len, len, Access::Read)?
    } else {
        cpu.operand_address(op, len, Access::Read)?
    };
    cpu.load_operand(linear, len)?;
    C::enter(&mut cpu.state.vector);
    cpu.execute_native(op)
}

fn store<E: Env, C: Class, const ALIGNED: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    C::check(cpu, op)?;
    let len = op.insn.memory_size().size();
    let linear = if ALIGNED {
        cpu.aligned_address(op, len, len, Access::Write)?
    } else {
        cpu.operand_address(op, len, Access::Write)?
    };
    cpu.store_operand(linear, len, |cpu| {
        C::enter(&mut cpu.state.vector);
        cpu.execute_native(op)?;
        Ok(true)
    })
}

/// EMMS: all x87 registers become empty.
fn emms<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Mmx::check(cpu, op)?;
    enter_mmx(&mut cpu.state.vector);
    cpu.state.vector.x87.ftw = 0;
    Ok(())
}

/// VZEROUPPER clears bits 511:128 of the first 16 vector registers (8 outside 64-bit mode),
/// VZEROALL all of them.
fn zero_upper<E: Env, const ALL: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    Avx::check(cpu, op)?;
    let count = if cpu.mode.code_bits == 64 { 16 } else { 8 };
    for zmm in &mut cpu.state.vector.zmm[..count] {
        *zmm = if ALL { [0; 8] } else { [zmm[0], zmm[1], 0, 0, 0, 0, 0, 0] };
    }
    Ok(())
}
