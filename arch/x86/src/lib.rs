//! The x86 architecture, as the manuals define it: processor state, paging, segmentation,
//! exceptions, and an interpreter that executes one instruction after the other.
//!
//! The crate knows no host: memory, ports, clocks and interrupt controllers come in through
//! [`Env`]. It serves the software engine as its reference, and accelerators of every kind as
//! the one definition of [`CpuState`].

#![no_std]

extern crate alloc;

pub mod cpuid;
pub mod state;

pub use state::CpuState;
