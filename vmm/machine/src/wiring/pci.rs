//! The PCI bus, and the virtio devices that need nothing of the host's files.

use std::sync::{Arc, Mutex};

use bus::AddressSpace;
use chipset::{PowerManagement, ResetControl};
use irqchip::{IrqLine, MsiTarget};
use pci::{ECAM_SIZE, PciRoot, Windows};

use super::{Board, gsi, port};
use crate::slots::{self, Ejected, Slots};
use crate::{BuildError, Parts};

/// Bus 0, with windows as the memory map says.
pub fn root(
    parts: &Parts,
    memory_space: &Arc<AddressSpace>,
    ports: &Arc<AddressSpace>,
) -> Arc<PciRoot> {
    let map = &parts.map;
    PciRoot::new(
        memory_space,
        ports,
        Windows {
            memory32: map.pci_mmio32.start..=map.pci_mmio32.last(),
            memory64: map.pci_mmio64.start..=map.pci_mmio64.last(),
            io: port::PCI_WINDOW,
        },
        MsiTarget::new(parts.irq.clone()),
        Some(gsi::PCI_INTX.map(|gsi| IrqLine::new(parts.irq.clone(), gsi))),
        parts.doorbells.clone(),
    )
}

/// Configuration space by ECAM and by ports; the latter contain the reset control register.
pub fn attach(board: &Board) -> Result<(), BuildError> {
    let ecam = board.parts.map.ecam.start;
    let window = ecam..=ecam + ECAM_SIZE - 1;
    board.memory_space.attach("ECAM", window, board.pci.ecam())?;
    let reset = Arc::new(Mutex::new(ResetControl::new(board.power.clone())));
    board.keep("reset control", reset.clone());
    board.attach_ports(
        "PCI configuration",
        port::PCI_CONFIG,
        8,
        board.pci.config_ports(Some(reset)),
    )
}

/// The registers about slots whose devices come and go.
pub fn attach_slots(
    board: &Board,
    pm: Arc<Mutex<PowerManagement>>,
    ejected: Arc<Ejected>,
) -> Result<Arc<Mutex<Slots>>, BuildError> {
    let slots = Slots::new(board.pci.clone(), pm, ejected);
    board.attach_ports("PCI slots", port::PCI_SLOTS, slots::LEN.into(), slots.clone())?;
    Ok(slots)
}

/// A console, if there is one, and always a source of entropy and a socket device.
pub fn attach_console_rng_and_vsock(board: &Board) -> Result<(), BuildError> {
    let memory = &board.parts.memory;
    if let Some(console) = &board.parts.virtio_console {
        let console = virtio::console(console.clone(), memory.clone())?;
        board.pci.add(None, Box::new(console))?;
    }
    board.pci.add(None, Box::new(virtio::rng(memory.clone())?))?;
    let vsock = virtio::vsock(board.parts.vsock.clone(), memory.clone())?;
    board.pci.add(None, Box::new(vsock))?;
    Ok(())
}

/// A balloon, if there is one.
pub fn attach_balloon(board: &Board) -> Result<(), BuildError> {
    if let Some(host) = &board.parts.balloon {
        let balloon = virtio::balloon(host.clone(), board.parts.memory.clone())?;
        board.pci.add(None, Box::new(balloon))?;
    }
    Ok(())
}
