//! The PC that a guest sees, put together: memory map, firmware tables, boot loading, devices.
//!
//! This is the one place that knows every kind of device. There is no firmware program in the
//! guest: what a BIOS would have left in memory and registers is written before the guest's
//! first instruction.

#![forbid(unsafe_code)]

pub mod acpi;
pub mod boot;
mod cloud_init;
mod counters;
mod error;
mod files;
pub mod firmware;
mod full;
mod generation;
mod layers;
mod machine;
mod memory_map;
mod plug;
mod slots;
mod snapshot;
mod wiring;

pub use chipset::{PowerRequest, PowerRequests};
pub use counters::Counters;
pub use error::BuildError;
pub use files::Files;
pub use layers::is_name as is_layer_name;
pub use machine::{Machine, Parts, physical_address_bits};
pub use memory_map::{AddressRange, E820Entry, E820Kind, MemoryMap, MemoryMapError};
pub use plug::Removed;
pub use wiring::network::forwards;
pub use wiring::storage::AttachedDisk;
