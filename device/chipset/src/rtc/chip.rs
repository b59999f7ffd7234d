//! The state machine of the clock. It knows no timers: each call is told the time.

use super::alarm::Alarm;
use super::calendar::DateTime;
use super::spec::{self, RegisterA, RegisterB, RegisterC};

/// Two clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Guest time in ns: drives the periodic interrupt, and the machine's timers go by it.
    pub guest: u64,
    /// The host's UTC in ns since 1970: drives the time of day.
    pub wall: i128,
}

/// In ns.
pub(super) const SECOND: i128 = 1_000_000_000;

/// The chip's memory and clock.
pub struct Chip {
    /// All bytes. Time and date are kept here only while updates are held.
    pub(super) memory: [u8; spec::SIZE],
    /// Time of day minus the host's UTC, in ns.
    pub(super) offset: i128,
    pub(super) flags: RegisterC,
    /// The second of the time of day up to which updates and alarms are in `flags`.
    pub(super) second_seen: i64,
    /// The tick of the periodic interrupt up to which it is in `flags`.
    pub(super) tick_seen: u64,
}

/// The registers that show time and date.
const TIME: [u8; 8] = [
    spec::SECONDS,
    spec::MINUTES,
    spec::HOURS,
    spec::DAY_OF_WEEK,
    spec::DATE_OF_MONTH,
    spec::MONTH,
    spec::YEAR,
    spec::CENTURY,
];

impl Chip {
    /// A chip with this memory that shows the host's UTC.
    pub fn new(memory: [u8; spec::SIZE], now: Now) -> Self {
        let mut chip =
            Self { memory, offset: 0, flags: RegisterC::empty(), second_seen: 0, tick_seen: 0 };
        chip.second_seen = chip.second(now);
        chip.tick_seen = chip.tick(now);
        chip
    }

    /// The RESET pin: no interrupts, no square wave ("RESET").
    pub fn reset(&mut self) {
        let kept =
            self.b().difference(RegisterB::PIE | RegisterB::AIE | RegisterB::UIE | RegisterB::SQWE);
        self.set_memory(spec::REGISTER_B, kept.bits());
        self.flags = RegisterC::empty();
    }

    pub fn read(&mut self, index: u8, now: Now) -> u8 {
        match index {
            spec::REGISTER_A => {
                let uip = if self.update_in_progress(now) { RegisterA::UIP.bits() } else { 0 };
                self.memory(index) | uip
            }
            spec::REGISTER_C => {
                self.catch_up(now);
                let interrupts = self.interrupts();
                let flags = std::mem::replace(&mut self.flags, RegisterC::empty());
                flags.bits() | if interrupts { RegisterC::IRQF.bits() } else { 0 }
            }
            spec::REGISTER_D => spec::VRT,
            _ if TIME.contains(&index) => self.shown(now)[usize::from(index)],
            _ => self.memory(index),
        }
    }

    pub fn write(&mut self, index: u8, value: u8, now: Now) {
        self.catch_up(now);
        match index {
            spec::REGISTER_A => {
                let value = value & !RegisterA::UIP.bits();
                self.change_control(now, |chip| chip.set_memory(spec::REGISTER_A, value));
                self.tick_seen = self.tick(now);
            }
            spec::REGISTER_B => {
                let mut b = RegisterB::from_bits_retain(value);
                if b.contains(RegisterB::SET) {
                    b.remove(RegisterB::UIE); // "Set": a high SET clears UIE
                }
                self.change_control(now, |chip| chip.set_memory(spec::REGISTER_B, b.bits()));
            }
            spec::REGISTER_C | spec::REGISTER_D => {}
            _ if TIME.contains(&index) => {
                if self.held() {
                    self.set_memory(index, value);
                } else {
                    // Some guests set a field without holding updates.
                    let fraction = self.time_of_day(now).rem_euclid(SECOND);
                    self.memory = self.shown(now);
                    self.set_memory(index, value);
                    self.start(now, fraction);
                }
            }
            _ => self.set_memory(index, value),
        }
    }

    /// Sets the flags of all that has happened up to `now`.
    pub fn catch_up(&mut self, now: Now) {
        let tick = self.tick(now);
        if self.period().is_some() && tick > self.tick_seen {
            self.flags |= RegisterC::PF;
        }
        self.tick_seen = tick;
        if self.held() {
            return;
        }
        let second = self.second(now);
        if second > self.second_seen {
            self.flags |= RegisterC::UF;
            if self.alarm().next(self.second_seen).is_some_and(|at| at <= second) {
                self.flags |= RegisterC::AF;
            }
        }
        self.second_seen = second; // back, too, if the host's clock was set back
    }

    /// Whether the interrupt output is active.
    pub fn interrupts(&self) -> bool {
        self.flags.bits() & self.b().bits() != 0
    }

    /// The guest time at which `catch_up` may have to raise an interrupt.
    pub fn next_event(&self, now: Now) -> Option<u64> {
        let b = self.b();
        let waits = |enable, flag| b.contains(enable) && !self.flags.contains(flag);
        let periodic =
            self.period().filter(|_| waits(RegisterB::PIE, RegisterC::PF)).map(|period| {
                let ticks = u128::from(self.tick(now) + 1) * u128::from(period);
                (ticks * 1_000_000_000).div_ceil(u128::from(spec::TIME_BASE_HZ)) as u64
            });
        let second = self.second(now);
        let at_second = |second: i64| {
            let wait = i128::from(second) * SECOND - self.time_of_day(now);
            now.guest.saturating_add(u64::try_from(wait).unwrap_or(0))
        };
        let update = (!self.held() && waits(RegisterB::UIE, RegisterC::UF))
            .then(|| at_second(second.saturating_add(1)));
        let alarm = (!self.held() && waits(RegisterB::AIE, RegisterC::AF))
            .then(|| self.alarm().next(second).map(at_second))
            .flatten();
        [periodic, update, alarm].into_iter().flatten().min()
    }

    fn memory(&self, index: u8) -> u8 {
        self.memory.get(usize::from(index)).copied().unwrap_or(0xff)
    }

    fn set_memory(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.memory.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    fn b(&self) -> RegisterB {
        RegisterB::from_bits_retain(self.memory(spec::REGISTER_B))
    }

    fn divider_in_reset(&self) -> bool {
        let a = RegisterA::from_bits_retain(self.memory(spec::REGISTER_A));
        a.contains(RegisterA::DV_RESET)
    }

    /// Whether updates are held: time and date then are what the guest writes.
    fn held(&self) -> bool {
        self.b().contains(RegisterB::SET) || self.divider_in_reset()
    }

    /// Changes registers A or B, and stops or starts the clock if that follows.
    fn change_control(&mut self, now: Now, change: impl FnOnce(&mut Self)) {
        let was_held = self.held();
        let divider_was_in_reset = self.divider_in_reset();
        let shown = self.shown(now);
        // SET holds the registers but not the divider, so the fraction of a second goes on.
        let fraction = self.time_of_day(now).rem_euclid(SECOND);
        change(self);
        match (was_held, self.held()) {
            (false, true) => {
                for index in TIME {
                    self.set_memory(index, shown[usize::from(index)]);
                }
            }
            (true, false) if divider_was_in_reset => {
                self.start(now, SECOND - i128::from(spec::DIVIDER_LEAD));
            }
            (true, false) => self.start(now, fraction),
            _ => {}
        }
    }

    /// Lets the clock run from the time in memory and `fraction` ns.
    fn start(&mut self, now: Now, fraction: i128) {
        let seconds = i128::from(self.time_in_memory().to_seconds());
        self.offset = seconds * SECOND + fraction - now.wall;
        self.second_seen = self.second(now);
    }

    /// ns since 1970.
    fn time_of_day(&self, now: Now) -> i128 {
        now.wall + self.offset
    }

    fn second(&self, now: Now) -> i64 {
        self.time_of_day(now).div_euclid(SECOND) as i64
    }

    fn update_in_progress(&self, now: Now) -> bool {
        let left = SECOND - self.time_of_day(now).rem_euclid(SECOND);
        !self.held() && left <= i128::from(spec::UIP_LEAD)
    }

    /// The length of the periodic interrupt in ticks of the time base (table 5, 32.768 kHz).
    fn period(&self) -> Option<u64> {
        let a = RegisterA::from_bits_retain(self.memory(spec::REGISTER_A));
        match (a & RegisterA::RS).bits() {
            _ if self.divider_in_reset() => None,
            0 => None,
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// How many periods have passed since guest time 0.
    fn tick(&self, now: Now) -> u64 {
        let ticks = u128::from(now.guest) * u128::from(spec::TIME_BASE_HZ) / 1_000_000_000;
        self.period().map_or(0, |period| (ticks / u128::from(period)) as u64)
    }

    fn alarm(&self) -> Alarm {
        let field =
            |index| Some(self.memory(index)).filter(|v| v & spec::ALARM_ANY != spec::ALARM_ANY);
        Alarm {
            hour: field(spec::HOURS_ALARM).map(|v| self.decode_hour(v)),
            minute: field(spec::MINUTES_ALARM).map(|v| self.decode(v)),
            second: field(spec::SECONDS_ALARM).map(|v| self.decode(v)),
        }
    }

    /// Memory with time and date as they are now.
    fn shown(&self, now: Now) -> [u8; spec::SIZE] {
        let mut memory = self.memory;
        if !self.held() {
            let time = DateTime::from_seconds(self.second(now));
            let year = time.year.rem_euclid(10_000);
            for (index, value) in [
                (spec::SECONDS, self.encode(time.second)),
                (spec::MINUTES, self.encode(time.minute)),
                (spec::HOURS, self.encode_hour(time.hour)),
                (spec::DAY_OF_WEEK, self.encode(time.day_of_week())),
                (spec::DATE_OF_MONTH, self.encode(time.day)),
                (spec::MONTH, self.encode(time.month)),
                (spec::YEAR, self.encode((year % 100) as u8)),
                (spec::CENTURY, self.encode((year / 100) as u8)),
            ] {
                memory[usize::from(index)] = value;
            }
        }
        memory
    }

    /// What the guest has written. Nonsense counts as the nearest sense.
    fn time_in_memory(&self) -> DateTime {
        let value = |index| self.decode(self.memory(index));
        DateTime {
            year: i64::from(value(spec::CENTURY)) * 100 + i64::from(value(spec::YEAR)),
            month: value(spec::MONTH).clamp(1, 12),
            day: value(spec::DATE_OF_MONTH).clamp(1, 31),
            hour: self.decode_hour(self.memory(spec::HOURS)).min(23),
            minute: value(spec::MINUTES).min(59),
            second: value(spec::SECONDS).min(59),
        }
    }

    /// `value` is below 100.
    fn encode(&self, value: u8) -> u8 {
        if self.b().contains(RegisterB::DM) { value } else { ((value / 10) << 4) | (value % 10) }
    }

    /// At most 165, for digits above 9.
    fn decode(&self, value: u8) -> u8 {
        if self.b().contains(RegisterB::DM) { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b().contains(RegisterB::HOURS_24) {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { spec::PM } else { 0 };
        afternoon | self.encode((hour + 11) % 12 + 1)
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.b().contains(RegisterB::HOURS_24) {
            return self.decode(value);
        }
        let afternoon = if value & spec::PM != 0 { 12 } else { 0 };
        self.decode(value & !spec::PM) % 12 + afternoon
    }
}
