//! Where CPUID says whether the processor has an extension.

use iced_x86::{Code, CpuidFeature};

use crate::cpuid::CpuidResult;

#[derive(Clone, Copy)]
enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Leaf, subleaf, register and bit that announce `feature` (SDM Vol. 2, CPUID; APM Vol. 3,
/// appendix E). `None` for what no processor of this architecture announces, or what the
/// interpreter never offers.
fn bit(feature: CpuidFeature) -> Option<(u32, u32, Reg, u32)> {
    use Reg::{Eax, Ebx, Ecx, Edx};
    Some(match feature {
        CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 => (1, 0, Edx, 0),
        CpuidFeature::CMOV => (1, 0, Edx, 15),
        CpuidFeature::CLFSH => (1, 0, Edx, 19),
        CpuidFeature::MMX => (1, 0, Edx, 23),
        CpuidFeature::FXSR => (1, 0, Edx, 24),
        CpuidFeature::SSE => (1, 0, Edx, 25),
        CpuidFeature::SSE2 => (1, 0, Edx, 26),
        CpuidFeature::SSE3 => (1, 0, Ecx, 0),
        CpuidFeature::PCLMULQDQ => (1, 0, Ecx, 1),
        CpuidFeature::SSSE3 => (1, 0, Ecx, 9),
        CpuidFeature::FMA => (1, 0, Ecx, 12),
        CpuidFeature::SSE4_1 => (1, 0, Ecx, 19),
        CpuidFeature::SSE4_2 => (1, 0, Ecx, 20),
        CpuidFeature::MOVBE => (1, 0, Ecx, 22),
        CpuidFeature::POPCNT => (1, 0, Ecx, 23),
        CpuidFeature::AES => (1, 0, Ecx, 25),
        CpuidFeature::XSAVE => (1, 0, Ecx, 26),
        CpuidFeature::AVX => (1, 0, Ecx, 28),
        CpuidFeature::F16C => (1, 0, Ecx, 29),
        CpuidFeature::BMI1 => (7, 0, Ebx, 3),
        CpuidFeature::AVX2 => (7, 0, Ebx, 5),
        CpuidFeature::BMI2 => (7, 0, Ebx, 8),
        CpuidFeature::AVX512F => (7, 0, Ebx, 16),
        CpuidFeature::AVX512DQ => (7, 0, Ebx, 17),
        CpuidFeature::AVX512_IFMA => (7, 0, Ebx, 21),
        CpuidFeature::ADX => (7, 0, Ebx, 19),
        CpuidFeature::CLFLUSHOPT => (7, 0, Ebx, 23),
        CpuidFeature::CLWB => (7, 0, Ebx, 24),
        CpuidFeature::AVX512CD => (7, 0, Ebx, 28),
        CpuidFeature::SHA => (7, 0, Ebx, 29),
        CpuidFeature::AVX512BW => (7, 0, Ebx, 30),
        CpuidFeature::AVX512VL => (7, 0, Ebx, 31),
        CpuidFeature::AVX512_VBMI => (7, 0, Ecx, 1),
        CpuidFeature::AVX512_VBMI2 => (7, 0, Ecx, 6),
        CpuidFeature::GFNI => (7, 0, Ecx, 8),
        CpuidFeature::VAES => (7, 0, Ecx, 9),
        CpuidFeature::VPCLMULQDQ => (7, 0, Ecx, 10),
        CpuidFeature::AVX512_VNNI => (7, 0, Ecx, 11),
        CpuidFeature::AVX512_BITALG => (7, 0, Ecx, 12),
        CpuidFeature::AVX512_VPOPCNTDQ => (7, 0, Ecx, 14),
        CpuidFeature::CLDEMOTE => (7, 0, Ecx, 25),
        CpuidFeature::WAITPKG => (7, 0, Ecx, 5),
        CpuidFeature::MOVDIRI => (7, 0, Ecx, 27),
        CpuidFeature::MOVDIR64B => (7, 0, Ecx, 28),
        CpuidFeature::ENQCMD => (7, 0, Ecx, 29),
        CpuidFeature::UINTR => (7, 0, Edx, 5),
        CpuidFeature::AVX512_VP2INTERSECT => (7, 0, Edx, 8),
        CpuidFeature::SERIALIZE => (7, 0, Edx, 14),
        CpuidFeature::TSXLDTRK => (7, 0, Edx, 16),
        CpuidFeature::AMX_BF16 => (7, 0, Edx, 22),
        CpuidFeature::AVX512_FP16 => (7, 0, Edx, 23),
        CpuidFeature::AMX_TILE => (7, 0, Edx, 24),
        CpuidFeature::AMX_INT8 => (7, 0, Edx, 25),
        CpuidFeature::SHA512 => (7, 1, Eax, 0),
        CpuidFeature::SM3 => (7, 1, Eax, 1),
        CpuidFeature::SM4 => (7, 1, Eax, 2),
        CpuidFeature::AVX_VNNI => (7, 1, Eax, 4),
        CpuidFeature::AVX512_BF16 => (7, 1, Eax, 5),
        CpuidFeature::AMX_FP16 => (7, 1, Eax, 21),
        CpuidFeature::HRESET => (7, 1, Eax, 22),
        CpuidFeature::AVX_IFMA => (7, 1, Eax, 23),
        CpuidFeature::AVX_VNNI_INT8 => (7, 1, Edx, 4),
        CpuidFeature::AVX_NE_CONVERT => (7, 1, Edx, 5),
        CpuidFeature::AVX_VNNI_INT16 => (7, 1, Edx, 10),
        CpuidFeature::PTWRITE => (0x14, 0, Ebx, 4),
        CpuidFeature::XSAVEOPT => (0xd, 1, Eax, 0),
        CpuidFeature::XSAVEC => (0xd, 1, Eax, 1),
        CpuidFeature::XSAVES => (0xd, 1, Eax, 3),
        CpuidFeature::LZCNT => (0x8000_0001, 0, Ecx, 5),
        CpuidFeature::SSE4A => (0x8000_0001, 0, Ecx, 6),
        CpuidFeature::PREFETCHW => (0x8000_0001, 0, Ecx, 8),
        CpuidFeature::XOP => (0x8000_0001, 0, Ecx, 11),
        CpuidFeature::FMA4 => (0x8000_0001, 0, Ecx, 16),
        CpuidFeature::CLZERO => (0x8000_0008, 0, Ebx, 0),
        _ => return None,
    })
}

/// Whether a processor whose CPUID instruction answers as `cpuid` does announces `feature`. `None`
/// for features that this crate knows no bit of.
fn announces(feature: CpuidFeature, cpuid: &impl Fn(u32, u32) -> CpuidResult) -> Option<bool> {
    let (leaf, subleaf, reg, bit) = bit(feature)?;
    if cpuid(leaf & 0x8000_0000, 0).eax < leaf {
        return Some(false);
    }
    let answer = cpuid(leaf, subleaf);
    let word = match reg {
        Reg::Eax => answer.eax,
        Reg::Ebx => answer.ebx,
        Reg::Ecx => answer.ecx,
        Reg::Edx => answer.edx,
    };
    Some(word >> bit & 1 != 0)
}

/// Whether a processor whose CPUID instruction answers as `cpuid` does has every extension that
/// the instruction `code` belongs to. Only the extensions of this crate's vector, x87 and state
/// instructions are known; whatever needs another one is taken to be missing.
pub fn has_instruction(code: Code, cpuid: impl Fn(u32, u32) -> CpuidResult) -> bool {
    code.cpuid_features().iter().all(|&feature| match feature {
        // Every processor that runs this code at all.
        CpuidFeature::X64
        | CpuidFeature::INTEL8086
        | CpuidFeature::INTEL186
        | CpuidFeature::INTEL386
        | CpuidFeature::INTEL486 => true,
        _ => announces(feature, &cpuid).unwrap_or(false),
    })
}

/// Whether a processor whose CPUID instruction answers as `cpuid` does says by that that it has
/// not got `code`. Hints do not count: where they are not known, they do nothing.
pub fn denies_instruction(code: Code, cpuid: impl Fn(u32, u32) -> CpuidResult) -> bool {
    code.cpuid_features()
        .iter()
        .filter(|&&feature| feature != CpuidFeature::CLDEMOTE)
        // No bit tells whether a processor runs trust domains, which is no guest's business.
        .any(|&f| f == CpuidFeature::TDX || announces(f, &cpuid) == Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_extension_of_an_instruction_is_asked_for() {
        let cpuid = |leaf, _| match leaf {
            0 => CpuidResult { eax: 7, ..Default::default() },
            1 => CpuidResult { edx: 1 << 25 | 1 << 26, ..Default::default() },
            7 => CpuidResult { ebx: 1 << 16, ..Default::default() },
            _ => CpuidResult::default(),
        };
        assert!(has_instruction(Code::Addpd_xmm_xmmm128, cpuid));
        assert!(!has_instruction(Code::Aesenc_xmm_xmmm128, cpuid));
        assert!(has_instruction(Code::EVEX_Vaddpd_zmm_k1z_zmm_zmmm512b64_er, cpuid));
        assert!(!has_instruction(Code::EVEX_Vaddpd_xmm_k1z_xmm_xmmm128b64, cpuid));
        assert!(!has_instruction(Code::D3NOW_Pfadd_mm_mmm64, cpuid));
    }

    #[test]
    fn what_is_neither_announced_nor_known_is_not_denied() {
        let cpuid = |leaf, _| match leaf {
            0 => CpuidResult { eax: 7, ..Default::default() },
            _ => CpuidResult::default(),
        };
        assert!(denies_instruction(Code::Xsusldtrk, cpuid));
        assert!(denies_instruction(Code::Ptwrite_rm32, cpuid), "of a leaf that is not there");
        assert!(!denies_instruction(Code::Cldemote_m8, cpuid), "a hint");
        assert!(!denies_instruction(Code::Endbr64, cpuid));
        assert!(!denies_instruction(Code::Add_rm32_r32, cpuid));
    }

    #[test]
    fn leaves_beyond_the_last_one_say_nothing() {
        let cpuid = |leaf, _| match leaf {
            0 => CpuidResult { eax: 1, ..Default::default() },
            _ => CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 },
        };
        assert!(!has_instruction(Code::VEX_Vpaddd_ymm_ymm_ymmm256, cpuid));
        assert!(has_instruction(Code::VEX_Vpaddd_xmm_xmm_xmmm128, cpuid));
    }
}
