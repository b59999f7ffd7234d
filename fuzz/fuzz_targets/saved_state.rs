//! Saved states: files of sections, and what sections hold.
#![no_main]

use accel::{VcpuState, VmState};
use irqchip::{Lapic, LapicConfig, Now, PicPort, Pit, Router};
use libfuzzer_sys::fuzz_target;
use state::Sections;

const CONFIG: LapicConfig = LapicConfig {
    id: 0,
    bootstrap: true,
    x2apic: true,
    tsc_deadline: true,
    physical_address_bits: 46,
};

/// Controllers in any state that they take over do what they do without harm.
fn shared(state: &VmState) {
    let (mut router, mut pit) = (Router::new(), Pit::new());
    let chips = &state.chips;
    router.restore(&chips.pic_master, &chips.pic_slave, &chips.ioapic);
    for gsi in 0..24 {
        let _ = router.set_gsi(gsi, gsi % 2 == 0);
        let _ = router.acknowledge_pic();
        let _ = router.read_pic(PicPort::MasterCommand);
        let _ = router.eoi(gsi as u8);
    }
    if pit.restore(&chips.pit).is_ok() {
        for now in [0, 1, 1 << 40, 1 << 62] {
            pit.write(3, 0, now);
            pit.read(0, now);
            pit.read_port61(now);
            pit.poll(now);
            pit.next_deadline();
        }
    }
}

fn processor(state: &VcpuState) {
    let _ = state.cpu.check();
    let mut lapic = Lapic::new(CONFIG);
    if lapic.restore(&state.lapic).is_ok() {
        for ns in [0, 1 << 20, 1 << 62] {
            let now = Now { ns, tsc: ns };
            lapic.timer_expired(now);
            lapic.next_deadline();
            lapic.attention();
            lapic.acknowledge();
            let mut data = [0; 4];
            for register in 0..0x40 {
                lapic.mmio_read(register << 4, &mut data, now);
                let _ = lapic.mmio_write(register << 4, &data, now);
            }
        }
        assert!(Lapic::new(CONFIG).restore(&lapic.save()).is_ok());
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(state) = serde_json::from_slice::<VmState>(bytes) {
        shared(&state);
    }
    if let Ok(state) = serde_json::from_slice::<VcpuState>(bytes) {
        processor(&state);
    }
    let Ok(sections) = Sections::from_bytes(bytes) else { return };
    // What was read is written just so, and read again.
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in sections.iter() {
        names.push(name);
    }
    let again = Sections::from_bytes(&sections.to_bytes()).unwrap();
    assert!(again.iter().map(|(name, _)| name).eq(names));
});
