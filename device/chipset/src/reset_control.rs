//! The reset control register, port CF9h.

use bus::{BadState, BusDevice, Snapshot};

use crate::{PowerRequest, PowerSender};

mod spec {
    //! RST_CNT (Intel ICH9 datasheet, 13.7.5).

    /// A hard reset instead of an INIT of the processors.
    pub const SYS_RST: u8 = 1 << 1;
    /// A change from 0 to 1 resets.
    pub const RST_CPU: u8 = 1 << 2;
    /// A hard reset goes through a power cycle.
    pub const FULL_RST: u8 = 1 << 3;
}

/// The reset control register. One port, inside the PCI configuration ports: the PCI root passes
/// byte accesses on.
pub struct ResetControl {
    // Wiring.
    power: PowerSender,
    // Volatile state.
    register: u8,
}

impl ResetControl {
    /// What resets the machine when written here, for the FADT (ACPI 6.5, 4.8.3.6).
    pub const RESET_VALUE: u8 = spec::SYS_RST | spec::RST_CPU;

    /// The register, wired to the machine.
    pub fn new(power: PowerSender) -> Self {
        Self { power, register: 0 }
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.register = 0;
    }
}

impl BusDevice for ResetControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(byte) = data.first_mut() {
            *byte = self.register;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let rises = value & !self.register & spec::RST_CPU != 0;
        self.register = value & (spec::SYS_RST | spec::RST_CPU | spec::FULL_RST);
        if rises {
            // An INIT of the processors alone would leave the devices running into a machine
            // without firmware to pick up from: both kinds reset everything.
            self.power.send(PowerRequest::Reset);
        }
    }
}

impl Snapshot for ResetControl {
    /// The register.
    type State = u8;

    fn save(&self) -> u8 {
        self.register
    }

    fn restore(&mut self, register: u8) -> Result<(), BadState> {
        self.register = register & (spec::SYS_RST | spec::RST_CPU | spec::FULL_RST);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power_channel;

    #[test]
    fn resets_when_rst_cpu_rises() {
        let (sender, requests) = power_channel().unwrap();
        let mut port = ResetControl::new(sender);
        port.write(0, &[spec::SYS_RST]);
        assert_eq!(requests.take(), None);
        port.write(0, &[ResetControl::RESET_VALUE]);
        assert_eq!(requests.take(), Some(PowerRequest::Reset));
        port.write(0, &[ResetControl::RESET_VALUE]);
        assert_eq!(requests.take(), None);
        let mut data = [0];
        port.read(0, &mut data);
        assert_eq!(data, [6]);
    }
}
