//! Which instructions translated code may consist of. What is not listed is refused.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind};

use crate::state::{RBX, RDX};

/// Whether an instruction that does not branch may be in translated code, as far as can be seen
/// without knowing what registers hold. `time` is whether it may read the time stamp counter.
pub(crate) fn is_allowed(insn: &Instruction, time: bool) -> bool {
    // Prefixes that mean nothing, or elide locks.
    if insn.has_rep_prefix() || insn.has_repne_prefix() {
        return false;
    }
    let mut has_vector = false;
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::Register => {
                let reg = insn.op_register(i);
                let is_vector = reg.is_vector_register() || reg.is_k();
                if !is_vector && !reg.is_gpr() {
                    return false;
                }
                has_vector |= is_vector;
            }
            OpKind::Memory
            | OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => {}
            // Operands of string instructions and the like.
            _ => return false,
        }
    }
    is_general(insn.mnemonic())
        || time && insn.mnemonic() == Mnemonic::Rdtsc
        || needs_control(insn.mnemonic())
        || has_vector && insn.cpuid_features().iter().all(|&feature| is_vector_extension(feature))
}

/// Whether the instruction repeats STOS or MOVS, with nothing else said of it.
pub(crate) fn is_repeated(insn: &Instruction) -> bool {
    let is_wide = matches!(insn.code(), Code::Stosq_m64_RAX | Code::Movsq_m64_m64);
    let is_known = is_wide
        || matches!(
            insn.code(),
            Code::Stosb_m8_AL | Code::Stosd_m32_EAX | Code::Movsb_m8_m8 | Code::Movsd_m32_m32
        );
    // REP, perhaps REX, the opcode: no prefix for segments or sizes.
    is_known && insn.has_rep_prefix() && insn.len() == if is_wide { 3 } else { 2 }
}

/// Conversions to integers, which may have no vector operand but use MXCSR.
pub(crate) fn needs_control(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cvtss2si
            | M::Cvtsd2si
            | M::Cvttss2si
            | M::Cvttsd2si
            | M::Vcvtss2si
            | M::Vcvtsd2si
            | M::Vcvttss2si
            | M::Vcvttsd2si
            | M::Vcvtss2usi
            | M::Vcvtsd2usi
            | M::Vcvttss2usi
            | M::Vcvttsd2usi
    )
}

/// Instructions without vector operands.
fn is_general(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Mov | M::Movbe | M::Movnti | M::Movsx | M::Movsxd | M::Movzx | M::Lea
            | M::Xchg | M::Xadd | M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b | M::Bswap
            // Arithmetic and logic.
            | M::Add | M::Adc | M::Adcx | M::Adox | M::Sub | M::Sbb | M::Cmp | M::Neg
            | M::Inc | M::Dec | M::Mul | M::Imul | M::Mulx | M::Div | M::Idiv
            | M::And | M::Andn | M::Or | M::Xor | M::Not | M::Test
            | M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo
            // Shifts and bits.
            | M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd | M::Shlx | M::Shrx
            | M::Sarx | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Rorx
            | M::Bt | M::Bts | M::Btr | M::Btc | M::Bsf | M::Bsr | M::Lzcnt | M::Tzcnt
            | M::Popcnt | M::Bextr | M::Blsi | M::Blsmsk | M::Blsr | M::Bzhi | M::Pdep
            | M::Pext | M::Crc32
            // Status flags.
            | M::Lahf | M::Sahf | M::Clc | M::Stc | M::Cmc
            | M::Seta | M::Setae | M::Setb | M::Setbe | M::Sete | M::Setg | M::Setge | M::Setl
            | M::Setle | M::Setne | M::Setno | M::Setnp | M::Setns | M::Seto | M::Setp | M::Sets
            | M::Cmova | M::Cmovae | M::Cmovb | M::Cmovbe | M::Cmove | M::Cmovg | M::Cmovge
            | M::Cmovl | M::Cmovle | M::Cmovne | M::Cmovno | M::Cmovnp | M::Cmovns | M::Cmovo
            | M::Cmovp | M::Cmovs
            // Order and time.
            | M::Lfence | M::Mfence | M::Sfence | M::Pause | M::Nop
            // Vector instructions without operands.
            | M::Vzeroupper | M::Vzeroall
    )
}

/// Extensions whose instructions do nothing but compute, if they have a vector or mask operand.
fn is_vector_extension(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::X64
            | F::AVX
            | F::AVX2
            | F::FMA
            | F::F16C
            | F::AES
            | F::PCLMULQDQ
            | F::VAES
            | F::VPCLMULQDQ
            | F::GFNI
            | F::SHA
            | F::AVX512F
            | F::AVX512DQ
            | F::AVX512BW
            | F::AVX512VL
            | F::AVX512CD
            | F::AVX512_IFMA
            | F::AVX512_VBMI
            | F::AVX512_VBMI2
            | F::AVX512_VNNI
            | F::AVX512_BITALG
            | F::AVX512_VPOPCNTDQ
            | F::AVX512_BF16
            | F::AVX_VNNI
    )
}

/// Whether the instruction reads general-purpose register `number` without naming it.
pub(crate) fn reads_implicitly(insn: &Instruction, number: usize) -> bool {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Cmpxchg8b | M::Cmpxchg16b => number <= RBX,
        M::Cmpxchg | M::Mul | M::Imul | M::Mulx | M::Div | M::Idiv => number <= RDX,
        M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo | M::Sahf => number <= RDX,
        M::Pcmpestri | M::Pcmpestrm | M::Pcmpestri64 | M::Pcmpestrm64 => number <= RDX,
        M::Vpcmpestri | M::Vpcmpestrm | M::Vpcmpestri64 | M::Vpcmpestrm64 => number <= RDX,
        // Shifts by CL name it.
        _ => false,
    }
}
