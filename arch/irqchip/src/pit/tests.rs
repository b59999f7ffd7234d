extern crate std;

use super::channel::{PitChannelState as Channel, PitMode as Mode};
use super::*;
use proptest::prelude::*;
use std::vec::Vec;

/// A counter that really counts: the datasheet's mode definitions, one clock at a time.
struct Naive {
    mode: u8,
    gate: bool,
    written: Option<i64>,
    /// The load happens with the next clock.
    load: bool,
    running: bool,
    n: i64,
    ce: i64,
    /// Clocks left in this half of the square wave.
    half: i64,
    out: bool,
}

impl Naive {
    fn new(mode: u8, gate: bool) -> Self {
        Self {
            mode,
            gate,
            written: None,
            load: false,
            running: false,
            n: 0,
            ce: 0,
            half: 0,
            out: mode != 0,
        }
    }

    fn write(&mut self, count: i64) {
        let first = self.written.is_none();
        self.written = Some(count);
        match self.mode {
            0 | 4 => {
                self.load = true;
                self.out = self.mode == 4;
            }
            2 | 3 if first => self.load = true,
            _ => {}
        }
    }

    fn set_gate(&mut self, gate: bool) {
        let rose = gate && !self.gate;
        self.gate = gate;
        if rose && self.written.is_some() && matches!(self.mode, 1 | 2 | 3 | 5) {
            self.load = true;
            self.out = self.mode != 1;
        }
        if !gate && matches!(self.mode, 2 | 3) {
            self.out = true;
        }
    }

    fn start_half(&mut self) {
        self.n = self.written.unwrap();
        self.half = if self.out { (self.n + 1) / 2 } else { self.n / 2 };
        self.ce = self.n & !1;
    }

    fn clock(&mut self) {
        if self.load {
            self.load = false;
            self.running = true;
            self.n = self.written.unwrap();
            self.ce = self.n;
            self.start_half_if_square();
            return;
        }
        if !self.running || (!self.gate && matches!(self.mode, 0 | 2 | 3 | 4)) {
            return;
        }
        match self.mode {
            0 | 1 => {
                self.ce -= 1;
                self.out |= self.ce == 0;
            }
            2 => {
                self.ce -= 1;
                if self.ce == 0 {
                    self.ce = self.written.unwrap();
                }
                self.out = self.ce != 1;
            }
            3 => {
                self.half -= 1;
                self.ce -= 2;
                if self.half == 0 {
                    self.out = !self.out;
                    self.start_half();
                }
            }
            _ => {
                self.ce -= 1;
                self.out = self.ce != 0;
            }
        }
    }

    fn start_half_if_square(&mut self) {
        if self.mode == 3 {
            self.out = true;
            self.start_half();
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Write(i64),
    Gate(bool),
}

fn op() -> impl Strategy<Value = (i64, Op)> {
    let op = prop_oneof![(2i64..40).prop_map(Op::Write), any::<bool>().prop_map(Op::Gate)];
    (2i64..70, op)
}

proptest! {
    /// The closed formulas agree with clock-by-clock counting, in every mode, with gates and with
    /// counts that are changed under way; and edges are foretold exactly.
    #[test]
    fn agrees_with_a_naive_counter(
        mode in 0u8..6,
        gate: bool,
        ops in prop::collection::vec(op(), 1..12),
    ) {
        let mut channel = Channel::new(gate);
        let mut naive = Naive::new(mode, gate);
        channel.control(0x10 | mode << 1, 0);
        let mut now = 0;
        let mut rose = false;
        for (gap, op) in ops {
            let foretold = channel.next_rise();
            let mut seen = None;
            for _ in 0..gap {
                let before = naive.out;
                naive.clock();
                now += 1;
                if naive.out && !before {
                    rose = true;
                    seen = seen.or(Some(now));
                }
                let mut now_channel = channel.clone();
                prop_assert_eq!(now_channel.output_at(now), naive.out, "output at {}", now);
                if naive.running {
                    let count = now_channel.read(now);
                    prop_assert_eq!(count, naive.ce as u8, "count at {}", now);
                }
            }
            match seen {
                Some(_) => prop_assert_eq!(foretold, seen),
                None => prop_assert!(foretold.is_none_or(|tick| tick > now)),
            }
            let before = naive.out;
            match op {
                Op::Write(count) => { channel.write(count as u8, now); naive.write(count) }
                Op::Gate(gate) => { channel.set_gate(gate, now); naive.set_gate(gate) }
            }
            rose |= naive.out && !before;
            prop_assert_eq!(channel.take_rise(now), rose);
            rose = false;
        }
    }

    #[test]
    fn ticks_and_nanoseconds_agree(tick in 0i64..1 << 40) {
        prop_assert_eq!(ticks(nanoseconds(tick)), tick);
        prop_assert!(tick == 0 || ticks(nanoseconds(tick) - 1) < tick);
    }

    #[test]
    fn hostile_accesses_do_no_harm(ops: Vec<(u8, u8, u64)>) {
        let mut pit = Pit::new();
        for (op, value, now) in ops {
            match op % 8 {
                port @ 0..4 => pit.write(port, value, now),
                4 => pit.write_port61(value, now),
                5 => { pit.read_port61(now); }
                6 => { pit.poll(now); }
                _ => { pit.read(value, now); }
            }
            pit.next_deadline();
        }
    }

    /// Whatever the guest programs, wake-ups stay at least 50 us apart.
    #[test]
    fn no_storm(control in 0u8..0x40, low: u8, high in 0u8..2) {
        let mut pit = Pit::new();
        pit.write(3, control, 0);
        pit.write(0, low, 0);
        pit.write(0, high, 0);
        let mut last = None;
        pit.poll(0);
        for _ in 0..20 {
            let Some(deadline) = pit.next_deadline() else { break };
            if let Some(last) = last {
                prop_assert!(deadline >= last + 50_000, "{} after {}", deadline, last);
            }
            prop_assert!(pit.poll(deadline).rose);
            last = Some(deadline);
        }
    }
}

#[test]
fn one_second_has_as_many_ticks_as_the_crystal_says() {
    assert_eq!(ticks(1_000_000_000), 1_193_181);
    assert_eq!(ticks(88_000), 105);
}

fn program(pit: &mut Pit, channel: u8, mode: Mode, count: u16, now: u64) {
    pit.write(3, channel << 6 | 0x30 | (mode as u8) << 1, now);
    let [low, high] = count.to_le_bytes();
    pit.write(channel, low, now);
    pit.write(channel, high, now);
}

#[test]
fn the_periodic_tick_of_linux() {
    let mut pit = Pit::new();
    assert_eq!(pit.next_deadline(), None);
    // HZ=250, mode 2.
    program(&mut pit, 0, Mode::RateGenerator, 4773, 0);
    assert_eq!(pit.poll(0), Irq0 { rose: false, level: true });
    let mut now = 0;
    for period in 1..=250 {
        now = pit.next_deadline().unwrap();
        assert_eq!(now, nanoseconds(1 + 4773 * period));
        assert!(!pit.poll(now - 1).rose);
        assert_eq!(pit.poll(now), Irq0 { rose: true, level: true });
        assert!(!pit.poll(now).rose);
    }
    assert!(now.abs_diff(1_000_000_000) < 100_000);
}

#[test]
fn the_one_shot_tick_of_linux() {
    let mut pit = Pit::new();
    program(&mut pit, 0, Mode::SoftwareStrobe, 1193, 0);
    let due = pit.next_deadline().unwrap();
    assert!(due.abs_diff(1_000_000) < 3000);
    assert!(pit.poll(due).rose);
    assert_eq!(pit.next_deadline(), None);
    // Shutting down: mode 0 without a count keeps the output low.
    pit.write(3, 0x30, due);
    assert_eq!(pit.poll(due), Irq0 { rose: false, level: false });
    assert_eq!(pit.next_deadline(), None);
}

#[test]
fn a_new_count_is_no_edge_but_ends_the_period_first() {
    let mut pit = Pit::new();
    program(&mut pit, 0, Mode::RateGenerator, 10_000, 0);
    pit.write(0, 0x20, 1000);
    pit.write(0, 0x4e, 1000);
    assert_eq!(pit.next_deadline(), Some(nanoseconds(10_001)));
    assert!(pit.poll(nanoseconds(10_001)).rose);
    assert_eq!(pit.next_deadline(), Some(nanoseconds(30_001)));
}

#[test]
fn calibration_by_the_speaker_channel() {
    let mut pit = Pit::new();
    pit.write_port61(0x01, 0);
    program(&mut pit, 2, Mode::TerminalCount, 11_932, 0);
    assert_eq!(pit.read_port61(9_999_000) & 0x21, 0x01);
    assert_eq!(pit.read_port61(10_002_000) & 0x21, 0x21);
    // Closing the gate stops the count.
    program(&mut pit, 2, Mode::TerminalCount, 0xffff, 20_000_000);
    pit.write_port61(0x02, 20_500_000);
    let count = |pit: &mut Pit, now| u16::from_le_bytes([pit.read(2, now), pit.read(2, now)]);
    let stopped = count(&mut pit, 21_000_000);
    assert!(stopped.abs_diff(0xffff - 596) < 3);
    assert_eq!(count(&mut pit, 29_000_000), stopped);
    assert_eq!(pit.read_port61(29_000_000) & 0x0f, 0x02);
}

#[test]
fn the_refresh_bit_toggles() {
    let mut pit = Pit::new();
    let toggles = (0..100u64)
        .map(|i| pit.read_port61(i * REFRESH) & PORT61_REFRESH)
        .collect::<Vec<_>>()
        .windows(2)
        .filter(|pair| pair[0] != pair[1])
        .count();
    assert_eq!(toggles, 99);
}

#[test]
fn a_latched_count_stays_until_read() {
    let mut pit = Pit::new();
    program(&mut pit, 0, Mode::RateGenerator, 0, 0);
    let at = nanoseconds(0x101);
    pit.write(3, 0x00, at);
    pit.write(3, 0x00, at + 500_000);
    assert_eq!(pit.read(0, at + 600_000), 0x00);
    assert_eq!(pit.read(0, at + 700_000), 0xff);
    assert_ne!(pit.read(0, at + 800_000), 0x00, "now it is live again");
}

#[test]
fn read_back_gives_status_before_count() {
    let mut pit = Pit::new();
    pit.write(3, 0x34, 0);
    pit.write(3, 0xe2, 0);
    assert_eq!(pit.read(0, 0), 0b1111_0100, "output high, null count");
    pit.write(0, 0x10, 0);
    pit.write(0, 0x00, 0);
    let now = nanoseconds(3);
    pit.write(3, 0xc2, now);
    assert_eq!(pit.read(0, now), 0b1011_0100);
    assert_eq!(pit.read(0, now + 90_000), 14);
    assert_eq!(pit.read(0, now + 90_000), 0);
}

#[test]
fn bcd() {
    let mut pit = Pit::new();
    pit.write(3, 0x35, 0);
    pit.write(0, 0x00, 0);
    pit.write(0, 0x10, 0);
    let now = nanoseconds(2);
    assert_eq!((pit.read(0, now), pit.read(0, now)), (0x99, 0x09));
    pit.write(3, 0x31, now);
    pit.write(0, 0, now);
    pit.write(0, 0, now);
    let now = nanoseconds(4);
    assert_eq!((pit.read(0, now), pit.read(0, now)), (0x99, 0x99), "0 is 10000");
}

#[test]
fn single_byte_accesses() {
    let mut pit = Pit::new();
    pit.write(3, 0x10, 0);
    pit.write(0, 0x80, 0);
    assert_eq!(pit.read(0, nanoseconds(1)), 0x80);
    pit.write(3, 0x20, 0);
    pit.write(0, 0x80, 0);
    assert_eq!(pit.read(0, nanoseconds(2)), 0x80);
    assert_eq!(pit.read(0, nanoseconds(3)), 0x7f);
}

#[test]
fn levels_make_an_edge() {
    let levels = |rose, level| Irq0 { rose, level }.levels().collect::<Vec<_>>();
    assert_eq!(levels(false, false), [false]);
    assert_eq!(levels(false, true), [true]);
    assert_eq!(levels(true, true), [false, true]);
    assert_eq!(levels(true, false), [false, true, false]);
}
