//! The clock as a guest sees it.

use proptest::prelude::*;
use std::time::{Duration, Instant};

use super::chip::{Chip, Now};
use super::spec::*;
use super::{CmosConfig, Rtc, calendar, contents};
use crate::test_wiring::Pins;
use bus::{BusDevice, Snapshot};
use runtime::{Clock, Timers};
use std::sync::Arc;

/// 2023-11-14 22:13:20 UTC, a Tuesday.
const WALL: i128 = 1_700_000_000 * 1_000_000_000;
const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

fn chip() -> Chip {
    Chip::new(contents::initial(config()), at(0))
}

fn config() -> CmosConfig {
    CmosConfig { low_ram_end: 3 << 30, high_ram: 5 << 30 }
}

fn at(ns: u64) -> Now {
    Now { guest: ns, wall: WALL + i128::from(ns) }
}

fn time(chip: &mut Chip, now: Now) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DATE_OF_MONTH, DAY_OF_WEEK, HOURS, MINUTES, SECONDS]
        .map(|index| chip.read(index, now))
}

#[test]
fn shows_utc_in_each_format() {
    let mut chip = chip();
    assert_eq!(time(&mut chip, at(0)), [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]);
    assert_eq!(chip.read(SECONDS, at(40 * S)), 0x00);
    chip.write(REGISTER_B, (RegisterB::HOURS_24 | RegisterB::DM).bits(), at(0));
    assert_eq!(time(&mut chip, at(0)), [20, 23, 11, 14, 3, 22, 13, 20]);
    chip.write(REGISTER_B, 0, at(0));
    assert_eq!(chip.read(HOURS, at(0)), 0x90);
    assert_eq!(chip.read(HOURS, at(2 * 3600 * S)), 0x12); // midnight
    assert_eq!(chip.read(HOURS, at(14 * 3600 * S)), 0x92); // noon
}

#[test]
fn memory_tells_of_ram_and_has_a_checksum() {
    let mut chip = chip();
    let mut word =
        |index| u16::from_le_bytes([chip.read(index, at(0)), chip.read(index + 1, at(0))]);
    assert_eq!(word(0x15), 640);
    assert_eq!(word(0x34), ((3 << 14) - (16 << 4)) as u16);
    assert_eq!(word(0x5b), 0x4000); // 5 GiB in 64 KiB: 0x14000
    let sum: u16 = (0x10..=0x2d).map(|index| u16::from(chip.read(index, at(0)))).sum();
    assert_eq!([chip.read(0x2e, at(0)), chip.read(0x2f, at(0))], sum.to_be_bytes());
    assert_eq!(chip.read(REGISTER_D, at(0)), 0x80);
    chip.write(0x7f, 0x5a, at(0));
    assert_eq!(chip.read(0x7f, at(S)), 0x5a);
}

#[test]
fn linux_sets_the_time() {
    // drivers/rtc/rtc-mc146818-lib.c, mc146818_set_time().
    let mut chip = chip();
    let now = at(300 * MS);
    chip.write(REGISTER_B, (RegisterB::SET | RegisterB::HOURS_24).bits(), now);
    chip.write(REGISTER_A, 0x76, now);
    let new = [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59];
    let order = [CENTURY, YEAR, MONTH, DATE_OF_MONTH, DAY_OF_WEEK, HOURS, MINUTES, SECONDS];
    for (index, value) in order.into_iter().zip(new) {
        chip.write(index, value, now);
    }
    assert_eq!(time(&mut chip, at(5 * S)), new); // held
    chip.write(REGISTER_B, RegisterB::HOURS_24.bits(), at(5 * S));
    chip.write(REGISTER_A, 0x26, at(5 * S));
    assert_eq!(time(&mut chip, at(5 * S + 499 * MS)), new);
    let later = time(&mut chip, at(5 * S + 500 * MS));
    assert_eq!(later, [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
    assert_eq!(chip.read(SECONDS, at(6 * S + 500 * MS)), 1);
}

#[test]
fn setting_without_resetting_the_divider_keeps_the_fraction() {
    let mut chip = chip();
    chip.write(REGISTER_B, 0x82, at(300 * MS));
    chip.write(SECONDS, 0x30, at(300 * MS));
    chip.write(REGISTER_B, 0x02, at(2 * S + 400 * MS));
    assert_eq!(chip.read(SECONDS, at(2 * S + 999 * MS)), 0x30);
    assert_eq!(chip.read(SECONDS, at(3 * S)), 0x31);
    chip.write(MINUTES, 0x55, at(3 * S)); // nor with updates running
    assert_eq!(chip.read(MINUTES, at(3 * S)), 0x55);
    assert_eq!(chip.read(SECONDS, at(4 * S)), 0x32);
}

#[test]
fn nonsense_is_set_to_the_nearest_sense() {
    let mut chip = chip();
    chip.write(REGISTER_B, 0x82, at(0));
    for index in TIME_AND_CENTURY {
        chip.write(index, 0xff, at(0));
    }
    chip.write(REGISTER_B, 0x02, at(0));
    let [.., month, day, _, hour, minute, second] = time(&mut chip, at(0));
    assert_eq!([month, day, hour, minute, second], [0x12, 0x31, 0x23, 0x59, 0x59]);
}

const TIME_AND_CENTURY: [u8; 8] =
    [SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DATE_OF_MONTH, MONTH, YEAR, CENTURY];

#[test]
fn an_update_is_announced_and_reported() {
    let mut chip = chip();
    assert_eq!(chip.read(REGISTER_A, at(999 * MS)), 0x26);
    assert_eq!(chip.read(REGISTER_A, at(999 * MS + 800_000)), 0xa6);
    chip.read(REGISTER_C, at(0));
    let flags = chip.read(REGISTER_C, at(S));
    assert_eq!(flags & RegisterC::UF.bits(), RegisterC::UF.bits());
    assert_eq!(flags & RegisterC::IRQF.bits(), 0);
    assert_eq!(chip.read(REGISTER_C, at(S)), 0);

    chip.write(REGISTER_B, (RegisterB::HOURS_24 | RegisterB::UIE).bits(), at(S));
    assert_eq!(chip.next_event(at(S + 1)), Some(2 * S));
    chip.catch_up(at(2 * S));
    assert!(chip.interrupts());
    assert_eq!(chip.next_event(at(2 * S)), None); // until it is acknowledged
    let flags = RegisterC::from_bits_retain(chip.read(REGISTER_C, at(2 * S)));
    assert!(flags.contains(RegisterC::IRQF | RegisterC::UF));
    assert!(!chip.interrupts());
    assert_eq!(chip.next_event(at(2 * S)), Some(3 * S));
}

#[test]
fn the_alarm_goes_off_at_its_time() {
    let mut chip = chip();
    for (index, value) in [(HOURS_ALARM, 0x22), (MINUTES_ALARM, 0xff), (SECONDS_ALARM, 0x05)] {
        chip.write(index, value, at(0));
    }
    chip.write(REGISTER_B, (RegisterB::HOURS_24 | RegisterB::AIE).bits(), at(0));
    let due = 45 * S; // 22:14:05
    assert_eq!(chip.next_event(at(0)), Some(due));
    chip.catch_up(at(due - 1));
    assert!(!chip.interrupts());
    chip.catch_up(at(due));
    assert!(chip.interrupts());
    assert!(chip.read(REGISTER_C, at(due)) & 0xa0 == 0xa0);
    assert_eq!(chip.next_event(at(due)), Some(due + 60 * S));
    chip.write(HOURS_ALARM, 0x25, at(due));
    assert_eq!(chip.next_event(at(due)), None);
}

#[test]
fn the_periodic_interrupt_keeps_its_rate() {
    let mut chip = chip();
    for (rate, period) in [(0x6, 976_562), (0xf, 500 * MS), (0x1, 3_906_250), (0x3, 122_070)] {
        chip.write(REGISTER_A, 0x20 | rate, at(0));
        chip.write(REGISTER_B, (RegisterB::HOURS_24 | RegisterB::PIE).bits(), at(0));
        chip.read(REGISTER_C, at(0));
        let mut now = 0;
        for _ in 0..8 {
            let due = chip.next_event(at(now)).unwrap();
            assert!((due - now).abs_diff(period) <= 1, "{rate} {due}");
            now = due;
            chip.catch_up(at(now));
            assert!(chip.interrupts());
            assert_eq!(chip.read(REGISTER_C, at(now)) & 0xc0, 0xc0);
        }
    }
    chip.write(REGISTER_A, 0x20, at(S));
    assert_eq!(chip.next_event(at(S)), None);
    chip.write(REGISTER_A, 0x66, at(S));
    assert_eq!(chip.next_event(at(S)), None);
}

#[test]
fn a_host_clock_that_is_set_back_is_harmless() {
    let mut chip = chip();
    chip.write(REGISTER_B, (RegisterB::HOURS_24 | RegisterB::UIE).bits(), at(0));
    let back = Now { guest: S, wall: WALL - 100 * 1_000_000_000 };
    chip.read(REGISTER_C, back);
    assert_eq!(chip.next_event(back), Some(2 * S));
}

#[test]
fn the_device_ticks_on_its_interrupt_line() {
    let timers = Timers::new(Arc::new(Clock::new())).unwrap();
    let pins = Pins::new();
    let rtc = Rtc::new(config(), pins.line(8), &timers);
    let set = |index: u8, value: u8| {
        let mut rtc = rtc.lock().unwrap();
        rtc.write(0, &[index | 0x80]);
        rtc.write(1, &[value]);
    };
    let get = |index: u8| {
        let mut rtc = rtc.lock().unwrap();
        rtc.write(0, &[index]);
        let mut data = [0];
        rtc.read(1, &mut data);
        data[0]
    };
    set(REGISTER_A, 0x28);
    set(REGISTER_B, 0x42);
    let start = Instant::now();
    while pins.edges(8) < 5 {
        assert!(start.elapsed() < Duration::from_secs(10));
        if pins.level(8) {
            assert_eq!(get(REGISTER_C) & 0xc0, 0xc0);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    set(REGISTER_B, 0x02);
    rtc.lock().unwrap().reset();
    assert!(!pins.level(8));
    let wall = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
    let minute = calendar::DateTime::from_seconds(wall).minute;
    let shown = get(MINUTES);
    let shown = (shown >> 4) * 10 + (shown & 15);
    assert!(shown == minute || shown == (minute + 59) % 60);
}

proptest! {
    #[test]
    fn any_access_is_harmless(accesses in prop::collection::vec(
        (any::<bool>(), 0u64..2, any::<[u8; 4]>(), 1usize..=4), 1..300))
    {
        let timers = Timers::new(Arc::new(Clock::stopped_at(0))).unwrap();
        let rtc = Rtc::new(config(), Pins::new().line(8), &timers);
        let mut rtc = rtc.lock().unwrap();
        for (write, offset, mut data, len) in accesses {
            if write {
                rtc.write(offset, &data[..len]);
            } else {
                rtc.read(offset, &mut data[..len]);
            }
        }
    }

    /// A chip never asks for a call in the past, and what it asks for brings the interrupt.
    #[test]
    fn events_come_when_announced(
        writes in prop::collection::vec((0u8..0x0e, any::<u8>(), 0u64..3 * S), 1..40),
    ) {
        let mut chip = chip();
        let mut now = 0;
        for (index, value, wait) in writes {
            now += wait;
            chip.write(index, value, at(now));
            if let Some(due) = chip.next_event(at(now)) {
                prop_assert!(due > now);
                chip.catch_up(at(due));
                prop_assert!(chip.interrupts());
                now = due;
                chip.read(REGISTER_C, at(now));
            }
        }
    }
}

#[test]
fn another_clock_goes_on() {
    let clock = Arc::new(Clock::stopped_at(7 * S));
    let timers = Timers::new(clock).unwrap();
    let pins = [Pins::new(), Pins::new()];
    let rtcs = [0, 1].map(|n: usize| Rtc::new(config(), pins[n].line(8), &timers));
    let [a, b] = rtcs.each_ref().map(|rtc| rtc.lock().unwrap());
    let (mut a, mut b) = (a, b);
    for (index, value) in [(REGISTER_B, RegisterB::HOURS_24.bits() | 0x80), (YEAR, 0x31), (0x40, 9)]
    {
        a.write(0, &[index]);
        a.write(1, &[value]);
    }
    let state = serde_json::to_string(&a.save()).unwrap();
    b.restore(serde_json::from_str(&state).unwrap()).unwrap();
    let mut seen = [[0]; 2];
    b.read(1, &mut seen[1]);
    assert_eq!(seen[1], [9], "the index is kept");
    for index in [REGISTER_A, REGISTER_B, YEAR, CENTURY, 0x34, 0x40] {
        a.write(0, &[index]);
        b.write(0, &[index]);
        a.read(1, &mut seen[0]);
        b.read(1, &mut seen[1]);
        assert_eq!(seen[0], seen[1], "{index:#x}");
    }
    assert!(
        b.restore(
            serde_json::from_str(&state.replace("\"memory\":\"", "\"memory\":\"00")).unwrap()
        )
        .is_err()
    );
}
