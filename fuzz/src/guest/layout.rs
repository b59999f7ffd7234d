//! The state and memory that a guest starts with, in each mode.

use arbitrary::Arbitrary;
use x86::CpuState;
use x86::cpuid::CpuidTable;
use x86::state::{
    Cr0, Cr4, DescriptorTable, Efer, Rflags, SegReg, Segment, SegmentAttributes, gpr,
};

/// How much RAM there is, from address 0.
pub const RAM_SIZE: usize = 0x1_0000;
/// Where the program stands.
pub const CODE: u64 = 0x5000;
/// Where the page tables begin.
pub const FIRST_TABLE: u64 = 0x8000;

const GDT: usize = 0x1000;
const IDT: usize = 0x2000;
const TSS: usize = 0x3000;
const OTHER_TSS: usize = 0x3200;
const TSS16: usize = 0x3400;
const LDT: usize = 0x4000;
/// dec eax; iret, or in 64-bit mode: iretq.
const HANDLER: usize = 0x4f00;
const DATA: u64 = 0x6000;
const STACK: u64 = 0x7800;

/// How a processor looks at its code and memory.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// 16-bit protected mode.
    Protected16,
    /// 32-bit protected mode.
    Protected32,
    /// The same with 32-bit paging.
    Paging32,
    /// The same with PAE paging.
    Pae,
    /// Compatibility mode.
    Compatibility,
    /// 64-bit mode.
    Long,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Real,
        Self::Virtual8086,
        Self::Protected16,
        Self::Protected32,
        Self::Paging32,
        Self::Pae,
        Self::Compatibility,
        Self::Long,
    ];

    fn is_long(self) -> bool {
        matches!(self, Self::Compatibility | Self::Long)
    }

    /// The usual start: state and RAM.
    pub(super) fn start(self, user: bool, cpuid: &CpuidTable) -> (CpuState, Vec<u8>) {
        let mut ram = vec![0; RAM_SIZE];
        ram[HANDLER..HANDLER + 2].copy_from_slice(&[0x48, 0xcf]);
        let mut state = CpuState::reset(0);
        state.xcr0 = cpuid.get(0xd, 0).map_or(1, |leaf| leaf.eax.into());
        state.rip = CODE;
        state.gpr = std::array::from_fn(|i| DATA + 0x40 * i as u64);
        state.gpr[gpr::RCX] = 5;
        state.gpr[gpr::RSP] = STACK;
        state.gpr[gpr::RBP] = STACK - 0x40;
        state.cr4 = Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE | Cr4::FSGSBASE | Cr4::DE;
        if self == Self::Real {
            for vector in 0..256 {
                put(&mut ram, 4 * vector, HANDLER as u64, 4);
            }
            state.seg[SegReg::Cs as usize] = segment(0, SegmentAttributes::CODE16, 0xffff);
            return (state, ram);
        }
        state.cr0 |= Cr0::PE | Cr0::NE;
        write_gdt(&mut ram, self.is_long());
        write_idt(&mut ram, self.is_long());
        write_tasks(&mut ram, self.is_long());
        state.gdtr = DescriptorTable { base: GDT as u64, limit: 0xff };
        state.idtr = DescriptorTable { base: IDT as u64, limit: 0xfff };
        state.ldtr = Segment {
            selector: 0x90,
            base: LDT as u64,
            limit: 0xff,
            attributes: SegmentAttributes::LDT,
        };
        state.tr = Segment {
            selector: 0x50,
            base: TSS as u64,
            limit: 0xff,
            attributes: SegmentAttributes::TSS_BUSY,
        };
        self.set_segments(user, &mut state);
        self.set_paging(&mut state, &mut ram);
        (state, ram)
    }

    fn set_segments(self, user: bool, state: &mut CpuState) {
        if self == Self::Virtual8086 {
            state.rflags |= Rflags::VM.bits();
            state.seg = [segment(0, SegmentAttributes(0xf3), 0xffff); 6];
            return;
        }
        let (code, data, attributes) = match (self, user) {
            (Self::Protected16, _) => (0x38, 0x40, SegmentAttributes::CODE16),
            (Self::Long, false) => (0x18, 0x10, SegmentAttributes::CODE64),
            (Self::Long, true) => (0x33, 0x2b, SegmentAttributes::CODE64),
            (_, false) => (0x08, 0x10, SegmentAttributes::CODE32),
            (_, true) => (0x23, 0x2b, SegmentAttributes::CODE32),
        };
        let (limit, data_attributes) = match self {
            Self::Protected16 => (0xffff, SegmentAttributes::DATA16),
            _ => (u32::MAX, SegmentAttributes::DATA32),
        };
        let dpl = if user && self != Self::Protected16 { 3 } else { 0 };
        state.seg = [segment(data, data_attributes.with_dpl(dpl), limit); 6];
        state.seg[SegReg::Cs as usize] = segment(code, attributes.with_dpl(dpl), limit);
    }

    fn set_paging(self, state: &mut CpuState, ram: &mut [u8]) {
        let table = FIRST_TABLE as usize;
        let [pml4, pdpt, pd, pt] = [0, 0x1000, 0x2000, 0x3000].map(|at| table + at);
        let entry = |table: usize| table as u64 | 7;
        match self {
            Self::Real | Self::Protected16 | Self::Protected32 => return,
            Self::Paging32 | Self::Virtual8086 => {
                state.cr3 = pml4 as u64;
                state.cr4 |= Cr4::PSE;
                put(ram, pml4, entry(pt), 4);
                put(ram, pml4 + 4, 0x40_0087, 4);
                for page in 0..16 {
                    put(ram, pt + 4 * page, entry(page << 12), 4);
                }
            }
            Self::Pae | Self::Compatibility | Self::Long => {
                state.cr4 |= Cr4::PAE;
                state.efer |= Efer::NXE;
                // Entries of PAE's first table have no U/S and R/W bits.
                let top = entry(pd) & if self == Self::Pae { !6 } else { !0 };
                put(ram, pml4, entry(pdpt), 8);
                put(ram, pdpt, top, 8);
                put(ram, pd, entry(pt), 8);
                put(ram, pd + 8, 0x20_0087, 8);
                for page in 0..16 {
                    put(ram, pt + 8 * page, entry(page << 12), 8);
                }
                state.cr3 = if self == Self::Pae { pdpt } else { pml4 } as u64;
                state.pdpte[0] = top;
            }
        }
        state.cr0 |= Cr0::PG | Cr0::WP;
        if self.is_long() {
            state.efer |= Efer::LME | Efer::LMA | Efer::SCE;
        }
    }
}

fn segment(selector: u16, attributes: SegmentAttributes, limit: u32) -> Segment {
    Segment { selector, base: 0, limit, attributes }
}

fn put(ram: &mut [u8], at: usize, value: u64, len: usize) {
    ram[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
}

/// Descriptors of every type (SDM Vol. 3, 3.4.5, 3.5, 5.8.3).
fn write_gdt(ram: &mut [u8], long: bool) {
    let at = |base: usize, rest: u64| rest | (base as u64) << 16;
    let descriptors = [
        (1, 0x00cf_9b00_0000_ffff),                   // code
        (2, 0x00cf_9300_0000_ffff),                   // data
        (3, 0x00af_9b00_0000_ffff),                   // 64-bit code
        (4, 0x00cf_fb00_0000_ffff),                   // user code
        (5, 0x00cf_f300_0000_ffff),                   // user data
        (6, 0x00af_fb00_0000_ffff),                   // user 64-bit code
        (7, 0x0000_9b00_0000_ffff),                   // 16-bit code
        (8, 0x0000_9300_0000_ffff),                   // 16-bit data
        (9, 0x00cf_9f00_0000_ffff),                   // conforming code
        (10, at(TSS, 0x0000_8b00_0000_00ff)),         // TSS, busy
        (12, at(OTHER_TSS, 0x8900_0000_0067)),        // TSS, available
        (13, at(TSS16, 0x8100_0000_002b)),            // 16-bit TSS
        (14, 0x0000_e500_0060_0000),                  // task gate
        (15, 0x0000_ec02_0008_0000 | HANDLER as u64), // call gate, two parameters
        (16, 0x0000_ec00_0018_0000 | HANDLER as u64), // 64-bit call gate
        (18, at(LDT, 0x8200_0000_00ff)),              // LDT
        (20, 0x0000_e402_0038_0000 | HANDLER as u64), // 16-bit call gate
        (21, 0x00cf_9700_0000_0007),                  // expand-down data
        (22, 0x0040_9300_0000_0fff),                  // data with a limit
        (23, 0x00cf_1b00_0000_ffff),                  // not present
    ];
    for (index, descriptor) in descriptors {
        // In long mode a 32-bit call gate is a 64-bit one.
        let descriptor = if long && index == 15 { 0 } else { descriptor };
        put(ram, GDT + 8 * index, descriptor, 8);
    }
    put(ram, LDT + 8, 0x00cf_fb00_0000_ffff, 8);
    put(ram, LDT + 16, 0x00cf_f300_0000_ffff, 8);
}

/// Gates of every type.
fn write_idt(ram: &mut [u8], long: bool) {
    let handler = HANDLER as u64;
    for vector in 0..256 {
        if long {
            // Some with an interrupt stack, some trap gates.
            let gate = 0xee00_0018_0000 | handler | (vector as u64 % 8) << 32;
            put(ram, IDT + 16 * vector, gate | (vector as u64 & 0x10) << 36, 8);
        } else {
            let gate = match vector % 16 {
                0x7 => 0xe500_0060_0000,
                0x9 => 0xe600_0038_0000 | handler,
                0xb => 0xe700_0038_0000 | handler,
                0xf => 0xef00_0008_0000 | handler,
                _ => 0xee00_0008_0000 | handler,
            };
            put(ram, IDT + 8 * vector, gate, 8);
        }
    }
}

/// Task-state segments (SDM Vol. 3, 8.2.1, 8.6 and 8.7).
fn write_tasks(ram: &mut [u8], long: bool) {
    if long {
        for at in (4..0x5c).step_by(8) {
            put(ram, TSS + at, STACK, 8);
        }
        put(ram, TSS + 0x66, 0x68, 2);
        return;
    }
    for (tss, link) in [(TSS, 0x60), (OTHER_TSS, 0x50)] {
        let words = [
            (0, link),
            (4, STACK),
            (8, 0x10),
            (0x1c, FIRST_TABLE),
            (0x20, CODE),
            (0x24, 2),
            (0x38, STACK),
            (0x48, 0x10),
            (0x4c, 0x08),
            (0x50, 0x10),
            (0x54, 0x10),
            (0x58, 0x10),
            (0x5c, 0x10),
            (0x60, 0x90),
            (0x64, 0x68 << 16),
        ];
        for (at, value) in words {
            put(ram, tss + at, value, 4);
        }
    }
    for (at, value) in [
        (0, 0x50),
        (2, STACK),
        (4, 0x40),
        (0xe, CODE),
        (0x10, 2),
        (0x1a, STACK),
        (0x22, 0x40),
        (0x24, 0x38),
        (0x26, 0x40),
        (0x28, 0x40),
        (0x2a, 0x90),
    ] {
        put(ram, TSS16 + at, value, 2);
    }
}

/// The page that [`page_walk_state`]'s guest is to execute, if its tables lead there: full of
/// `mov [rax], bl`.
pub fn code_page(ram: &mut [u8]) {
    for pair in ram[CODE as usize..][..0x1000].chunks_exact_mut(2) {
        pair.copy_from_slice(&[0x88, 0x18]);
    }
}

/// The state of a guest in `mode`, one of those with paging.
pub fn page_walk_state(mode: Mode, user: bool, cpuid: &CpuidTable) -> CpuState {
    mode.start(user, cpuid).0
}
