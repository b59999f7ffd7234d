//! What a VMM is told and what it tells: serializable types only.
//!
//! `lodge` and `lodged` depend on this crate and on nothing else of the VMM.

#![forbid(unsafe_code)]

mod api;
mod balloon;
mod cloud_init;
mod config;
mod event;
mod folder;
mod host;
mod host_name;
mod hotplug;
mod limits;
mod line;
mod mac;
mod rates;
mod statistics;
mod validate;

pub use api::{
    API_PREFIX, CONSOLE_PROTOCOL, EventRecord, Instance, RunState, Snapshot, SnapshotRequest,
    StopRequest, VSOCK_PROTOCOL,
};
pub use balloon::{BalloonRequest, BalloonState, GuestMemoryUse};
pub use cloud_init::{CloudInitConfig, CloudInitError};
pub use config::{
    Accelerator, BlockConfig, BootConfig, ConsoleConfig, CpuModel, DebugDevices, DiskFormat,
    ForwardedPort, GdbAddress, GdbConfig, GuestModule, Lease, NetConfig, NetworkConfig, OnFull,
    Protocol, SandboxConfig, SandboxMode, VmConfig,
};
pub use event::{AGENT_READY_PORT, Event, Failure, FailureKind, StopReason};
pub use folder::{FolderConfig, FolderError};
pub use host::{EnginePace, HostReport, KvmSpeed, KvmState};
pub use host_name::host_name;
pub use hotplug::{
    ATTACH_PROTOCOL, AttachAnswer, AttachRequest, DetachRequest, Device, HOT_SLOTS, MAX_FIXED,
    card_number,
};
pub use limits::{CpuShare, Limits, MAX_HOST_CPUS};
pub use mac::{card_mac, default_mac, format_mac};
pub use rates::{DiskLimits, NetLimits, Rate};
pub use statistics::{
    DiskStatistics, FolderStatistics, MemoryStatistics, NetStatistics, PROCESSOR_TIME_NS,
    ProcessorStatistics, Statistics,
};
pub use validate::{
    ConfigError, MAX_CPUS, MAX_DEVICES, MAX_MEMORY_MIB, MIN_MEMORY_MIB, parse_mac, validate_name,
};
