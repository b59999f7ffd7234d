//! The architectural state of one processor.
//!
//! It is plain data. Accelerators hand it out and take it back by [`Sections`], boot loaders
//! write the entry state into it, the interpreter works on it directly.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

mod check;

/// Numbers of the general-purpose registers, as instructions encode them.
pub mod gpr {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
    pub const R9: usize = 9;
    pub const R10: usize = 10;
    pub const R11: usize = 11;
    pub const R12: usize = 12;
    pub const R13: usize = 13;
    pub const R14: usize = 14;
    pub const R15: usize = 15;
}

bitflags! {
    /// RFLAGS (Intel SDM Vol. 1, 3.4.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Rflags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Always one.
        const FIXED = 1 << 1;
        /// Parity of the low byte.
        const PF = 1 << 2;
        /// Carry out of bit 3.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Single-step trap.
        const TF = 1 << 8;
        /// Maskable interrupts are taken.
        const IF = 1 << 9;
        /// String instructions count down.
        const DF = 1 << 10;
        /// Signed overflow.
        const OF = 1 << 11;
        /// I/O privilege level, two bits.
        const IOPL = 3 << 12;
        /// Nested task.
        const NT = 1 << 14;
        /// Resume: instruction breakpoints are ignored once.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment check, and SMAP override.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// Virtual interrupt pending.
        const VIP = 1 << 20;
        /// CPUID is there.
        const ID = 1 << 21;
        /// The six flags that arithmetic sets.
        const STATUS = 0x8d5;
    }

    /// CR0 (SDM Vol. 3, 2.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
    pub struct Cr0: u64 {
        /// Protection enable.
        const PE = 1 << 0;
        /// Monitor coprocessor.
        const MP = 1 << 1;
        /// Emulation: no x87.
        const EM = 1 << 2;
        /// Task switched.
        const TS = 1 << 3;
        /// Extension type; always one.
        const ET = 1 << 4;
        /// Numeric error: x87 errors raise #MF.
        const NE = 1 << 5;
        /// Write protect: the supervisor honours read-only pages.
        const WP = 1 << 16;
        /// Alignment mask.
        const AM = 1 << 18;
        /// Not write-through.
        const NW = 1 << 29;
        /// Cache disable.
        const CD = 1 << 30;
        /// Paging.
        const PG = 1 << 31;
    }

    /// CR4 (SDM Vol. 3, 2.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
    pub struct Cr4: u64 {
        /// Virtual-8086 mode extensions.
        const VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        const PVI = 1 << 1;
        /// RDTSC is privileged.
        const TSD = 1 << 2;
        /// Debugging extensions.
        const DE = 1 << 3;
        /// 4 MiB pages.
        const PSE = 1 << 4;
        /// Physical address extension.
        const PAE = 1 << 5;
        /// Machine check.
        const MCE = 1 << 6;
        /// Global pages.
        const PGE = 1 << 7;
        /// RDPMC is open to all.
        const PCE = 1 << 8;
        /// FXSAVE and SSE are in use.
        const OSFXSR = 1 << 9;
        /// #XM is handled.
        const OSXMMEXCPT = 1 << 10;
        /// SGDT and the like are privileged.
        const UMIP = 1 << 11;
        /// 5-level paging.
        const LA57 = 1 << 12;
        /// VMX.
        const VMXE = 1 << 13;
        /// RDFSBASE and the like.
        const FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// XSAVE is in use.
        const OSXSAVE = 1 << 18;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 20;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 21;
        /// Protection keys.
        const PKE = 1 << 22;
    }

    /// IA32_EFER (SDM Vol. 3, 2.2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
    pub struct Efer: u64 {
        /// SYSCALL enable.
        const SCE = 1 << 0;
        /// Long mode enable.
        const LME = 1 << 8;
        /// Long mode active.
        const LMA = 1 << 10;
        /// No-execute enable.
        const NXE = 1 << 11;
        /// AMD: SVM enable.
        const SVME = 1 << 12;
        /// AMD: fast FXSAVE.
        const FFXSR = 1 << 14;
    }

    /// Parts of [`CpuState`] that an accelerator can fetch or store apart from the rest.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Sections: u32 {
        /// `gpr`, `rip`, `rflags`.
        const GENERAL = 1 << 0;
        /// Segments, descriptor tables, control registers, EFER.
        const SYSTEM = 1 << 1;
        /// Debug registers.
        const DEBUG = 1 << 2;
        /// Model-specific registers.
        const MSRS = 1 << 3;
        /// x87, vector and mask registers, XCR0.
        const VECTOR = 1 << 4;
        /// Activity, interrupt shadow, NMI blocking.
        const EVENTS = 1 << 5;
    }
}

/// The six segment registers that instructions can name, in encoding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegReg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

impl SegReg {
    /// All six, in encoding order.
    pub const ALL: [Self; 6] = [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs];
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Linear address of the first byte.
    pub base: u64,
    /// Offset of the last byte, granularity already applied.
    pub limit: u32,
    /// Access rights.
    pub attributes: SegmentAttributes,
}

/// Access rights of a segment in the layout of a descriptor's bits 40 to 55, with bit 16 for a
/// register that was loaded with a null selector (SDM Vol. 3, 3.4.5 and 24.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SegmentAttributes(pub u32);

impl SegmentAttributes {
    /// A register loaded with a null selector.
    pub const UNUSABLE: Self = Self(1 << 16);
    /// Present, writable, accessed data of privilege level 0, 16 bit.
    pub const DATA16: Self = Self(0x0093);
    /// Present, readable, accessed code of privilege level 0, 16 bit.
    pub const CODE16: Self = Self(0x009b);
    /// Present, writable, accessed data, 4 GiB, 32 bit.
    pub const DATA32: Self = Self(0xc093);
    /// Present, readable, accessed code, 4 GiB, 32 bit.
    pub const CODE32: Self = Self(0xc09b);
    /// Present, readable, accessed code, 64 bit.
    pub const CODE64: Self = Self(0xa09b);
    /// A busy 64-bit (or 32-bit) TSS.
    pub const TSS_BUSY: Self = Self(0x008b);
    /// An LDT.
    pub const LDT: Self = Self(0x0082);

    /// The type field, bits 3:0.
    pub fn kind(self) -> u32 {
        self.0 & 0xf
    }
    /// Code or data, not a system segment.
    pub fn is_code_or_data(self) -> bool {
        self.0 & 0x10 != 0
    }
    /// A code segment.
    pub fn is_code(self) -> bool {
        self.0 & 0x18 == 0x18
    }
    /// A data segment.
    pub fn is_data(self) -> bool {
        self.0 & 0x18 == 0x10
    }
    /// Conforming code.
    pub fn is_conforming(self) -> bool {
        self.0 & 0x1c == 0x1c
    }
    /// Expand-down data.
    pub fn is_expand_down(self) -> bool {
        self.0 & 0x1c == 0x14
    }
    /// Data may be written.
    pub fn is_writable(self) -> bool {
        self.0 & 0x1a == 0x12
    }
    /// Data, or readable code.
    pub fn is_readable(self) -> bool {
        self.is_data() || self.0 & 0x1a == 0x1a
    }
    /// Descriptor privilege level.
    pub fn dpl(self) -> u8 {
        (self.0 >> 5 & 3) as u8
    }
    /// The same with another DPL.
    pub fn with_dpl(self, dpl: u8) -> Self {
        Self(self.0 & !0x60 | (u32::from(dpl & 3) << 5))
    }
    /// Present.
    pub fn is_present(self) -> bool {
        self.0 & 0x80 != 0
    }
    /// 64-bit code.
    pub fn is_long(self) -> bool {
        self.0 & 0x2000 != 0
    }
    /// D/B: 32-bit code, stack or upper bound.
    pub fn is_big(self) -> bool {
        self.0 & 0x4000 != 0
    }
    /// Loaded with a null selector.
    pub fn is_unusable(self) -> bool {
        self.0 & 0x1_0000 != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// Model-specific registers that belong to the processor itself. Those of the local APIC and of
/// paravirtual interfaces live where they are implemented.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are those of SDM Vol. 4
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    /// What is added to the host's TSC (IA32_TSC - host TSC).
    pub tsc_offset: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    pub misc_enable: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    /// Base and mask of each variable range.
    pub mtrr_var: [(u64, u64); 8],
    pub debugctl: u64,
    pub xss: u64,
    pub spec_ctrl: u64,
    /// IA32_MCG_STATUS.
    #[serde(default)]
    pub mcg_status: u64,
    /// The one bank of machine checks: its CTL, STATUS, ADDR and MISC.
    #[serde(default = "new_bank")]
    pub mc0: [u64; 4],
    /// AMD's HWCR, as far as guests may change it.
    #[serde(default)]
    pub hwcr: u64,
    /// The following are kept for processors of hardware, and are nothing to the interpreter.
    #[serde(default)]
    pub hardware: HardwareMsrs,
}

/// A bank of machine checks after a reset: all are reported, and there are none.
const fn new_bank() -> [u64; 4] {
    [u64::MAX, 0, 0, 0]
}

/// Registers that only a processor of hardware has. They are zero where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // the names are those of SDM Vol. 4 and APM Vol. 2
pub struct HardwareMsrs {
    /// IA32_ARCH_CAPABILITIES as the guest was told it, if CPUID says that it is there.
    pub arch_capabilities: u64,
    pub tsx_ctrl: u64,
    pub misc_features_enables: u64,
    /// AMD's VIRT_SPEC_CTRL, which hypervisors made up.
    pub virt_spec_ctrl: u64,
}

/// What the processor is doing (SDM Vol. 3, 24.4.2 "activity state").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Active,
    /// Stopped by HLT until an interrupt.
    Halted,
    /// Stopped by a triple fault.
    Shutdown,
    /// An application processor that waits for its start-up IPI.
    WaitForSipi,
}

/// x87, vector and mask registers. What an SSE or AVX register is the low part of lies in `zmm`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C, align(64))]
pub struct VectorState {
    /// ZMM0 to ZMM31.
    pub zmm: [[u64; 8]; 32],
    /// K0 to K7.
    pub k: [u64; 8],
    /// x87 registers and MXCSR.
    pub x87: X87State,
}

impl VectorState {
    /// Clears the vector and mask registers, or parts of them, that belong to none of these components, bits of
    /// XCR0: what processors without them do not have (SDM Vol. 1, 13.1).
    pub fn keep_components(&mut self, components: u64) {
        let has = |component: u32| components >> component & 1 != 0;
        let (low, high) = self.zmm.split_at_mut(16);
        for register in low {
            if !has(2) {
                register[2..4].fill(0);
            }
            if !has(6) {
                register[4..].fill(0);
            }
        }
        if !has(7) {
            high.fill([0; 8]);
        }
        if !has(5) {
            self.k.fill(0);
        }
    }
}

/// The x87 part in the layout of FXSAVE64's first 160 bytes (SDM Vol. 1, 10.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C, align(16))]
pub struct X87State {
    /// Control word.
    pub fcw: u16,
    /// Status word; TOP in bits 13:11.
    pub fsw: u16,
    /// Abridged tag word: one bit a physical register, set if not empty.
    pub ftw: u8,
    /// Reserved.
    pub reserved: u8,
    /// Last opcode.
    pub fop: u16,
    /// Last instruction's address.
    pub fip: u64,
    /// Last operand's address.
    pub fdp: u64,
    /// SSE control and status.
    pub mxcsr: u32,
    /// Writable bits of MXCSR.
    pub mxcsr_mask: u32,
    /// ST(0) to ST(7), 80 bits each in 16 bytes.
    pub st: [[u64; 2]; 8],
}

impl Default for VectorState {
    /// As after RESET (SDM Vol. 3, table 10-1).
    fn default() -> Self {
        Self {
            zmm: [[0; 8]; 32],
            k: [0; 8],
            x87: X87State {
                fcw: 0x0040,
                fsw: 0,
                ftw: 0xff,
                reserved: 0,
                fop: 0,
                fip: 0,
                fdp: 0,
                mxcsr: 0x1f80,
                mxcsr_mask: 0xffff,
                st: [[0; 2]; 8],
            },
        }
    }
}

impl core::fmt::Debug for VectorState {
    /// Leaves the vector registers out: they are two kilobytes, mostly of the guest's data.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VectorState")
            .field("fcw", &self.x87.fcw)
            .field("fsw", &self.x87.fsw)
            .field("mxcsr", &self.x87.mxcsr)
            .finish_non_exhaustive()
    }
}

/// Everything that an instruction can see or change in its processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// General-purpose registers by number; see [`gpr`].
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,

    /// Segment registers by [`SegReg`].
    pub seg: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table register.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: Cr0,
    /// CR2: the address of the last page fault.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// IA32_EFER.
    pub efer: Efer,
    /// The page-directory-pointer-table entries that PAE paging keeps in the processor
    /// (SDM Vol. 3, 4.4.1).
    pub pdpte: [u64; 4],

    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,

    /// Model-specific registers.
    pub msrs: Msrs,
    /// XCR0: which state components XSAVE manages.
    pub xcr0: u64,
    /// x87, vector and mask registers.
    pub vector: VectorState,

    /// Running, halted, or waiting to be started.
    pub activity: Activity,
    /// The instruction before was STI or a load of SS: no interrupt before the next one is done
    /// (SDM Vol. 3, 6.8.3).
    pub interrupt_shadow: bool,
    /// An NMI is being handled: no other until IRET (SDM Vol. 3, 6.7.1).
    pub nmi_blocked: bool,
}

impl CpuState {
    /// The state after RESET (SDM Vol. 3, table 10-1). `processor_signature` is CPUID.1:EAX,
    /// which RESET leaves in EDX.
    pub fn reset(processor_signature: u32) -> Self {
        let data =
            Segment { selector: 0, base: 0, limit: 0xffff, attributes: SegmentAttributes::DATA16 };
        let mut state = Self {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: Rflags::FIXED.bits(),
            seg: [data; 6],
            ldtr: Segment { attributes: SegmentAttributes::LDT, ..data },
            tr: Segment { attributes: SegmentAttributes::TSS_BUSY, ..data },
            gdtr: DescriptorTable { base: 0, limit: 0xffff },
            idtr: DescriptorTable { base: 0, limit: 0xffff },
            cr0: Cr0::ET | Cr0::CD | Cr0::NW,
            cr2: 0,
            cr3: 0,
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            pdpte: [0; 4],
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            msrs: Msrs {
                star: 0,
                lstar: 0,
                cstar: 0,
                sfmask: 0,
                kernel_gs_base: 0,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                pat: 0x0007_0406_0007_0406,
                tsc_aux: 0,
                tsc_offset: 0,
                tsc_adjust: 0,
                misc_enable: 1, // fast strings
                mtrr_def_type: 0,
                mtrr_fixed: [0; 11],
                mtrr_var: [(0, 0); 8],
                debugctl: 0,
                xss: 0,
                spec_ctrl: 0,
                mcg_status: 0,
                mc0: new_bank(),
                hwcr: 0,
                hardware: HardwareMsrs::default(),
            },
            xcr0: 1,
            vector: VectorState::default(),
            activity: Activity::Active,
            interrupt_shadow: false,
            nmi_blocked: false,
        };
        state.gpr[gpr::RDX] = processor_signature.into();
        state.seg[SegReg::Cs as usize] = Segment {
            selector: 0xf000,
            base: 0xffff_0000,
            limit: 0xffff,
            attributes: SegmentAttributes::CODE16,
        };
        state
    }

    /// The segment register `reg`.
    pub fn segment(&self, reg: SegReg) -> &Segment {
        &self.seg[reg as usize]
    }

    /// The current privilege level: the DPL of SS (SDM Vol. 3, 24.4.1); 0 in real and 3 in
    /// virtual-8086 mode.
    pub fn cpl(&self) -> u8 {
        if !self.is_protected() {
            0
        } else if self.is_v8086() {
            3
        } else {
            self.seg[SegReg::Ss as usize].attributes.dpl()
        }
    }

    /// CR0.PE.
    pub fn is_protected(&self) -> bool {
        self.cr0.contains(Cr0::PE)
    }

    /// Virtual-8086 mode.
    pub fn is_v8086(&self) -> bool {
        self.rflags & Rflags::VM.bits() != 0
    }

    /// Long mode is active, be it in 64-bit or compatibility mode.
    pub fn is_long_mode(&self) -> bool {
        self.efer.contains(Efer::LMA)
    }

    /// 64-bit mode.
    pub fn is_64bit(&self) -> bool {
        self.is_long_mode() && self.seg[SegReg::Cs as usize].attributes.is_long()
    }
}
