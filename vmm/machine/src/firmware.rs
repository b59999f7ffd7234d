//! What a PC's firmware leaves behind for an operating system, apart from tables: the BIOS data
//! area and the processors' memory types.

use vm_memory::{Bytes, GuestAddress};
use x86::CpuState;
use x86::state::Cr0;

use crate::boot::BootError;
use crate::memory_map::{EBDA, MemoryMap};

/// Writes the words of the BIOS data area that operating systems look for the extended BIOS data
/// area with.
pub(crate) fn write_bios_data_area(memory: &mem::GuestMemory) -> Result<(), BootError> {
    const EBDA_SEGMENT: GuestAddress = GuestAddress(0x40e);
    const BASE_MEMORY_KIB: GuestAddress = GuestAddress(0x413);
    memory.write_obj((EBDA.start >> 4) as u16, EBDA_SEGMENT)?;
    memory.write_obj((EBDA.start >> 10) as u16, BASE_MEMORY_KIB)?;
    Ok(())
}

/// Turns on caching the way firmware does on every processor: write-back, but uncached in the
/// VGA window and in the hole below 4 GiB (Intel SDM Vol. 3, 12.11).
pub fn set_memory_types(state: &mut CpuState, map: &MemoryMap, phys_bits: u8) {
    const WRITE_BACK: u64 = 6;
    const FIXED_ENABLE: u64 = 1 << 10;
    const ENABLE: u64 = 1 << 11;
    const VALID: u64 = 1 << 11;
    let all_write_back = WRITE_BACK * 0x0101_0101_0101_0101;

    state.cr0 -= Cr0::CD | Cr0::NW;
    state.msrs.mtrr_def_type = ENABLE | FIXED_ENABLE | WRITE_BACK;
    state.msrs.mtrr_fixed = [all_write_back; 11];
    state.msrs.mtrr_fixed[2] = 0; // MTRRfix16K_A0000: the VGA window
    let hole = map.mmio_hole();
    let addresses = (1u64 << phys_bits.clamp(32, 52)) - 1;
    state.msrs.mtrr_var[0] = (hole.start, addresses & !(hole.len - 1) | VALID);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hole_is_uncached_and_ram_is_not() {
        let map = MemoryMap::new(8 << 30, 40).unwrap();
        let mut state = CpuState::reset(0);
        set_memory_types(&mut state, &map, 40);
        let (base, mask) = state.msrs.mtrr_var[0];
        let hits = |addr: u64| addr & mask & !0xfff == base & mask & !0xfff;
        assert!(hits(0xc000_0000) && hits(0xffff_f000));
        assert!(!hits(0xbfff_f000) && !hits(0x1_c000_0000) && !hits(0));
        assert_eq!(base & 0xff, 0); // uncached
    }
}
