extern crate std;

use super::regs::*;
use super::*;
use crate::message::{DeliveryMode, Destination, Trigger};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

const T0: Now = Now { ns: 0, tsc: 0 };

fn at(ns: u64) -> Now {
    Now { ns, tsc: ns }
}

fn config(id: u32) -> LapicConfig {
    LapicConfig {
        id,
        bootstrap: id == 0,
        x2apic: true,
        tsc_deadline: true,
        physical_address_bits: 40,
    }
}

fn read(lapic: &mut Lapic, register: u8, now: Now) -> u32 {
    let mut data = [0; 4];
    lapic.mmio_read(u64::from(register) << 4, &mut data, now);
    u32::from_le_bytes(data)
}

fn write(lapic: &mut Lapic, register: u8, value: u32, now: Now) -> Effects {
    lapic.mmio_write(u64::from(register) << 4, &value.to_le_bytes(), now)
}

fn set(lapic: &mut Lapic, register: u8, value: u32) {
    let _ = write(lapic, register, value, T0);
}

/// In xAPIC mode, enabled by software.
fn xapic(id: u32) -> Lapic {
    let mut lapic = Lapic::new(config(id));
    set(&mut lapic, SVR, 0x1ff);
    lapic
}

/// In x2APIC mode, enabled by software.
fn x2apic(id: u32) -> Lapic {
    let mut lapic = xapic(id);
    let base = lapic.read_msr(MSR_APIC_BASE, T0).unwrap();
    let _ = lapic.write_msr(MSR_APIC_BASE, base | BASE_X2APIC, T0).unwrap();
    lapic
}

fn wrmsr(lapic: &mut Lapic, register: u8, value: u64) -> Result<Effects, GeneralProtection> {
    lapic.write_msr(MSR_X2APIC_FIRST + u32::from(register), value, T0)
}

fn fixed(vector: u8, trigger: Trigger) -> Message {
    Message { destination: Destination::All, delivery: DeliveryMode::Fixed, vector, trigger }
}

fn signal(delivery: DeliveryMode, vector: u8) -> Message {
    Message { destination: Destination::All, delivery, vector, trigger: Trigger::Edge }
}

// State after reset.

#[test]
fn registers_after_power_up() {
    let mut lapic = Lapic::new(config(3));
    let values = [
        (ID, 0x0300_0000),
        (VERSION, 0x0105_0014),
        (TPR, 0),
        (PPR, 0),
        (LDR, 0),
        (DFR, 0xffff_ffff),
        (SVR, 0xff),
        (ESR, 0),
        (ICR, 0),
        (ICR_HIGH, 0),
        (LVT_TIMER, LVT_MASKED),
        (LVT_THERMAL, LVT_MASKED),
        (LVT_PERF, LVT_MASKED),
        (LVT_LINT0, LVT_MASKED),
        (LVT_LINT1, LVT_MASKED),
        (LVT_ERROR, LVT_MASKED),
        (INITIAL_COUNT, 0),
        (CURRENT_COUNT, 0),
        (DIVIDE, 0),
    ];
    for (register, value) in values {
        assert_eq!(read(&mut lapic, register, T0), value, "register {register:#x}");
    }
    for register in ISR..=IRR_LAST {
        assert_eq!(read(&mut lapic, register, T0), 0);
    }
    assert_eq!(lapic.read_msr(MSR_APIC_BASE, T0), Ok(0xfee0_0800));
    assert_eq!(Lapic::new(config(0)).read_msr(MSR_APIC_BASE, T0), Ok(0xfee0_0900));
    assert_eq!(lapic.mmio_base(), Some(0xfee0_0000));
    assert_eq!(lapic.attention(), Attention::empty());
}

#[test]
fn init_resets_registers_and_keeps_identity_and_mode() {
    let mut lapic = x2apic(1);
    let _ = wrmsr(&mut lapic, TPR, 0x40).unwrap();
    let _ = wrmsr(&mut lapic, LVT_TIMER, 0x41).unwrap();
    let _ = wrmsr(&mut lapic, INITIAL_COUNT, 1000).unwrap();
    assert!(lapic.deliver(&fixed(0x51, Trigger::Edge)));
    assert!(lapic.deliver(&signal(DeliveryMode::Init, 0)));
    assert!(lapic.attention().contains(Attention::INIT));
    assert!(lapic.take_init());
    assert!(!lapic.take_init());
    let mut fresh = Lapic::new(config(1));
    fresh.base |= BASE_X2APIC;
    assert_eq!(lapic, fresh);
    lapic.reset();
    assert_eq!(lapic, Lapic::new(config(1)));
}

#[test]
fn virtual_wire() {
    let mut lapic = Lapic::new(config(0));
    lapic.set_lint(Lint::Lint0, true);
    assert_eq!(lapic.attention(), Attention::empty());
    lapic.set_virtual_wire();
    assert_eq!(lapic.attention(), Attention::EXT_INT);
    assert!(lapic.take_ext_int());
    lapic.set_lint(Lint::Lint0, false);
    assert!(!lapic.take_ext_int());
    lapic.set_lint(Lint::Lint1, true);
    assert!(lapic.take_nmi());

    let mut other = Lapic::new(config(1));
    other.set_virtual_wire();
    other.set_lint(Lint::Lint0, true);
    assert_eq!(other.attention(), Attention::empty());
}

// IA32_APIC_BASE.

#[test]
fn mode_transitions_of_figure_11_27() {
    let disabled = BASE_DEFAULT;
    let xapic = BASE_DEFAULT | BASE_ENABLE;
    let x2apic = xapic | BASE_X2APIC;
    let invalid = BASE_DEFAULT | BASE_X2APIC;
    let path = |modes: &[u64]| {
        let mut lapic = Lapic::new(config(1));
        modes.iter().map(|&mode| lapic.write_msr(MSR_APIC_BASE, mode, T0).is_ok()).last().unwrap()
    };
    assert!(path(&[disabled]));
    assert!(path(&[x2apic]));
    assert!(!path(&[invalid]));
    assert!(path(&[disabled, xapic]));
    assert!(!path(&[disabled, x2apic]));
    assert!(!path(&[disabled, invalid]));
    assert!(path(&[x2apic, disabled]));
    assert!(!path(&[x2apic, xapic]));
    assert!(!path(&[x2apic, invalid]));
    assert!(path(&[x2apic, disabled, xapic, x2apic]));
}

#[test]
fn reserved_bits_of_the_base() {
    let mut lapic = Lapic::new(config(1));
    assert!(lapic.write_msr(MSR_APIC_BASE, 0xfee0_0800 | 1 << 40, T0).is_err());
    assert!(lapic.write_msr(MSR_APIC_BASE, 0xfee0_0801, T0).is_err());
    let _ = lapic.write_msr(MSR_APIC_BASE, 0xff_dead_0900, T0).unwrap();
    assert_eq!(lapic.read_msr(MSR_APIC_BASE, T0), Ok(0xff_dead_0800), "no second bootstrap");
    assert_eq!(lapic.mmio_base(), Some(0xff_dead_0000));

    let mut old = Lapic::new(LapicConfig { x2apic: false, tsc_deadline: false, ..config(1) });
    assert!(old.write_msr(MSR_APIC_BASE, 0xfee0_0c00, T0).is_err());
    assert!(old.write_msr(MSR_TSC_DEADLINE, 1, T0).is_err());
    assert!(old.read_msr(MSR_TSC_DEADLINE, T0).is_err());
    set(&mut old, SVR, 0x1ff);
    set(&mut old, LVT_TIMER, 0x4_0041);
    assert_eq!(read(&mut old, LVT_TIMER, T0), 0x41);
}

#[test]
fn disabled_in_hardware_it_is_a_processor_without_apic() {
    let mut lapic = xapic(0);
    lapic.deliver(&fixed(0x41, Trigger::Edge));
    let _ = lapic.write_msr(MSR_APIC_BASE, BASE_DEFAULT, T0).unwrap();
    assert_eq!(lapic.mmio_base(), None);
    assert_eq!(lapic.attention(), Attention::empty());
    for delivery in [DeliveryMode::Fixed, DeliveryMode::Nmi, DeliveryMode::Init] {
        assert!(!lapic.accepts(&signal(delivery, 0x41)));
    }
    lapic.set_lint(Lint::Lint0, true);
    lapic.set_lint(Lint::Lint1, true);
    assert_eq!(lapic.attention(), Attention::EXT_INT | Attention::NMI);
}

#[test]
fn x2apic_mode_hides_the_page_and_xapic_mode_the_msrs() {
    assert!(xapic(0).read_msr(MSR_X2APIC_FIRST + u32::from(ID), T0).is_err());
    let mut lapic = x2apic(0x1_0023);
    assert_eq!(lapic.mmio_base(), None);
    let read = |lapic: &Lapic, register: u8| lapic.read_msr(0x800 + u32::from(register), T0);
    assert_eq!(read(&lapic, ID), Ok(0x1_0023));
    assert_eq!(read(&lapic, LDR), Ok(0x1002_0008));
    assert_eq!(read(&lapic, SVR), Ok(0x1ff), "the switch keeps registers");
    for register in [0, APR, RRD, EOI, DFR, 0x2f, ICR_HIGH, SELF_IPI, 0x40, 0xff] {
        assert_eq!(read(&lapic, register), Err(GeneralProtection), "register {register:#x}");
    }
    for (register, value) in [
        (ID, 0),
        (VERSION, 0),
        (PPR, 0),
        (LDR, 0),
        (DFR, 0),
        (ISR, 0),
        (CURRENT_COUNT, 0),
        (TPR, 0x100),
        (EOI, 1),
        (ESR, 1),
        (SVR, 1 << 10),
        (LVT_TIMER, 1 << 8),
        (LVT_ERROR, 1 << 13),
        (LVT_PERF, 1 << 15),
        (LVT_LINT0, 1 << 17),
        (DIVIDE, 4),
        (SELF_IPI, 0x100),
        (INITIAL_COUNT, 1 << 32),
        (ICR, 1 << 13),
        (ICR, 1 << 20),
    ] {
        assert_eq!(wrmsr(&mut lapic, register, value), Err(GeneralProtection), "{register:#x}");
    }
    for register in [LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR] {
        let value = read(&lapic, register).unwrap();
        assert!(wrmsr(&mut lapic, register, value).is_ok());
    }
}

// The page.

#[test]
fn odd_accesses_to_the_page() {
    let mut lapic = xapic(5);
    let mut byte = [0];
    lapic.mmio_read(0x23, &mut byte, T0);
    assert_eq!(byte, [5]);
    let mut wide = [0xff; 8];
    lapic.mmio_read(0x30, &mut wide, T0);
    assert_eq!(wide, [0x14, 0, 5, 1, 0, 0, 0, 0]);
    let _ = lapic.mmio_write(0x80, &[0x40], T0);
    let _ = lapic.mmio_write(0x81, &[0x40, 0, 0, 0], T0);
    assert_eq!(read(&mut lapic, TPR, T0), 0);
    let _ = lapic.mmio_write(0x80, &[0x40, 0, 0, 0, 1, 2, 3, 4], T0);
    assert_eq!(read(&mut lapic, TPR, T0), 0x40);
}

#[test]
fn read_only_registers_stay() {
    let mut lapic = xapic(1);
    let before = lapic.clone();
    for register in [ID, VERSION, APR, PPR, RRD, ISR, TMR, IRR, IRR_LAST, CURRENT_COUNT] {
        set(&mut lapic, register, 0xffff_ffff);
    }
    assert_eq!(lapic, before);
}

// Priorities.

#[test]
fn interrupts_nest_by_class() {
    let mut lapic = xapic(0);
    assert!(lapic.deliver(&fixed(0x41, Trigger::Edge)));
    assert!(!lapic.deliver(&fixed(0x41, Trigger::Edge)), "merged");
    assert_eq!(lapic.attention(), Attention::INTERRUPT);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    assert!(lapic.deliver(&fixed(0x41, Trigger::Edge)), "one in service, one pending");
    assert!(lapic.deliver(&fixed(0x4f, Trigger::Edge)));
    assert_eq!(lapic.acknowledge(), None, "same class");
    assert!(lapic.deliver(&fixed(0x50, Trigger::Edge)));
    assert_eq!(lapic.acknowledge(), Some(0x50));
    assert_eq!(lapic.ppr(), 0x50);
    set(&mut lapic, EOI, 0);
    assert_eq!(lapic.ppr(), 0x40);
    assert_eq!(lapic.pending(), None);
    set(&mut lapic, EOI, 0);
    assert_eq!(lapic.acknowledge(), Some(0x4f));
    set(&mut lapic, EOI, 0);
    assert_eq!(lapic.acknowledge(), Some(0x41));
}

#[test]
fn task_priority_and_cr8() {
    let mut lapic = xapic(0);
    lapic.deliver(&fixed(0x41, Trigger::Edge));
    lapic.set_cr8(4);
    assert_eq!(lapic.attention(), Attention::empty());
    assert_eq!(read(&mut lapic, TPR, T0), 0x40);
    set(&mut lapic, TPR, 0x3f);
    assert_eq!(lapic.cr8(), 3);
    assert_eq!(lapic.ppr(), 0x3f);
    assert_eq!(lapic.pending(), Some(0x41));
}

#[test]
fn level_interrupts_broadcast_their_end() {
    let mut lapic = xapic(0);
    lapic.deliver(&fixed(0x41, Trigger::Level));
    lapic.deliver(&fixed(0x61, Trigger::Edge));
    assert_eq!(read(&mut lapic, TMR + 2, T0), 1 << 1);
    assert_eq!(lapic.acknowledge(), Some(0x61));
    assert_eq!(write(&mut lapic, EOI, 0, T0).eoi, None);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    assert_eq!(write(&mut lapic, EOI, 0, T0).eoi, Some(0x41));
    assert_eq!(write(&mut lapic, EOI, 0, T0), Effects::default());

    set(&mut lapic, SVR, 0x1ff | SVR_SUPPRESS_EOI);
    lapic.deliver(&fixed(0x41, Trigger::Level));
    lapic.acknowledge();
    assert_eq!(write(&mut lapic, EOI, 0, T0).eoi, None);
}

#[test]
fn disabled_by_software_it_holds_what_it_has_and_takes_signals_only() {
    let mut lapic = xapic(0);
    set(&mut lapic, LVT_LINT0, 0x700);
    lapic.deliver(&fixed(0x41, Trigger::Edge));
    set(&mut lapic, SVR, 0xff);
    assert_eq!(lapic.pending(), Some(0x41));
    assert!(!lapic.accepts(&fixed(0x51, Trigger::Edge)));
    assert!(!lapic.deliver(&fixed(0x51, Trigger::Edge)));
    assert_eq!(read(&mut lapic, LVT_LINT0, T0), 0x700 | LVT_MASKED);
    set(&mut lapic, LVT_LINT0, 0x700);
    assert_eq!(read(&mut lapic, LVT_LINT0, T0), 0x700 | LVT_MASKED, "cannot be unmasked");
    assert!(lapic.accepts(&signal(DeliveryMode::Nmi, 0)));
    assert!(lapic.deliver(&signal(DeliveryMode::Nmi, 0)));
}

proptest! {
    /// The vectors agree with sets, whatever happens in whatever order.
    #[test]
    fn agrees_with_a_naive_controller(ops in prop::collection::vec((0u8..4, 16u8.., any::<bool>()), 0..200)) {
        let mut lapic = xapic(0);
        let (mut irr, mut isr, mut tmr) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut tpr = 0u8;
        for (op, vector, level) in ops {
            match op {
                0 => {
                    let trigger = if level { Trigger::Level } else { Trigger::Edge };
                    prop_assert_eq!(lapic.deliver(&fixed(vector, trigger)), irr.insert(vector));
                    if level { tmr.insert(vector); } else { tmr.remove(&vector); }
                }
                1 => {
                    let class = isr.last().copied().unwrap_or(0u8).max(tpr) >> 4;
                    let expected = irr.last().copied().filter(|vector| vector >> 4 > class);
                    prop_assert_eq!(lapic.acknowledge(), expected);
                    if let Some(vector) = expected {
                        irr.remove(&vector);
                        isr.insert(vector);
                    }
                }
                2 => {
                    let ended = isr.pop_last();
                    let expected = ended.filter(|vector| tmr.contains(vector));
                    prop_assert_eq!(lapic.eoi().eoi, expected);
                }
                _ => { tpr = vector; set(&mut lapic, TPR, tpr.into()); }
            }
            let waits = lapic.attention().contains(Attention::INTERRUPT);
            prop_assert_eq!(waits, lapic.clone().acknowledge().is_some());
            for i in 0..8 {
                let bits = |set: &BTreeSet<u8>| set.iter().filter(|&v| v / 32 == i)
                    .fold(0u32, |bits, v| bits | 1 << (v % 32));
                prop_assert_eq!(read(&mut lapic, IRR + i, T0), bits(&irr));
                prop_assert_eq!(read(&mut lapic, ISR + i, T0), bits(&isr));
                prop_assert_eq!(read(&mut lapic, TMR + i, T0), bits(&tmr));
            }
        }
    }

    #[test]
    fn hostile_accesses_do_no_harm(
        ops: Vec<(u8, u64, u64, u64)>,
        messages: Vec<(u8, u32, u8)>,
    ) {
        let mut lapic = Lapic::new(config(0));
        for (op, address, value, now) in ops {
            let now = at(now);
            match op % 6 {
                0 => { let _ = lapic.mmio_write(address & 0xff0, &value.to_le_bytes(), now); }
                1 => lapic.mmio_read(address, &mut [0; 8], now),
                2 => { let _ = lapic.write_msr(0x800 + (address & 0x3f) as u32, value, now); }
                3 => { let _ = lapic.read_msr(0x800 + (address & 0x3f) as u32, now); }
                4 => { let _ = lapic.write_msr(MSR_APIC_BASE, BASE_DEFAULT | value & 0xd00, now); }
                _ => lapic.timer_expired(now),
            }
            lapic.next_deadline();
            lapic.attention();
        }
        for (bits, destination, vector) in messages {
            let Some(delivery) = DeliveryMode::from_bits(bits.into()) else { continue };
            let destination = Destination::Logical(destination);
            let message = Message { destination, delivery, vector, trigger: Trigger::Level };
            if lapic.accepts(&message) {
                lapic.deliver(&message);
            }
        }
    }
}

// Messages.

fn to(destination: Destination) -> Message {
    Message { destination, ..fixed(0x41, Trigger::Edge) }
}

#[test]
fn physical_destinations() {
    for lapic in [xapic(3), x2apic(3)] {
        assert!(lapic.accepts(&to(Destination::Physical(3))));
        assert!(!lapic.accepts(&to(Destination::Physical(4))));
        assert!(lapic.accepts(&to(Destination::All)));
        assert!(lapic.accepts(&to(Destination::AllExcept(4))));
        assert!(!lapic.accepts(&to(Destination::AllExcept(3))));
    }
}

#[test]
fn logical_destinations() {
    let mut flat = xapic(1);
    set(&mut flat, LDR, 0x0200_0000);
    assert!(flat.accepts(&to(Destination::Logical(0x06))));
    assert!(!flat.accepts(&to(Destination::Logical(0x05))));
    assert!(!flat.accepts(&to(Destination::Logical(0x102))));

    let mut cluster = xapic(1);
    set(&mut cluster, DFR, 0x0fff_ffff);
    set(&mut cluster, LDR, 0x3200_0000);
    assert!(cluster.accepts(&to(Destination::Logical(0x36))));
    assert!(!cluster.accepts(&to(Destination::Logical(0x35))));
    assert!(!cluster.accepts(&to(Destination::Logical(0x26))));
    assert_eq!(read(&mut cluster, DFR, T0), 0x0fff_ffff);

    let wide = x2apic(0x25);
    assert!(wide.accepts(&to(Destination::Logical(0x0002_0021))));
    assert!(!wide.accepts(&to(Destination::Logical(0x0002_0010))));
    assert!(!wide.accepts(&to(Destination::Logical(0x0001_0020))));
}

proptest! {
    /// A processor can be reached under the logical ID that it reads.
    #[test]
    fn the_logical_x2apic_id_reaches_its_owner_alone(id in 0u32..1 << 16, other in 0u32..1 << 16) {
        let ldr = x2apic(id).read_msr(0x80d, T0).unwrap() as u32;
        prop_assert!(x2apic(id).accepts(&to(Destination::Logical(ldr))));
        prop_assert_eq!(x2apic(other).accepts(&to(Destination::Logical(ldr))), id == other);
    }
}

#[test]
fn ipis_of_xapic_mode() {
    let mut lapic = xapic(1);
    set(&mut lapic, ICR_HIGH, 0x0200_0000);
    let message = write(&mut lapic, ICR, 0x4041, T0).message.unwrap();
    assert_eq!(message, to(Destination::Physical(2)));
    assert_eq!(read(&mut lapic, ICR, T0), 0x4041);
    assert_eq!(read(&mut lapic, ICR_HIGH, T0), 0x0200_0000);
    let mut send = |value| write(&mut lapic, ICR, value, T0).message;
    assert_eq!(send(0x4841).unwrap().destination, Destination::Logical(2));
    assert_eq!(send(0x4941).unwrap().delivery, DeliveryMode::LowestPriority);
    assert_eq!(send(0x8_4041).unwrap().destination, Destination::All);
    assert_eq!(send(0xc_4041).unwrap().destination, Destination::AllExcept(1));
    assert_eq!(send(0x4400).unwrap().delivery, DeliveryMode::Nmi);
    assert_eq!(send(0x4_4041), None, "to itself, at once");
    assert_eq!(lapic.acknowledge(), Some(0x41));
    set(&mut lapic, ICR_HIGH, 0xff00_0000);
    for mode in [0x4041, 0x4841] {
        let message = write(&mut lapic, ICR, mode, T0).message.unwrap();
        assert_eq!(message.destination, Destination::All);
    }
}

#[test]
fn ipis_of_x2apic_mode() {
    let mut lapic = x2apic(1);
    let mut send = |value| wrmsr(&mut lapic, ICR, value).unwrap().message;
    assert_eq!(send(0xff_0000_0041), Some(to(Destination::Physical(0xff))));
    assert_eq!(send(0x1_0003_0000_0841), Some(to(Destination::Logical(0x1_0003))));
    assert_eq!(send(0xffff_ffff_0000_0041), Some(to(Destination::All)));
    assert_eq!(send(0xffff_ffff_0000_0841), Some(to(Destination::All)));
    assert_eq!(lapic.read_msr(0x830, T0), Ok(0xffff_ffff_0000_0841));
    assert_eq!(wrmsr(&mut lapic, SELF_IPI, 0x55), Ok(Effects::default()));
    assert_eq!(lapic.acknowledge(), Some(0x55));
}

#[test]
fn starting_another_processor() {
    let (mut bsp, mut ap) = (xapic(0), Lapic::new(config(1)));
    assert!(ap.is_waiting());
    set(&mut bsp, ICR_HIGH, 0x0100_0000);
    let mut send = |value: u32, ap: &mut Lapic| match write(&mut bsp, ICR, value, T0).message {
        Some(message) if ap.accepts(&message) => ap.deliver(&message),
        _ => false,
    };
    assert!(send(0xc500, &mut ap));
    assert!(!send(0x8500, &mut ap), "de-assert means nothing");
    assert!(send(0x4609, &mut ap));
    assert!(!send(0x460a, &mut ap), "the second start-up IPI comes too late");
    assert_eq!(ap.attention(), Attention::INIT | Attention::STARTUP);
    assert!(ap.take_init());
    assert!(!ap.is_waiting());
    assert_eq!(ap.take_startup(), Some(9));
    assert!(!send(0x4609, &mut ap));
    assert_eq!(ap.take_startup(), None);
    // Once more: an INIT forgets a start-up IPI that was not taken.
    assert!(send(0xc500, &mut ap) && send(0x4609, &mut ap) && send(0xc500, &mut ap));
    assert!(ap.take_init());
    assert_eq!(ap.take_startup(), None);
    assert!(ap.is_waiting());
}

#[test]
fn the_bootstrap_processor_does_not_wait() {
    let mut lapic = xapic(0);
    lapic.deliver(&signal(DeliveryMode::Init, 0));
    assert!(lapic.take_init());
    assert!(!lapic.is_waiting());
    assert!(!lapic.deliver(&signal(DeliveryMode::StartUp, 9)));
}

#[test]
fn no_processor_inits_or_starts_itself_by_shorthand() {
    let mut lapic = xapic(1);
    for value in [0x4_c500, 0x8_c500, 0x4_4609, 0x8_4609, 0x4700, 0x4300] {
        assert_eq!(write(&mut lapic, ICR, value, T0).message, None, "{value:#x}");
    }
    assert_eq!(lapic.attention(), Attention::empty());
}

// Local vector table.

#[test]
fn edge_and_level_pins() {
    let mut lapic = xapic(0);
    set(&mut lapic, LVT_LINT1, 0x41);
    lapic.set_lint(Lint::Lint1, true);
    lapic.set_lint(Lint::Lint1, true);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    assert_eq!(lapic.eoi().eoi, None);
    assert_eq!(lapic.acknowledge(), None);

    set(&mut lapic, LVT_LINT0, 0x51 | LVT_LEVEL);
    lapic.set_lint(Lint::Lint0, true);
    assert_eq!(read(&mut lapic, LVT_LINT0, T0), 0x51 | LVT_LEVEL | LVT_REMOTE_IRR);
    assert_eq!(lapic.acknowledge(), Some(0x51));
    assert_eq!(lapic.pending(), None);
    let _ = lapic.eoi();
    assert_eq!(lapic.acknowledge(), Some(0x51), "still asserted");
    lapic.set_lint(Lint::Lint0, false);
    let _ = lapic.eoi();
    assert_eq!(lapic.acknowledge(), None);
    assert_eq!(read(&mut lapic, LVT_LINT0, T0), 0x51 | LVT_LEVEL);
}

#[test]
fn the_performance_interrupt_masks_itself() {
    let mut lapic = xapic(0);
    set(&mut lapic, LVT_PERF, 0x400);
    lapic.signal_performance();
    assert!(lapic.take_nmi());
    assert_eq!(read(&mut lapic, LVT_PERF, T0), 0x400 | LVT_MASKED);
    lapic.signal_performance();
    assert!(!lapic.take_nmi());
}

#[test]
fn errors() {
    let mut lapic = xapic(0);
    set(&mut lapic, LVT_ERROR, 0xfe);
    assert_eq!(write(&mut lapic, ICR, 0x4005, T0).message, None);
    assert_eq!(lapic.acknowledge(), Some(0xfe));
    assert_eq!(read(&mut lapic, ESR, T0), 0, "not before it is written");
    read(&mut lapic, 0x3f, T0);
    lapic.deliver(&fixed(0x0f, Trigger::Edge));
    assert_eq!(lapic.eoi(), Effects::default());
    assert_eq!(lapic.acknowledge(), None, "one interrupt until software looks");
    set(&mut lapic, ESR, 0);
    assert_eq!(read(&mut lapic, ESR, T0), 0xe0);
    set(&mut lapic, ESR, 0);
    assert_eq!(read(&mut lapic, ESR, T0), 0);
    set(&mut lapic, 0x00, 0);
    assert_eq!(lapic.acknowledge(), Some(0xfe), "armed again");
}

#[test]
fn an_illegal_error_vector_is_just_recorded() {
    let mut lapic = xapic(0);
    set(&mut lapic, LVT_ERROR, 0x05);
    read(&mut lapic, 0x00, T0);
    assert_eq!(lapic.pending(), None);
    set(&mut lapic, ESR, 0);
    assert_eq!(read(&mut lapic, ESR, T0), ESR_ILLEGAL_REGISTER | ESR_RECEIVE_ILLEGAL_VECTOR);
}

// Timer.

#[test]
fn one_shot_timer() {
    let mut lapic = xapic(0);
    set(&mut lapic, DIVIDE, 0b1011);
    set(&mut lapic, LVT_TIMER, 0x41);
    let effects = write(&mut lapic, INITIAL_COUNT, 1000, at(50));
    assert!(effects.timer_changed);
    assert_eq!(lapic.next_deadline(), Some(Deadline::Ns(1050)));
    assert_eq!(read(&mut lapic, CURRENT_COUNT, at(150)), 900);
    lapic.timer_expired(at(1049));
    assert_eq!(lapic.pending(), None);
    lapic.timer_expired(at(1050));
    assert_eq!(lapic.acknowledge(), Some(0x41));
    assert_eq!(lapic.next_deadline(), None);
    assert_eq!(read(&mut lapic, CURRENT_COUNT, at(2000)), 0);
    assert_eq!(read(&mut lapic, INITIAL_COUNT, at(2000)), 1000);
}

#[test]
fn a_masked_timer_counts_silently() {
    let mut lapic = xapic(0);
    set(&mut lapic, DIVIDE, 0b1011);
    set(&mut lapic, LVT_TIMER, 0x41 | LVT_MASKED | 1 << 17);
    let _ = write(&mut lapic, INITIAL_COUNT, 1_000_000, T0);
    assert_eq!(lapic.next_deadline(), None);
    assert_eq!(read(&mut lapic, CURRENT_COUNT, at(2_400_000)), 600_000);
    let _ = write(&mut lapic, LVT_TIMER, 0x41 | 1 << 17, at(2_500_000));
    assert_eq!(lapic.pending(), None, "what passed is past");
    assert_eq!(lapic.next_deadline(), Some(Deadline::Ns(3_000_000)));
}

#[test]
fn from_one_shot_to_periodic_the_count_goes_on() {
    let mut lapic = xapic(0);
    set(&mut lapic, DIVIDE, 0b1011);
    set(&mut lapic, LVT_TIMER, 0x41);
    let _ = write(&mut lapic, INITIAL_COUNT, 1_000_000, T0);
    let _ = write(&mut lapic, LVT_TIMER, 0x41 | 1 << 17, at(600_000));
    assert_eq!(read(&mut lapic, CURRENT_COUNT, at(600_000)), 400_000);
    lapic.timer_expired(at(1_000_000));
    assert_eq!(lapic.next_deadline(), Some(Deadline::Ns(2_000_000)));
}

#[test]
fn tsc_deadline() {
    let mut lapic = xapic(0);
    let arm = |lapic: &mut Lapic, tsc, now| lapic.write_msr(MSR_TSC_DEADLINE, tsc, now).unwrap();
    let _ = arm(&mut lapic, 500, T0);
    assert_eq!(lapic.read_msr(MSR_TSC_DEADLINE, T0), Ok(0), "not in this mode");
    set(&mut lapic, LVT_TIMER, 0x41 | 2 << 17);
    assert!(arm(&mut lapic, 500, T0).timer_changed);
    assert_eq!(lapic.next_deadline(), Some(Deadline::Tsc(500)));
    set(&mut lapic, INITIAL_COUNT, 7);
    assert_eq!(read(&mut lapic, INITIAL_COUNT, T0), 0, "ignored");
    lapic.timer_expired(Now { ns: 0, tsc: 500 });
    assert_eq!(lapic.acknowledge(), Some(0x41));
    assert_eq!(lapic.read_msr(MSR_TSC_DEADLINE, T0), Ok(0));
    assert_eq!(lapic.next_deadline(), None);
    let _ = lapic.eoi();
    // A deadline in the past fires at once; 0 disarms; leaving the mode disarms.
    let _ = arm(&mut lapic, 600, Now { ns: 0, tsc: 601 });
    assert_eq!(lapic.acknowledge(), Some(0x41));
    let _ = lapic.eoi();
    let _ = arm(&mut lapic, 700, T0);
    let _ = arm(&mut lapic, 0, T0);
    assert_eq!(lapic.next_deadline(), None);
    let _ = arm(&mut lapic, 700, T0);
    set(&mut lapic, LVT_TIMER, 0x41);
    set(&mut lapic, LVT_TIMER, 0x41 | 2 << 17);
    assert_eq!(lapic.next_deadline(), None);
}

#[test]
fn only_the_timers_registers_need_the_time() {
    let needing: Vec<u8> =
        (0..=255).filter(|&r| Lapic::msr_needs_time(0x800 + u32::from(r))).collect();
    assert_eq!(needing, [LVT_TIMER, INITIAL_COUNT, CURRENT_COUNT, DIVIDE]);
    assert!(Lapic::mmio_needs_time(0x390));
    assert!(!Lapic::mmio_needs_time(0x0b0));
    assert!(Lapic::msr_needs_time(MSR_TSC_DEADLINE));
    assert!(!Lapic::msr_needs_time(MSR_APIC_BASE));
}
