//! Interrupts of devices, delivered by KVM's interrupt controllers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use accel::Fault;
use irqchip::{IOAPIC_PINS, IrqSink, Msi, MsiRoute};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::{Error, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::host::failed;

/// The first number of a route for messages: those below are pins.
const FIRST_MESSAGE_ROUTE: u32 = IOAPIC_PINS;

/// KVM's table of routes: which number leads to which pin or message.
pub struct Routes {
    vm: Arc<VmFd>,
    /// How many KVM takes.
    limit: u32,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Those that are messages.
    messages: BTreeMap<u32, Msi>,
    /// Numbers that are in use, whether they lead anywhere yet or not.
    taken: Vec<u32>,
}

impl Table {
    /// Has `number` stand for `msi`, if `apply` takes the table with it.
    fn change(
        &mut self,
        number: u32,
        msi: Msi,
        apply: impl FnOnce(&Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let before = self.messages.insert(number, msi);
        if before == Some(msi) {
            return Ok(());
        }
        let done = apply(self);
        if done.is_err() {
            match before {
                Some(before) => self.messages.insert(number, before),
                None => self.messages.remove(&number),
            };
        }
        done
    }
}

impl Routes {
    /// The wiring of a PC, as the software engine's `irqchip::Router` has it: ISA interrupts go to
    /// the 8259 pair and to the I/O APIC, there interrupt 0 to pin 2. What KVM can't do is to have
    /// the pair's output at pin 0.
    pub fn wire(vm: Arc<VmFd>, limit: u32) -> Result<Arc<Self>, Fault> {
        let routes = Arc::new(Self { vm, limit, table: Mutex::default() });
        routes
            .apply(&Table::default())
            .map_err(|e| failed("cannot wire KVM's interrupt controllers", e))?;
        Ok(routes)
    }

    fn apply(&self, table: &Table) -> Result<(), Error> {
        let mut entries = pins();
        entries.extend(table.messages.iter().map(|(&number, msi)| {
            let mut entry = kvm_irq_routing_entry {
                gsi: number,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: msi.address as u32,
                address_hi: (msi.address >> 32) as u32,
                data: msi.data,
                ..Default::default()
            };
            entry
        }));
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| Error::new(libc::E2BIG))?;
        self.vm.set_gsi_routing(&routing)
    }

    /// Has route `number` lead to `msi`. If KVM refuses, all is as before: what it refuses once
    /// must not be taken for set, nor stand in the way of other routes.
    fn set(&self, number: u32, msi: Msi) -> Result<(), Error> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.change(number, msi, |table| self.apply(table))
    }

    /// A number that nobody has.
    fn take(&self) -> Option<u32> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (FIRST_MESSAGE_ROUTE..self.limit).find(|n| !table.taken.contains(n))?;
        table.taken.push(number);
        Some(number)
    }

    fn give_back(&self, number: u32) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.taken.retain(|&n| n != number);
        // A route that nobody uses does no harm: it goes with the next change.
        table.messages.remove(&number);
    }
}

fn pins() -> Vec<kvm_irq_routing_entry> {
    let entry = |gsi, irqchip, pin| {
        let mut entry =
            kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        entry
    };
    let mut entries = Vec::new();
    for gsi in (0..IOAPIC_PINS).filter(|&gsi| gsi != 2) {
        match gsi {
            0..8 => entries.push(entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            8..16 => entries.push(entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
            _ => {}
        }
        entries.push(entry(gsi, KVM_IRQCHIP_IOAPIC, if gsi == 0 { 2 } else { gsi }));
    }
    entries
}

/// Where devices send their interrupts.
pub struct KvmIrqs {
    routes: Arc<Routes>,
}

impl KvmIrqs {
    /// Interrupts that arrive over `routes`.
    pub fn new(routes: Arc<Routes>) -> Self {
        Self { routes }
    }
}

impl IrqSink for KvmIrqs {
    fn set_gsi(&self, gsi: u32, level: bool) {
        // As in the models: what does not exist does nothing.
        if gsi >= IOAPIC_PINS || gsi == 2 {
            return;
        }
        if let Err(error) = self.routes.vm.set_irq_line(gsi, level) {
            tracing::error!("KVM refuses interrupt {gsi}: {error}");
        }
    }

    fn send_msi(&self, msi: Msi) {
        if msi.message().is_none() {
            return;
        }
        let message = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..Default::default()
        };
        // A message that no processor takes is dropped, as is one that KVM does not understand.
        if let Err(error) = self.routes.vm.signal_msi(message) {
            tracing::debug!("KVM refuses the message {msi:x?}: {error}");
        }
    }

    fn open_route(&self) -> Option<Box<dyn MsiRoute>> {
        let number = self.routes.take()?;
        match Route::open(self.routes.clone(), number) {
            Ok(route) => Some(Box::new(route)),
            Err(error) => {
                tracing::debug!("no irqfd: {error}; messages are sent one by one");
                self.routes.give_back(number);
                None
            }
        }
    }
}

/// A route for the messages of one source: an irqfd. Whoever writes to its event, this process or
/// another, raises the interrupt without a call to KVM.
struct Route {
    routes: Arc<Routes>,
    number: u32,
    event: EventFd,
}

impl Route {
    fn open(routes: Arc<Routes>, number: u32) -> std::io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        routes.vm.register_irqfd(&event, number)?;
        Ok(Self { routes, number, event })
    }
}

impl MsiRoute for Route {
    fn send(&self, msi: Msi) {
        if msi.message().is_none() {
            return;
        }
        match self.routes.set(self.number, msi) {
            // The one failure is a counter at its limit: it is raised all the same.
            Ok(()) => drop(self.event.write(1)),
            Err(error) => tracing::error!("KVM refuses a route for {msi:x?}: {error}"),
        }
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        // It fails only if the machine is gone, and with it the route.
        let _ = self.routes.vm.unregister_irqfd(&self.event, self.number);
        self.routes.give_back(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wiring_is_that_of_a_pc() {
        let wires: Vec<(u32, u32, u32)> = pins()
            .iter()
            .map(|entry| {
                // SAFETY: all entries are of the type that has this field.
                let to = unsafe { entry.u.irqchip };
                (entry.gsi, to.irqchip, to.pin)
            })
            .collect();
        for wire in [
            (0, KVM_IRQCHIP_PIC_MASTER, 0),
            (0, KVM_IRQCHIP_IOAPIC, 2),
            (9, KVM_IRQCHIP_PIC_SLAVE, 1),
            (9, KVM_IRQCHIP_IOAPIC, 9),
            (23, KVM_IRQCHIP_IOAPIC, 23),
        ] {
            assert!(wires.contains(&wire), "{wire:?}");
        }
        assert!(wires.iter().all(|&(gsi, ..)| gsi != 2 && gsi < 24));
        assert_eq!(wires.len(), 15 + 23);
    }

    #[test]
    fn a_route_that_is_refused_is_none() {
        let (good, bad) = (Msi { address: 0xfee0_0000, data: 1 }, Msi { address: 1, data: 2 });
        let kvm = |table: &Table| match table.messages.values().any(|msi| *msi == bad) {
            true => Err(Error::new(libc::EINVAL)),
            false => Ok(()),
        };
        let mut table = Table::default();
        assert!(table.change(24, bad, kvm).is_err());
        assert!(table.change(24, bad, kvm).is_err(), "again, not taken for set");
        assert!(table.change(25, good, kvm).is_ok(), "others work");
        assert!(table.change(25, bad, kvm).is_err());
        assert_eq!(table.messages.get(&25), Some(&good), "what was set stays");
    }
}
