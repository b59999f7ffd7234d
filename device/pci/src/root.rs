//! The root complex: bus 0 and what is on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bus::{AddressSpace, BusDevice};
use irqchip::{IrqLine, MsiTarget};
use runtime::Doorbells;

use crate::PciDevice;
use crate::access::{Address, ConfigPorts, Ecam};
use crate::allocator::{Allocator, Windows};
use crate::config::ConfigSpace;
use crate::decoder::Decoder;
use crate::description::DescriptionError;
use crate::function::Function;
use crate::host_bridge::HostBridge;
use crate::interrupts::SharedLine;
use crate::spec::command;

/// Size of the ECAM window in bytes: that of one bus. MCFG says buses 0 to 0.
pub const ECAM_SIZE: u64 = 1 << 20;

/// Device numbers on a bus, of which 0 is the host bridge.
pub const DEVICES: u8 = 32;

/// A device could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Every device number is taken.
    #[error("the PCI bus is full: it holds {} devices; give the guest fewer", DEVICES - 1)]
    Full,
    /// The device number is taken or does not exist.
    #[error("PCI device number {0} is taken or not between 1 and 31; choose another")]
    Taken(u8),
    /// The BARs do not fit any more.
    #[error(
        "no room is left for BAR {bar} ({size:#x} bytes) of PCI device {device}; \
         give the guest fewer devices"
    )]
    NoRoom {
        /// The device number.
        device: u8,
        /// The BAR's index.
        bar: u8,
        /// Its size in bytes.
        size: u64,
    },
    /// The model describes a function that cannot be.
    #[error("PCI device {device} describes itself wrongly: {source}")]
    Description {
        /// The device number.
        device: u8,
        /// What is wrong.
        source: DescriptionError,
    },
}

/// A device that is off the bus. Its work ends, and is waited for, when this is dropped: not on a processor's
/// thread.
pub struct Unplugged {
    function: Arc<Mutex<Function>>,
}

impl Drop for Unplugged {
    /// An access that is on its way may keep the function for longer than this, and starts nothing any more.
    fn drop(&mut self) {
        self.function.lock().unwrap_or_else(PoisonError::into_inner).device_mut().pause();
    }
}

/// Bus 0 with its host bridge.
pub struct PciRoot {
    decoder: Decoder,
    msi: MsiTarget,
    lines: Option<[SharedLine; 4]>,
    allocator: Mutex<Allocator>,
    functions: RwLock<BTreeMap<u8, Arc<Mutex<Function>>>>,
}

impl PciRoot {
    /// A bus that holds only its host bridge. BARs appear in `memory` and `io`, at first inside
    /// `windows`. `intx` are the lines that the pins of devices lead to; see
    /// [`PciRoot::intx_line`]. Without them devices have MSI-X only. `doorbells` rings for devices,
    /// if there is somebody who can.
    pub fn new(
        memory: &Arc<AddressSpace>,
        io: &Arc<AddressSpace>,
        windows: Windows,
        msi: MsiTarget,
        intx: Option<[IrqLine; 4]>,
        doorbells: Option<Arc<dyn Doorbells>>,
    ) -> Arc<Self> {
        let root = Arc::new(Self {
            decoder: Decoder::new(memory, io, doorbells),
            msi,
            lines: intx.map(|lines| lines.map(SharedLine::new)),
            allocator: Mutex::new(Allocator::new(windows)),
            functions: RwLock::default(),
        });
        // Device 0 is free and its description is constant, so this does not fail.
        if let Err(error) = root.insert(0, Box::new(HostBridge)) {
            tracing::error!("no PCI host bridge: {error}");
        }
        root
    }

    /// The line, as an index into `intx`, that INTA of a device leads to: the usual swizzle, so
    /// that neighbours do not share a line. ACPI `_PRT` must say the same.
    pub const fn intx_line(device: u8) -> usize {
        (device % 4) as usize
    }

    /// Puts a device on the bus, at the lowest free number unless `number` (1 to 31) says which,
    /// and returns the number. Its BARs get addresses and decode at once.
    pub fn add(&self, number: Option<u8>, device: Box<dyn PciDevice>) -> Result<u8, AddError> {
        let number = match number {
            Some(n) if n == 0 || n >= DEVICES => return Err(AddError::Taken(n)),
            Some(n) => n,
            None => {
                let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
                (1..DEVICES).find(|n| !functions.contains_key(n)).ok_or(AddError::Full)?
            }
        };
        self.insert(number, device)?;
        Ok(number)
    }

    /// Takes a device off the bus, if there is one with this number: from now on it answers no access and raises
    /// no interrupt. Its work in flight may still end.
    pub fn remove(&self, number: u8) -> Option<Unplugged> {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        let function = functions.remove(&number)?;
        drop(functions);
        let addresses = Function::disconnect(&function, &self.decoder);
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        for (bar, address) in addresses {
            allocator.give_back(&bar, address);
        }
        Some(Unplugged { function })
    }

    fn insert(&self, number: u8, device: Box<dyn PciDevice>) -> Result<(), AddError> {
        let description = device.description();
        let wrong = |source| AddError::Description { device: number, source };
        let mut config = ConfigSpace::new(&description, number != 0).map_err(wrong)?;

        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        if functions.contains_key(&number) {
            return Err(AddError::Taken(number));
        }
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let mut given = Vec::new();
        for bar in &description.bars {
            let Some(address) = allocator.allocate(bar) else {
                given.iter().for_each(|(bar, address)| allocator.give_back(bar, *address));
                return Err(AddError::NoRoom { device: number, bar: bar.index, size: bar.size });
            };
            given.push((*bar, address));
            config.assign_bar(bar, address);
        }
        config.set_command(command::MEMORY_SPACE | command::IO_SPACE);

        if let Some(interrupts) = &description.interrupts {
            let line = self.lines.as_ref().map(|lines| &lines[Self::intx_line(number)]);
            let gsi = line.and_then(|line| u8::try_from(line.gsi()).ok());
            config.set_interrupt_line(gsi.unwrap_or(0xff));
            interrupts.connect(self.msi.clone(), line.map(|line| line.pin(number)));
        }
        let function = Function::new(number, description, config, device);
        function
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .place_bars(&function, &self.decoder);
        functions.insert(number, function);
        Ok(())
    }

    /// The ECAM window, [`ECAM_SIZE`] bytes long, for the machine to attach to its memory space.
    pub fn ecam(self: &Arc<Self>) -> Arc<Mutex<dyn BusDevice>> {
        Arc::new(Mutex::new(Ecam(self.clone())))
    }

    /// Ports 0xCF8 to 0xCFF, for the machine to attach to its port space. Byte accesses to 0xCF9
    /// go on to offset 0 of `reset_control`.
    pub fn config_ports(
        self: &Arc<Self>,
        reset_control: Option<Arc<Mutex<dyn BusDevice>>>,
    ) -> Arc<Mutex<ConfigPorts>> {
        Arc::new(Mutex::new(ConfigPorts::new(self.clone(), reset_control)))
    }

    /// Resets every function. Work in flight has ended when this returns.
    pub fn reset(&self) {
        self.each(|function| Function::reset(function, &self.decoder));
    }

    /// Stops every device: none touches guest memory after this returns.
    pub fn pause(&self) {
        self.each(|f| f.lock().unwrap_or_else(PoisonError::into_inner).device_mut().pause());
    }

    /// Lets devices go on after [`PciRoot::pause`].
    pub fn resume(&self) {
        self.each(|f| f.lock().unwrap_or_else(PoisonError::into_inner).device_mut().resume());
    }

    /// All functions by their device numbers.
    pub(crate) fn functions(&self) -> BTreeMap<u8, Arc<Mutex<Function>>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    fn each(&self, mut act: impl FnMut(&Arc<Mutex<Function>>)) {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.values().for_each(&mut act);
    }

    fn function(&self, address: Address) -> Option<Arc<Mutex<Function>>> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.get(&address.device).filter(|_| address.function == 0).cloned()
    }

    /// Reads configuration space; what is not there reads as ones.
    pub(crate) fn config_read(&self, address: Address, data: &mut [u8]) {
        match self.function(address) {
            Some(function) => function
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .config_read(address.register, data),
            None => data.fill(0xff),
        }
    }

    /// Writes configuration space.
    pub(crate) fn config_write(&self, address: Address, data: &[u8]) {
        if let Some(function) = self.function(address) {
            Function::config_write(&function, &self.decoder, address.register, data);
        }
    }
}

impl std::fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("PciRoot").field("devices", &functions.keys()).finish_non_exhaustive()
    }
}
