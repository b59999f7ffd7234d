//! Interrupt controllers as pure state machines: local APIC, I/O APIC, 8259 pair, 8254.
//!
//! The models know no clock, lock or thread. Each call returns the work that follows from it
//! ("this message goes out on the APIC bus", "call me at T"), and the accelerator that owns the
//! model carries it out. That keeps them testable without a machine and free of lock cycles.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod line;

pub use line::{IrqLine, IrqSink, Msi, MsiTarget};
