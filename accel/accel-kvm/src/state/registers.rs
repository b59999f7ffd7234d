//! General-purpose, system and debug registers.

use accel::{CpuState, Fault};
use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs,
    kvm_sregs2,
};
use kvm_ioctls::{Error, VcpuFd};
use x86::state::{
    Cr0, Cr4, DescriptorTable, Efer, Rflags, SegReg, Segment, SegmentAttributes, gpr,
};

use super::{Abilities, refused};
use crate::host::failed;
use crate::sys;

pub fn load_general(vcpu: &VcpuFd, state: &mut CpuState) -> Result<(), Fault> {
    let r = vcpu.get_regs().map_err(|e| failed("cannot read a processor's registers", e))?;
    state.gpr[gpr::RAX] = r.rax;
    state.gpr[gpr::RCX] = r.rcx;
    state.gpr[gpr::RDX] = r.rdx;
    state.gpr[gpr::RBX] = r.rbx;
    state.gpr[gpr::RSP] = r.rsp;
    state.gpr[gpr::RBP] = r.rbp;
    state.gpr[gpr::RSI] = r.rsi;
    state.gpr[gpr::RDI] = r.rdi;
    state.gpr[gpr::R8..].copy_from_slice(&[r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15]);
    state.rip = r.rip;
    state.rflags = r.rflags;
    Ok(())
}

pub fn store_general(vcpu: &VcpuFd, state: &CpuState) -> Result<(), Fault> {
    let g = &state.gpr;
    let regs = kvm_regs {
        rax: g[gpr::RAX],
        rcx: g[gpr::RCX],
        rdx: g[gpr::RDX],
        rbx: g[gpr::RBX],
        rsp: g[gpr::RSP],
        rbp: g[gpr::RBP],
        rsi: g[gpr::RSI],
        rdi: g[gpr::RDI],
        r8: g[gpr::R8],
        r9: g[gpr::R9],
        r10: g[gpr::R10],
        r11: g[gpr::R11],
        r12: g[gpr::R12],
        r13: g[gpr::R13],
        r14: g[gpr::R14],
        r15: g[gpr::R15],
        rip: state.rip,
        rflags: state.rflags | Rflags::FIXED.bits(),
    };
    vcpu.set_regs(&regs).map_err(|e| refused("registers", e))
}

pub fn load_system(
    vcpu: &VcpuFd,
    abilities: &Abilities,
    state: &mut CpuState,
) -> Result<(), Fault> {
    let s = get(vcpu, abilities).map_err(|e| failed("cannot read a processor's segments", e))?;
    for (register, from) in SegReg::ALL.into_iter().zip([&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs])
    {
        state.seg[register as usize] = segment(from);
    }
    state.ldtr = segment(&s.ldt);
    state.tr = segment(&s.tr);
    state.gdtr = DescriptorTable { base: s.gdt.base, limit: s.gdt.limit };
    state.idtr = DescriptorTable { base: s.idt.base, limit: s.idt.limit };
    state.cr0 = Cr0::from_bits_retain(s.cr0);
    state.cr2 = s.cr2;
    state.cr3 = s.cr3;
    state.cr4 = Cr4::from_bits_retain(s.cr4);
    state.efer = Efer::from_bits_retain(s.efer);
    if s.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0 {
        state.pdpte = s.pdptrs;
    }
    Ok(())
}

pub fn store_system(vcpu: &VcpuFd, abilities: &Abilities, state: &CpuState) -> Result<(), Fault> {
    // What is the local APIC's (its base, CR8) stays as it is.
    let mut s =
        get(vcpu, abilities).map_err(|e| failed("cannot read a processor's segments", e))?;
    let seg = |register| kvm_segment_of(state.segment(register));
    s.es = seg(SegReg::Es);
    s.cs = seg(SegReg::Cs);
    s.ss = seg(SegReg::Ss);
    s.ds = seg(SegReg::Ds);
    s.fs = seg(SegReg::Fs);
    s.gs = seg(SegReg::Gs);
    s.ldt = kvm_segment_of(&state.ldtr);
    s.tr = kvm_segment_of(&state.tr);
    s.gdt = table(state.gdtr);
    s.idt = table(state.idtr);
    s.cr0 = state.cr0.bits();
    s.cr2 = state.cr2;
    s.cr3 = state.cr3;
    s.cr4 = state.cr4.bits();
    s.efer = state.efer.bits();
    s.flags = 0;
    if is_pae(state) {
        s.pdptrs = state.pdpte;
        s.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID.into();
    }
    // KVM keeps translations if control registers stay the same. The trait promises that they are
    // dropped, so they change for a moment: paging goes off and on.
    if state.cr0.contains(Cr0::PG) {
        let mut off = s;
        off.cr0 &= !(Cr0::PG | Cr0::WP).bits();
        off.cr4 &= !(Cr4::PCIDE | Cr4::PGE).bits();
        off.efer &= !Efer::LMA.bits();
        off.cs.l = 0;
        off.flags = 0;
        set(vcpu, abilities, &off).map_err(|e| refused("control registers", e))?;
    }
    set(vcpu, abilities, &s).map_err(|e| refused("segments and control registers", e))
}

/// IA32_APIC_BASE.
pub fn apic_base(vcpu: &VcpuFd) -> Result<u64, Fault> {
    let s = vcpu.get_sregs().map_err(|e| failed("cannot read a processor's segments", e))?;
    Ok(s.apic_base)
}

/// Sets IA32_APIC_BASE, and with it the local APIC's mode.
pub fn set_apic_base(vcpu: &VcpuFd, base: u64) -> Result<(), Fault> {
    let mut s = vcpu.get_sregs().map_err(|e| failed("cannot read a processor's segments", e))?;
    s.apic_base = base;
    s.interrupt_bitmap = [0; 4];
    vcpu.set_sregs(&s).map_err(|e| refused("local APIC's base", e))
}

/// PAE paging, which keeps the page-directory-pointer-table entries in the processor.
fn is_pae(state: &CpuState) -> bool {
    state.cr0.contains(Cr0::PG) && state.cr4.contains(Cr4::PAE) && !state.is_long_mode()
}

pub fn load_debug(vcpu: &VcpuFd, state: &mut CpuState) -> Result<(), Fault> {
    let d = vcpu
        .get_debug_regs()
        .map_err(|e| failed("cannot read a processor's debug registers", e))?;
    (state.dr, state.dr6, state.dr7) = (d.db, d.dr6, d.dr7);
    Ok(())
}

pub fn store_debug(vcpu: &VcpuFd, state: &CpuState) -> Result<(), Fault> {
    let debug =
        kvm_debugregs { db: state.dr, dr6: state.dr6, dr7: state.dr7, ..Default::default() };
    vcpu.set_debug_regs(&debug).map_err(|e| refused("debug registers", e))
}

fn get(vcpu: &VcpuFd, abilities: &Abilities) -> Result<kvm_sregs2, Error> {
    if abilities.sregs2 {
        return sys::get_sregs2(vcpu);
    }
    let s = vcpu.get_sregs()?;
    Ok(kvm_sregs2 {
        cs: s.cs,
        ds: s.ds,
        es: s.es,
        fs: s.fs,
        gs: s.gs,
        ss: s.ss,
        tr: s.tr,
        ldt: s.ldt,
        gdt: s.gdt,
        idt: s.idt,
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        flags: 0,
        pdptrs: [0; 4],
    })
}

fn set(vcpu: &VcpuFd, abilities: &Abilities, s: &kvm_sregs2) -> Result<(), Error> {
    if abilities.sregs2 {
        return sys::set_sregs2(vcpu, s);
    }
    // Without KVM_CAP_SREGS2 KVM reads the PDPTEs from memory. The bitmap names an interrupt that
    // is being delivered; none is.
    vcpu.set_sregs(&kvm_sregs {
        cs: s.cs,
        ds: s.ds,
        es: s.es,
        fs: s.fs,
        gs: s.gs,
        ss: s.ss,
        tr: s.tr,
        ldt: s.ldt,
        gdt: s.gdt,
        idt: s.idt,
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt_bitmap: [0; 4],
    })
}

fn table(table: DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

fn segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    let attributes = u32::from(s.type_ & 0xf)
        | bit(s.s, 4)
        | u32::from(s.dpl & 3) << 5
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15)
        | bit(s.unusable, 16);
    Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        attributes: SegmentAttributes(attributes),
    }
}

fn kvm_segment_of(segment: &Segment) -> kvm_segment {
    let attributes = segment.attributes;
    let bit = |at: u32| (attributes.0 >> at & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: attributes.kind() as u8,
        present: bit(7),
        dpl: attributes.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: bit(16),
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_both_ways() {
        for attributes in [
            SegmentAttributes::DATA16,
            SegmentAttributes::CODE16,
            SegmentAttributes::DATA32.with_dpl(3),
            SegmentAttributes::CODE32,
            SegmentAttributes::CODE64,
            SegmentAttributes::TSS_BUSY,
            SegmentAttributes::LDT,
            SegmentAttributes::UNUSABLE,
            SegmentAttributes(0x1_f0ff),
        ] {
            let there = Segment { selector: 0x2b, base: 0xffff_8000, limit: 0x12fff, attributes };
            assert_eq!(segment(&kvm_segment_of(&there)), there);
        }
    }
}
