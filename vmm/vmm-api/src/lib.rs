//! What a VMM is told and what it tells: serializable types only.
//!
//! `lodge` and `lodged` depend on this crate and on nothing else of the VMM.

#![forbid(unsafe_code)]

mod config;

pub use config::{
    Accelerator, BlockConfig, BootConfig, ConsoleConfig, CpuModel, DebugDevices, DiskFormat,
    ForwardedPort, GuestModule, NetConfig, Protocol, VmConfig,
};
