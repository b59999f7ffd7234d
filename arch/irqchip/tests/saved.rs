//! A controller that took over another's state behaves as the other goes on to do.

use irqchip::{
    BadState, ChipsState, Lapic, LapicConfig, Lint, Now, PicPort, Pit, PitPhase, Router,
};
use proptest::prelude::*;

/// Ports of the pair, the I/O APIC's registers, lines and ends of interrupts.
fn drive_router(router: &mut Router, (what, a, b): (u8, u8, u32)) -> Vec<u8> {
    const PORTS: [PicPort; 6] = [
        PicPort::MasterCommand,
        PicPort::MasterData,
        PicPort::SlaveCommand,
        PicPort::SlaveData,
        PicPort::MasterElcr,
        PicPort::SlaveElcr,
    ];
    let port = PORTS[usize::from(a) % PORTS.len()];
    let mut seen = vec![0; 4];
    let work = match what {
        0 => router.write_pic(port, b as u8),
        1 => {
            let (value, work) = router.read_pic(port);
            seen.push(value);
            work
        }
        2 => router.set_gsi(u32::from(a) % 24, b & 1 != 0),
        3 => router.eoi(a),
        4 => router.write_ioapic(0, &[a % 0x42]),
        5 => router.write_ioapic(0x10, &b.to_le_bytes()),
        6 => {
            let (vector, work) = router.acknowledge_pic();
            seen.push(vector);
            work
        }
        _ => {
            router.read_ioapic(0x10, &mut seen);
            return seen;
        }
    };
    seen.extend(format!("{work:?}").into_bytes());
    seen
}

fn drive_pit(pit: &mut Pit, (what, a, b): (u8, u8, u32), now: u64) -> String {
    match what & 3 {
        0 => pit.write(a & 3, b as u8, now),
        1 => return format!("{}", pit.read(a & 3, now)),
        2 => pit.write_port61(b as u8, now),
        _ => return format!("{}", pit.read_port61(now)),
    }
    format!("{:?} {:?}", pit.poll(now), pit.next_deadline())
}

const CONFIG: LapicConfig = LapicConfig {
    id: 0,
    bootstrap: true,
    x2apic: true,
    tsc_deadline: true,
    physical_address_bits: 40,
};

fn drive_lapic(lapic: &mut Lapic, (what, a, b): (u8, u8, u32), ns: u64) -> String {
    let now = Now { ns, tsc: ns * 2 };
    let effects = match what {
        0..4 => lapic.mmio_write(u64::from(a & 0x3f) << 4, &b.to_le_bytes(), now),
        4 => {
            let mut data = [0; 4];
            lapic.mmio_read(u64::from(a & 0x3f) << 4, &mut data, now);
            return format!("{data:?}");
        }
        5 => {
            lapic.set_lint(if a & 1 == 0 { Lint::Lint0 } else { Lint::Lint1 }, b & 1 != 0);
            Default::default()
        }
        6 => return format!("{:?} {:?}", lapic.acknowledge(), lapic.take_nmi()),
        _ => {
            let msr = [0x1b, 0x6e0, 0x838, 0x832][usize::from(a) % 4];
            let base = 0xfee0_0900 | u64::from(b & 0x400);
            let value = if msr == 0x1b { base } else { b.into() };
            return format!("{:?}", lapic.write_msr(msr, value, now));
        }
    };
    lapic.timer_expired(now);
    format!("{effects:?} {:?} {:?}", lapic.attention(), lapic.next_deadline())
}

fn steps() -> impl Strategy<Value = Vec<(u8, u8, u32)>> {
    prop::collection::vec((0u8..8, any::<u8>(), any::<u32>()), 1..60)
}

/// What is saved goes through text, as it does on its way to another process.
fn through_text<T: serde::Serialize + serde::de::DeserializeOwned>(state: &T) -> T {
    serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
}

proptest! {
    #[test]
    fn shared_controllers_go_on(before in steps(), after in steps()) {
        let (mut router, mut pit) = (Router::new(), Pit::new());
        for (n, step) in before.iter().enumerate() {
            drive_router(&mut router, *step);
            drive_pit(&mut pit, *step, n as u64 * 77_777);
        }
        let (pic_master, pic_slave, ioapic) = router.save();
        let state =
            through_text(&ChipsState { pic_master, pic_slave, ioapic, pit: pit.save() });
        let (mut other, mut other_pit) = (Router::new(), Pit::new());
        other.restore(&state.pic_master, &state.pic_slave, &state.ioapic);
        other_pit.restore(&state.pit).unwrap();
        prop_assert_eq!(&other, &router);
        prop_assert_eq!(&other_pit, &pit);
        for (n, step) in after.iter().enumerate() {
            let now = (before.len() + n) as u64 * 77_777;
            prop_assert_eq!(drive_router(&mut other, *step), drive_router(&mut router, *step));
            prop_assert_eq!(
                drive_pit(&mut other_pit, *step, now),
                drive_pit(&mut pit, *step, now)
            );
        }
    }

    #[test]
    fn local_apics_go_on(before in steps(), after in steps()) {
        let mut lapic = Lapic::new(CONFIG);
        lapic.set_virtual_wire();
        for (n, step) in before.iter().enumerate() {
            drive_lapic(&mut lapic, *step, n as u64 * 77_777);
        }
        let mut other = Lapic::new(CONFIG);
        other.restore(&through_text(&lapic.save())).unwrap();
        prop_assert_eq!(&other, &lapic);
        for (n, step) in after.iter().enumerate() {
            let now = (before.len() + n) as u64 * 77_777;
            prop_assert_eq!(
                drive_lapic(&mut other, *step, now),
                drive_lapic(&mut lapic, *step, now)
            );
        }
    }

    /// Whatever a file says, nothing panics then.
    #[test]
    fn any_state_is_taken_or_refused(
        numbers in prop::collection::vec(any::<u64>(), 12),
        steps in steps(),
    ) {
        let mut pit = Pit::new();
        let mut state = pit.save();
        for (channel, n) in state.channels.iter_mut().zip(&numbers) {
            channel.loaded = (*n % 0x1_2000) as i64;
            channel.seen = numbers[3] as i64;
            channel.phase = PitPhase::Counting { since: numbers[4] as i64 };
            channel.switch_at = Some(numbers[5] as i64);
        }
        let _ = pit.restore(&state);
        let mut lapic = Lapic::new(CONFIG);
        let mut state = lapic.save();
        state.base = numbers[6] & 0xff_ffff_ff00;
        state.timer.due = Some(numbers[7]);
        state.timer.divide = numbers[8] as u32;
        state.timer.initial = numbers[9] as u32;
        state.lvt.timer = numbers[10] as u32;
        state.isr = [numbers[11] as u32; 8];
        let _ = lapic.restore(&state);
        for (n, step) in steps.iter().enumerate() {
            drive_pit(&mut pit, *step, n as u64);
            drive_lapic(&mut lapic, *step, n as u64);
        }
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let mut pit = Pit::new();
    let mut state = pit.save();
    state.channels[1].loaded = 0;
    assert!(matches!(pit.restore(&state), Err(BadState(why)) if why.contains("PIT")));
    let mut lapic = Lapic::new(CONFIG);
    for base in [0xfee0_0800, 0xfee0_0d01, 0xfee0_0500, 1 << 50 | 0x900] {
        let state = irqchip::LapicState { base, ..lapic.save() };
        assert!(lapic.restore(&state).is_err(), "{base:#x}");
    }
}
