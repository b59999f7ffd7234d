//! What interrupt controllers are saved as: registers and signals, as plain data that every
//! accelerator's controllers can be put into, and that may have been read from anywhere.

use serde::{Deserialize, Serialize};

use crate::{IoApicState, PicState, PitState};

/// A state that no controller can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadState(pub &'static str);

impl core::fmt::Display for BadState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.0)
    }
}

impl core::error::Error for BadState {}

/// The controllers that all of a machine's processors share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChipsState {
    /// The 8259 that the processor's LINT0 is wired to.
    pub pic_master: PicState,
    /// The 8259 behind its input 2.
    pub pic_slave: PicState,
    /// The I/O APIC.
    pub ioapic: IoApicState,
    /// The 8254 and port 61h.
    pub pit: PitState,
}
