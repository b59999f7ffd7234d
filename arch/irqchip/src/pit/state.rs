//! The 8254 as plain data.

use serde::{Deserialize, Serialize};

use super::channel::PitChannelState;
use super::{PORT61_WRITABLE, Pit};
use crate::BadState;

/// The state of a [`Pit`]. Times are ticks of guest time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PitState {
    /// The counters.
    pub channels: [PitChannelState; 3],
    /// The writable bits of port 61h.
    pub port61: u8,
    /// The earliest tick for the next edge of IRQ 0.
    pub not_before: i64,
}

impl Pit {
    /// Its state now.
    pub fn save(&self) -> PitState {
        let Self { channels, port61, not_before } = self.clone();
        PitState { channels, port61, not_before }
    }

    /// Takes over a state.
    ///
    /// # Errors
    ///
    /// If no timer can be in this state.
    pub fn restore(&mut self, state: &PitState) -> Result<(), BadState> {
        state.channels.iter().try_for_each(PitChannelState::check)?;
        let PitState { channels, port61, not_before } = state.clone();
        *self = Self { channels, port61: port61 & PORT61_WRITABLE, not_before };
        Ok(())
    }
}
