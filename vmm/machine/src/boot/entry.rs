//! The processor state that a kernel is entered with.

use x86::CpuState;
use x86::state::{
    Cr0, Cr4, DescriptorTable, Efer, Rflags, SegReg, Segment, SegmentAttributes, gpr,
};

/// How the loaded kernel is to be entered, by the bootstrap processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The 64-bit Linux boot protocol (Linux, `Documentation/arch/x86/boot.rst`, "64-bit Boot
    /// Protocol"): long mode, low memory mapped to itself, RSI points to the zero page.
    Linux64 {
        /// Where the kernel begins.
        rip: u64,
        /// The zero page, `struct boot_params`.
        zero_page: u64,
        /// The top-level page table.
        page_table: u64,
        /// The descriptor table with `__BOOT_CS` and `__BOOT_DS`.
        gdt: u64,
    },
    /// The 32-bit Linux boot protocol, "32-bit Boot Protocol" ibid.: ESI points to the zero page.
    Linux32 {
        /// Where the kernel begins.
        eip: u32,
        /// The zero page, `struct boot_params`.
        zero_page: u64,
        /// The descriptor table with `__BOOT_CS` and `__BOOT_DS`.
        gdt: u64,
    },
    /// PVH (Xen, `docs/misc/pvh.pandoc`): flat protected mode, EBX points to `hvm_start_info`.
    Pvh {
        /// Where the kernel begins.
        eip: u32,
        /// `struct hvm_start_info`.
        start_info: u64,
    },
    /// Multiboot 1 (Multiboot Specification 0.6.96, 3.2): flat protected mode, EBX points to the
    /// boot information.
    Multiboot {
        /// Where the kernel begins.
        eip: u32,
        /// The boot information.
        info: u64,
    },
}

/// What a multiboot kernel finds in EAX.
const MULTIBOOT_BOOTLOADER_MAGIC: u64 = 0x2bad_b002;
/// `__BOOT_CS`: entry 2 of the boot descriptor table.
const BOOT_CS: u16 = 0x10;
/// `__BOOT_DS`: entry 3 of the boot descriptor table.
const BOOT_DS: u16 = 0x18;

/// The descriptor table that the Linux protocols want, with a code segment of 64 or 32 bits.
pub(super) fn boot_gdt(long_mode: bool) -> [u64; 4] {
    let code = if long_mode { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    [0, 0, code, 0x00cf_9300_0000_ffff]
}

impl Entry {
    /// Changes `state`, which is in reset state, to what the kernel expects.
    pub fn apply(&self, state: &mut CpuState) {
        state.rflags = Rflags::FIXED.bits();
        state.idtr = DescriptorTable::default();
        state.cr0 |= Cr0::PE | Cr0::ET;
        match *self {
            Self::Linux64 { rip, zero_page, page_table, gdt } => {
                set_segments(state, SegmentAttributes::CODE64);
                state.cr0 |= Cr0::PG;
                state.cr3 = page_table;
                state.cr4 |= Cr4::PAE;
                state.efer |= Efer::LME | Efer::LMA;
                state.gdtr = boot_gdtr(gdt);
                state.rip = rip;
                state.gpr[gpr::RSI] = zero_page;
            }
            Self::Linux32 { eip, zero_page, gdt } => {
                set_segments(state, SegmentAttributes::CODE32);
                state.gdtr = boot_gdtr(gdt);
                state.rip = eip.into();
                state.gpr[gpr::RSI] = zero_page;
            }
            Self::Pvh { eip, start_info } => {
                set_segments(state, SegmentAttributes::CODE32);
                state.rip = eip.into();
                state.gpr[gpr::RBX] = start_info;
            }
            Self::Multiboot { eip, info } => {
                set_segments(state, SegmentAttributes::CODE32);
                state.rip = eip.into();
                state.gpr[gpr::RAX] = MULTIBOOT_BOOTLOADER_MAGIC;
                state.gpr[gpr::RBX] = info;
            }
        }
    }
}

fn boot_gdtr(base: u64) -> DescriptorTable {
    DescriptorTable { base, limit: (size_of::<[u64; 4]>() - 1) as u16 }
}

fn set_segments(state: &mut CpuState, code: SegmentAttributes) {
    let flat = |selector, attributes| Segment { selector, base: 0, limit: 0xffff_ffff, attributes };
    state.seg = [flat(BOOT_DS, SegmentAttributes::DATA32); 6];
    state.seg[SegReg::Cs as usize] = flat(BOOT_CS, code);
    // PVH asks for a TSS with this base and limit; the others do not mind.
    state.tr =
        Segment { selector: 0, base: 0, limit: 0x67, attributes: SegmentAttributes::TSS_BUSY };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_mode_entry_is_consistent() {
        let mut state = CpuState::reset(0);
        Entry::Linux64 { rip: 0x100_0000, zero_page: 0x2000, page_table: 0x3000, gdt: 0x1000 }
            .apply(&mut state);
        assert!(state.cr0.contains(Cr0::PE | Cr0::PG));
        assert!(state.efer.contains(Efer::LME | Efer::LMA) && state.cr4.contains(Cr4::PAE));
        assert_eq!((state.rip, state.gpr[gpr::RSI]), (0x100_0000, 0x2000));
        assert_eq!(state.rflags & Rflags::IF.bits(), 0);
        assert!(state.segment(SegReg::Cs).attributes.is_long());
    }

    #[test]
    fn hidden_parts_agree_with_the_descriptors() {
        for long_mode in [false, true] {
            let gdt = boot_gdt(long_mode);
            let attributes = |entry: u64| (entry >> 40 & 0xf0ff) as u32;
            let code =
                if long_mode { SegmentAttributes::CODE64 } else { SegmentAttributes::CODE32 };
            assert_eq!(attributes(gdt[usize::from(BOOT_CS / 8)]), code.0);
            assert_eq!(attributes(gdt[usize::from(BOOT_DS / 8)]), SegmentAttributes::DATA32.0);
        }
    }

    #[test]
    fn protected_mode_entries_have_no_paging() {
        for entry in [
            Entry::Pvh { eip: 0x10_0000, start_info: 0x6000 },
            Entry::Multiboot { eip: 0x10_0000, info: 0x6000 },
        ] {
            let mut state = CpuState::reset(0x663);
            entry.apply(&mut state);
            assert!(state.cr0.contains(Cr0::PE) && !state.cr0.contains(Cr0::PG));
            assert_eq!((state.rip, state.gpr[gpr::RBX]), (0x10_0000, 0x6000));
            assert_eq!(state.segment(SegReg::Cs).attributes, SegmentAttributes::CODE32);
        }
    }
}
