//! One counter of the 8254, in ticks of its own clock (Intel 8254 datasheet, 231164).

use serde::{Deserialize, Serialize};

use crate::BadState;

/// The counting modes (datasheet, "Mode Definitions").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PitMode {
    /// Mode 0: output rises when the count ends.
    TerminalCount = 0,
    /// Mode 1: output is low for one count after each rising gate.
    OneShot = 1,
    /// Mode 2: output is low in the last tick of each period.
    RateGenerator = 2,
    /// Mode 3: output is high in the first half of each period.
    SquareWave = 3,
    /// Mode 4: output is low for one tick after the count ends.
    SoftwareStrobe = 4,
    /// Mode 5: the same, started by a rising gate.
    HardwareStrobe = 5,
}

impl PitMode {
    fn from_control(control: u8) -> Self {
        match (control >> 1) & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::RateGenerator,
            3 | 7 => Self::SquareWave,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }

    fn periodic(self) -> bool {
        matches!(self, Self::RateGenerator | Self::SquareWave)
    }

    fn triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::HardwareStrobe)
    }
}

/// Which bytes of the 16-bit count a port access moves ("Control Word Format", RW).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PitAccess {
    /// The low byte alone; the other is zero.
    Low = 1,
    /// The high byte alone.
    High = 2,
    /// Both, one after the other.
    LowThenHigh = 3,
}

/// What the counting element does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PitPhase {
    /// No count since the control word, or none that was triggered.
    Idle,
    /// It was loaded at tick `since` and has counted from there; before, it waits for its clock.
    Counting {
        /// The tick.
        since: i64,
    },
    /// The gate stopped it after `elapsed` ticks.
    Stopped {
        /// Ticks.
        elapsed: i64,
    },
}

/// A counter. Times are ticks since an arbitrary start and must not run backwards; a time before
/// the last one counts as the last one.
///
/// It is plain data, and saved as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PitChannelState {
    /// The counting mode.
    pub mode: PitMode,
    /// Counts are decimal.
    pub bcd: bool,
    /// Which bytes port accesses move.
    pub access: PitAccess,
    /// The gate's level.
    pub gate: bool,

    /// Count register: what software wrote last, 1 to 65536; `None` since the control word.
    pub written: Option<i64>,
    /// What the counting element was loaded with.
    pub loaded: i64,
    /// What the counting element does.
    pub phase: PitPhase,
    /// When a count that was written during a period takes over.
    pub switch_at: Option<i64>,
    /// A count has been written that is not loaded yet.
    pub null_count: bool,

    /// The first byte of a two-byte write.
    pub low_byte: Option<u8>,
    /// The next read gives the second byte.
    pub read_high: bool,
    /// A count that was latched.
    pub latched_count: Option<u16>,
    /// A status byte that was latched.
    pub latched_status: Option<u8>,

    /// The tick up to which rising edges of the output were noticed.
    pub seen: i64,
    /// The output has risen since that was last asked.
    pub rose: bool,
}

/// Ticks and counts beyond this would overflow: three centuries are less.
const FARTHEST: i64 = 1 << 60;

impl PitChannelState {
    /// Whether a counter can be in this state.
    pub(super) fn check(&self) -> Result<(), BadState> {
        let counts = 1..=0x1_0000;
        let ticks = -FARTHEST..=FARTHEST;
        let phase = match self.phase {
            PitPhase::Idle => 0,
            PitPhase::Counting { since } => since,
            PitPhase::Stopped { elapsed } => elapsed,
        };
        if !counts.contains(&self.loaded) || self.written.is_some_and(|n| !counts.contains(&n)) {
            return Err(BadState("a counter of the PIT has a count that does not exist"));
        }
        if [phase, self.switch_at.unwrap_or(0), self.seen].iter().any(|at| !ticks.contains(at)) {
            return Err(BadState("a counter of the PIT has a time that is out of this world"));
        }
        Ok(())
    }

    pub(super) fn new(gate: bool) -> Self {
        Self {
            // The datasheet leaves the state after power-up open. A high output that stays is
            // the least harmful.
            mode: PitMode::SquareWave,
            bcd: false,
            access: PitAccess::LowThenHigh,
            gate,
            written: None,
            loaded: 1,
            phase: PitPhase::Idle,
            switch_at: None,
            null_count: true,
            low_byte: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            seen: 0,
            rose: false,
        }
    }

    /// Programs the counter; `control` is no latch command.
    pub(super) fn control(&mut self, control: u8, now: i64) {
        self.change(now, |this, _| {
            this.mode = PitMode::from_control(control);
            this.bcd = control & 1 != 0;
            this.access = match (control >> 4) & 3 {
                1 => PitAccess::Low,
                2 => PitAccess::High,
                _ => PitAccess::LowThenHigh,
            };
            this.written = None;
            this.phase = PitPhase::Idle;
            this.switch_at = None;
            this.null_count = true;
            this.low_byte = None;
            this.read_high = false;
            this.latched_count = None;
            this.latched_status = None;
        });
    }

    /// Latches the count, unless one is latched already.
    pub(super) fn latch_count(&mut self, now: i64) {
        self.settle(now);
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count());
        }
    }

    /// Latches the status byte, unless one is latched already.
    pub(super) fn latch_status(&mut self, now: i64) {
        self.settle(now);
        if self.latched_status.is_none() {
            let output = u8::from(self.output());
            let null_count = match self.phase {
                PitPhase::Counting { since } => self.null_count || self.seen < since,
                _ => self.null_count,
            };
            self.latched_status = Some(
                output << 7
                    | u8::from(null_count) << 6
                    | (self.access as u8) << 4
                    | (self.mode as u8) << 1
                    | u8::from(self.bcd),
            );
        }
    }

    pub(super) fn read(&mut self, now: i64) -> u8 {
        self.settle(now);
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count()).to_le_bytes();
        let (byte, done) = match (self.access, self.read_high) {
            (PitAccess::Low, _) => (low, true),
            (PitAccess::High, _) => (high, true),
            (PitAccess::LowThenHigh, false) => (low, false),
            (PitAccess::LowThenHigh, true) => (high, true),
        };
        self.read_high = !done;
        if done {
            self.latched_count = None;
        }
        byte
    }

    pub(super) fn write(&mut self, value: u8, now: i64) {
        let count = match (self.access, self.low_byte.take()) {
            (PitAccess::Low, _) => u16::from(value),
            (PitAccess::High, _) => u16::from(value) << 8,
            (PitAccess::LowThenHigh, None) => {
                self.low_byte = Some(value);
                if self.mode == PitMode::TerminalCount {
                    // "Writing the first byte disables counting. OUT is set low immediately."
                    self.change(now, |this, _| this.phase = PitPhase::Idle);
                }
                return;
            }
            (PitAccess::LowThenHigh, Some(low)) => u16::from_le_bytes([low, value]),
        };
        let count = self.decode(count);
        self.change(now, |this, now| this.set_count(count, now));
    }

    fn set_count(&mut self, count: i64, now: i64) {
        self.written = Some(count);
        self.null_count = true;
        match self.phase {
            _ if self.mode.triggered() => {}
            PitPhase::Counting { since } if self.mode.periodic() => {
                // The present period, or half of one in mode 3, is finished first.
                let elapsed = (now - since).max(0);
                let start = now.max(since) - elapsed % self.loaded;
                let half = start + (self.loaded + 1) / 2;
                self.switch_at = Some(if self.mode == PitMode::SquareWave && now < half {
                    half
                } else {
                    start + self.loaded
                });
            }
            PitPhase::Stopped { .. } if self.mode.periodic() => {}
            _ => {
                self.load(now);
                if !self.gate {
                    self.phase = PitPhase::Stopped { elapsed: 0 };
                }
            }
        }
    }

    /// Loads the counting element with the next clock.
    fn load(&mut self, now: i64) {
        let Some(count) = self.written else { return };
        self.loaded = count;
        self.phase = PitPhase::Counting { since: now + 1 };
        self.switch_at = None;
        self.null_count = false;
    }

    pub(super) fn set_gate(&mut self, gate: bool, now: i64) {
        if gate == self.gate {
            return;
        }
        self.change(now, |this, now| {
            this.gate = gate;
            match (this.mode, this.phase) {
                (PitMode::OneShot | PitMode::HardwareStrobe, _) if !gate => {}
                (_, PitPhase::Counting { since }) if !gate => {
                    this.phase = PitPhase::Stopped { elapsed: (now - since).max(0) };
                    this.switch_at = None;
                }
                (
                    PitMode::TerminalCount | PitMode::SoftwareStrobe,
                    PitPhase::Stopped { elapsed },
                ) => {
                    this.phase = PitPhase::Counting { since: now - elapsed };
                }
                (PitMode::TerminalCount | PitMode::SoftwareStrobe, _) => {}
                // A trigger.
                _ if gate => this.load(now),
                _ => {}
            }
        });
    }

    /// OUT at the tick last seen.
    fn output(&self) -> bool {
        let elapsed = match self.phase {
            PitPhase::Idle => return self.mode != PitMode::TerminalCount,
            // The gate forces the output of the periodic modes high.
            PitPhase::Stopped { .. } if self.mode.periodic() => return true,
            PitPhase::Stopped { elapsed } => elapsed,
            PitPhase::Counting { since } => (self.seen - since).max(0),
        };
        let n = self.loaded;
        match self.mode {
            PitMode::TerminalCount | PitMode::OneShot => elapsed >= n,
            // A count of 1 is illegal; the output then stays.
            PitMode::RateGenerator => n == 1 || elapsed % n != n - 1,
            PitMode::SquareWave => elapsed % n < (n + 1) / 2,
            PitMode::SoftwareStrobe | PitMode::HardwareStrobe => elapsed != n,
        }
    }

    pub(super) fn output_at(&mut self, now: i64) -> bool {
        self.settle(now);
        self.output()
    }

    /// The counting element at the tick last seen, as software reads it.
    fn count(&self) -> u16 {
        let elapsed = match self.phase {
            PitPhase::Idle => 0,
            PitPhase::Stopped { elapsed } => elapsed,
            PitPhase::Counting { since } => (self.seen - since).max(0),
        };
        let n = self.loaded;
        let count = match self.mode {
            PitMode::RateGenerator => n - elapsed % n,
            PitMode::SquareWave => {
                let position = elapsed % n;
                let half = (n + 1) / 2;
                let position = if position < half { position } else { position - half };
                (n & !1) - 2 * position
            }
            // The others go on below zero.
            _ => n - elapsed,
        };
        if self.bcd {
            let count = count.rem_euclid(10_000) as u16;
            let digit = |unit: u16| count / unit % 10;
            digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
        } else {
            count.rem_euclid(0x1_0000) as u16
        }
    }

    /// A count as software writes it; 0 is the largest.
    fn decode(&self, value: u16) -> i64 {
        let digit = |shift: u16| i64::from(value >> shift & 0xf);
        match (value, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (value, false) => value.into(),
            (_, true) => digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0),
        }
    }

    /// Does what time alone did until `now`.
    fn settle(&mut self, now: i64) {
        let now = now.max(self.seen);
        if let Some(at) = self.switch_at.filter(|&at| at <= now) {
            self.notice(at);
            self.switch(at);
        }
        self.notice(now);
    }

    fn notice(&mut self, now: i64) {
        self.rose |= self.next_rise_of_load(self.seen).is_some_and(|rise| rise <= now);
        self.seen = now;
    }

    /// The count that was written during a period takes over.
    fn switch(&mut self, at: i64) {
        let (Some(count), PitPhase::Counting { since }) = (self.written, self.phase) else {
            return;
        };
        let second_half = (at - since) % self.loaded != 0;
        self.loaded = count;
        let since = if second_half { at - (count + 1) / 2 } else { at };
        self.phase = PitPhase::Counting { since };
        self.switch_at = None;
        self.null_count = false;
    }

    /// Changes something at `now`, and notices if that raises the output.
    fn change(&mut self, now: i64, change: impl FnOnce(&mut Self, i64)) {
        self.settle(now);
        let before = self.output();
        let now = self.seen;
        change(self, now);
        self.rose |= !before && self.output();
    }

    /// When the output rises next after `after`, if the present load goes on.
    fn next_rise_of_load(&self, after: i64) -> Option<i64> {
        let PitPhase::Counting { since } = self.phase else { return None };
        let n = self.loaded;
        let rise = match self.mode {
            PitMode::TerminalCount | PitMode::OneShot => since + n,
            PitMode::RateGenerator | PitMode::SquareWave if n == 1 => return None,
            PitMode::RateGenerator | PitMode::SquareWave => {
                since + ((after - since).max(0) / n + 1) * n
            }
            PitMode::SoftwareStrobe | PitMode::HardwareStrobe => since + n + 1,
        };
        (rise > after).then_some(rise)
    }

    /// When the output rises next after the tick last seen.
    pub(super) fn next_rise(&self) -> Option<i64> {
        let rise = self.next_rise_of_load(self.seen);
        match self.switch_at {
            Some(at) if rise.is_none_or(|rise| rise > at) => {
                let mut later = self.clone();
                later.switch(at);
                later.next_rise_of_load(at)
            }
            _ => rise,
        }
    }

    /// Says whether the output rose since this was last asked.
    pub(super) fn take_rise(&mut self, now: i64) -> bool {
        self.settle(now);
        core::mem::take(&mut self.rose)
    }
}
