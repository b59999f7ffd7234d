//! The I/O APIC's registers as plain data.

use serde::{Deserialize, Serialize};

use super::{IoApic, PINS, Redirection};

/// The state of an [`IoApic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoApicState {
    /// A bit for each pin that is asserted.
    pub pins: u32,
    /// IOREGSEL.
    pub select: u8,
    /// The APIC ID.
    pub id: u8,
    /// The redirection table, with the remote IRR bits.
    pub table: [u64; PINS],
}

impl IoApic {
    /// Its state now.
    pub fn save(&self) -> IoApicState {
        IoApicState {
            pins: self.pins,
            select: self.select,
            id: self.id,
            table: self.table.map(|entry| entry.0),
        }
    }

    /// Takes over a state. Bits that no register has are left out.
    pub fn restore(&mut self, state: &IoApicState) {
        const KEPT: u64 = Redirection::WRITABLE | Redirection::REMOTE_IRR;
        *self = Self {
            pins: state.pins & ((1 << PINS) - 1),
            select: state.select,
            id: state.id & 0x0f,
            table: state.table.map(|entry| Redirection(entry & KEPT)),
        };
    }
}
