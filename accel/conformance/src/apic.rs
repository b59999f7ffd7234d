//! How guests drive their local APICs and start processors.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::guest::{Guest, X2APIC};
use crate::layout::{self, eoi, sel};

type Result = std::result::Result<(), IcedError>;

/// The two ways to the local APIC's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apic {
    /// The register page.
    X,
    /// MSRs.
    X2,
}

/// Offsets in the register page.
pub mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL: u32 = 0x380;
    pub const CURRENT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3e0;
}

/// Fields of the ICR.
pub mod icr {
    pub const NMI: u32 = 4 << 8;
    pub const INIT: u32 = 5 << 8;
    pub const STARTUP: u32 = 6 << 8;
    pub const LOGICAL: u32 = 1 << 11;
    pub const ASSERT: u32 = 1 << 14;
    pub const SELF: u32 = 1 << 18;
    pub const ALL: u32 = 2 << 18;
    pub const OTHERS: u32 = 3 << 18;
}

const PAGE: u32 = 0xfee0_0000;
/// IA32_APIC_BASE.
pub const APIC_BASE: u32 = 0x1b;

impl Apic {
    /// For names of cases.
    pub fn name(self) -> &'static str {
        match self {
            Self::X => "xapic",
            Self::X2 => "x2apic",
        }
    }

    /// Enables the local APIC, and has handlers end interrupts at it. 64-bit or 32-bit code.
    pub fn enable(self, g: &mut Guest) -> Result {
        if self == Self::X2 {
            g.needs(&X2APIC);
            g.rdmsr(APIC_BASE)?;
            g.a.or(eax, 0x400)?;
            g.a.wrmsr()?;
        }
        g.write64(layout::EOI, if self == Self::X { eoi::XAPIC } else { eoi::X2APIC });
        self.write(g, reg::SVR, 0x1ff)
    }

    /// Writes a register. Clobbers RAX, RCX, RDX.
    pub fn write(self, g: &mut Guest, register: u32, value: u32) -> Result {
        match self {
            Self::X2 => g.wrmsr(0x800 + (register >> 4), value.into()),
            Self::X => {
                g.a.mov(ecx, PAGE + register)?;
                if g.a.bitness() == 64 {
                    g.a.mov(dword_ptr(rcx), value)
                } else {
                    g.a.mov(dword_ptr(ecx), value)
                }
            }
        }
    }

    /// Reads a register into EAX. Clobbers RCX, RDX.
    pub fn read(self, g: &mut Guest, register: u32) -> Result {
        match self {
            Self::X2 => g.rdmsr(0x800 + (register >> 4)),
            Self::X => {
                g.a.mov(ecx, PAGE + register)?;
                if g.a.bitness() == 64 {
                    g.a.mov(eax, dword_ptr(rcx))
                } else {
                    g.a.mov(eax, dword_ptr(ecx))
                }
            }
        }
    }

    /// Sends an IPI.
    pub fn send(self, g: &mut Guest, low: u32, destination: u32) -> Result {
        match self {
            Self::X2 => g.wrmsr(0x830, u64::from(destination) << 32 | u64::from(low)),
            Self::X => {
                self.write(g, reg::ICR_HIGH, destination << 24)?;
                self.write(g, reg::ICR, low)
            }
        }
    }
}

/// Interrupts come in here, for an instruction or two.
pub fn window(g: &mut Guest) -> Result {
    g.a.sti()?;
    g.a.nop()?;
    g.a.nop()?;
    g.a.cli()
}

/// Writes a register of the I/O APIC. Clobbers RCX.
pub fn write_ioapic(g: &mut Guest, register: u32, value: u32) -> Result {
    g.a.mov(ecx, 0xfec0_0000u32)?;
    g.a.mov(dword_ptr(rcx), register)?;
    g.a.mov(dword_ptr(rcx + 0x10), value)
}

/// Reads a register of the I/O APIC into EAX. Clobbers RCX.
pub fn read_ioapic(g: &mut Guest, register: u32) -> Result {
    g.a.mov(ecx, 0xfec0_0000u32)?;
    g.a.mov(dword_ptr(rcx), register)?;
    g.a.mov(eax, dword_ptr(rcx + 0x10))
}

/// The entry of an I/O APIC's pin: its low half, and a physical destination.
pub fn redirect(g: &mut Guest, pin: u32, low: u32, destination: u32) -> Result {
    write_ioapic(g, 0x11 + pin * 2, destination << 24)?;
    write_ioapic(g, 0x10 + pin * 2, low)
}

impl Guest {
    /// Starts processor 1 by INIT and a start-up IPI.
    pub fn start_ap(&mut self, apic: Apic) -> Result {
        apic.send(self, icr::INIT | icr::ASSERT, 1)?;
        apic.send(self, icr::STARTUP | icr::ASSERT | (layout::AP_CODE >> 12) as u32, 1)
    }

    /// The way of processor 1 from real mode to 64-bit code at `linear`, with its own stack and
    /// this guest's tables. What follows is its code.
    pub fn ap_long(&mut self, linear: u64) -> Result {
        self.cpus = 2;
        self.write16(0x5f0, 0xfff);
        self.write32(0x5f2, layout::GDT as u32);
        self.write16(0x5e0, 0xfff);
        self.write64(0x5e2, layout::IDT64);
        self.section(16, layout::AP_CODE, 0)?;
        self.a.cli()?;
        self.a.xor(ax, ax)?;
        self.a.mov(ds, ax)?;
        self.a.lgdt(ptr(0x5f0))?;
        self.a.mov(eax, 0x20)?;
        self.a.mov(cr4, eax)?;
        self.a.mov(eax, self.root as u32)?;
        self.a.mov(cr3, eax)?;
        self.rdmsr(0xc000_0080)?;
        self.a.or(eax, 0x901)?;
        self.a.wrmsr()?;
        self.a.mov(eax, 0x8001_0031u32)?;
        self.a.mov(cr0, eax)?;
        let mut jump = vec![0x66, 0xea];
        jump.extend((linear as u32).to_le_bytes());
        jump.extend(sel::KCODE64.to_le_bytes());
        self.a.db(&jump)?;
        self.section(64, linear, linear)?;
        self.a.mov(eax, u32::from(sel::KDATA))?;
        self.a.mov(ss, eax)?;
        self.a.mov(ds, eax)?;
        self.a.mov(es, eax)?;
        self.a.mov(esp, layout::AP_STACK as u32)?;
        self.a.mov(eax, 0x5e0)?;
        self.a.lidt(ptr(rax))
    }

    /// Waits until the doubleword at `at` is `value`.
    pub fn wait_for(&mut self, at: u64, value: u32) -> Result {
        let mut again = self.a.create_label();
        self.a.set_label(&mut again)?;
        self.a.pause()?;
        self.a.cmp(dword_ptr(at), value as i32)?;
        self.a.jne(again)
    }

    /// Halts for good.
    pub fn park(&mut self) -> Result {
        let mut again = self.a.create_label();
        self.a.set_label(&mut again)?;
        self.a.hlt()?;
        self.a.jmp(again)
    }
}
