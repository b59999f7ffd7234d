//! The A20 gate and port 92h.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bus::{BadState, BusDevice, Snapshot};

use crate::{PowerRequest, PowerSender};

/// The A20 gate, which the keyboard controller and port 92h both switch.
///
/// It is open at the start, as firmware leaves it, and remembers how it was switched, but address
/// line 20 is never masked: processors since Haswell have no A20M# pin.
#[derive(Clone, Debug)]
pub struct A20(Arc<AtomicBool>);

impl A20 {
    /// An open gate.
    pub fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// Whether the gate is open.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Switches the gate.
    pub fn set(&self, open: bool) {
        self.0.store(open, Ordering::Relaxed);
    }
}

impl Default for A20 {
    fn default() -> Self {
        Self::new()
    }
}

mod spec {
    //! PS/2 system control port A (IBM PS/2 Hardware Interface Technical Reference).

    /// A change from 0 to 1 resets the processor.
    pub const FAST_RESET: u8 = 1 << 0;
    /// The A20 gate.
    pub const A20_GATE: u8 = 1 << 1;
}

/// System control port A: port 92h, one port long.
pub struct SystemControlPortA {
    // Wiring.
    a20: A20,
    power: PowerSender,
    // Volatile state.
    fast_reset: bool,
}

impl SystemControlPortA {
    /// The port, wired to the gate and to the machine.
    pub fn new(a20: A20, power: PowerSender) -> Self {
        Self { a20, power, fast_reset: false }
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.a20.set(true);
        self.fast_reset = false;
    }
}

impl BusDevice for SystemControlPortA {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(byte) = data.first_mut() {
            *byte = if self.a20.is_open() { spec::A20_GATE } else { 0 }
                | if self.fast_reset { spec::FAST_RESET } else { 0 };
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        self.a20.set(value & spec::A20_GATE != 0);
        let was_set = std::mem::replace(&mut self.fast_reset, value & spec::FAST_RESET != 0);
        if self.fast_reset && !was_set {
            self.power.send(PowerRequest::Reset);
        }
    }
}

/// The gate is saved by the keyboard controller.
impl Snapshot for SystemControlPortA {
    /// Bit 0.
    type State = bool;

    fn save(&self) -> bool {
        self.fast_reset
    }

    fn restore(&mut self, fast_reset: bool) -> Result<(), BadState> {
        self.fast_reset = fast_reset;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power_channel;

    #[test]
    fn switches_the_gate_and_resets_on_an_edge() {
        let (sender, requests) = power_channel().unwrap();
        let a20 = A20::new();
        let mut port = SystemControlPortA::new(a20.clone(), sender);
        let mut data = [0];
        port.read(0, &mut data);
        assert_eq!(data, [2]);
        port.write(0, &[0]);
        assert!(!a20.is_open());
        port.write(0, &[3]);
        assert!(a20.is_open());
        assert_eq!(requests.take(), Some(PowerRequest::Reset));
        port.write(0, &[3]);
        assert_eq!(requests.take(), None);
        port.reset();
        port.read(0, &mut data);
        assert_eq!(data, [2]);
    }
}
