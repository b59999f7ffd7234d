//! The x86 architecture, as the manuals define it: processor state, paging, segmentation,
//! exceptions, and an interpreter that executes one instruction after the other.
//!
//! The crate knows no host: memory, ports, clocks and interrupt controllers come in through
//! [`Env`]. It serves the software engine as its reference, and accelerators of every kind as
//! the one definition of [`CpuState`].

#![no_std]

extern crate alloc;

mod access;
pub mod alu;
mod block;
mod cpu;
pub mod cpuid;
mod crossing;
mod debug;
mod debugger;
mod decode;
mod env;
mod exception;
pub mod features;
mod insn;
mod interrupt;
mod paging;
mod probe;
mod run;
mod segment;
pub mod state;
mod system;
mod tlb;
mod translator;

pub use cpu::{Cpu, Mode, Stats};
pub use debugger::{DEBUG_POINTS, DebugControl, DebugPoint, DebugStop, PointKind};
pub use env::{Env, NativeOperand, Word};
pub use exception::{Exception, vector};
pub use insn::vector::wants_alignment;
pub use probe::{Physical, probe};
pub use run::Stop;
pub use state::CpuState;
pub use tlb::{Forgotten, View};
pub use translator::Target;

/// Physical addresses have at most this many bits (CPUID.80000008H:EAX[7:0]).
pub const MAX_PHYSICAL_BITS: u32 = 46;
