//! Device 0: the bridge between processors and bus.

use bus::BadState;
use serde_json::Value;

use crate::PciDevice;
use crate::description::{Class, Description, Identity};

/// The host bridge, which has an identity and nothing else.
///
/// It is Red Hat's generic PCI Express host bridge (1b36:0008) rather than Intel's Q35 MCH
/// (8086:29c0): that identity promises no chipset registers, while a guest that meets an MCH goes
/// looking for PCIEXBAR, PAM, SMRAM and an AGP aperture that are not here.
pub(crate) struct HostBridge;

impl PciDevice for HostBridge {
    fn description(&self) -> Description {
        Description {
            identity: Identity {
                vendor_id: 0x1b36,
                device_id: 0x0008,
                revision: 0,
                class: Class { base: 0x06, sub: 0x00, interface: 0x00 },
                subsystem_vendor_id: 0x1af4,
                subsystem_id: 0x1100,
            },
            bars: Vec::new(),
            doorbells: Vec::new(),
            capabilities: Vec::new(),
            interrupts: None,
            msix: None,
        }
    }

    fn bar_read(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {}

    fn save(&self) -> Result<Value, BadState> {
        Ok(Value::Null)
    }

    fn restore(&mut self, _state: Value) -> Result<(), BadState> {
        Ok(())
    }
}
