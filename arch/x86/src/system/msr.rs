//! Model-specific registers of the processor core (SDM Vol. 4; AMD APM Vol. 2, appendix A).

use crate::MAX_PHYSICAL_BITS;
use crate::cpu::{Cpu, is_canonical};
use crate::cpuid::MACHINE_CHECK_BANKS;
use crate::env::Env;
use crate::state::{Cr0, Efer, SegReg};
use crate::system::arch_capabilities;

/// Names as in the manuals.
#[allow(missing_docs)]
mod index {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_UPDT_TRIG: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRRCAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const FLUSH_CMD: u32 = 0x10b;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MC0_CTL: u32 = 0x400;
    pub const MC0_STATUS: u32 = 0x401;
    pub const MC0_MISC: u32 = 0x403;
    pub const PERF_STATUS: u32 = 0x198;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const MTRR_PHYSBASE0: u32 = 0x200;
    pub const MTRR_PHYSMASK7: u32 = 0x20f;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const MTRR_FIX16K_80000: u32 = 0x258;
    pub const MTRR_FIX16K_A0000: u32 = 0x259;
    pub const MTRR_FIX4K: u32 = 0x268;
    pub const MTRR_FIX4K_LAST: u32 = 0x26f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const XSS: u32 = 0xda0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const AMD_SYSCFG: u32 = 0xc001_0010;
    pub const AMD_HWCR: u32 = 0xc001_0015;
    pub const AMD_NB_CFG: u32 = 0xc001_001f;
    pub const AMD_PATCH_LOADER: u32 = 0xc001_0020;
    pub const AMD_INT_PENDING: u32 = 0xc001_0055;
    pub const AMD_TSC_RATIO: u32 = 0xc000_0104;
    pub const AMD_VM_CR: u32 = 0xc001_0114;
    pub const AMD_OSVW_LENGTH: u32 = 0xc001_0140;
    pub const AMD_OSVW_STATUS: u32 = 0xc001_0141;
    pub const AMD_LS_CFG: u32 = 0xc001_1020;
    pub const AMD_IC_CFG: u32 = 0xc001_1021;
    pub const AMD_DC_CFG: u32 = 0xc001_1022;
    pub const AMD_BU_CFG: u32 = 0xc001_1023;
    pub const AMD_DE_CFG: u32 = 0xc001_1029;
    pub const AMD_BU_CFG2: u32 = 0xc001_102a;
}

/// EFER bits that software may set.
const EFER_WRITABLE: Efer = Efer::SCE.union(Efer::LME).union(Efer::NXE);

/// HWCR: software may write what a bank of machine checks reports (McStatusWrEn).
const HWCR_MC_STATUS_WR_EN: u64 = 1 << 18;

/// State components that XSAVES manages for the supervisor: none.
const XSS_SUPPORTED: u64 = 0;

/// Whether each byte of a PAT or fixed-range MTRR is a memory type that exists.
fn are_memory_types(value: u64, with_uc_minus: bool) -> bool {
    value.to_le_bytes().iter().all(|&t| is_memory_type(t) || (with_uc_minus && t == 7))
}

/// UC, WC, WT, WP or WB (SDM Vol. 3, table 12-8).
fn is_memory_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// Whether a variable-range MTRR takes `value` as its base, or else as its mask
/// (SDM Vol. 3, 12.11.2.3).
fn is_mtrr_valid(value: u64, is_base: bool) -> bool {
    let reserved = if is_base { 0xf00 } else { 0x7ff };
    value >> MAX_PHYSICAL_BITS == 0
        && value & reserved == 0
        && (!is_base || is_memory_type(value as u8))
}

impl<E: Env> Cpu<E> {
    /// The guest's time stamp counter.
    pub(crate) fn tsc(&self) -> u64 {
        self.env.host_tsc().wrapping_add(self.state.msrs.tsc_offset)
    }

    /// RDMSR. `None` if there is no such register: #GP.
    pub(crate) fn read_msr(&mut self, index: u32) -> Option<u64> {
        use index::*;
        let msrs = &self.state.msrs;
        Some(match index {
            TSC => self.tsc(),
            TSC_ADJUST => msrs.tsc_adjust,
            // Locked, with everything off.
            FEATURE_CONTROL => 1,
            SPEC_CTRL => msrs.spec_ctrl,
            // What real microcode revisions look like; nobody loads any here.
            BIOS_SIGN_ID => 0x0100_0065 << 32 | 0x0100_0065,
            // Eight variable ranges, fixed ranges, write-combining.
            MTRRCAP => 0x508,
            ARCH_CAPABILITIES if self.env.cpuid(7, 0).edx >> 29 & 1 != 0 => {
                arch_capabilities::VALUE
            }
            SYSENTER_CS => msrs.sysenter_cs,
            SYSENTER_ESP => msrs.sysenter_esp,
            SYSENTER_EIP => msrs.sysenter_eip,
            MCG_CAP => MACHINE_CHECK_BANKS.into(),
            MCG_STATUS => msrs.mcg_status,
            MC0_CTL..=MC0_MISC => msrs.mc0[(index - MC0_CTL) as usize],
            PLATFORM_ID | PERF_STATUS => 0,
            MISC_ENABLE => msrs.misc_enable,
            DEBUGCTL => msrs.debugctl,
            MTRR_PHYSBASE0..=MTRR_PHYSMASK7 => {
                let (base, mask) = msrs.mtrr_var[(index - MTRR_PHYSBASE0) as usize / 2];
                if index & 1 == 0 { base } else { mask }
            }
            MTRR_FIX64K | MTRR_FIX16K_80000 | MTRR_FIX16K_A0000 | MTRR_FIX4K..=MTRR_FIX4K_LAST => {
                msrs.mtrr_fixed[fixed_range(index)]
            }
            PAT => msrs.pat,
            MTRR_DEF_TYPE => msrs.mtrr_def_type,
            XSS => msrs.xss,
            EFER => self.state.efer.bits(),
            STAR => msrs.star,
            LSTAR => msrs.lstar,
            CSTAR => msrs.cstar,
            SFMASK => msrs.sfmask,
            FS_BASE => self.state.segment(SegReg::Fs).base,
            GS_BASE => self.state.segment(SegReg::Gs).base,
            KERNEL_GS_BASE => msrs.kernel_gs_base,
            TSC_AUX => msrs.tsc_aux,
            // LFENCE serializes.
            AMD_DE_CFG => 1 << 1,
            // The TSC does not stop (TscFreqSel).
            AMD_HWCR => msrs.hwcr | 1 << 24,
            // SVM is locked away.
            AMD_VM_CR => 1 << 4,
            AMD_SYSCFG | AMD_NB_CFG | AMD_INT_PENDING | AMD_TSC_RATIO | AMD_OSVW_LENGTH
            | AMD_OSVW_STATUS | AMD_LS_CFG | AMD_IC_CFG | AMD_DC_CFG | AMD_BU_CFG | AMD_BU_CFG2 => {
                0
            }
            _ => return self.env.read_msr(index),
        })
    }

    /// WRMSR. `None` if there is no such register, or it refuses the value: #GP.
    pub(crate) fn write_msr(&mut self, index: u32, value: u64) -> Option<()> {
        use index::*;
        let canonical = is_canonical(value).then_some(value);
        match index {
            TSC => {
                let offset = value.wrapping_sub(self.env.host_tsc());
                let delta = offset.wrapping_sub(self.state.msrs.tsc_offset);
                self.state.msrs.tsc_offset = offset;
                self.env.tsc_offset_changed(offset);
                self.state.msrs.tsc_adjust = self.state.msrs.tsc_adjust.wrapping_add(delta);
            }
            TSC_ADJUST => {
                let delta = value.wrapping_sub(self.state.msrs.tsc_adjust);
                self.state.msrs.tsc_adjust = value;
                let offset = self.state.msrs.tsc_offset.wrapping_add(delta);
                self.state.msrs.tsc_offset = offset;
                self.env.tsc_offset_changed(offset);
            }
            SPEC_CTRL => self.state.msrs.spec_ctrl = value,
            SYSENTER_CS => self.state.msrs.sysenter_cs = value,
            SYSENTER_ESP => self.state.msrs.sysenter_esp = canonical?,
            SYSENTER_EIP => self.state.msrs.sysenter_eip = canonical?,
            MISC_ENABLE => self.state.msrs.misc_enable = value,
            DEBUGCTL => self.state.msrs.debugctl = value & 3,
            MTRR_PHYSBASE0..=MTRR_PHYSMASK7 => {
                is_mtrr_valid(value, index & 1 == 0).then_some(())?;
                let range = &mut self.state.msrs.mtrr_var[(index - MTRR_PHYSBASE0) as usize / 2];
                *(if index & 1 == 0 { &mut range.0 } else { &mut range.1 }) = value;
            }
            MTRR_FIX64K | MTRR_FIX16K_80000 | MTRR_FIX16K_A0000 | MTRR_FIX4K..=MTRR_FIX4K_LAST => {
                are_memory_types(value, false).then_some(())?;
                self.state.msrs.mtrr_fixed[fixed_range(index)] = value;
            }
            PAT => {
                are_memory_types(value, true).then_some(())?;
                self.state.msrs.pat = value;
            }
            MTRR_DEF_TYPE => {
                // Default type, fixed ranges enabled, all enabled.
                (value & !0xcff == 0 && is_memory_type(value as u8)).then_some(())?;
                self.state.msrs.mtrr_def_type = value;
            }
            MCG_STATUS => self.state.msrs.mcg_status = value,
            MC0_CTL..=MC0_MISC => self.write_machine_check(index, value)?,
            AMD_HWCR => self.state.msrs.hwcr = value & HWCR_MC_STATUS_WR_EN,
            XSS => {
                (value & !XSS_SUPPORTED == 0).then_some(())?;
                self.state.msrs.xss = value;
            }
            EFER => self.write_efer(value)?,
            STAR => self.state.msrs.star = value,
            LSTAR => self.state.msrs.lstar = canonical?,
            CSTAR => self.state.msrs.cstar = canonical?,
            SFMASK => self.state.msrs.sfmask = value & 0xffff_ffff,
            FS_BASE => self.state.seg[SegReg::Fs as usize].base = canonical?,
            GS_BASE => self.state.seg[SegReg::Gs as usize].base = canonical?,
            KERNEL_GS_BASE => self.state.msrs.kernel_gs_base = canonical?,
            TSC_AUX => self.state.msrs.tsc_aux = value & 0xffff_ffff,
            // Commands and settings that mean nothing here.
            PRED_CMD | FLUSH_CMD | BIOS_UPDT_TRIG | BIOS_SIGN_ID | AMD_PATCH_LOADER
            | AMD_DE_CFG | AMD_SYSCFG | AMD_NB_CFG | AMD_INT_PENDING | AMD_OSVW_LENGTH
            | AMD_OSVW_STATUS | AMD_LS_CFG | AMD_IC_CFG | AMD_DC_CFG | AMD_BU_CFG | AMD_BU_CFG2 => {
            }
            _ => return self.env.write_msr(index, value),
        }
        Some(())
    }

    /// A register of the bank of machine checks. CTL takes all ones or nothing, but for bits that
    /// Linux clears (0 and 10); STATUS can only be cleared, unless HWCR says otherwise.
    fn write_machine_check(&mut self, index: u32, value: u64) -> Option<()> {
        let takes = match index {
            index::MC0_CTL => value == 0 || value | 1 << 10 | 1 == u64::MAX,
            index::MC0_STATUS => value == 0 || self.state.msrs.hwcr & HWCR_MC_STATUS_WR_EN != 0,
            _ => true,
        };
        takes.then_some(())?;
        self.state.msrs.mc0[(index - index::MC0_CTL) as usize] = value;
        Some(())
    }

    /// LME cannot change while paging is on; LMA is not software's to write.
    fn write_efer(&mut self, value: u64) -> Option<()> {
        let new = Efer::from_bits(value)?;
        let old = self.state.efer;
        (EFER_WRITABLE | Efer::LMA).contains(new).then_some(())?;
        let changes_lme = (old ^ new).contains(Efer::LME);
        (!changes_lme || !self.state.cr0.contains(Cr0::PG)).then_some(())?;
        self.state.efer = (new & EFER_WRITABLE) | (old & Efer::LMA);
        if (old ^ new).contains(Efer::NXE) {
            self.tlb.flush_all();
        }
        self.update_mode();
        Some(())
    }
}

/// Which of the eleven fixed-range MTRRs an index names.
fn fixed_range(index: u32) -> usize {
    match index {
        index::MTRR_FIX64K => 0,
        index::MTRR_FIX16K_80000 => 1,
        index::MTRR_FIX16K_A0000 => 2,
        _ => 3 + (index - index::MTRR_FIX4K) as usize % 8,
    }
}
