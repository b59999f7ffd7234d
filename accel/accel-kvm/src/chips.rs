//! KVM's shared interrupt controllers, between its structures and those that are saved.

use accel::Fault;
use irqchip::{ChipsState, IoApicState, PicInit, PicState, PitState};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_ioapic_state,
    kvm_irqchip, kvm_pic_state,
};
use kvm_ioctls::VmFd;

use crate::host::failed;

/// Where a PC's I/O APIC lies.
const IOAPIC_BASE: u64 = 0xfec0_0000;
/// The highest inputs of each 8259 that the ELCR can make level-sensitive (ICH9 13.4.10, 13.4.11).
const ELCR_MASKS: [u8; 2] = [0xf8, 0xde];

/// Their state, with that of the PIT.
pub fn save(vm: &VmFd, pit: PitState) -> Result<ChipsState, Fault> {
    Ok(ChipsState {
        pic_master: from_pic(&get(vm, KVM_IRQCHIP_PIC_MASTER)?),
        pic_slave: from_pic(&get(vm, KVM_IRQCHIP_PIC_SLAVE)?),
        ioapic: from_ioapic(&get(vm, KVM_IRQCHIP_IOAPIC)?),
        pit,
    })
}

/// Has them take over a state. The PIT has taken over its own.
pub fn restore(vm: &VmFd, state: &ChipsState) -> Result<(), Fault> {
    // Whatever is not to be is found out by the model.
    let mut router = irqchip::Router::new();
    router.restore(&state.pic_master, &state.pic_slave, &state.ioapic);
    let (master, slave, ioapic) = router.save();
    for (id, pic, mask) in [
        (KVM_IRQCHIP_PIC_MASTER, &master, ELCR_MASKS[0]),
        (KVM_IRQCHIP_PIC_SLAVE, &slave, ELCR_MASKS[1]),
    ] {
        let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
        chip.chip.pic = to_pic(pic, mask);
        set(vm, &chip)?;
    }
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    chip.chip.ioapic = to_ioapic(&ioapic);
    set(vm, &chip)
}

fn get(vm: &VmFd, chip_id: u32) -> Result<kvm_irqchip, Fault> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    vm.get_irqchip(&mut chip).map_err(|e| failed("cannot read KVM's interrupt controllers", e))?;
    Ok(chip)
}

fn set(vm: &VmFd, chip: &kvm_irqchip) -> Result<(), Fault> {
    vm.set_irqchip(chip).map_err(|e| failed("cannot set KVM's interrupt controllers", e))
}

fn from_pic(chip: &kvm_irqchip) -> PicState {
    // SAFETY: every bit pattern is a value of the structure, which KVM was asked for.
    let s = unsafe { chip.chip.pic };
    PicState {
        lines: s.last_irr,
        elcr: s.elcr,
        edges: s.irr & !s.elcr,
        imr: s.imr,
        isr: s.isr,
        // KVM counts what comes next; a chip that was never initialised has no vectors.
        init: match s.init_state {
            1 => PicInit::Icw2,
            2 => PicInit::Icw3,
            3 => PicInit::Icw4,
            _ if s.irq_base == 0 => PicInit::Never,
            _ => PicInit::Done,
        },
        wants_icw4: s.init4 != 0,
        single: false,
        vector_base: s.irq_base,
        auto_eoi: s.auto_eoi != 0,
        special_fully_nested: s.special_fully_nested_mode != 0,
        highest: s.priority_add & 7,
        rotate_on_auto_eoi: s.rotate_on_auto_eoi != 0,
        special_mask: s.special_mask != 0,
        read_isr: s.read_reg_select != 0,
        poll: s.poll != 0,
    }
}

fn to_pic(s: &PicState, elcr_mask: u8) -> kvm_pic_state {
    kvm_pic_state {
        last_irr: s.lines,
        irr: s.edges | s.lines & s.elcr,
        imr: s.imr,
        isr: s.isr,
        priority_add: s.highest,
        irq_base: s.vector_base,
        read_reg_select: s.read_isr.into(),
        poll: s.poll.into(),
        special_mask: s.special_mask.into(),
        init_state: match s.init {
            PicInit::Never | PicInit::Done => 0,
            PicInit::Icw2 => 1,
            PicInit::Icw3 => 2,
            PicInit::Icw4 => 3,
        },
        auto_eoi: s.auto_eoi.into(),
        rotate_on_auto_eoi: s.rotate_on_auto_eoi.into(),
        special_fully_nested_mode: s.special_fully_nested.into(),
        init4: s.wants_icw4.into(),
        elcr: s.elcr,
        elcr_mask,
    }
}

fn from_ioapic(chip: &kvm_irqchip) -> IoApicState {
    // SAFETY: as in `from_pic`.
    let s = unsafe { chip.chip.ioapic };
    // SAFETY: an entry is its bits in either form.
    let table = s.redirtbl.map(|entry| unsafe { entry.bits });
    IoApicState { pins: s.irr, select: s.ioregsel as u8, id: s.id as u8, table }
}

fn to_ioapic(s: &IoApicState) -> kvm_ioapic_state {
    let mut state = kvm_ioapic_state {
        base_address: IOAPIC_BASE,
        ioregsel: s.select.into(),
        id: s.id.into(),
        irr: s.pins,
        ..Default::default()
    };
    for (entry, bits) in state.redirtbl.iter_mut().zip(s.table) {
        entry.bits = bits;
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_come_back_as_they_went() {
        let pic = PicState {
            lines: 0x12,
            elcr: 0x20,
            edges: 0x12,
            imr: 0xfb,
            init: PicInit::Done,
            wants_icw4: true,
            vector_base: 0x30,
            highest: 3,
            read_isr: true,
            ..PicState::default()
        };
        let mut chip = kvm_irqchip::default();
        chip.chip.pic = to_pic(&pic, ELCR_MASKS[0]);
        assert_eq!(from_pic(&chip), pic);
        let mut table = [0x1_0000; 24];
        table[20] = 0x0300_0000_0000_a050;
        let ioapic = IoApicState { pins: 1 << 20, select: 0x11, id: 2, table };
        chip.chip.ioapic = to_ioapic(&ioapic);
        assert_eq!(from_ioapic(&chip), ioapic);
    }
}
