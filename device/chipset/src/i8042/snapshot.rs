//! What of the keyboard controller and its keyboard is saved.

use bus::{BadState, Hex, Snapshot};
use serde::{Deserialize, Serialize};

use super::keyboard::KeyboardState;
use super::spec::Status;
use super::{I8042, Source};

/// The state of an [`I8042`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct I8042State {
    keyboard: KeyboardState,
    /// The controller's RAM.
    ram: Hex,
    /// The status register but for its "full" bits.
    status: u8,
    /// What the guest reads next, and where it comes from.
    output: Option<(u8, Source)>,
    /// What comes after it.
    answer: Option<(u8, Source)>,
    /// A command whose parameter comes next.
    awaits_parameter: Option<u8>,
    /// The A20 gate is open.
    a20: bool,
}

impl Snapshot for I8042 {
    type State = I8042State;

    fn save(&self) -> I8042State {
        I8042State {
            keyboard: self.keyboard.save(),
            ram: Hex(self.ram.to_vec()),
            status: self.status.bits(),
            output: self.output,
            answer: self.answer,
            awaits_parameter: self.awaits_parameter,
            a20: self.a20.is_open(),
        }
    }

    fn restore(&mut self, state: I8042State) -> Result<(), BadState> {
        self.keyboard.restore(state.keyboard)?;
        self.ram = state.ram.exactly("the keyboard controller's memory")?;
        self.status = Status::from_bits_truncate(state.status)
            .difference(Status::OUTPUT_FULL | Status::AUX_FULL);
        self.output = state.output;
        self.answer = state.answer;
        self.awaits_parameter = state.awaits_parameter;
        self.a20.set(state.a20);
        self.set_irqs();
        Ok(())
    }
}
