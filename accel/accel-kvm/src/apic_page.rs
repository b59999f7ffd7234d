//! The registers of a local APIC in the form that KVM gives and takes them in: its page.

use kvm_bindings::kvm_lapic_state;

/// Offsets of registers (SDM Vol. 3, table 11-1).
const SPURIOUS: usize = 0xf0;
const LVT_TIMER: usize = 0x320;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const TIMER_CURRENT: usize = 0x390;

const MASKED: u32 = 1 << 16;

/// The register at an offset.
pub fn get(page: &kvm_lapic_state, at: usize) -> u32 {
    let mut bytes = [0; 4];
    for (byte, from) in bytes.iter_mut().zip(&page.regs[at..at + 4]) {
        *byte = *from as u8;
    }
    u32::from_le_bytes(bytes)
}

/// Writes the register at an offset.
pub fn set(page: &mut kvm_lapic_state, at: usize, value: u32) {
    for (to, byte) in page.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *to = byte as std::ffi::c_char;
    }
}

/// Sets it up as firmware does: enabled, LINT0 takes the 8259 pair's interrupts at the bootstrap
/// processor, LINT1 is the NMI (SDM Vol. 3, 11.5.1). The same as `irqchip::Lapic::set_virtual_wire`.
pub fn set_virtual_wire(page: &mut kvm_lapic_state, bootstrap: bool) {
    const ENABLE: u32 = 1 << 8;
    const EXT_INT: u32 = 7 << 8;
    const NMI: u32 = 4 << 8;
    set(page, SPURIOUS, get(page, SPURIOUS) | ENABLE);
    set(page, LVT_LINT0, if bootstrap { EXT_INT } else { MASKED });
    set(page, LVT_LINT1, NMI);
}

/// What is left for the timer to count down; zero if it does not count, or to a TSC deadline.
pub fn timer_count(page: &kvm_lapic_state) -> u32 {
    const MODE: u32 = 3 << 17;
    const DEADLINE: u32 = 2 << 17;
    if get(page, LVT_TIMER) & MODE == DEADLINE { 0 } else { get(page, TIMER_CURRENT) }
}

/// Has the timer go on with that.
pub fn set_timer_count(page: &mut kvm_lapic_state, count: u32) {
    set(page, TIMER_CURRENT, count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_where_they_are() {
        let mut page = kvm_lapic_state::default();
        set_virtual_wire(&mut page, true);
        assert_eq!((get(&page, 0xf0), get(&page, 0x350), get(&page, 0x360)), (0x100, 0x700, 0x400));
        set_virtual_wire(&mut page, false);
        assert_eq!(get(&page, 0x350), MASKED);
        set_timer_count(&mut page, 0x8765_4321);
        assert_eq!(timer_count(&page), 0x8765_4321);
        set(&mut page, LVT_TIMER, 2 << 17);
        assert_eq!(timer_count(&page), 0);
    }
}
