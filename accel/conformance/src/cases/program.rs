//! Programs of ring 3 with a kernel that changes their pages for them.

use std::fmt;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::state::Cr4;

use crate::guest::{Guest, INVPCID, PCID};
use crate::layout::DATA;
use crate::tables::pte::G;

type Result = std::result::Result<(), IcedError>;

/// Where the kernel's service is.
const SERVICE: u64 = DATA + 0x1000;

/// A 64-bit program that ends the case; INT 0x80 has the kernel do `service`.
pub(super) fn program(
    g: &mut Guest,
    service: impl FnOnce(&mut Guest) -> Result,
    user: impl FnOnce(&mut Guest) -> Result,
) -> Result {
    g.gate(0x80, "service", 0xee, 0);
    g.enter_user()?;
    user(g)?;
    g.exit()?;
    g.section(64, SERVICE, SERVICE)?;
    g.mark("service")?;
    service(g)?;
    g.a.iretq()
}

/// How a kernel says that it has changed an entry of the page tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Invalidate {
    Page,
    Cr3,
    /// With pages that are global.
    ClearPge,
    /// INVPCID of this type.
    Pcid(u32),
}

impl fmt::Display for Invalidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page => write!(f, "INVLPG"),
            Self::Cr3 => write!(f, "loading CR3"),
            Self::ClearPge => write!(f, "clearing CR4.PGE"),
            Self::Pcid(kind) => write!(f, "INVPCID {kind}"),
        }
    }
}

impl Invalidate {
    pub fn all() -> [Self; 7] {
        use Invalidate::{ClearPge, Cr3, Page, Pcid};
        [Page, Cr3, ClearPge, Pcid(0), Pcid(1), Pcid(2), Pcid(3)]
    }

    /// Bits that the page's entry has besides.
    pub fn bits(self) -> u64 {
        if self == Self::ClearPge { G } else { 0 }
    }

    /// What the kernel does before it starts the program.
    pub fn prepare(self, g: &mut Guest) -> Result {
        match self {
            Self::Page | Self::Cr3 => Ok(()),
            Self::ClearPge => g.change_cr4(Cr4::PGE.bits() as u32, 0),
            Self::Pcid(_) => {
                g.needs(&PCID);
                g.needs(&INVPCID);
                g.change_cr4(Cr4::PCIDE.bits() as u32, 0)
            }
        }
    }

    /// Says so of the page at `linear`. Clobbers RAX, RBX and RCX.
    pub fn invalidate(self, g: &mut Guest, linear: u64) -> Result {
        match self {
            Self::Page => {
                g.a.mov(rbx, linear)?;
                g.a.invlpg(ptr(rbx))
            }
            Self::Cr3 => {
                g.a.mov(rax, cr3)?;
                g.a.mov(cr3, rax)
            }
            Self::ClearPge => {
                g.change_cr4(0, Cr4::PGE.bits() as u32)?;
                g.change_cr4(Cr4::PGE.bits() as u32, 0)
            }
            Self::Pcid(kind) => {
                g.a.mov(ebx, DATA as u32)?;
                g.a.mov(qword_ptr(rbx), 0)?;
                g.a.mov(rax, linear)?;
                g.a.mov(qword_ptr(rbx + 8), rax)?;
                g.a.mov(ecx, kind)?;
                g.a.invpcid(rcx, ptr(rbx))
            }
        }
    }
}
