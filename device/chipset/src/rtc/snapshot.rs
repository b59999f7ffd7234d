//! What of the clock is saved.

use bus::{BadState, Hex, Snapshot};
use serde::{Deserialize, Serialize};

use super::chip::{Chip, SECOND};
use super::spec::RegisterC;
use super::{Rtc, host_now};

/// The state of an [`Rtc`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RtcState {
    /// The index register.
    index: u8,
    /// All bytes.
    memory: Hex,
    /// By how much the guest has set the clock: seconds, and nanoseconds of one.
    offset_s: i64,
    offset_ns: u32,
    /// Register C.
    flags: u8,
    second_seen: i64,
    tick_seen: u64,
}

/// No clock is set further off: its year has four digits.
const FARTHEST_S: i64 = 400_000_000_000;

impl Snapshot for Rtc {
    type State = RtcState;

    fn save(&self) -> RtcState {
        let Chip { memory, offset, flags, second_seen, tick_seen } = &self.chip;
        RtcState {
            index: self.index,
            memory: Hex(memory.to_vec()),
            offset_s: offset.div_euclid(SECOND) as i64,
            offset_ns: offset.rem_euclid(SECOND) as u32,
            flags: flags.bits(),
            second_seen: *second_seen,
            tick_seen: *tick_seen,
        }
    }

    fn restore(&mut self, state: RtcState) -> Result<(), BadState> {
        let seconds = -FARTHEST_S..=FARTHEST_S;
        if !seconds.contains(&state.offset_s) || !seconds.contains(&state.second_seen) {
            return Err(BadState::new("the clock is set to a time out of this world"));
        }
        self.index = state.index & 0x7f;
        self.chip = Chip {
            memory: state.memory.exactly("CMOS memory")?,
            offset: i128::from(state.offset_s) * SECOND + i128::from(state.offset_ns),
            flags: RegisterC::from_bits_truncate(state.flags),
            second_seen: state.second_seen,
            tick_seen: state.tick_seen,
        };
        self.update(host_now(&self.clock));
        Ok(())
    }
}
