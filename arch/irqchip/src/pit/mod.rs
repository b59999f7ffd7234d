//! The 8254 programmable interval timer of a PC and the speaker port that gates its third
//! channel (Intel 8254 datasheet, 231164; ICH9 datasheet, 5.7 and 13.3, 13.7.1).

mod channel;
mod state;

#[cfg(test)]
mod tests;

pub use channel::{PitAccess, PitChannelState, PitMode, PitPhase};
pub use state::PitState;

/// The counters' clock in Hz, rounded: 315/264 MHz.
pub const PIT_HZ: u64 = 1_193_182;

/// Ticks per nanosecond are `TICKS / NANOSECONDS`, exactly.
const TICKS: u128 = 105;
const NANOSECONDS: u128 = 88_000;

/// Edges of channel 0 that follow one another faster than this (50 us) are merged, so that a
/// guest cannot make its host do nothing but wake up. The counters themselves keep their rate.
const MIN_INTERVAL: i64 = 60;

/// The half-period of the refresh request that port 0x61 shows, in ns.
const REFRESH: u64 = 15_085;

// Port 0x61 (ICH9 13.7.1 "NMI Status and Control").
const PORT61_GATE2: u8 = 1 << 0;
const PORT61_WRITABLE: u8 = 0x0f;
const PORT61_REFRESH: u8 = 1 << 4;
const PORT61_OUT2: u8 = 1 << 5;

/// What the timer does to IRQ 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Irq0 {
    /// The line rose at least once since the last [`Pit::poll`].
    pub rose: bool,
    /// Its level now.
    pub level: bool,
}

impl Irq0 {
    /// The levels to drive onto the line, one after the other.
    pub fn levels(self) -> impl Iterator<Item = bool> {
        let edge: &[bool] = if self.rose { &[false, true] } else { &[] };
        edge.iter().copied().chain((!self.rose || !self.level).then_some(self.level))
    }
}

/// The timer. Plain data: a clone is a snapshot.
///
/// `now` is guest time in nanoseconds and must not run backwards. After each write, and when the
/// [deadline](Self::next_deadline) has come, [`poll`](Self::poll) says what becomes of IRQ 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pit {
    channels: [PitChannelState; 3],
    /// The writable bits of port 0x61.
    port61: u8,
    /// The earliest tick for the next wake-up.
    not_before: i64,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

fn ticks(ns: u64) -> i64 {
    (u128::from(ns) * TICKS / NANOSECONDS) as i64
}

/// The first nanosecond of a tick.
fn nanoseconds(tick: i64) -> u64 {
    (tick.max(0) as u128 * NANOSECONDS).div_ceil(TICKS).try_into().unwrap_or(u64::MAX)
}

impl Pit {
    /// The timer after power-up: nothing counts. The gates of channels 0 and 1 are wired high.
    pub fn new() -> Self {
        Self {
            channels: [
                PitChannelState::new(true),
                PitChannelState::new(true),
                PitChannelState::new(false),
            ],
            port61: 0,
            not_before: 0,
        }
    }

    /// Resets everything.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Reads port `0x40 + port`. The control word register reads as zero.
    pub fn read(&mut self, port: u8, now: u64) -> u8 {
        self.channels.get_mut(usize::from(port)).map_or(0, |channel| channel.read(ticks(now)))
    }

    /// Writes port `0x40 + port`.
    pub fn write(&mut self, port: u8, value: u8, now: u64) {
        let now = ticks(now);
        if let Some(channel) = self.channels.get_mut(usize::from(port)) {
            channel.write(value, now);
        } else if port == 3 {
            self.control(value, now);
        }
    }

    /// The control word register.
    fn control(&mut self, value: u8, now: i64) {
        match (self.channels.get_mut(usize::from(value >> 6)), value & 0x30) {
            (Some(channel), 0) => channel.latch_count(now),
            (Some(channel), _) => channel.control(value, now),
            // The read-back command; its two latch bits are active low.
            (None, _) => {
                for (index, channel) in self.channels.iter_mut().enumerate() {
                    if value & (2 << index) == 0 {
                        continue;
                    }
                    if value & 0x20 == 0 {
                        channel.latch_count(now);
                    }
                    if value & 0x10 == 0 {
                        channel.latch_status(now);
                    }
                }
            }
        }
    }

    /// Reads port 0x61.
    pub fn read_port61(&mut self, now: u64) -> u8 {
        let refresh = if (now / REFRESH).is_multiple_of(2) { 0 } else { PORT61_REFRESH };
        let [_, _, speaker] = &mut self.channels;
        let out2 = if speaker.output_at(ticks(now)) { PORT61_OUT2 } else { 0 };
        self.port61 | refresh | out2
    }

    /// Writes port 0x61: bit 0 is channel 2's gate, bit 1 would let the speaker be heard.
    pub fn write_port61(&mut self, value: u8, now: u64) {
        self.port61 = value & PORT61_WRITABLE;
        let [_, _, speaker] = &mut self.channels;
        speaker.set_gate(value & PORT61_GATE2 != 0, ticks(now));
    }

    /// What became of IRQ 0, channel 0's output, until now.
    pub fn poll(&mut self, now: u64) -> Irq0 {
        let now = ticks(now);
        let [timer, ..] = &mut self.channels;
        let rose = timer.take_rise(now);
        if rose {
            self.not_before = now.saturating_add(MIN_INTERVAL);
        }
        Irq0 { rose, level: timer.output_at(now) }
    }

    /// When [`poll`](Self::poll) has to be called next, in ns of guest time; `None` if IRQ 0
    /// will not rise without software's doing.
    pub fn next_deadline(&self) -> Option<u64> {
        let [timer, ..] = &self.channels;
        timer.next_rise().map(|tick| nanoseconds(tick.max(self.not_before)))
    }
}
