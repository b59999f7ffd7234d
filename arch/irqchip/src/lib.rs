//! Interrupt controllers as pure state machines: local APIC, I/O APIC, 8259 pair, 8254.
//!
//! The models know no clock, lock or thread. Each call returns the work that follows from it
//! ("this message goes out on the APIC bus", "call me at T"), and the accelerator that owns the
//! model carries it out. That keeps them testable without a machine and free of lock cycles.
//!
//! ```text
//! IrqSink::set_gsi --> Router --messages--> Lapic (each that accepts one) --attention--> vCPU
//!                        |  `---intr-----> Lapic::set_lint(Lint0)
//! IrqSink::send_msi -----+--Msi::message--> Lapic
//! vCPU: Lapic register --Effects--> message to other Lapics, eoi to the Router
//! ```
//!
//! An owner that holds the router's lock while it delivers a piece of [`Work`] keeps the levels of
//! LINT0 in order; local APICs never call back.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod ioapic;
mod lapic;
mod line;
mod message;
mod msi;
mod pic;
mod pit;
mod router;
mod state;

pub use ioapic::{IOAPIC_PINS, IoApic, IoApicState};
pub use lapic::{
    Attention, Deadline, Effects, GeneralProtection, Lapic, LapicConfig, LapicState, Lint,
    LvtState, Now, TIMER_HZ, TimerState,
};
pub use line::{IrqLine, IrqSink, Msi, MsiRoute, MsiTarget};
pub use message::{DeliveryMode, Destination, Message, Trigger, lowest_priority};
pub use pic::{PicInit, PicPair, PicPort, PicState};
pub use pit::{Irq0, PIT_HZ, Pit, PitAccess, PitChannelState, PitMode, PitPhase, PitState};
pub use router::{Router, Work};
pub use state::{BadState, ChipsState};
