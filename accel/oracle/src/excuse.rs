//! Differences that are no faults of the engine, each with its reason. What is not listed here
//! must agree.

use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpKind, Register};
use x86::state::gpr::{RAX, RBX, RCX, RDI, RSI};

use crate::case::{Case, Outcome};
use crate::intel;
use crate::layout::PAGE;

/// MXCSR's masks of overflow and underflow.
const RANGE_MASKS: u32 = 3 << 10;
/// MXCSR's exception flags, and the one of inexact results.
const FLAGS: u32 = 0x3f;
const INEXACT: u32 = 1 << 5;
const TF: u64 = 1 << 8;
/// MXCSR: misaligned operands are allowed.
const MISALIGNED: u32 = 1 << 17;

fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

/// Flags that the instruction leaves undefined in a way of its own on each processor. Others whose
/// flags are undefined are executed by the host's ALU, and agree.
pub fn undefined_flags(insn: &Instruction) -> u64 {
    match insn.mnemonic() {
        // SDM Vol. 2, DIV, IDIV, AAA and so on, "Flags Affected".
        Mnemonic::Div
        | Mnemonic::Idiv
        | Mnemonic::Aaa
        | Mnemonic::Aas
        | Mnemonic::Aad
        | Mnemonic::Aam
        | Mnemonic::Daa
        | Mnemonic::Das => {}
        _ => return intel::undefined_flags(insn),
    }
    architectural(insn.rflags_undefined())
}

/// Flags that the instruction leaves as they were, on some processors, where the manuals have
/// them undefined. Code that is executed in blocks does not know what they were.
pub fn unknown_flags(insn: &Instruction) -> u64 {
    match insn.mnemonic() {
        Mnemonic::Mul
        | Mnemonic::Imul
        | Mnemonic::Bsf
        | Mnemonic::Bsr
        | Mnemonic::Tzcnt
        | Mnemonic::Lzcnt => architectural(insn.rflags_undefined()),
        // Rotated by 9, bytes stay as they are; what OF is then depends on more than the operands.
        Mnemonic::Rcl | Mnemonic::Rcr => 1 << 11,
        _ => undefined_flags(insn),
    }
}

/// Flags as iced numbers them, where RFLAGS has them.
pub fn architectural(flags: u32) -> u64 {
    use iced_x86::RflagsBits as Bits;
    [(Bits::CF, 0), (Bits::PF, 2), (Bits::AF, 4), (Bits::ZF, 6), (Bits::SF, 7), (Bits::OF, 11)]
        .into_iter()
        .filter(|(bit, _)| flags & bit != 0)
        .fold(0, |mask, (_, at)| mask | 1 << at)
}

/// Whether #PF may be about another part of the operand than the first one that cannot be
/// reached: the order in which parts of a large operand are accessed is the processor's own.
pub fn order_is_vague(insn: &Instruction) -> bool {
    insn.op_code().is_save_restore()
        || matches!(
            insn.mnemonic(),
            Mnemonic::Fnsave | Mnemonic::Frstor | Mnemonic::Fnstenv | Mnemonic::Fldenv
        )
}

/// Whether an instruction stores what an x87 instruction before it has left in FCS and FDS, which
/// the engine does not keep (CPUID.7.0:EBX[13]).
pub fn stores_selectors(insn: &Instruction) -> bool {
    order_is_vague(insn)
}

/// MXCSR bits that may differ.
pub fn vague_mxcsr(case: &Case, insn: &Instruction, host: &Outcome) -> u32 {
    if intel::converts_first(insn, host) {
        return FLAGS;
    }
    if host.trap != 19 {
        return 0;
    }
    match insn.mnemonic() {
        // The products raise before the sums are computed; the engine sees the whole.
        Mnemonic::Dpps | Mnemonic::Dppd | Mnemonic::Vdpps | Mnemonic::Vdppd => FLAGS,
        // An unmasked overflow or underflow is inexact if the result is so with an unbounded
        // exponent (SDM Vol. 1, 4.9.1.4 and 4.9.1.5); the engine looks at the infinity or the
        // denormal that a masked one makes. The result is dropped anyway.
        _ if case.vector.x87.mxcsr & host.vector.x87.mxcsr & RANGE_MASKS != RANGE_MASKS => INEXACT,
        _ => 0,
    }
}

/// Whether vector register `number` may differ above its first 16 bytes.
pub fn vague_above(insn: &Instruction, host: &Outcome, number: usize) -> bool {
    // A gather that faults on AMD has cleared the upper part; on Intel, that comes at the end
    // (SDM Vol. 2, VPGATHERDD). It is executed again in any case.
    let is_gather = insn.memory_index().is_vector_register()
        && insn.op0_register().is_vector_register()
        && insn.op0_register().number() == number;
    is_gather && is_fault(host)
}

fn is_fault(outcome: &Outcome) -> bool {
    matches!(outcome.trap, 12 | 13 | 14 | 17)
}

/// Whether x87 registers may differ.
pub fn vague_x87(insn: &Instruction, host: &Outcome) -> bool {
    // AMD enters MMX state before the store faults. The instruction, restarted, enters it again.
    insn.mnemonic() == Mnemonic::Maskmovq && is_fault(host) || intel::enters_mmx_late(insn, host)
}

/// Why the outcomes of a case may differ altogether.
pub fn whole_case(
    case: &Case,
    insn: &Instruction,
    host: &Outcome,
    engine: &Outcome,
) -> Option<&'static str> {
    match insn.mnemonic() {
        Mnemonic::Sha1msg1
        | Mnemonic::Sha1msg2
        | Mnemonic::Sha1nexte
        | Mnemonic::Sha1rnds4
        | Mnemonic::Sha256msg1
        | Mnemonic::Sha256msg2
        | Mnemonic::Sha256rnds2
            if engine.trap == 13 && (host.trap, host.rip) != (13, insn.ip()) =>
        {
            return Some(
                "Intel wants SHA's operand aligned (SDM Vol. 2, table 2-21), AMD does not",
            );
        }
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu if is_fault(host) => {
            return Some("MASKMOV may fault for bytes it does not store (SDM Vol. 2, MASKMOVDQU)");
        }
        Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64
            if is_fault(host) && is_fault(engine) && host.trap != engine.trap =>
        {
            return Some("misaligned FXSAVE areas are #GP, #SS or #AC (SDM Vol. 2, FXSAVE)");
        }
        // A limit of the engine, too rare to be worth more: it finds exact denormal results by
        // having them flushed, which this instruction does not do.
        Mnemonic::Vcvtps2ph if host.trap == 19 => {
            return Some("unmasked underflow in VCVTPS2PH is found only where it is inexact");
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq
            if is_fault(host)
                && is_fault(engine)
                && (host.trap, host.cr2) != (engine.trap, engine.cr2) =>
        {
            return Some("CMPS has two operands, of which either may fault first");
        }
        Mnemonic::Popa | Mnemonic::Popad if is_fault(host) && is_fault(engine) => {
            return Some("POPA that faults may have loaded registers, to be loaded again");
        }
        Mnemonic::Reservednop
            if host.trap == 6
                && matches!(
                    insn.code(),
                    Code::Reservednop_rm16_r16_0F0D
                        | Code::Reservednop_rm32_r32_0F0D
                        | Code::Reservednop_rm64_r64_0F0D
                ) =>
        {
            return Some("prefetching a register is #UD on AMD, a NOP on Intel");
        }
        Mnemonic::Loope | Mnemonic::Loopne if insn.has_rep_prefix() || insn.has_repne_prefix() => {
            return Some("AMD's LOOPcc obey REPcc prefixes, which are reserved there");
        }
        _ => {}
    }
    if insn.memory_index().is_vector_register()
        && host.rflags & TF != 0
        && host.trap == 1
        && host.rip == insn.ip()
        && is_fault(engine)
    {
        return Some(
            "traps for lanes that are done may come before a fault (SDM Vol. 2, VPGATHERDD)",
        );
    }
    let size = insn.memory_size().size() as u64;
    let has_parts = order_is_vague(insn)
        || insn.op_mask() != Register::None
        || matches!(
            insn.mnemonic(),
            Mnemonic::Vmaskmovps
                | Mnemonic::Vmaskmovpd
                | Mnemonic::Vpmaskmovd
                | Mnemonic::Vpmaskmovq
        );
    if case.is_32bit != 0
        && has_parts
        && matches!(engine.trap, 12 | 13)
        && offset(insn, host).wrapping_add(size) & 0xffff_ffff < size
    {
        return Some("operands of many parts are held against a segment's limit as a whole");
    }
    if insn.code() == Code::Movsxd_r16_rm16 && insn.op1_kind() == OpKind::Memory {
        return Some("AMD's MOVSXD r16 reads 32 bits (APM Vol. 3, MOVSXD), Intel's 16");
    }
    let may_be_short = |a: &Outcome, b: &Outcome| a.trap == 6 && b.trap == 14 && b.error & 16 != 0;
    if may_be_short(host, engine) || may_be_short(engine, host) {
        return Some("what cannot be decoded may be #UD before its last byte is fetched");
    }
    if host.trap == 13
        && case.is_32bit == 0
        && matches!(insn.memory_segment(), Register::FS | Register::GS)
        && !is_canonical(offset(insn, host))
    {
        return Some("AMD also wants the offset in FS or GS canonical, Intel the address alone");
    }
    intel::whole_case(case, insn, host, engine)
}

/// Why a sequence of instructions may come out differently.
pub fn sequence(case: &Case, insns: &[Instruction], host: &Outcome) -> Option<&'static str> {
    if host.vector.x87.mxcsr & MISALIGNED != 0 {
        return Some("AMD's MXCSR.MM, set by the case, is not offered to guests");
    }
    if insns.iter().any(|insn| insn.mnemonic() == Mnemonic::Xgetbv) && case.gpr[RCX] as u32 == 1 {
        return Some("a component that holds zeros may be in use (SDM Vol. 1, 13.6)");
    }
    if insns.iter().any(|insn| {
        matches!(insn.code(), Code::Clzerow | Code::Clzerod | Code::Clzeroq)
            && (insn.has_rep_prefix() || insn.has_repne_prefix())
    }) {
        return Some("Zen 3: CLZERO with a prefix is no other instruction, but itself");
    }
    if let Some(reason) = intel::sequence(case, insns) {
        return Some(reason);
    }
    let stack = insns.iter().position(|insn| insn.is_stack_instruction())?;
    // Only vector instructions with a register operand, EVEX-encoded, were seen to do so.
    let reads_stack_pointer = insns.get(stack..)?.iter().any(|insn| {
        insn.code().encoding() == EncodingKind::EVEX
            && (0..insn.op_count()).any(|i| insn.op_register(i).full_register() == Register::RSP)
    });
    reads_stack_pointer.then_some("Zen 5: EVEX instructions see RSP as before a PUSH just done")
}

/// The offset of the memory operand in its segment.
fn offset(insn: &Instruction, host: &Outcome) -> u64 {
    let value = |reg: Register| match reg {
        reg if reg.is_gpr() && reg.size() >= 4 => host.gpr[reg.full_register().number()],
        _ => 0,
    };
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::MemorySegRSI => return host.gpr[RSI],
            OpKind::MemorySegRDI => return host.gpr[RDI],
            _ => {}
        }
    }
    if insn.mnemonic() == Mnemonic::Xlatb {
        return host.gpr[RBX].wrapping_add(host.gpr[RAX] & 0xff);
    }
    // The decoder has added the next instruction's address to a displacement from RIP.
    let index = value(insn.memory_index()).wrapping_mul(insn.memory_index_scale().into());
    insn.memory_displacement64().wrapping_add(value(insn.memory_base())).wrapping_add(index)
}

/// Whether the faulting address that the engine names will do.
pub fn cr2_agrees(insn: &Instruction, host: u64, engine: u64) -> bool {
    // Also where 32-bit addresses wrap around.
    let size = insn.memory_size().size().max(PAGE) as u32;
    host == engine
        || (order_is_vague(insn) || intel::any_byte_faults(insn))
            && (host.wrapping_sub(engine) as u32).min(engine.wrapping_sub(host) as u32) < size
}
