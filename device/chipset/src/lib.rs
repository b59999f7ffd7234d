//! The PC's fixed devices: real-time clock and CMOS memory, keyboard controller, ACPI power
//! management, reset and A20 ports, fw_cfg, and the debug ports of test kernels.
//!
//! Each device is a window of registers ([`bus::BusDevice`]) behind a lock of its own. Where a
//! device has windows in several places, [`At`] makes the further ones. Requests to reset or power
//! off leave as data ([`PowerRequest`]).

#![forbid(unsafe_code)]

mod a20;
mod at;
pub mod debug;
mod exit_port;
pub mod fw_cfg;
pub mod i8042;
pub mod pm;
mod power;
mod reset_control;
pub mod rtc;
pub mod testdev;

#[cfg(test)]
mod test_wiring;

pub use a20::{A20, SystemControlPortA};
pub use at::At;
pub use debug::{DebugConsole, DebugExit};
pub use exit_port::ExitPort;
pub use fw_cfg::FwCfg;
pub use i8042::I8042;
pub use pm::PowerManagement;
pub use power::{PowerRequest, PowerRequests, PowerSender, power_channel};
pub use reset_control::ResetControl;
pub use rtc::{CmosConfig, Rtc};
