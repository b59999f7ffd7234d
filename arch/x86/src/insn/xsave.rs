//! The XSAVE family (SDM Vol. 1, chapter 13).
//!
//! Where components lie in the standard format is what the guest's CPUID says, so that a guest
//! finds the layout of the model it was given. There is no supervisor component: IA32_XSS holds
//! only zero, and XSAVES and XRSTORS differ from XSAVEC and XRSTOR by their checks.

use iced_x86::{Instruction, Mnemonic};

use super::fxsave::{
    LEGACY_SIZE, MXCSR, X87_HEAD, X87_REGISTERS, XMM, load_x87, load_xmm, mxcsr_of, qword,
    store_legacy, xmm_count,
};
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec};
use crate::paging::Access;
use crate::state::{Cr0, Cr4, VectorState, gpr};

/// State components, as bits of XCR0.
pub(crate) mod component {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    pub const OPMASK: u64 = 1 << 5;
    pub const ZMM_HI256: u64 = 1 << 6;
    pub const HI16_ZMM: u64 = 1 << 7;
    pub const AVX512: u64 = OPMASK | ZMM_HI256 | HI16_ZMM;
    /// All that this processor has.
    pub const ALL: u64 = X87 | SSE | AVX | AVX512;
}
use component::{ALL, AVX, HI16_ZMM, OPMASK, SSE, X87, ZMM_HI256};

/// The components beyond the legacy region: number, and size in bytes.
const EXTENDED: [(u32, usize); 4] = [(2, 256), (5, 64), (6, 512), (7, 1024)];
/// XSAVE's header follows the legacy region.
const HEADER: usize = LEGACY_SIZE;
const HEADER_SIZE: usize = 64;
/// Extended components lie above the header, and below what one access may span.
const FIRST_EXTENDED: usize = HEADER + HEADER_SIZE;
const AREA_LIMIT: usize = 4096;
/// What the address of an area is a multiple of.
const AREA_ALIGNMENT: usize = 64;
/// XCOMP_BV: the area is in compacted format.
const COMPACTED: u64 = 1 << 63;
const MXCSR_INIT: u32 = 0x1f80;

/// The handler for an instruction of the XSAVE family.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::Xsave => Some(save::<E, Plain, false>),
        Mnemonic::Xsave64 => Some(save::<E, Plain, true>),
        Mnemonic::Xsaveopt => Some(save::<E, Optimized, false>),
        Mnemonic::Xsaveopt64 => Some(save::<E, Optimized, true>),
        Mnemonic::Xsavec => Some(save::<E, Compacting, false>),
        Mnemonic::Xsavec64 => Some(save::<E, Compacting, true>),
        Mnemonic::Xsaves => Some(save::<E, Supervisor, false>),
        Mnemonic::Xsaves64 => Some(save::<E, Supervisor, true>),
        Mnemonic::Xrstor => Some(restore::<E, false, false>),
        Mnemonic::Xrstor64 => Some(restore::<E, false, true>),
        Mnemonic::Xrstors => Some(restore::<E, true, false>),
        Mnemonic::Xrstors64 => Some(restore::<E, true, true>),
        Mnemonic::Xgetbv => Some(xgetbv),
        Mnemonic::Xsetbv => Some(xsetbv),
        _ => None,
    }
}

/// What tells the four save instructions apart.
trait Form {
    /// Components in their initial configuration are not written.
    const SKIPS_INIT: bool;
    const COMPACTED: bool;
    const SUPERVISOR: bool;
}
struct Plain;
struct Optimized;
struct Compacting;
struct Supervisor;
impl Form for Plain {
    const SKIPS_INIT: bool = false;
    const COMPACTED: bool = false;
    const SUPERVISOR: bool = false;
}
impl Form for Optimized {
    const SKIPS_INIT: bool = true;
    const COMPACTED: bool = false;
    const SUPERVISOR: bool = false;
}
impl Form for Compacting {
    const SKIPS_INIT: bool = true;
    const COMPACTED: bool = true;
    const SUPERVISOR: bool = false;
}
impl Form for Supervisor {
    const SKIPS_INIT: bool = true;
    const COMPACTED: bool = true;
    const SUPERVISOR: bool = true;
}

/// EDX:EAX.
fn edx_eax<E: Env>(cpu: &Cpu<E>) -> u64 {
    let gpr = &cpu.state.gpr;
    gpr[gpr::RDX] << 32 | gpr[gpr::RAX] & 0xffff_ffff
}

fn check<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>, supervisor: bool) -> Exec {
    if !cpu.state.cr4.contains(Cr4::OSXSAVE) {
        return Err(cpu.raise(Exception::UD));
    }
    cpu.require_offered(op)?;
    if supervisor && cpu.mode.cpl != 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    if cpu.state.cr0.contains(Cr0::TS) {
        return Err(cpu.raise(Exception::NM));
    }
    Ok(())
}

/// The address of the area, which is a multiple of 64.
fn area_address<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>, access: Access) -> Exec<u64> {
    cpu.aligned_address(op, FIRST_EXTENDED, AREA_ALIGNMENT, access)
}

/// Where an extended component lies in an area that holds the components `held`, in compacted or
/// standard format. `None` if the model has no such component.
fn place<E: Env>(cpu: &Cpu<E>, held: Option<u64>, number: u32) -> Option<usize> {
    let offset = match held {
        None => cpu.env.cpuid(0xd, number).ebx as usize,
        Some(held) => {
            let mut at = FIRST_EXTENDED;
            for (other, size) in EXTENDED {
                if held & (1 << other) == 0 {
                    continue;
                }
                // ECX[1]: the component is aligned to 64 bytes.
                if cpu.env.cpuid(0xd, other).ecx & 2 != 0 {
                    at = at.next_multiple_of(64);
                }
                if other == number {
                    break;
                }
                at += size;
            }
            at
        }
    };
    (FIRST_EXTENDED..AREA_LIMIT - 1024).contains(&offset).then_some(offset)
}

/// The components that are not in their initial configuration (XINUSE), by their contents.
fn in_use(vector: &VectorState, is_64bit: bool) -> u64 {
    let count = xmm_count(is_64bit);
    let any = |from: usize, range: core::ops::Range<usize>| {
        vector.zmm[from..][..count].iter().any(|zmm| zmm[range.clone()].iter().any(|&q| q != 0))
    };
    let x87 = &vector.x87;
    let x87_in_use = x87.fcw != 0x037f
        || x87.fsw != 0
        || x87.ftw != 0
        || x87.fop != 0
        || x87.fip != 0
        || x87.fdp != 0
        || x87.st.iter().any(|st| *st != [0; 2]);
    [
        (X87, x87_in_use),
        (SSE, any(0, 0..2)),
        (AVX, any(0, 2..4)),
        (OPMASK, vector.k.iter().any(|&k| k != 0)),
        (ZMM_HI256, any(0, 4..8)),
        (HI16_ZMM, is_64bit && any(16, 0..8)),
    ]
    .into_iter()
    .filter_map(|(bit, used)| used.then_some(bit))
    .sum()
}

/// The image of an extended component: how many of its bytes the mode has, in `image`.
fn store_component(
    vector: &VectorState,
    number: u32,
    is_64bit: bool,
    image: &mut [u8; 1024],
) -> usize {
    let count = xmm_count(is_64bit);
    let low = &vector.zmm[..count];
    let mut len = 0;
    let mut put = |qwords: &[u64]| {
        for (slot, q) in image[len..].chunks_exact_mut(8).zip(qwords) {
            slot.copy_from_slice(&q.to_le_bytes());
        }
        len += qwords.len() * 8;
    };
    match 1 << number {
        AVX => low.iter().for_each(|zmm| put(&zmm[2..4])),
        OPMASK => put(&vector.k),
        ZMM_HI256 => low.iter().for_each(|zmm| put(&zmm[4..8])),
        HI16_ZMM if is_64bit => vector.zmm[16..].iter().for_each(|zmm| put(zmm)),
        _ => {}
    }
    len
}

/// Loads an extended component; the inverse of [`store_component`].
fn load_component(vector: &mut VectorState, number: u32, is_64bit: bool, image: &[u8; 1024]) {
    let count = xmm_count(is_64bit);
    let mut at = 0;
    let mut take = |qwords: &mut [u64]| {
        for q in qwords {
            *q = qword(image, at);
            at += 8;
        }
    };
    match 1 << number {
        AVX => vector.zmm[..count].iter_mut().for_each(|zmm| take(&mut zmm[2..4])),
        OPMASK => take(&mut vector.k),
        ZMM_HI256 => vector.zmm[..count].iter_mut().for_each(|zmm| take(&mut zmm[4..8])),
        HI16_ZMM if is_64bit => vector.zmm[16..].iter_mut().for_each(|zmm| take(zmm)),
        _ => {}
    }
}

fn save<E: Env, F: Form, const WIDE: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check(cpu, op, F::SUPERVISOR)?;
    let linear = area_address(cpu, op, Access::Write)?;
    let is_64bit = cpu.mode.code_bits == 64;
    let requested = cpu.state.xcr0 & edx_eax(cpu) & ALL;
    let mut used = in_use(&cpu.state.vector, is_64bit);
    if F::COMPACTED && cpu.state.vector.x87.mxcsr != MXCSR_INIT {
        used |= SSE;
    }
    let written = if F::SKIPS_INIT { requested & used } else { requested };
    let held = F::COMPACTED.then_some(requested);

    // All or nothing: the whole area is checked before the first store.
    let mut end = FIRST_EXTENDED;
    for (number, size) in EXTENDED {
        if written & (1 << number) != 0 {
            match place(cpu, held, number) {
                Some(offset) => end = end.max(offset + size),
                None => return Err(cpu.raise(Exception::UD)),
            }
        }
    }
    cpu.check_access(linear, AREA_ALIGNMENT, Access::Write)?;
    cpu.probe_write(linear, end)?;

    let mut header = [0; 16];
    if F::COMPACTED {
        header[..8].copy_from_slice(&(requested & used).to_le_bytes());
        header[8..].copy_from_slice(&(requested | COMPACTED).to_le_bytes());
        cpu.write_bytes(linear.wrapping_add(HEADER as u64), &header)?;
    } else {
        cpu.read_bytes(linear.wrapping_add(HEADER as u64), &mut header[..8])?;
        let bv = qword(&header, 0) & !requested | requested & used;
        cpu.write_bytes(linear.wrapping_add(HEADER as u64), &bv.to_le_bytes())?;
    }

    let legacy = store_legacy(&cpu.state.vector, WIDE);
    if written & X87 != 0 {
        cpu.write_bytes(linear, &legacy[X87_HEAD])?;
        let at = X87_REGISTERS;
        cpu.write_bytes(linear.wrapping_add(at.start as u64), &legacy[at])?;
    }
    let with_mxcsr = if F::COMPACTED { written & SSE } else { requested & (SSE | AVX) };
    if with_mxcsr != 0 {
        cpu.write_bytes(linear.wrapping_add(MXCSR.start as u64), &legacy[MXCSR])?;
    }
    if written & SSE != 0 {
        let at = XMM..XMM + 16 * xmm_count(is_64bit);
        cpu.write_bytes(linear.wrapping_add(at.start as u64), &legacy[at])?;
    }
    for (number, _) in EXTENDED {
        if written & (1 << number) != 0
            && let Some(offset) = place(cpu, held, number)
        {
            let mut image = [0; 1024];
            let len = store_component(&cpu.state.vector, number, is_64bit, &mut image);
            if len != 0 {
                cpu.write_bytes(linear.wrapping_add(offset as u64), &image[..len])?;
            }
        }
    }
    Ok(())
}

fn restore<E: Env, const SUPERVISOR: bool, const WIDE: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check(cpu, op, SUPERVISOR)?;
    let linear = area_address(cpu, op, Access::Read)?;
    let is_64bit = cpu.mode.code_bits == 64;
    let xcr0 = cpu.state.xcr0 & ALL;
    let requested = xcr0 & edx_eax(cpu);
    cpu.check_access(linear, AREA_ALIGNMENT, Access::Read)?;

    let mut header = [0; HEADER_SIZE];
    cpu.read_bytes(linear.wrapping_add(HEADER as u64), &mut header)?;
    let xstate_bv = qword(&header, 0);
    let xcomp_bv = qword(&header, 8);
    let is_compacted = xcomp_bv & COMPACTED != 0;
    let has_compacted = cpu.env.cpuid(0xd, 1).eax & 2 != 0;
    let is_valid = if is_compacted {
        has_compacted
            && xcomp_bv & !COMPACTED & !xcr0 == 0
            && xstate_bv & !xcomp_bv == 0
            && header[16..].iter().all(|&b| b == 0)
    } else {
        !SUPERVISOR && xstate_bv & !xcr0 == 0 && header[8..24].iter().all(|&b| b == 0)
    };
    if !is_valid {
        return Err(cpu.raise(Exception::GP0));
    }
    let held = is_compacted.then_some(xcomp_bv);

    let mut new = cpu.state.vector.clone();
    let mut legacy = [0; LEGACY_SIZE];
    let loaded = requested & xstate_bv;
    // In standard format MXCSR goes with either SSE or AVX, whatever XSTATE_BV says.
    let with_mxcsr = if is_compacted { loaded & SSE } else { requested & (SSE | AVX) };
    if loaded & (X87 | SSE) != 0 || with_mxcsr != 0 {
        cpu.read_bytes(linear, &mut legacy)?;
    }
    if with_mxcsr != 0 {
        let mxcsr = mxcsr_of(&legacy);
        if mxcsr & !new.x87.mxcsr_mask != 0 {
            return Err(cpu.raise(Exception::GP0));
        }
        new.x87.mxcsr = mxcsr;
    } else if requested & SSE != 0 {
        new.x87.mxcsr = MXCSR_INIT;
    }
    if requested & X87 != 0 {
        if loaded & X87 == 0 {
            legacy[X87_HEAD].fill(0);
            legacy[X87_REGISTERS].fill(0);
            legacy[..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        }
        load_x87(&mut new.x87, &legacy, WIDE);
    }
    if requested & SSE != 0 {
        if loaded & SSE == 0 {
            legacy[XMM..].fill(0);
        }
        load_xmm(&mut new, &legacy, xmm_count(is_64bit));
    }
    for (number, size) in EXTENDED {
        if requested & (1 << number) == 0 {
            continue;
        }
        let mut image = [0; 1024];
        if loaded & (1 << number) != 0 {
            let Some(offset) = place(cpu, held, number) else {
                return Err(cpu.raise(Exception::UD));
            };
            cpu.read_bytes(linear.wrapping_add(offset as u64), &mut image[..size])?;
        }
        load_component(&mut new, number, is_64bit, &image);
    }
    cpu.state.vector = new;
    Ok(())
}

fn xgetbv<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    if !cpu.state.cr4.contains(Cr4::OSXSAVE) {
        return Err(cpu.raise(Exception::UD));
    }
    cpu.require_offered(op)?;
    let has_in_use = cpu.env.cpuid(0xd, 1).eax & 4 != 0;
    let value = match cpu.state.gpr[gpr::RCX] as u32 {
        0 => cpu.state.xcr0,
        1 if has_in_use => cpu.state.xcr0 & in_use(&cpu.state.vector, true),
        _ => return Err(cpu.raise(Exception::GP0)),
    };
    cpu.state.gpr[gpr::RAX] = value & 0xffff_ffff;
    cpu.state.gpr[gpr::RDX] = value >> 32;
    Ok(())
}

fn xsetbv<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    if !cpu.state.cr4.contains(Cr4::OSXSAVE) {
        return Err(cpu.raise(Exception::UD));
    }
    cpu.require_offered(op)?;
    let value = edx_eax(cpu);
    let leaf = cpu.env.cpuid(0xd, 0);
    let supported = (u64::from(leaf.edx) << 32 | u64::from(leaf.eax)) & ALL;
    if cpu.mode.cpl != 0 || cpu.state.gpr[gpr::RCX] as u32 != 0 || !is_valid_xcr0(value, supported)
    {
        return Err(cpu.raise(Exception::GP0));
    }
    cpu.state.xcr0 = value;
    Ok(())
}

/// Whether XCR0 may hold `value` (SDM Vol. 1, 13.3).
fn is_valid_xcr0(value: u64, supported: u64) -> bool {
    let needs = |bits: u64, needed: u64| value & bits == 0 || value & needed == needed;
    value & !supported == 0
        && value & X87 != 0
        && needs(AVX, SSE)
        && needs(component::AVX512, component::AVX512 | AVX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xcr0_holds_whole_families_only() {
        assert!(is_valid_xcr0(0x1, ALL));
        assert!(is_valid_xcr0(0x7, ALL));
        assert!(is_valid_xcr0(0xe7, ALL));
        for bad in [0, 0x2, 0x5, 0x27, 0xe3, 0x67, 0x207, 1 << 63 | 1] {
            assert!(!is_valid_xcr0(bad, ALL), "{bad:#x}");
        }
        assert!(!is_valid_xcr0(0xe7, 0x7));
    }

    #[test]
    fn components_survive_their_image() {
        let mut vector = VectorState::default();
        for (i, zmm) in vector.zmm.iter_mut().enumerate() {
            *zmm = core::array::from_fn(|j| (i * 8 + j) as u64 + 1);
        }
        vector.k = core::array::from_fn(|i| i as u64 + 1000);
        for is_64bit in [false, true] {
            let mut loaded = VectorState::default();
            for (number, size) in EXTENDED {
                let mut image = [0; 1024];
                let len = store_component(&vector, number, is_64bit, &mut image);
                assert!(len <= size);
                load_component(&mut loaded, number, is_64bit, &image);
            }
            assert_eq!(loaded.k, vector.k);
            let count = xmm_count(is_64bit);
            for i in 0..count {
                assert_eq!(loaded.zmm[i][2..], vector.zmm[i][2..]);
            }
            assert_eq!(loaded.zmm[16] == vector.zmm[16], is_64bit);
            assert_eq!(loaded.zmm[8][2..] == vector.zmm[8][2..], is_64bit);
        }
    }

    #[test]
    fn what_holds_zeros_is_not_in_use() {
        let mut vector = VectorState::default();
        vector.x87.fcw = 0x037f;
        vector.x87.ftw = 0;
        assert_eq!(in_use(&vector, true), 0);
        vector.zmm[3][1] = 1;
        vector.zmm[20][0] = 1;
        assert_eq!(in_use(&vector, true), SSE | HI16_ZMM);
        assert_eq!(in_use(&vector, false), SSE);
        vector.k[7] = 1;
        vector.x87.ftw = 1;
        assert_eq!(in_use(&vector, true), SSE | HI16_ZMM | OPMASK | X87);
    }
}
