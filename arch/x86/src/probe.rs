//! Where a linear address leads, for those who look at a guest from outside: no rights are checked
//! and no accessed bits set.

use crate::CpuState;
use crate::cpu::is_canonical;
use crate::paging::ADDRESS;
use crate::state::{Cr0, Cr4, Efer};

/// Reads the guest's physical memory; `false` where there is none.
pub trait Physical {
    /// Fills `data` from `gpa`, which is aligned to the length: 4 or 8 bytes.
    fn read(&self, gpa: u64, data: &mut [u8]) -> bool;
}

/// P and PS of a paging-structure entry (SDM Vol. 3, 4.3 to 4.5).
const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;

/// The guest physical address that `linear` leads to now. `None` if it leads nowhere.
pub fn probe(memory: &impl Physical, state: &CpuState, linear: u64) -> Option<u64> {
    if !state.is_long_mode() && linear >> 32 != 0 || !is_canonical(linear) {
        return None;
    }
    if !state.cr0.contains(Cr0::PG) {
        return Some(linear);
    }
    if state.efer.contains(Efer::LMA) {
        levels(memory, state.cr3 & ADDRESS & !0xfff, linear, 4)
    } else if state.cr4.contains(Cr4::PAE) {
        let entry = state.pdpte[(linear >> 30 & 3) as usize];
        (entry & PRESENT != 0).then_some(())?;
        levels(memory, entry & ADDRESS & !0xfff, linear, 2)
    } else {
        let large = if state.cr4.contains(Cr4::PSE) { LARGE } else { 0 };
        two_levels(memory, state.cr3, linear, large)
    }
}

fn levels(memory: &impl Physical, mut table: u64, linear: u64, top: u32) -> Option<u64> {
    for level in (1..=top).rev() {
        let shift = 12 + 9 * (level - 1);
        let mut entry = [0; 8];
        memory.read(table + (linear >> shift & 0x1ff) * 8, &mut entry).then_some(())?;
        let entry = u64::from_le_bytes(entry);
        (entry & PRESENT != 0).then_some(())?;
        if level == 1 || (level <= 3 && entry & LARGE != 0) {
            let within = (1u64 << shift) - 1;
            return Some(entry & ADDRESS & !within & !0xfff | linear & within);
        }
        table = entry & ADDRESS & !0xfff;
    }
    None
}

fn two_levels(memory: &impl Physical, cr3: u64, linear: u64, large: u64) -> Option<u64> {
    let read = |gpa| {
        let mut entry = [0; 4];
        memory.read(gpa, &mut entry).then_some(())?;
        let entry = u64::from(u32::from_le_bytes(entry));
        (entry & PRESENT != 0).then_some(entry)
    };
    let entry = read((cr3 & 0xffff_f000) + (linear >> 22 & 0x3ff) * 4)?;
    if entry & large != 0 {
        // PSE-36: bits 20:13 are bits 39:32 of the address.
        return Some(entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32 | linear & 0x3f_ffff);
    }
    let entry = read((entry & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4)?;
    Some(entry & 0xffff_f000 | linear & 0xfff)
}
