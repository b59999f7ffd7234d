//! How a device reaches the interrupt controllers, whoever runs them.

use alloc::boxed::Box;
use alloc::sync::Arc;

/// A message-signalled interrupt: a 32-bit write to the local APIC's address window
/// (Intel SDM Vol. 3, 11.11 "Message Signalled Interrupts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where the device writes: `0xfee0_0000` plus destination and mode bits.
    pub address: u64,
    /// What it writes: vector, delivery mode, trigger mode.
    pub data: u32,
}

/// The interrupt controllers of a machine as its devices see them. An accelerator implements it.
///
/// Both calls may come from any thread (a vCPU in a register access, a queue worker, the timer
/// thread) and never block for longer than a short critical section.
pub trait IrqSink: Send + Sync {
    /// Sets the level of a global system interrupt (ACPI 6.5, 5.2.13). GSIs 0 to 15 reach the
    /// 8259 pair as well as the I/O APIC.
    fn set_gsi(&self, gsi: u32, level: bool);

    /// Delivers a message-signalled interrupt. A message that names no processor is dropped.
    fn send_msi(&self, msi: Msi);

    /// A way of its own for the messages of one source, such as an MSI-X vector, if the accelerator
    /// has any to offer. What is sent there arrives as by [`send_msi`](Self::send_msi).
    fn open_route(&self) -> Option<Box<dyn MsiRoute>> {
        None
    }
}

/// A way for the messages of one source, which are mostly alike: the accelerator may prepare for
/// that.
pub trait MsiRoute: Send + Sync {
    /// Delivers a message; may be called as [`IrqSink::send_msi`] may.
    fn send(&self, msi: Msi);
}

/// A device's interrupt output, wired to one global system interrupt.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    gsi: u32,
}

impl IrqLine {
    /// Wires a line to `gsi`.
    pub fn new(sink: Arc<dyn IrqSink>, gsi: u32) -> Self {
        Self { sink, gsi }
    }

    /// Drives the line high or low. Setting a level twice is harmless.
    pub fn set_level(&self, level: bool) {
        self.sink.set_gsi(self.gsi, level);
    }

    /// Drives the line high and low again: one edge.
    pub fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }

    /// The global system interrupt that the line is wired to.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
}

impl core::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("IrqLine").field("gsi", &self.gsi).finish_non_exhaustive()
    }
}

/// A device's way to send message-signalled interrupts.
#[derive(Clone)]
pub struct MsiTarget(Arc<dyn IrqSink>);

impl MsiTarget {
    /// Sends messages into `sink`.
    pub fn new(sink: Arc<dyn IrqSink>) -> Self {
        Self(sink)
    }

    /// Sends one message.
    pub fn send(&self, msi: Msi) {
        self.0.send_msi(msi);
    }

    /// A way for the messages of one source, if there is one; see [`IrqSink::open_route`].
    pub fn open_route(&self) -> Option<Box<dyn MsiRoute>> {
        self.0.open_route()
    }
}

impl core::fmt::Debug for MsiTarget {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("MsiTarget")
    }
}
