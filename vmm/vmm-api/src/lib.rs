//! What a VMM is told and what it tells: serializable types only.
//!
//! `lodge` and `lodged` depend on this crate and on nothing else of the VMM.

#![forbid(unsafe_code)]

mod config;
mod event;
mod host;
mod line;
mod request;
mod validate;

pub use config::{
    Accelerator, BlockConfig, BootConfig, ConsoleConfig, CpuModel, DebugDevices, DiskFormat,
    ForwardedPort, GdbAddress, GdbConfig, GuestModule, NetConfig, Protocol, VmConfig,
};
pub use event::{Event, Failure, FailureKind, StopReason};
pub use host::{HostReport, KvmSpeed, KvmState};
pub use request::{Answer, PROCESSOR_TIME_NS, ProcessorStatistics, Request, Statistics};
pub use validate::{
    ConfigError, MAX_CPUS, MAX_DEVICES, MAX_MEMORY_MIB, MIN_MEMORY_MIB, parse_mac, validate_name,
};
