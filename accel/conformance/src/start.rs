//! The modes that a case can begin in, and the processor state of each.

use x86::state::{
    CpuState, Cr0, Cr4, DescriptorTable, Efer, Rflags, SegReg, Segment, SegmentAttributes, gpr,
};

use crate::layout::{self, sel};
use crate::tables::Paging;

/// Where a case begins: always with interrupts off, at CPL 0 (3 in virtual-8086 mode), with
/// handlers for all vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// As RESET leaves the processor: nothing is stored.
    Reset,
    /// Real mode.
    Real,
    /// 16-bit protected mode.
    Prot16,
    /// 32-bit protected mode without paging.
    Prot32,
    /// 32-bit paging.
    Paged32,
    /// PAE paging.
    Pae,
    /// 64-bit mode.
    Long,
    /// Compatibility mode.
    Compat,
    /// Virtual-8086 mode, without paging.
    V8086,
}

impl Start {
    /// Code size at the start.
    pub fn bits(self) -> u32 {
        match self {
            Self::Reset | Self::Real | Self::Prot16 | Self::V8086 => 16,
            Self::Prot32 | Self::Paged32 | Self::Pae | Self::Compat => 32,
            Self::Long => 64,
        }
    }

    pub fn paging(self) -> Paging {
        match self {
            Self::Paged32 => Paging::Bits32,
            Self::Pae => Paging::Pae,
            Self::Long | Self::Compat => Paging::FourLevel,
            _ => Paging::None,
        }
    }

    /// Long mode is active: 16-byte gates and system descriptors.
    pub fn is_long(self) -> bool {
        matches!(self, Self::Long | Self::Compat)
    }

    /// Linear address and offset of the first instruction.
    pub fn entry(self) -> (u64, u64) {
        match self {
            Self::Reset => (0xffff_fff0, 0xfff0),
            Self::Real | Self::Prot16 | Self::V8086 => (layout::CODE, 0),
            _ => (layout::CODE, layout::CODE),
        }
    }

    /// Brings `state` from RESET to here. `root` is CR3.
    pub fn apply(self, state: &mut CpuState, root: u64) {
        if self == Self::Reset {
            return;
        }
        let flat =
            |selector, attributes| Segment { selector, base: 0, limit: 0xffff_ffff, attributes };
        let (_, rip) = self.entry();
        state.rip = rip;
        state.rflags = Rflags::FIXED.bits();
        state.gpr = [0; 16];
        state.gpr[gpr::RSP] = layout::STACK;
        state.cr0 = Cr0::ET | Cr0::NE;
        state.gdtr = DescriptorTable { base: layout::GDT, limit: 0xfff };
        state.idtr = DescriptorTable { base: layout::IVT, limit: 0x3ff };
        if self == Self::Real {
            let segment = |selector: u16, attributes| Segment {
                selector,
                base: u64::from(selector) << 4,
                limit: 0xffff,
                attributes,
            };
            state.seg = [segment(0, SegmentAttributes::DATA16); 6];
            state.seg[SegReg::Cs as usize] = segment(0x1000, SegmentAttributes::CODE16);
            state.seg[SegReg::Ss as usize] = segment(0x3000, SegmentAttributes::DATA16);
            state.gpr[gpr::RSP] = layout::STACK & 0xffff;
            return;
        }
        state.cr0 |= Cr0::PE;
        state.idtr = if self.is_long() {
            DescriptorTable { base: layout::IDT64, limit: 0xfff }
        } else {
            DescriptorTable { base: layout::IDT32, limit: 0x7ff }
        };
        state.tr = Segment {
            selector: sel::TSS,
            base: layout::TSS,
            limit: 0x2068,
            attributes: SegmentAttributes::TSS_BUSY,
        };
        state.ldtr = Segment { attributes: SegmentAttributes::UNUSABLE, ..Segment::default() };
        state.seg = [flat(sel::KDATA, SegmentAttributes::DATA32); 6];
        let code = match self {
            Self::Prot16 => Segment {
                selector: sel::KCODE16,
                base: layout::CODE,
                limit: 0xffff,
                attributes: SegmentAttributes::CODE16,
            },
            Self::Long => flat(sel::KCODE64, SegmentAttributes::CODE64),
            _ => flat(sel::KCODE32, SegmentAttributes::CODE32),
        };
        state.seg[SegReg::Cs as usize] = code;
        if self == Self::V8086 {
            let segment = |selector: u16| Segment {
                selector,
                base: u64::from(selector) << 4,
                limit: 0xffff,
                attributes: SegmentAttributes::DATA16.with_dpl(3),
            };
            state.seg = [segment(0); 6];
            state.seg[SegReg::Cs as usize] = segment(0x1000);
            state.seg[SegReg::Ss as usize] = segment(0x3000);
            state.gpr[gpr::RSP] = layout::STACK & 0xffff;
            state.rflags |= Rflags::VM.bits();
        }
        match self.paging() {
            Paging::None => return,
            Paging::Bits32 => state.cr4 |= Cr4::PSE,
            Paging::Pae => state.cr4 |= Cr4::PAE,
            Paging::FourLevel => {
                state.cr4 |= Cr4::PAE;
                state.efer |= Efer::LME | Efer::LMA | Efer::SCE;
            }
        }
        if self.paging() != Paging::Bits32 {
            state.efer |= Efer::NXE;
        }
        state.cr3 = root;
        state.cr0 |= Cr0::PG | Cr0::WP;
    }
}
