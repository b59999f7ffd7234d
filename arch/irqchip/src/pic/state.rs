//! The registers of an 8259 as plain data.

use serde::{Deserialize, Serialize};

use super::PicPair;
use super::chip::Chip;

/// The state of one of the [`PicPair`]'s controllers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PicState {
    /// The levels of IR0 to IR7.
    pub lines: u8,
    /// The chipset's edge/level control register.
    pub elcr: u8,
    /// Requests of edge-triggered inputs.
    pub edges: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// In-service register.
    pub isr: u8,
    /// Where the initialisation sequence stands.
    pub init: PicInit,
    /// ICW1 asked for an ICW4.
    pub wants_icw4: bool,
    /// ICW1 said that there is no cascade.
    pub single: bool,
    /// The vector of IR0.
    pub vector_base: u8,
    /// Automatic EOI.
    pub auto_eoi: bool,
    /// Special fully nested mode.
    pub special_fully_nested: bool,
    /// The input of the highest priority.
    pub highest: u8,
    /// Rotate in automatic EOI mode.
    pub rotate_on_auto_eoi: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Reads give ISR, not IRR.
    pub read_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
}

/// Where the initialisation sequence of an 8259 stands (datasheet, figure 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PicInit {
    /// Powered up and never initialised: no interrupts yet.
    #[default]
    Never,
    /// The next write to A0=1 is ICW2.
    Icw2,
    /// ... is ICW3.
    Icw3,
    /// ... is ICW4.
    Icw4,
    /// It is over.
    Done,
}

impl PicPair {
    /// The master's state and the slave's.
    pub fn save(&self) -> (PicState, PicState) {
        (self.master.registers, self.slave.registers)
    }

    /// Takes over a state. Bits that no register has are left out.
    pub fn restore(&mut self, master: &PicState, slave: &PicState) {
        self.master.take_over(PicState { elcr: master.elcr & super::ELCR_MASTER, ..*master });
        self.slave.take_over(PicState { elcr: slave.elcr & super::ELCR_SLAVE, ..*slave });
        self.cascade();
    }
}

impl Chip {
    fn take_over(&mut self, state: PicState) {
        self.registers =
            PicState { vector_base: state.vector_base & 0xf8, highest: state.highest & 7, ..state };
    }
}
