//! Slots of the PCI bus whose devices come and go while the guest runs: the registers that ACPI's methods for
//! them (`acpi/slots.rs`) read and write.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use bus::{BadState, BusDevice, Snapshot};
use chipset::PowerManagement;
use pci::{PciRoot, Unplugged};
use runtime::Event;
use serde::{Deserialize, Serialize};
use vmm_api::HOT_SLOTS;

/// The general-purpose event that tells the guest to look at the registers. The DSDT says the same.
pub const EVENT: u32 = 1;
/// Offsets of the registers, of four bytes each, a bit for each slot. What has arrived since this was last
/// read:
pub const ARRIVED: u16 = 0;
/// What is to leave, since this was last read:
pub const LEAVING: u16 = 4;
/// Written by the guest: it has let go of these.
pub const EJECT: u16 = 8;
/// How many ports there are.
pub const LEN: u8 = 12;

/// The registers, and what they act upon.
pub struct Slots {
    // Wiring.
    pci: Arc<PciRoot>,
    pm: Arc<Mutex<PowerManagement>>,
    ejected: Arc<Ejected>,
    // Volatile state.
    arrived: u32,
    leaving: u32,
}

/// Devices that are off the bus, and wait to be closed.
pub struct Ejected {
    devices: Mutex<Vec<(u8, Unplugged)>>,
    event: Event,
}

impl Ejected {
    /// None.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { devices: Mutex::default(), event: Event::new()? }))
    }

    /// Takes them, with the slots that they were in. Each ends its work when it is dropped.
    pub fn take(&self) -> Vec<(u8, Unplugged)> {
        self.event.clear();
        std::mem::take(&mut *self.devices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether [`Ejected::take`] has nothing.
    pub fn is_empty(&self) -> bool {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn add(&self, slot: u8, device: Unplugged) {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).push((slot, device));
        self.event.signal();
    }
}

/// Readable when [`Ejected::take`] has something.
impl AsFd for Ejected {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Slots {
    /// Nothing has changed yet.
    pub fn new(
        pci: Arc<PciRoot>,
        pm: Arc<Mutex<PowerManagement>>,
        ejected: Arc<Ejected>,
    ) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { pci, pm, ejected, arrived: 0, leaving: 0 }))
    }

    /// Has the guest look at a slot that has got a device.
    pub fn announce(&mut self, slot: u8) {
        self.arrived |= bit(slot);
        // Whatever was in the slot before is gone.
        self.leaving &= !bit(slot);
        self.tell();
    }

    /// Asks the guest to let go of what is in a slot.
    pub fn ask_to_release(&mut self, slot: u8) {
        self.leaving |= bit(slot);
        self.tell();
    }

    /// Takes away what is in a slot. The guest is asked to let go of it all the same, and finds it gone.
    pub fn take_away(&mut self, slot: u8) {
        self.eject(bit(slot));
        self.ask_to_release(slot);
    }

    fn tell(&self) {
        self.pm.lock().unwrap_or_else(PoisonError::into_inner).raise_gpe(EVENT);
    }

    fn eject(&mut self, slots: u32) {
        for slot in HOT_SLOTS.filter(|&slot| slots & bit(slot) != 0) {
            self.arrived &= !bit(slot);
            self.leaving &= !bit(slot);
            if let Some(device) = self.pci.remove(slot) {
                self.ejected.add(slot, device);
            }
        }
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

/// The registers are accessed whole; all else has no effect.
impl BusDevice for Slots {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        let value = match u16::try_from(offset) {
            Ok(ARRIVED) => std::mem::take(&mut self.arrived),
            Ok(LEAVING) => std::mem::take(&mut self.leaving),
            _ => 0,
        };
        *data = value.to_le_bytes();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(EJECT), &[a, b, c, d]) = (u16::try_from(offset), data) {
            self.eject(u32::from_le_bytes([a, b, c, d]));
        }
    }
}

/// What of the registers is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotsState {
    arrived: u32,
    leaving: u32,
}

impl Snapshot for Slots {
    type State = SlotsState;

    fn save(&self) -> SlotsState {
        let Self { pci: _, pm: _, ejected: _, arrived, leaving } = self;
        SlotsState { arrived: *arrived, leaving: *leaving }
    }

    fn restore(&mut self, state: SlotsState) -> Result<(), BadState> {
        SlotsState { arrived: self.arrived, leaving: self.leaving } = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    use bus::AddressSpace;
    use chipset::pm::GPE0;
    use irqchip::{IrqLine, IrqSink, Msi, MsiTarget};
    use mem::GuestMemory;
    use pci::Windows;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    struct NoIrqs;

    impl IrqSink for NoIrqs {
        fn set_gsi(&self, _: u32, _: bool) {}
        fn send_msi(&self, _: Msi) {}
    }

    struct Bench {
        pci: Arc<PciRoot>,
        pm: Arc<Mutex<PowerManagement>>,
        ejected: Arc<Ejected>,
        slots: Arc<Mutex<Slots>>,
        memory: GuestMemory,
    }

    impl Bench {
        fn new() -> Self {
            let spaces = [(); 2].map(|()| Arc::new(AddressSpace::new()));
            let windows = Windows {
                memory32: 0xc000_0000..=0xc0ff_ffff,
                memory64: 0x80_0000_0000..=0x80_ffff_ffff,
                io: 0xc000..=0xcfff,
            };
            let irq = Arc::new(NoIrqs);
            let msi = MsiTarget::new(irq.clone());
            let pci = PciRoot::new(&spaces[0], &spaces[1], windows, msi, None, None);
            let clock = Arc::new(runtime::Clock::stopped_at(0));
            let timers = runtime::Timers::new(clock).unwrap();
            let (power, _) = chipset::power_channel().unwrap();
            let pm = PowerManagement::new(IrqLine::new(irq, 9), power, &timers);
            let ejected = Ejected::new().unwrap();
            let slots = Slots::new(pci.clone(), pm.clone(), ejected.clone());
            let memory = mem::allocate(&[mem::RamRange { start: 0, len: 1 << 20 }]).unwrap();
            Self { pci, pm, ejected, slots, memory }
        }

        fn add(&self, slot: u8) -> Result<u8, pci::AddError> {
            self.pci.add(Some(slot), Box::new(virtio::rng(self.memory.clone()).unwrap()))
        }

        fn read(&self, register: u16) -> u32 {
            let mut data = [0xff; 4];
            self.slots.lock().unwrap().read(register.into(), &mut data);
            u32::from_le_bytes(data)
        }

        fn eject(&self, slots: u32) {
            self.slots.lock().unwrap().write(EJECT.into(), &slots.to_le_bytes());
        }

        /// Whether the event is raised; clears it.
        fn was_told(&self) -> bool {
            let mut pm = self.pm.lock().unwrap();
            let mut status = [0];
            pm.read(GPE0.into(), &mut status);
            pm.write(GPE0.into(), &status);
            status[0] & 1 << EVENT != 0
        }

        fn has_ejected(&self) -> bool {
            let mut fds = [PollFd::from_borrowed_fd(self.ejected.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
        }
    }

    #[test]
    fn the_guest_is_told_once_and_lets_go() {
        let bench = Bench::new();
        bench.add(24).unwrap();
        assert!(bench.add(24).is_err());
        bench.slots.lock().unwrap().announce(24);
        assert!(bench.was_told());
        assert_eq!((bench.read(LEAVING), bench.read(ARRIVED)), (0, 1 << 24));
        assert_eq!(bench.read(ARRIVED), 0);

        bench.slots.lock().unwrap().ask_to_release(24);
        assert!(bench.was_told());
        assert_eq!((bench.read(ARRIVED), bench.read(LEAVING)), (0, 1 << 24));
        assert!(!bench.has_ejected());
        bench.eject(1 << 24);
        assert!(bench.has_ejected());
        let gone: Vec<u8> = bench.ejected.take().iter().map(|(slot, _)| *slot).collect();
        assert_eq!(gone, [24]);
        assert!(!bench.has_ejected());
        // The slot can be had again, any number of times.
        for _ in 0..3000 {
            bench.add(24).unwrap();
            bench.eject(1 << 24);
            bench.ejected.take();
        }
    }

    #[test]
    fn only_these_slots_are_emptied_and_only_by_whole_registers() {
        let bench = Bench::new();
        bench.add(1).unwrap();
        bench.add(31).unwrap();
        bench.eject(!(1 << 31));
        for data in [&[0xff; 1][..], &[0xff; 2], &[0xff; 8], &[]] {
            bench.slots.lock().unwrap().write(EJECT.into(), data);
        }
        for other in [ARRIVED, LEAVING, EJECT + 4, u16::MAX] {
            bench.slots.lock().unwrap().write(other.into(), &[0xff; 4]);
        }
        assert!(!bench.has_ejected() && bench.add(1).is_err());
        bench.slots.lock().unwrap().announce(31);
        for len in [0, 1, 2, 8] {
            let mut data = vec![0xff; len];
            bench.slots.lock().unwrap().read(ARRIVED.into(), &mut data);
            assert_eq!(data, vec![0; len]);
        }
        assert_eq!((bench.read(EJECT), bench.read(u16::MAX)), (0, 0));
        assert_eq!(bench.read(ARRIVED), 1 << 31);
        // One that is taken away is asked for all the same.
        bench.slots.lock().unwrap().take_away(31);
        assert!(bench.has_ejected());
        assert_eq!(bench.read(LEAVING), 1 << 31);
    }

    #[test]
    fn what_was_not_read_yet_is_read_after_a_restore() {
        let bench = Bench::new();
        bench.slots.lock().unwrap().announce(25);
        bench.slots.lock().unwrap().ask_to_release(26);
        let state = bench.slots.lock().unwrap().save();
        let other = Bench::new();
        other.slots.lock().unwrap().restore(state).unwrap();
        assert_eq!((other.read(ARRIVED), other.read(LEAVING)), (1 << 25, 1 << 26));
    }
}
