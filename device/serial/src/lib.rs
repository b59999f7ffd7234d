//! The 16550A serial port (National Semiconductor PC16550D).
//!
//! Everything is there but the wire: characters go out and come in at the speed of the console
//! behind the port, whatever the divisor says.

#![forbid(unsafe_code)]

mod snapshot;
mod spec;
mod uart;

#[cfg(test)]
mod tests;

pub use uart::Serial;

/// How many ports a serial port takes.
pub const WINDOW: u64 = 8;
