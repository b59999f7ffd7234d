//! Real guests on the real programs.
//!
//! The tests of this package start the `lodge` command as a person would, sit at the guest's
//! console, and compare what the guest says with what the host knows. They need release builds of
//! `lodge` and `lodge-vmm` (`LODGE_BIN` names another `lodge`) and the image `debian:12` of the
//! user's store, which is built if it is not there.
//!
//! Booting takes long, so that one boot serves many checks; each boot has a test program of its
//! own, and cargo runs these one after the other.

#![forbid(unsafe_code)]

mod console;
pub mod cpio;
pub mod debian_disk;
pub mod gdb;
mod guest;
mod host;
pub mod hostile;
mod image;
mod lab;
pub mod oci;
mod program;
mod shell;
pub mod small;
pub mod tiny;

pub use guest::{Begun, Guest, Launch};
pub use host::{EchoServer, free_port, has_tool, sha256, tool};
pub use image::Image;
pub use lab::{Lab, Refusal};
pub use program::{compile, compile32};
pub use shell::Outcome;

use std::io::Write;

/// Tells whoever waits how far a test is. Unlike `eprintln!`, the test harness does not withhold
/// it.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "    {text}");
}

/// Says that something could not be tested here, and why.
pub fn skipped(what: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}: {why}");
}
