//! The form in which a machine is kept, on disk or on its way to another host.
//!
//! Its state is a row of [sections](Sections), each with a name, a version and a checksum: one for
//! each device, processor and clock. Its [memory](memory) is a file of its own, from which it can be
//! mapped. docs/snapshots.md describes both, byte by byte.
//!
//! Nothing here knows what is in a section.

#![forbid(unsafe_code)]

mod damage;
mod format;
pub mod memory;
mod sections;

pub use damage::Damage;
pub use format::{MAX_FILE, MAX_NAME, MAX_PAYLOAD, MAX_SECTIONS};
pub use sections::{Section, Sections};
