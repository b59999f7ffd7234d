//! Whether a processor can be in a state: for states that were read from somewhere.

use super::{CpuState, Cr0, Cr4, Efer, Rflags, SegReg};
use crate::MAX_PHYSICAL_BITS;
use crate::cpu::is_canonical;

impl CpuState {
    /// Looks whether instructions could have led to this state, as far as what executes them relies on
    /// it. The rules are those that hardware has for entering a guest (SDM Vol. 3, 27.3.1).
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        let (cr0, cr4, efer) = (self.cr0, self.cr4, self.efer);
        let long = efer.contains(Efer::LMA);
        let paging = cr0.contains(Cr0::PG);
        let rules = [
            (!paging || cr0.contains(Cr0::PE), "paging without protection"),
            (!cr0.contains(Cr0::NW) || cr0.contains(Cr0::CD), "CR0.NW without CR0.CD"),
            (cr0.bits() >> 32 == 0, "bits in CR0 that do not exist"),
            (long == (paging && efer.contains(Efer::LME)), "EFER.LMA against EFER.LME and CR0.PG"),
            (!long || cr4.contains(Cr4::PAE), "long mode without PAE"),
            (!cr4.contains(Cr4::PCIDE) || long, "PCIDs outside of long mode"),
            (!cr4.contains(Cr4::LA57), "5-level paging"),
            (self.cr3 >> 12 << 12 >> MAX_PHYSICAL_BITS == 0 || self.cr3 >> 63 == 1, "CR3 too high"),
            (self.rflags & Rflags::FIXED.bits() != 0, "RFLAGS without its fixed bit"),
            (self.rflags >> 22 == 0 && self.rflags & 0x8028 == 0, "reserved bits in RFLAGS"),
            (!self.is_v8086() || !long, "virtual-8086 mode in long mode"),
            (self.dr7 >> 32 == 0 && self.dr6 >> 32 == 0, "bits in DR6 or DR7 that do not exist"),
            (self.xcr0 & 1 != 0 && self.xcr0 & 0b110 != 0b100, "XCR0"),
            (self.vector.x87.mxcsr & !self.vector.x87.mxcsr_mask == 0, "reserved bits in MXCSR"),
            (self.vector.x87.mxcsr_mask & !0x2_ffff == 0, "reserved bits in MXCSR_MASK"),
            (!self.is_long_code() || long, "64-bit code outside of long mode"),
            (
                !self.is_long_code() || !self.segment(SegReg::Cs).attributes.is_big(),
                "code of 64 and 32 bits at once",
            ),
            (long || self.rip >> 32 == 0, "RIP beyond 32 bits outside of long mode"),
        ];
        if let Some((_, why)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(why);
        }
        let msrs = &self.msrs;
        let addresses = [
            if long { self.rip } else { 0 },
            self.segment(SegReg::Fs).base,
            self.segment(SegReg::Gs).base,
            self.ldtr.base,
            self.tr.base,
            self.gdtr.base,
            self.idtr.base,
            msrs.kernel_gs_base,
            msrs.lstar,
            msrs.cstar,
            msrs.sysenter_esp,
            msrs.sysenter_eip,
        ];
        if addresses.iter().any(|&address| !is_canonical(address)) {
            return Err("an address that is not canonical");
        }
        let others = [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds];
        if others.iter().any(|&register| self.segment(register).base >> 32 != 0) {
            return Err("a segment beyond 32 bits");
        }
        Ok(())
    }

    fn is_long_code(&self) -> bool {
        self.segment(SegReg::Cs).attributes.is_long()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_processor_starts_with_passes_and_nonsense_does_not() {
        let reset = CpuState::reset(0x806f8);
        assert_eq!(reset.check(), Ok(()));
        let wrong: [fn(&mut CpuState); 6] = [
            |s| s.cr0 |= Cr0::PG,
            |s| s.efer |= Efer::LMA,
            |s| s.rflags = 0,
            |s| s.msrs.lstar = 1 << 60,
            |s| s.xcr0 = 0b101,
            |s| s.seg[SegReg::Ds as usize].base = 1 << 40,
        ];
        for change in wrong {
            let mut state = reset.clone();
            change(&mut state);
            assert!(state.check().is_err());
        }
    }
}
