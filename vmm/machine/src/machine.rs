//! A whole machine but for its processors.

use std::sync::{Arc, Mutex, PoisonError};

use accel::CpuBus;
use block::Disk;
use bus::AddressSpace;
use chardev::Chardev;
use chipset::{PowerManagement, PowerRequest, PowerRequests, PowerSender};
use hybrid_vsock::Vsock;
use irqchip::IrqSink;
use mem::GuestMemory;
use pci::PciRoot;
use runtime::{Doorbells, Timers};
use state::Sections;
use virtio::Balloon;
use vmm_api::{Failure, FolderConfig, VmConfig};
use x86::CpuState;

use crate::boot::{self, Entry};
use crate::counters::Counters;
use crate::full::FullDisks;
use crate::snapshot::SavedDevices;
use crate::wiring::Board;
use crate::wiring::storage::AttachedDisk;
use crate::{BuildError, Files, MemoryMap, acpi, firmware, generation, layers, wiring};

/// What a machine is built from.
pub struct Parts<'a> {
    /// What it is to be.
    pub config: &'a VmConfig,
    /// The files that it names.
    pub files: &'a Files,
    /// Where things are.
    pub map: MemoryMap,
    /// The physical address width that CPUID tells the guest.
    pub phys_bits: u8,
    /// RAM as `map` says: all zero, or as it was saved.
    pub memory: GuestMemory,
    /// The machine is one that was saved, and loads no kernel.
    pub is_restored: bool,
    /// The accelerator's interrupt controllers.
    pub irq: Arc<dyn IrqSink>,
    /// Who rings doorbells without a processor leaving the guest, if the accelerator can.
    pub doorbells: Option<Arc<dyn Doorbells>>,
    /// The machine's timers. Their clock stands still until the processors run.
    pub timers: Arc<Timers>,
    /// Where the first serial port leads.
    pub serial: Arc<Chardev>,
    /// Where the second serial port leads.
    pub serial2: Arc<Chardev>,
    /// Where the virtio console leads, if there is one.
    pub virtio_console: Option<Arc<Chardev>>,
    /// Where the debug console leads, if there is one.
    pub debug_console: Option<Arc<Chardev>>,
    /// The taps of the cards that lead to networks of the host, by the number of the card. They
    /// outlive the machine, so that the host does not notice a reset.
    pub taps: Vec<Option<Arc<dyn net::Backend>>>,
    /// The other end of the balloon, if there is one.
    pub balloon: Option<Arc<Balloon>>,
    /// Where the socket device leads.
    pub vsock: Arc<Vsock>,
}

/// A machine: memory, devices, and a loaded kernel. Its processors belong to the accelerator and
/// reach it as their [`CpuBus`].
pub struct Machine {
    memory_space: Arc<AddressSpace>,
    ports: Arc<AddressSpace>,
    pci: Arc<PciRoot>,
    pm: Arc<Mutex<PowerManagement>>,
    disks: Vec<AttachedDisk>,
    full: Arc<FullDisks>,
    counters: Counters,
    saved: SavedDevices,
    power: PowerSender,
    requests: PowerRequests,
    map: MemoryMap,
    phys_bits: u8,
    /// `None`: the processors go on where they were.
    entry: Option<Entry>,
    _timers: Arc<Timers>,
}

impl Machine {
    /// Builds the devices and loads the kernel.
    pub fn build(parts: Parts) -> Result<Self, BuildError> {
        let (power, requests) = chipset::power_channel().map_err(BuildError::Event)?;
        let full = FullDisks::new().map_err(BuildError::Event)?;
        let board = Board::new(&parts, power.clone(), full.clone());

        // What fails most often comes first, before the host is asked for anything else.
        let entry = if parts.is_restored {
            None
        } else {
            let tables = acpi::Tables::build(&wiring::platform(&parts))?;
            tables.write(&parts.memory)?;
            let (mut config, files) = (parts.config.boot.clone(), &parts.files.boot);
            config.cmdline.push_str(&FolderConfig::cmdline(&parts.config.folders));
            Some(boot::load(&config, files, &parts.memory, &parts.map, tables.address)?)
        };
        generation::renew(&parts.memory, parts.map.generation_id())?;

        let pm = wiring::chipset::attach(&board)?;
        wiring::chipset::attach_serial(&board)?;
        wiring::fw_cfg::attach(&board)?;
        wiring::debug::attach(&board)?;
        wiring::pci::attach(&board)?;
        let disks = wiring::storage::attach(&board)?;
        let nets = wiring::network::attach(&board)?;
        wiring::pci::attach_console_rng_and_vsock(&board)?;
        wiring::storage::attach_seed(&board)?;
        wiring::pci::attach_balloon(&board)?;
        let counters = Counters { disks, nets, folders: wiring::folders::attach(&board)? };
        let saved = board.take_saved();

        let Board { memory_space, ports, pci, .. } = board;
        Ok(Self {
            memory_space,
            ports,
            pci,
            pm,
            disks: parts.files.disks.clone(),
            full,
            counters,
            saved,
            power,
            requests,
            map: parts.map,
            phys_bits: parts.phys_bits,
            entry,
            _timers: parts.timers,
        })
    }

    /// Gives processor `index`, which is in reset state, what firmware would have given it, and
    /// the bootstrap processor its way into the kernel.
    pub fn prepare_processor(&self, index: u32, state: &mut CpuState) {
        firmware::set_memory_types(state, &self.map, self.phys_bits);
        if index == 0
            && let Some(entry) = &self.entry
        {
            entry.apply(state);
        }
    }

    /// Presses the power button. Says whether the guest has asked to be told of that.
    pub fn press_power_button(&self) -> bool {
        self.pm.lock().unwrap_or_else(PoisonError::into_inner).press_power_button()
    }

    /// What the guest asks of its machine.
    pub fn power_requests(&self) -> &PowerRequests {
        &self.requests
    }

    /// Asks the machine for something in the guest's place.
    pub fn request(&self, request: PowerRequest) {
        self.power.send(request);
    }

    /// The disks that the host has no room for, at which requests wait for a pause.
    pub fn full_disks(&self) -> &FullDisks {
        &self.full
    }

    /// What its disks, cards and folders count.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Stops all devices: none touches guest memory until [`Machine::resume`]. The processors have
    /// stopped.
    pub fn pause(&self) {
        self.pci.pause();
    }

    /// Lets devices go on after [`Machine::pause`].
    pub fn resume(&self) {
        self.pci.resume();
    }

    /// Adds the devices' state, for a machine that is paused.
    ///
    /// # Errors
    ///
    /// If a device cannot say what its state is: a mistake in it.
    pub fn save(&self, state: &mut Sections) -> Result<(), Failure> {
        self.saved.save(state)
    }

    /// Has the devices take over their state, in a machine that was built to be restored and that is
    /// paused.
    ///
    /// # Errors
    ///
    /// If the state is another machine's, or damaged.
    pub fn restore(&self, state: &Sections) -> Result<(), Failure> {
        self.saved.restore(state)
    }

    /// Tells the guest that it goes on from a copy of itself. The interrupt controllers have been
    /// restored.
    pub fn announce_copy(&self) {
        generation::announce(&self.pm);
    }

    /// Whether the disks can be [frozen](Machine::freeze_disks).
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn check_disks(&self) -> Result<(), Failure> {
        match self.disks.iter().find(|d| d.config.overlay.is_none() && !d.disk.is_readonly()) {
            None => Ok(()),
            Some(disk) => Err(Failure::configuration(format!(
                "the guest writes to {} itself, and what it will write next would change its                  snapshots, too: give the disk an overlay, or let the guest only read it",
                disk.path.display()
            ))),
        }
    }

    /// Has what is on the disks that are written to stay as it is, in layers whose names begin so,
    /// while the guest goes on in overlays. The machine is paused. The value is the layer of each
    /// disk.
    ///
    /// # Errors
    ///
    /// The host's. All disks are as they were, or have one more layer.
    pub fn freeze_disks(&self, id: &str) -> Result<Vec<Option<String>>, Failure> {
        self.check_disks()?;
        let freeze = |(index, disk): (usize, &AttachedDisk)| {
            if disk.disk.is_readonly() {
                return Ok(None);
            }
            let layer = layers::name(id, index);
            layers::freeze(disk, &layer)?;
            Ok(Some(layer))
        };
        self.disks.iter().enumerate().map(freeze).collect()
    }

    /// Writes what the guest has written to stable storage.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn flush_disks(&self) -> Result<(), Failure> {
        let mut result = Ok(());
        for AttachedDisk { path, disk, .. } in self.disks.iter().filter(|d| !d.disk.is_readonly()) {
            if let Err(source) = disk.flush() {
                result = Err(BuildError::Flush { path: path.clone(), source }.into());
            }
        }
        result
    }

    /// Ends all devices' work and flushes the disks. The processors have stopped.
    pub fn stop(&self) -> Result<(), Failure> {
        self.pci.pause();
        self.flush_disks()
    }
}

impl CpuBus for Machine {
    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        self.memory_space.read(addr, data);
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) {
        self.memory_space.write(addr, data);
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }
}

/// The physical address width that `cpuid` tells (Intel SDM Vol. 3, 4.1.4): 36 where it does not.
pub fn physical_address_bits(cpuid: &accel::CpuidTable) -> u8 {
    const ADDRESS_SIZES: u32 = 0x8000_0008;
    match cpuid.get(ADDRESS_SIZES, 0) {
        Some(sizes) if sizes.eax & 0xff != 0 => (sizes.eax & 0xff) as u8,
        _ => 36,
    }
}
