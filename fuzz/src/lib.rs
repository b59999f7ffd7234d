//! What the fuzz targets share.
//!
//! A target makes a device, a disk or a processor, does to it what the input says, and lets it go.
//! Findings are panics (overflow and debug assertions included), hangs and too much memory. Each
//! input runs alone: what came before it must not matter, or a finding could not be reproduced.

pub mod files;
pub mod guest;
pub mod registers;
pub mod virtio;
pub mod wiring;
