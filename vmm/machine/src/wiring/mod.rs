//! Which device sits at which address and interrupt. One function per bus or class of device.

pub mod chipset;
pub mod debug;
pub mod folders;
pub mod fw_cfg;
pub mod network;
pub mod pci;
pub mod storage;

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use ::chipset::{PowerSender, ResetControl, pm};
use ::pci::PciRoot;
use bus::{AddressSpace, BusDevice, Saved, Snapshot};
use irqchip::IrqLine;

use crate::acpi::{Platform, PmRegisters};
use crate::full::FullDisks;
use crate::snapshot::SavedDevices;
use crate::{BuildError, Parts, generation};

/// Interrupts of the fixed devices (ISA) and of PCI.
mod gsi {
    pub const KEYBOARD: u32 = 1;
    pub const COM2: u32 = 3;
    pub const COM1: u32 = 4;
    pub const RTC: u32 = 8;
    pub const SCI: u32 = 9;
    pub const MOUSE: u32 = 12;
    /// The first pins of the I/O APIC that no ISA device uses.
    pub const PCI_INTX: [u32; 4] = [16, 17, 18, 19];
    /// How many there are.
    pub const COUNT: u32 = 24;
}

/// First ports of the fixed devices.
mod port {
    pub const KEYBOARD_DATA: u16 = 0x60;
    pub const KEYBOARD_COMMAND: u16 = 0x64;
    pub const CMOS: u16 = 0x70;
    pub const SYSTEM_CONTROL_A: u16 = 0x92;
    pub const DEBUG_CONSOLE: u16 = 0xe9;
    pub const TEST_VALUE: u16 = 0xe0;
    pub const DEBUG_EXIT: u16 = 0xf4;
    pub const EXIT: u16 = 0xf8;
    pub const COM1: u16 = 0x3f8;
    pub const COM2: u16 = 0x2f8;
    pub const POWER_MANAGEMENT: u16 = 0x600;
    pub const PCI_SLOTS: u16 = 0x640;
    pub const PCI_CONFIG: u16 = 0xcf8;
    pub const RESET_CONTROL: u16 = 0xcf9;
    pub const TEST_IRQS: u16 = 0x2000;
    /// Where I/O BARs go.
    pub const PCI_WINDOW: std::ops::RangeInclusive<u64> = 0xc000..=0xffff;
}

/// A machine that is being put together.
pub struct Board<'a> {
    pub parts: &'a Parts<'a>,
    pub memory_space: Arc<AddressSpace>,
    pub ports: Arc<AddressSpace>,
    pub pci: Arc<PciRoot>,
    pub power: PowerSender,
    pub full: Arc<FullDisks>,
    saved: RefCell<SavedDevices>,
}

impl<'a> Board<'a> {
    /// A board with a PCI bus that nothing is attached to yet.
    pub fn new(parts: &'a Parts, power: PowerSender, full: Arc<FullDisks>) -> Self {
        let memory_space = Arc::new(AddressSpace::new());
        let ports = Arc::new(AddressSpace::new());
        let pci = pci::root(parts, &memory_space, &ports);
        Self { parts, memory_space, ports, pci, power, full, saved: RefCell::default() }
    }

    /// Has a device's state be saved.
    fn keep(&self, name: &str, device: Arc<dyn Saved>) {
        self.saved.borrow_mut().add(name, device);
    }

    /// The devices that are not on the PCI bus, whose states are to be saved.
    pub fn take_saved(&self) -> SavedDevices {
        self.saved.take()
    }

    fn irq(&self, gsi: u32) -> IrqLine {
        IrqLine::new(self.parts.irq.clone(), gsi)
    }

    /// Attaches a device, whose state is saved under its name.
    fn attach_ports<T: BusDevice + Snapshot + 'static>(
        &self,
        name: &str,
        first: u16,
        len: u64,
        device: Arc<Mutex<T>>,
    ) -> Result<(), BuildError> {
        self.keep(name, device.clone());
        self.attach_window(name, first, len, device)
    }

    /// Attaches a further window of a device.
    fn attach_window(
        &self,
        name: &str,
        first: u16,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BuildError> {
        let first = u64::from(first);
        Ok(self.ports.attach(name, first..=first + len - 1, device)?)
    }
}

/// A limit as devices take it. By default a tenth of a second's worth passes at once.
fn rate(rate: vmm_api::Rate) -> virtio::Rate {
    let vmm_api::Rate { per_second, burst } = rate;
    virtio::Rate { per_second, burst: burst.unwrap_or(per_second / 10) }
}

/// What ACPI tells the guest of all this.
pub fn platform<'a>(parts: &'a Parts) -> Platform<'a> {
    let at = |offset| port::POWER_MANAGEMENT + offset;
    Platform {
        cpus: parts.config.cpus,
        map: &parts.map,
        pm: PmRegisters {
            pm1a_event: at(pm::PM1A_EVENT),
            pm1a_control: at(pm::PM1A_CONTROL),
            timer: at(pm::TIMER),
            timer_is_32bit: true,
            gpe0: at(pm::GPE0),
            gpe0_len: pm::GPE0_LEN,
            reset: port::RESET_CONTROL,
            reset_value: ResetControl::RESET_VALUE,
            soft_off: pm::SOFT_OFF,
            cmos_century: chipset::CMOS_CENTURY,
        },
        sci: gsi::SCI as u8,
        pci_intx: gsi::PCI_INTX,
        serial: vec![(port::COM1, gsi::COM1), (port::COM2, gsi::COM2)],
        fw_cfg: ::chipset::fw_cfg::PORT,
        slots: port::PCI_SLOTS,
        generation_event: generation::EVENT,
    }
}
