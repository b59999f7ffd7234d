//! x87, vector and mask registers, and XCR0.
//!
//! KVM gives them in the standard format of XSAVE (SDM Vol. 1, 13.4), in which each component lies
//! where the host's CPUID says.

use std::arch::x86_64::__cpuid_count;

use accel::{CpuState, Fault};
use kvm_bindings::{kvm_xcrs, kvm_xsave};
use kvm_ioctls::VcpuFd;
use x86::state::VectorState;

use super::{Abilities, refused};
use crate::host::failed;

/// Bits of XCR0.
const SSE: u32 = 1;
const AVX: u32 = 2;
const OPMASK: u32 = 5;
const ZMM_HI256: u32 = 6;
const HI16_ZMM: u32 = 7;

/// Offsets in the area.
const XMM: usize = 160;
const XSTATE_BV: usize = 512;
const LEGACY_END: usize = 576;

/// The area, as bytes.
struct Area(Vec<u8>);

impl Area {
    fn new() -> Self {
        Self(vec![0; size_of::<[u32; 1024]>()])
    }

    fn of(xsave: &kvm_xsave) -> Self {
        Self(xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    fn xsave(&self) -> kvm_xsave {
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(self.0.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        xsave
    }

    fn u64(&self, at: usize) -> u64 {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |c| u64::from_le_bytes(*c))
    }

    fn set_u64(&mut self, at: usize, value: u64) {
        if let Some(chunk) = self.0.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
            *chunk = value.to_le_bytes();
        }
    }
}

/// Where a component lies in the standard format, on this host.
fn offset(component: u32) -> usize {
    __cpuid_count(0xd, component).ebx as usize
}

/// Each 64-bit word of the registers other than x87's: its place in the area, the component that it
/// belongs to, and the word itself.
fn words(vector: &mut VectorState) -> Vec<(usize, u32, &mut u64)> {
    let (avx, opmask, hi256, hi16) =
        (offset(AVX), offset(OPMASK), offset(ZMM_HI256), offset(HI16_ZMM));
    let mut list = Vec::with_capacity(32 * 8 + 8);
    for (number, register) in vector.zmm.iter_mut().enumerate() {
        for (word, value) in register.iter_mut().enumerate() {
            let (at, component) = match (number, word) {
                (16.., _) => (hi16 + (number - 16) * 64 + word * 8, HI16_ZMM),
                (_, 0 | 1) => (XMM + number * 16 + word * 8, SSE),
                (_, 2 | 3) => (avx + number * 16 + (word - 2) * 8, AVX),
                _ => (hi256 + number * 32 + (word - 4) * 8, ZMM_HI256),
            };
            list.push((at, component, value));
        }
    }
    list.extend(vector.k.iter_mut().enumerate().map(|(i, k)| (opmask + i * 8, OPMASK, k)));
    list
}

pub fn load(vcpu: &VcpuFd, abilities: &Abilities, state: &mut CpuState) -> Result<(), Fault> {
    let xsave =
        vcpu.get_xsave().map_err(|e| failed("cannot read a processor's vector registers", e))?;
    let area = Area::of(&xsave);
    from_area(&area, abilities.components, &mut state.vector);
    state.xcr0 = 1;
    if abilities.xsave {
        let xcrs = vcpu.get_xcrs().map_err(|e| failed("cannot read a processor's XCR0", e))?;
        let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
        if let Some(xcr0) = xcrs.xcrs[..count].iter().find(|xcr| xcr.xcr == 0) {
            state.xcr0 = xcr0.value;
        }
    }
    Ok(())
}

fn from_area(area: &Area, components: u64, vector: &mut VectorState) {
    // Components that are in their initial state need not be written by XSAVE, so they are zero
    // whatever the area has. (For x87 and SSE, KVM writes them always.)
    let present = (area.u64(XSTATE_BV) | 3) & (components | 3);
    for (at, component, value) in words(vector) {
        *value = if present >> component & 1 != 0 { area.u64(at) } else { 0 };
    }
    let x87 = &mut vector.x87;
    let head = area.u64(0);
    x87.fcw = head as u16;
    x87.fsw = (head >> 16) as u16;
    x87.ftw = (head >> 32) as u8;
    x87.fop = (head >> 48) as u16;
    x87.fip = area.u64(8);
    x87.fdp = area.u64(16);
    x87.mxcsr = area.u64(24) as u32;
    x87.mxcsr_mask = (area.u64(24) >> 32) as u32;
    for (i, st) in x87.st.iter_mut().enumerate() {
        *st = [area.u64(32 + i * 16), area.u64(40 + i * 16) & 0xffff];
    }
}

fn to_area(vector: &VectorState, components: u64) -> Area {
    let mut area = Area::new();
    let mut vector = vector.clone();
    for (at, component, value) in words(&mut vector) {
        if (components | 3) >> component & 1 != 0 {
            area.set_u64(at, *value);
        }
    }
    let x87 = &vector.x87;
    area.set_u64(
        0,
        u64::from(x87.fcw)
            | u64::from(x87.fsw) << 16
            | u64::from(x87.ftw) << 32
            | u64::from(x87.fop) << 48,
    );
    area.set_u64(8, x87.fip);
    area.set_u64(16, x87.fdp);
    area.set_u64(24, u64::from(x87.mxcsr) | u64::from(x87.mxcsr_mask) << 32);
    for (i, st) in x87.st.iter().enumerate() {
        area.set_u64(32 + i * 16, st[0]);
        area.set_u64(40 + i * 16, st[1]);
    }
    area.set_u64(XSTATE_BV, components | 3);
    debug_assert!(area.0.len() >= LEGACY_END);
    area
}

pub fn store(vcpu: &VcpuFd, abilities: &Abilities, state: &CpuState) -> Result<(), Fault> {
    let components = abilities.components | 3;
    let mut vector = state.vector.clone();
    if words(&mut vector).iter().any(|(_, c, value)| components >> c & 1 == 0 && **value != 0)
        || state.xcr0 & !components != 0
    {
        return Err(Fault::Unsupported(
            "a processor was given vector registers that this host's KVM offers to no guest: \
             restore it where its processor model is to be had"
                .to_owned(),
        ));
    }
    if abilities.xsave {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0].value = state.xcr0;
        vcpu.set_xcrs(&xcrs).map_err(|e| refused("XCR0", e))?;
    }
    let xsave = to_area(&state.vector, components).xsave();
    // SAFETY: 4096 bytes are enough, because this program never asks for components that are
    // switched on at run time (arch_prctl, ARCH_REQ_XCOMP_GUEST_PERM).
    unsafe { vcpu.set_xsave(&xsave) }.map_err(|e| refused("vector registers", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_both_ways() {
        // What this host has is what it can place.
        let host = u64::from(__cpuid_count(0xd, 0).eax) & 0xe7 | 3;
        let mut there = VectorState::default();
        for (i, (_, component, value)) in words(&mut there).into_iter().enumerate() {
            if host >> component & 1 != 0 {
                *value = 0x0101_0101_0101_0101u64.wrapping_mul(i as u64 + 1);
            }
        }
        there.x87.fcw = 0x27f;
        there.x87.fsw = 0x3800;
        there.x87.ftw = 0x81;
        there.x87.fop = 0x123;
        there.x87.fip = 0x1234_5678_9abc;
        there.x87.fdp = 0xfedc_ba98;
        there.x87.mxcsr = 0x1fa0;
        there.x87.st[7] = [u64::MAX, 0x7fff];
        let mut back = VectorState::default();
        from_area(&to_area(&there, host), host, &mut back);
        assert!(back == there);
    }

    #[test]
    fn components_in_their_initial_state_are_zero() {
        let mut full = VectorState::default();
        full.zmm[3] = [7; 8];
        let mut area = to_area(&full, 7);
        area.set_u64(XSTATE_BV, 3);
        let mut back = VectorState::default();
        back.zmm[3] = [9; 8];
        from_area(&area, 7, &mut back);
        assert_eq!(back.zmm[3], [7, 7, 0, 0, 0, 0, 0, 0]);
    }
}
