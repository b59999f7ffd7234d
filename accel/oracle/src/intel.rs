//! Differences on Intel's processors that are no faults of the engine, which does as AMD's where the
//! manuals leave it to the processor. On a host of another vendor, nothing of this applies.

use std::sync::LazyLock;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use x86::state::gpr::{RAX, RCX};

use crate::case::{Case, Outcome};

/// FSW.ES: an unmasked x87 exception is pending.
const ERROR_SUMMARY: u16 = 1 << 7;
/// State components that guests are not offered: PKRU and AMX's tiles.
const WITHHELD_COMPONENTS: u64 = 1 << 9 | 3 << 17;
const OF: u64 = 1 << 11;
const TF: u64 = 1 << 8;
/// #DB and #BR.
const DEBUG: u32 = 1;
const BOUND_RANGE: u32 = 5;
/// MXCSR's flush-to-zero bit and underflow mask.
const FTZ: u32 = 1 << 15;
const UM: u32 = 1 << 11;

/// Whether the host's processor is none of AMD's.
pub fn is_host() -> bool {
    static IS_INTEL: LazyLock<bool> =
        LazyLock::new(|| !crate::engine::host_cpuid(0, 0).names_amd());
    *IS_INTEL
}

fn is_fault(outcome: &Outcome) -> bool {
    matches!(outcome.trap, 12 | 13 | 14 | 17)
}

/// Flags that an instruction leaves undefined: OF, rotated by anything but 1 (SDM Vol. 2, RCL).
pub fn undefined_flags(insn: &Instruction) -> u64 {
    let rotates =
        matches!(insn.mnemonic(), Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr);
    let by_one = matches!(insn.op1_kind(), OpKind::Immediate8) && insn.immediate8() == 1;
    if is_host() && rotates && !by_one { OF } else { 0 }
}

/// Whether a faulting access may name any of its bytes: the parts of a masked operand, and the two
/// operands of a string instruction, have no order.
pub fn any_byte_faults(insn: &Instruction) -> bool {
    is_host()
        && (insn.op_mask() != Register::None
            || matches!(
                insn.mnemonic(),
                Mnemonic::Vmaskmovps
                    | Mnemonic::Vmaskmovpd
                    | Mnemonic::Vpmaskmovd
                    | Mnemonic::Vpmaskmovq
            ))
}

/// Whether a fault may come after MMX state was entered, or not before.
pub fn enters_mmx_late(insn: &Instruction, host: &Outcome) -> bool {
    is_host() && is_fault(host) && (0..insn.op_count()).any(|i| insn.op_register(i).is_mm())
}

/// Whether a conversion's flags may be set though its store faults.
pub fn converts_first(insn: &Instruction, host: &Outcome) -> bool {
    is_host() && is_fault(host) && insn.mnemonic() == Mnemonic::Vcvtps2ph
}

/// Why the outcomes of a case that ends with `insn` may differ.
pub fn whole_case(
    case: &Case,
    insn: &Instruction,
    host: &Outcome,
    engine: &Outcome,
) -> Option<&'static str> {
    if !is_host() {
        return None;
    }
    let both_fault = is_fault(host) && is_fault(engine);
    match insn.mnemonic() {
        // SDM Vol. 2, REP: EFLAGS is restored to what it was before the instruction.
        _ if is_string(insn) && both_fault => {
            return Some("Intel restores the flags of a string instruction that faults");
        }
        _ if compares_strings(insn) && (host.trap, engine.trap) == (DEBUG, DEBUG) => {
            return Some("Intel's flags are not those of the last iteration before a trap");
        }
        _ if is_string(insn) && clears_count(case, insn) => {
            return Some("Intel clears the upper half of RCX if ECX, which counts, is 0");
        }
        Mnemonic::Call if (host.trap, engine.trap) == (13, 13) => {
            return Some("Intel's CALL pushes before it looks at where it goes");
        }
        Mnemonic::Fstp | Mnemonic::Fbstp if both_fault && insn.memory_size().size() == 10 => {
            return Some("Intel may have stored a part of 80 bits before it finds a page missing");
        }
        Mnemonic::Bound if (host.trap, engine.trap) == (BOUND_RANGE, 14) => {
            return Some("Intel looks at the lower bound before it loads the upper");
        }
        Mnemonic::Vreduceps | Mnemonic::Vreducepd if case.vector.x87.mxcsr & (FTZ | UM) == FTZ => {
            return Some("FTZ means nothing where underflow is not masked (SDM Vol. 1, 10.2.3.3)");
        }
        _ if case.is_32bit != 0 && host.trap == 17 && matches!(engine.trap, 12 | 13) => {
            return Some("#AC and a segment's limit have no order (SDM Vol. 3, table 6-2)");
        }
        _ if saves_state(insn) => {
            if case.gpr[RAX] & WITHHELD_COMPONENTS != 0 {
                return Some("the host has state components that guests are not offered");
            }
            if both_fault && host.trap != engine.trap {
                return Some("misaligned XSAVE areas are #GP or #AC (SDM Vol. 2, XSAVE)");
            }
        }
        Mnemonic::Vcvtps2ph | Mnemonic::Vcvtph2ps if engine.trap == 17 || host.trap == 17 => {
            return Some("Intel does not check the alignment of half-precision numbers");
        }
        _ => {}
    }
    if insn.memory_index().is_vector_register() && both_fault && host.trap == engine.trap {
        return Some("a gather that faults may have normalized its mask (SDM Vol. 2, VGATHERDPS)");
    }
    if host.vector.x87.fsw & ERROR_SUMMARY != 0 && is_fault(engine) && is_x87(insn) {
        return Some("Intel's x87 stores that raise an unmasked exception access no memory");
    }
    let size = insn.memory_size().size() as u32;
    let last = (host.cr2 as u32).wrapping_add(size);
    if case.is_32bit != 0 && host.trap == 14 && matches!(engine.trap, 12 | 13) && last < size {
        return Some("Intel finds a page missing before the end of a segment");
    }
    None
}

/// Why a sequence of instructions may come out differently.
pub fn sequence(case: &Case, insns: &[Instruction]) -> Option<&'static str> {
    if !is_host() {
        return None;
    }
    let any = |wanted: &dyn Fn(&Instruction) -> bool| insns.iter().any(wanted);
    if any(&|i| i.mnemonic() == Mnemonic::Xgetbv) && case.gpr[RCX] as u32 <= 1 {
        return Some("the host's XCR0 has components that guests are not offered");
    }
    if any(&saves_state) && case.gpr[RAX] & WITHHELD_COMPONENTS != 0 {
        return Some("the host has state components that guests are not offered");
    }
    if case.rflags & TF != 0 && any(&compares_strings) {
        return Some("Intel's flags are not those of the last iteration before a trap");
    }
    if any(&|i| is_string(i) && clears_count(case, i)) {
        return Some("Intel clears the upper half of RCX if ECX, which counts, is 0");
    }
    if any(&|i| crate::repertoire::is_vague(i.code())) {
        return Some("Intel leaves the upper half of a selector's slot alone (SDM Vol. 2, PUSH)");
    }
    if any(&|i| i.code() == Code::Pause) {
        return Some("with REX.B, Intel's PAUSE is XCHG R8, RAX");
    }
    None
}

fn saves_state(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsavec
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64
    )
}

/// Whether an instruction compares strings, repeatedly.
fn compares_strings(insn: &Instruction) -> bool {
    let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
    repeats
        && matches!(
            insn.mnemonic(),
            Mnemonic::Cmpsb
                | Mnemonic::Cmpsw
                | Mnemonic::Cmpsd
                | Mnemonic::Cmpsq
                | Mnemonic::Scasb
                | Mnemonic::Scasw
                | Mnemonic::Scasd
                | Mnemonic::Scasq
        )
}

/// Whether a string instruction of 32-bit addresses is repeated no times.
fn clears_count(case: &Case, insn: &Instruction) -> bool {
    let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
    let is_narrow = (0..insn.op_count()).any(|i| {
        use OpKind as O;
        matches!(insn.op_kind(i), O::MemorySegESI | O::MemorySegEDI | O::MemoryESEDI)
    });
    repeats && is_narrow && case.gpr[RCX] as u32 == 0
}

fn is_string(insn: &Instruction) -> bool {
    insn.is_string_instruction()
}

fn is_x87(insn: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    insn.cpuid_features().iter().any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::SSE3))
}
