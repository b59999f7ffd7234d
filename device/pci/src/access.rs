//! The two ways to configuration space: the ECAM window, and ports 0xCF8 to 0xCFF.

use std::sync::{Arc, Mutex, PoisonError};

use bus::BusDevice;

use crate::PciRoot;
use crate::spec::COMPATIBLE_SIZE;

/// The ECAM window of bus 0: bits 19 to 15 of the offset are the device, 14 to 12 the function,
/// 11 to 0 the register (PCI Express Base 5.0, 7.2.2).
pub(crate) struct Ecam(pub Arc<PciRoot>);

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.config_read(Address::of_ecam(offset), data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.config_write(Address::of_ecam(offset), data);
    }
}

/// A register of a function of bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub device: u8,
    pub function: u8,
    pub register: usize,
}

impl Address {
    fn of_ecam(offset: u64) -> Self {
        Self {
            device: (offset >> 15 & 0x1f) as u8,
            function: (offset >> 12 & 7) as u8,
            register: (offset & 0xfff) as usize,
        }
    }
}

/// Ports 0xCF8 to 0xCFF: CONFIG_ADDRESS and CONFIG_DATA (PCI Local Bus 3.0, 3.2.2.3.2).
///
/// CONFIG_ADDRESS answers dword accesses only; a byte access to 0xCF9 goes to the reset control
/// register of the chipset, which hides there.
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    reset_control: Option<Arc<Mutex<dyn BusDevice>>>,
    pub(crate) address: u32,
}

impl ConfigPorts {
    pub(crate) fn new(
        root: Arc<PciRoot>,
        reset_control: Option<Arc<Mutex<dyn BusDevice>>>,
    ) -> Self {
        Self { root, reset_control, address: 0 }
    }

    /// The register that CONFIG_DATA shows at `offset` from 0xCF8, if the address names bus 0.
    fn target(&self, offset: u64) -> Option<Address> {
        let enabled = self.address >> 31 != 0;
        let bus = self.address >> 16 & 0xff;
        let register = (self.address as usize & (COMPATIBLE_SIZE - 4)) + (offset as usize & 3);
        (enabled && bus == 0).then_some(Address {
            device: (self.address >> 11 & 0x1f) as u8,
            function: (self.address >> 8 & 7) as u8,
            register,
        })
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match (offset, data.len(), &self.reset_control) {
            (0, 4, _) => data.copy_from_slice(&self.address.to_le_bytes()),
            (1, 1, Some(reset)) => {
                reset.lock().unwrap_or_else(PoisonError::into_inner).read(0, data)
            }
            (4.., ..) => {
                if let Some(address) = self.target(offset) {
                    self.root.config_read(address, data);
                }
            }
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data, &self.reset_control) {
            (0, &[a, b, c, d], _) => self.address = u32::from_le_bytes([a, b, c, d]),
            (1, [_], Some(reset)) => {
                reset.lock().unwrap_or_else(PoisonError::into_inner).write(0, data)
            }
            (4.., ..) => {
                if let Some(address) = self.target(offset) {
                    self.root.config_write(address, data);
                }
            }
            _ => {}
        }
    }
}
