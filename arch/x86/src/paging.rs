//! The page walk (SDM Vol. 3, chapter 4): 32-bit with PSE, PAE and 4-level paging, accessed and
//! dirty bits, and the rights that CR0.WP, SMEP, SMAP and NX decide about.

use crate::env::Env;
use crate::state::{Cr0, Cr4, Efer};
use crate::{CpuState, MAX_PHYSICAL_BITS};

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// On whose behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 3.
    User,
    /// CPL 0 to 2; SMAP applies.
    Supervisor,
    /// CPL 0 to 2 with SMAP suspended by RFLAGS.AC.
    SupervisorAc,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest physical address.
    pub gpa: u64,
    /// The same access may store, and the page is dirty already.
    pub writable: bool,
    /// The size of the page in bytes.
    pub page_size: u64,
    /// The same in every address space (CR4.PGE).
    pub global: bool,
}

/// Error code bits of #PF (SDM Vol. 3, 4.7).
mod code {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// Bits of a paging-structure entry, the same in all formats.
mod pte {
    pub const P: u64 = 1 << 0;
    pub const RW: u64 = 1 << 1;
    pub const US: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const XD: u64 = 1 << 63;
}

/// Physical addresses have no bits above this mask.
pub(crate) const ADDRESS: u64 = (1 << MAX_PHYSICAL_BITS) - 1;
/// Bits of an 8-byte entry that would belong to a longer physical address.
const BEYOND: u64 = 0x000f_ffff_ffff_ffff & !ADDRESS;

/// Translates `linear` and sets accessed and dirty bits; the error is the error code of the #PF.
pub fn translate<E: Env>(
    env: &mut E,
    state: &CpuState,
    linear: u64,
    access: Access,
    privilege: Privilege,
) -> Result<Translation, u32> {
    if !state.cr0.contains(Cr0::PG) {
        let gpa = linear & 0xffff_ffff;
        return Ok(Translation { gpa, writable: true, page_size: 0x1000, global: false });
    }
    let walk = Walk { state, linear, access, privilege };
    loop {
        match walk.start(env) {
            Err(RETRY) => {}
            result => return result,
        }
    }
}

/// Not an error code: an entry changed under the walk, which starts again.
const RETRY: u32 = 1 << 31;

/// The physical address where PAE paging finds its four page-directory-pointer entries.
pub fn pdpt_base(cr3: u64) -> u64 {
    cr3 & 0xffff_ffe0
}

/// Whether the processor refuses to load this page-directory-pointer entry
/// (SDM Vol. 3, table 4-8).
pub fn is_pdpte_reserved(entry: u64) -> bool {
    entry & pte::P != 0 && entry & (0xfff0_0000_0000_01e6 | BEYOND) != 0
}

struct Walk<'a> {
    state: &'a CpuState,
    linear: u64,
    access: Access,
    privilege: Privilege,
}

impl Walk<'_> {
    fn start<E: Env>(&self, env: &mut E) -> Result<Translation, u32> {
        let state = self.state;
        if state.efer.contains(Efer::LMA) {
            self.levels(env, state.cr3 & ADDRESS & !0xfff, 4)
        } else if state.cr4.contains(Cr4::PAE) {
            let entry = state.pdpte[(self.linear >> 30 & 3) as usize];
            if entry & pte::P == 0 {
                return Err(self.fault(0));
            }
            self.levels(env, entry & ADDRESS & !0xfff, 2)
        } else {
            self.two_level(env)
        }
    }

    /// 4-level paging (from `level` 4) and the lower two levels of PAE paging.
    fn levels<E: Env>(
        &self,
        env: &mut E,
        mut table: u64,
        mut level: u32,
    ) -> Result<Translation, u32> {
        // What all levels allow together. XD forbids, so it is kept inverted.
        let mut rights = pte::RW | pte::US | pte::XD;
        let reserved_xd = if self.state.efer.contains(Efer::NXE) { 0 } else { pte::XD };
        // PAE entries have no ignored bits above the address (SDM Vol. 3, table 4-9 to 4-11).
        let reserved_high = if self.state.efer.contains(Efer::LMA) { 0 } else { 0x7ff << 52 };
        loop {
            let shift = 12 + 9 * (level - 1);
            let at = table + (self.linear >> shift & 0x1ff) * 8;
            let entry: u64 = read_physical(env, at);
            if entry & pte::P == 0 {
                return Err(self.fault(0));
            }
            let mut reserved = reserved_xd | reserved_high | BEYOND;
            let is_leaf = level == 1 || (level <= 3 && entry & pte::PS != 0);
            if level == 4 {
                reserved |= pte::PS;
            } else if is_leaf && level > 1 {
                // Bits between the PAT bit and the address of a large page.
                reserved |= (1u64 << shift) - (1 << 13);
            }
            if entry & reserved != 0 {
                return Err(self.fault(code::PRESENT | code::RESERVED));
            }
            rights &= entry ^ pte::XD;
            if is_leaf {
                let size = 1u64 << shift;
                let frame = entry & ADDRESS & !(size - 1) & !0xfff;
                return self.finish::<E, u64>(env, at, entry, rights, frame, size);
            }
            mark::<E, u64>(env, at, entry, pte::A)?;
            table = entry & ADDRESS & !0xfff;
            level -= 1;
        }
    }

    /// 32-bit paging.
    fn two_level<E: Env>(&self, env: &mut E) -> Result<Translation, u32> {
        let at = (self.state.cr3 & 0xffff_f000) + (self.linear >> 22 & 0x3ff) * 4;
        let pde = u64::from(read_physical::<E, u32>(env, at));
        if pde & pte::P == 0 {
            return Err(self.fault(0));
        }
        let rights = pte::RW | pte::US | pte::XD;
        if pde & pte::PS != 0 && self.state.cr4.contains(Cr4::PSE) {
            // PSE-36: bits 20:13 are bits 39:32 of the address, bit 21 is reserved.
            if pde & (1 << 21) != 0 {
                return Err(self.fault(code::PRESENT | code::RESERVED));
            }
            let frame = (pde & 0xffc0_0000) | (pde >> 13 & 0xff) << 32;
            return self.finish::<E, u32>(env, at, pde, rights & (pde | pte::XD), frame, 0x40_0000);
        }
        mark::<E, u32>(env, at, pde, pte::A)?;
        let at = (pde & 0xffff_f000) + (self.linear >> 12 & 0x3ff) * 4;
        let entry = u64::from(read_physical::<E, u32>(env, at));
        if entry & pte::P == 0 {
            return Err(self.fault(0));
        }
        let rights = rights & (pde | pte::XD) & (entry | pte::XD);
        self.finish::<E, u32>(env, at, entry, rights, entry & 0xffff_f000, 0x1000)
    }

    /// Checks the rights and marks the leaf entry.
    fn finish<E: Env, W: crate::Word>(
        &self,
        env: &mut E,
        at: u64,
        entry: u64,
        rights: u64,
        frame: u64,
        page_size: u64,
    ) -> Result<Translation, u32> {
        let state = self.state;
        let user_page = rights & pte::US != 0;
        let may_write = rights & pte::RW != 0
            || (self.privilege != Privilege::User && !state.cr0.contains(Cr0::WP));
        let allowed = match self.privilege {
            Privilege::User => user_page,
            _ if !user_page => true,
            _ if self.access == Access::Execute => !state.cr4.contains(Cr4::SMEP),
            Privilege::Supervisor => !state.cr4.contains(Cr4::SMAP),
            Privilege::SupervisorAc => true,
        } && match self.access {
            Access::Read => true,
            Access::Write => may_write,
            Access::Execute => rights & pte::XD != 0 || !state.efer.contains(Efer::NXE),
        };
        if !allowed {
            return Err(self.fault(code::PRESENT));
        }
        let wanted = if self.access == Access::Write { pte::A | pte::D } else { pte::A };
        mark::<E, W>(env, at, entry, wanted)?;
        Ok(Translation {
            gpa: frame | (self.linear & (page_size - 1)),
            writable: may_write && (entry | wanted) & pte::D != 0,
            page_size,
            global: entry & pte::G != 0 && state.cr4.contains(Cr4::PGE),
        })
    }

    fn fault(&self, cause: u32) -> u32 {
        let fetch_is_reported = self.state.cr4.contains(Cr4::SMEP)
            || (self.state.efer.contains(Efer::NXE) && self.state.cr4.contains(Cr4::PAE));
        cause
            | if self.privilege == Privilege::User { code::USER } else { 0 }
            | match self.access {
                Access::Read => 0,
                Access::Write => code::WRITE,
                Access::Execute if fetch_is_reported => code::FETCH,
                Access::Execute => 0,
            }
    }
}

/// Reads a paging-structure entry. One that lies outside RAM comes from whatever is there.
pub(crate) fn read_physical<E: Env, W: crate::Word>(env: &mut E, gpa: u64) -> W {
    match env.ram_page(gpa) {
        Some(page) => env.load(page, (gpa & 0xfff) as usize),
        None => {
            let mut data = [0; 8];
            env.mmio_read(gpa, &mut data[..W::SIZE]);
            W::truncate(u64::from_le_bytes(data))
        }
    }
}

/// Sets `bits` in an entry that was read as `entry`, unless they are set. If another processor
/// changed the entry meanwhile, the walk starts again.
fn mark<E: Env, W: crate::Word>(env: &mut E, at: u64, entry: u64, bits: u64) -> Result<(), u32> {
    if entry & bits != bits
        && let Some(page) = env.ram_page(at)
    {
        let offset = (at & 0xfff) as usize;
        if !env.mark_entry(page, offset, W::truncate(entry), W::truncate(entry | bits)) {
            return Err(RETRY);
        }
    }
    Ok(())
}
