//! FXSAVE and FXRSTOR, and the legacy region that the XSAVE family shares with them
//! (SDM Vol. 1, 10.5.1).

use iced_x86::{Instruction, Mnemonic};

use super::native::update_x87_summary;
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::Env;
use crate::exception::{Exception, Exec};
use crate::paging::Access;
use crate::state::{Cr0, Efer, VectorState, X87State};

/// Size of the legacy region.
pub(crate) const LEGACY_SIZE: usize = 512;
/// What lies in it: x87 state without MXCSR, MXCSR and its mask, the XMM registers.
pub(crate) const X87_HEAD: core::ops::Range<usize> = 0..24;
pub(crate) const MXCSR: core::ops::Range<usize> = 24..32;
pub(crate) const X87_REGISTERS: core::ops::Range<usize> = 32..160;
pub(crate) const XMM: usize = 160;

/// The handler for FXSAVE or FXRSTOR.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    match insn.mnemonic() {
        Mnemonic::Fxsave => Some(fxsave::<E, false>),
        Mnemonic::Fxsave64 => Some(fxsave::<E, true>),
        Mnemonic::Fxrstor => Some(fxrstor::<E, false>),
        Mnemonic::Fxrstor64 => Some(fxrstor::<E, true>),
        _ => None,
    }
}

fn check<E: Env>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    cpu.require_offered(op)?;
    if cpu.state.cr0.intersects(Cr0::EM | Cr0::TS) {
        return Err(cpu.raise(Exception::NM));
    }
    Ok(())
}

/// How many bytes of the area are loaded or stored: XMM8 to XMM15 only in 64-bit mode, and no
/// XMM registers for the fast form that AMD's EFER.FFXSR selects (APM Vol. 2, 3.1.7).
fn used_size<E: Env>(cpu: &Cpu<E>) -> usize {
    let is_64bit = cpu.mode.code_bits == 64;
    if is_64bit && cpu.mode.cpl == 0 && cpu.state.efer.contains(Efer::FFXSR) {
        return XMM;
    }
    XMM + 16 * xmm_count(is_64bit)
}

/// How many XMM registers the mode has.
pub(crate) fn xmm_count(is_64bit: bool) -> usize {
    if is_64bit { 16 } else { 8 }
}

fn fxsave<E: Env, const WIDE: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check(cpu, op)?;
    let linear = cpu.operand_address(op, LEGACY_SIZE, Access::Write)?;
    cpu.check_access(linear, 16, Access::Write)?;
    if linear & 15 != 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    let image = store_legacy(&cpu.state.vector, WIDE);
    let len = used_size(cpu);
    // The reserved end of the area is not written, but must be there.
    cpu.probe_write(linear, LEGACY_SIZE)?;
    cpu.write_bytes(linear, &image[..len])
}

fn fxrstor<E: Env, const WIDE: bool>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    check(cpu, op)?;
    let linear = cpu.operand_address(op, LEGACY_SIZE, Access::Read)?;
    cpu.check_access(linear, 16, Access::Read)?;
    if linear & 15 != 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    let mut image = [0; LEGACY_SIZE];
    let len = used_size(cpu);
    cpu.read_bytes(linear, &mut image)?;
    let mxcsr = mxcsr_of(&image);
    let vector = &mut cpu.state.vector;
    if mxcsr & !vector.x87.mxcsr_mask != 0 {
        return Err(cpu.raise(Exception::GP0));
    }
    vector.x87.mxcsr = mxcsr;
    load_x87(&mut vector.x87, &image, WIDE);
    load_xmm(vector, &image, (len - XMM) / 16);
    Ok(())
}

/// The legacy region for the given registers. `wide` says that instruction and operand addresses
/// have 64 bits; else they have 32 and a selector, which this processor stores as 0
/// (CPUID.7.0:EBX[13]).
pub(crate) fn store_legacy(vector: &VectorState, wide: bool) -> [u8; LEGACY_SIZE] {
    let X87State { fcw, fsw, ftw, reserved: _, fop, fip, fdp, mxcsr, mxcsr_mask, ref st } =
        vector.x87;
    let address_mask = if wide { u64::MAX } else { 0xffff_ffff };
    let mut image = [0; LEGACY_SIZE];
    image[0..2].copy_from_slice(&fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fsw.to_le_bytes());
    image[4] = ftw;
    image[6..8].copy_from_slice(&fop.to_le_bytes());
    image[8..16].copy_from_slice(&(fip & address_mask).to_le_bytes());
    image[16..24].copy_from_slice(&(fdp & address_mask).to_le_bytes());
    image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&mxcsr_mask.to_le_bytes());
    for (slot, st) in image[X87_REGISTERS].chunks_exact_mut(16).zip(st) {
        slot[..8].copy_from_slice(&st[0].to_le_bytes());
        slot[8..10].copy_from_slice(&(st[1] as u16).to_le_bytes());
    }
    for (slot, zmm) in image[XMM..].chunks_exact_mut(16).zip(&vector.zmm[..16]) {
        slot[..8].copy_from_slice(&zmm[0].to_le_bytes());
        slot[8..].copy_from_slice(&zmm[1].to_le_bytes());
    }
    image
}

/// Little-endian integers out of an image. Out of range reads as 0; no caller goes there.
pub(crate) fn qword(image: &[u8], at: usize) -> u64 {
    image.get(at..at + 8).map_or(0, |b| b.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)))
}

/// MXCSR in a legacy region.
pub(crate) fn mxcsr_of(image: &[u8; LEGACY_SIZE]) -> u32 {
    qword(image, MXCSR.start) as u32
}

/// Loads the x87 registers from a legacy region.
pub(crate) fn load_x87(x87: &mut X87State, image: &[u8; LEGACY_SIZE], wide: bool) {
    let address_mask = if wide { u64::MAX } else { 0xffff_ffff };
    let control = qword(image, 0);
    // Bit 6 always reads as one, bits 7 and 13 to 15 as zero.
    x87.fcw = control as u16 & 0x1f7f | 0x40;
    x87.fsw = (control >> 16) as u16;
    x87.ftw = (control >> 32) as u8;
    x87.fop = (control >> 48) as u16 & 0x7ff;
    x87.fip = qword(image, 8) & address_mask;
    x87.fdp = qword(image, 16) & address_mask;
    for (i, st) in x87.st.iter_mut().enumerate() {
        let at = X87_REGISTERS.start + i * 16;
        *st = [qword(image, at), qword(image, at + 8) & 0xffff];
    }
    update_x87_summary(x87);
}

/// Loads the first `count` XMM registers from a legacy region; what lies above them stays.
pub(crate) fn load_xmm(vector: &mut VectorState, image: &[u8; LEGACY_SIZE], count: usize) {
    for (i, zmm) in vector.zmm.iter_mut().take(count.min(16)).enumerate() {
        zmm[0] = qword(image, XMM + i * 16);
        zmm[1] = qword(image, XMM + i * 16 + 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded() {
        let mut vector = VectorState::default();
        vector.x87.fcw = 0x037f;
        vector.x87.fsw = 3 << 11;
        vector.x87.ftw = 0x81;
        vector.x87.fip = 0xffff_8000_1234_5678;
        vector.x87.fdp = 0x7fff_0000_0010;
        for (i, st) in vector.x87.st.iter_mut().enumerate() {
            *st = [0x8000_0000_0000_0000 | i as u64, 0x3fff + i as u64];
        }
        for (i, zmm) in vector.zmm.iter_mut().enumerate() {
            *zmm = [i as u64; 8];
        }
        let image = store_legacy(&vector, true);
        let mut loaded = VectorState::default();
        load_x87(&mut loaded.x87, &image, true);
        load_xmm(&mut loaded, &image, 16);
        assert_eq!(loaded.x87, vector.x87);
        for i in 0..16 {
            assert_eq!(loaded.zmm[i], [i as u64, i as u64, 0, 0, 0, 0, 0, 0]);
        }
        load_x87(&mut loaded.x87, &image, false);
        assert_eq!(loaded.x87.fip, 0x1234_5678);
    }

    #[test]
    fn loading_a_pending_exception_sets_the_summary() {
        let mut image = [0; LEGACY_SIZE];
        image[0..4].copy_from_slice(&[0x7e, 0x03, 0x01, 0x00]);
        let mut x87 = VectorState::default().x87;
        load_x87(&mut x87, &image, true);
        assert_eq!(x87.fsw, 0x8081);
    }
}
