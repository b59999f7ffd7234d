//! Differences that are no faults of the engine, each with its reason. What is not listed here
//! must agree.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::case::{Case, Outcome};
use crate::layout::PAGE;

const UNMASKED_UNDERFLOW: u32 = 1 << 11;

fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

/// Flags that the instruction leaves undefined in a way of its own on each processor. Others whose
/// flags are undefined are executed by the host's ALU, and agree.
pub fn undefined_flags(insn: &Instruction) -> u64 {
    use iced_x86::RflagsBits as Bits;
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
        _ => return 0,
    }
    let undefined = insn.rflags_undefined();
    [(Bits::CF, 0), (Bits::PF, 2), (Bits::AF, 4), (Bits::ZF, 6), (Bits::SF, 7), (Bits::OF, 11)]
        .into_iter()
        .filter(|(bit, _)| undefined & bit != 0)
        .fold(0, |mask, (_, at)| mask | 1 << at)
}

/// Whether #PF may name another byte of the operand than the first one that cannot be reached:
/// the order in which parts of a large operand are accessed is the processor's own.
pub fn cr2_is_vague(insn: &Instruction) -> bool {
    insn.op_code().is_save_restore()
        || matches!(
            insn.mnemonic(),
            Mnemonic::Fnsave
                | Mnemonic::Frstor
                | Mnemonic::Fnstenv
                | Mnemonic::Fldenv
                | Mnemonic::Maskmovq
                | Mnemonic::Maskmovdqu
                | Mnemonic::Vmaskmovdqu
        )
}

fn same_page(a: u64, b: u64) -> bool {
    a / PAGE as u64 == b / PAGE as u64
}

/// MXCSR bits that may differ.
pub fn vague_mxcsr(case: &Case, host: &Outcome) -> u32 {
    // An unmasked underflow is inexact if the result is with an unbounded exponent; the engine
    // looks at the denormal that a masked one makes (SDM Vol. 1, 4.9.1.5). The result is dropped.
    let underflows = host.trap == 19 && case.vector.x87.mxcsr & UNMASKED_UNDERFLOW == 0;
    if underflows { 1 << 5 } else { 0 }
}

/// Whether x87 registers may differ.
pub fn vague_x87(insn: &Instruction, host: &Outcome) -> bool {
    // AMD enters MMX state before the store faults. The instruction, restarted, enters it again.
    insn.mnemonic() == Mnemonic::Maskmovq && matches!(host.trap, 12 | 13 | 14 | 17)
}

/// Why the outcomes of a case may differ altogether.
pub fn whole_case(
    case: &Case,
    insn: &Instruction,
    host: &Outcome,
    engine: &Outcome,
) -> Option<&'static str> {
    let is_fault = |o: &Outcome| matches!(o.trap, 12 | 13 | 14 | 17);
    match insn.mnemonic() {
        Mnemonic::Sha1msg1
        | Mnemonic::Sha1msg2
        | Mnemonic::Sha1nexte
        | Mnemonic::Sha1rnds4
        | Mnemonic::Sha256msg1
        | Mnemonic::Sha256msg2
        | Mnemonic::Sha256rnds2
            if engine.trap == 13 && host.trap != 13 =>
        {
            return Some(
                "Intel wants SHA's operand aligned (SDM Vol. 2, table 2-21), AMD does not",
            );
        }
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
            if is_fault(host) && !is_fault(engine) =>
        {
            return Some("MASKMOV may fault for bytes it does not store (SDM Vol. 2, MASKMOVDQU)");
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
        _ => {}
    }
    if insn.code() == Code::Movsxd_r16_rm16 && insn.op1_kind() == iced_x86::OpKind::Memory {
        return Some("AMD's MOVSXD r16 reads 32 bits (APM Vol. 3, MOVSXD), Intel's 16");
    }
    if host.trap == 6 && engine.trap == 14 && engine.error & 0x10 != 0 {
        return Some("what cannot be decoded may be #UD before its last byte is fetched");
    }
    if host.trap == 13 && effective_address(case, insn).is_some_and(|at| !is_canonical(at)) {
        return Some("AMD also wants the offset in FS or GS canonical, Intel the address alone");
    }
    None
}

/// The offset of a memory operand in FS or GS.
fn effective_address(case: &Case, insn: &Instruction) -> Option<u64> {
    use iced_x86::Register;
    let is_based = matches!(insn.memory_segment(), Register::FS | Register::GS);
    if !is_based || case.is_32bit != 0 {
        return None;
    }
    let value = |reg: Register| match reg {
        Register::RIP => insn.next_ip(),
        reg if reg.is_gpr() && reg.size() == 8 => case.gpr[reg.number()],
        _ => 0,
    };
    // The decoder adds the next instruction's address to a displacement from RIP.
    let base = if insn.is_ip_rel_memory_operand() { 0 } else { value(insn.memory_base()) };
    let index = value(insn.memory_index()).wrapping_mul(insn.memory_index_scale().into());
    Some(insn.memory_displacement64().wrapping_add(base).wrapping_add(index))
}

/// Whether both outcomes name addresses on the same page, where the byte does not matter.
pub fn cr2_agrees(insn: &Instruction, host: u64, engine: u64) -> bool {
    host == engine || cr2_is_vague(insn) && same_page(host, engine)
}
