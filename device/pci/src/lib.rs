//! PCI Express: the host bridge of bus 0, configuration space, BARs and interrupts.
//!
//! A [`PciRoot`] holds up to 32 single-function devices. The guest finds them through the ECAM
//! window (PCI Express Base 5.0, 7.2.2) or through ports 0xCF8 and 0xCFC (PCI Local Bus 3.0,
//! 3.2.2.3.2). A device describes itself as data ([`Description`]) and then sees only accesses to
//! its BARs; headers, capabilities, BAR sizing and moving, and MSI-X are handled here.
//!
//! BARs have addresses from the start, so that a kernel that is booted without firmware finds
//! what firmware would have left. A guest that knows better (ACPI `_CRS`) moves them.

#![forbid(unsafe_code)]

mod access;
mod allocator;
mod config;
mod decoder;
mod description;
mod function;
mod host_bridge;
mod interrupts;
mod msix;
mod root;
mod snapshot;
mod spec;

pub use access::ConfigPorts;
pub use allocator::Windows;
pub use description::{
    Bar, BarKind, Capability, Class, Description, DescriptionError, Doorbell, Identity, MsixLayout,
};
pub use interrupts::Interrupts;
pub use root::{AddError, DEVICES, ECAM_SIZE, PciRoot, Unplugged};

use std::ops::Range;

use bus::BadState;
use serde_json::Value;

/// A function on the bus, as its model implements it.
///
/// All methods are called on a vCPU thread (or the machine's thread, for the last five) under
/// the function's lock, so they must not wait for I/O. The bus calls `description` once, when the
/// device is added.
pub trait PciDevice: Send {
    /// What the guest reads in configuration space, as data.
    fn description(&self) -> Description;

    /// Fills `data` (1, 2, 4 or 8 bytes) from `offset` in a BAR; both lie inside the BAR.
    /// The MSI-X table and pending bits are served by the bus and never seen here.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// Takes a write to a BAR; bounds as for [`PciDevice::bar_read`].
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]);

    /// The guest is about to read bytes `touched` of the body of the `index`th capability of the
    /// description. A device whose capability is a window refreshes `body` here.
    fn capability_read(&mut self, index: usize, body: &mut [u8], touched: Range<usize>) {
        let _ = (index, body, touched);
    }

    /// The guest has written bytes `touched` of the body of the `index`th capability.
    fn capability_written(&mut self, index: usize, body: &[u8], touched: Range<usize>) {
        let _ = (index, body, touched);
    }

    /// The guest has changed Bus Master Enable. While it is off the device must not touch guest
    /// memory (PCI Local Bus 3.0, 6.2.2). It is off after a reset.
    fn set_bus_master(&mut self, enabled: bool) {
        let _ = enabled;
    }

    /// The bus is reset: back to the state after construction. Work in flight has ended when
    /// this returns.
    fn reset(&mut self);

    /// What of the device changes while a guest runs, beyond configuration space and MSI-X, which
    /// are the bus's. The machine stands still.
    ///
    /// # Errors
    ///
    /// If that cannot be said as JSON: a mistake in the device.
    fn save(&self) -> Result<Value, BadState>;

    /// Takes over what [`PciDevice::save`] gave: the device was made from the same configuration,
    /// and is paused. The state may have been read from anywhere.
    ///
    /// # Errors
    ///
    /// If no such device can have this state.
    fn restore(&mut self, state: Value) -> Result<(), BadState>;

    /// The machine stops: no guest memory is touched and no interrupt is raised after this
    /// returns, until [`PciDevice::resume`].
    fn pause(&mut self) {}

    /// The machine goes on.
    fn resume(&mut self) {}
}
