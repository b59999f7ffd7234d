//! A function on the bus: its configuration space in front of its device model.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bus::BusDevice;

use crate::PciDevice;
use crate::config::{ConfigSpace, overlap};
use crate::decoder::{Decoder, Space, Target};
use crate::description::{Bar, BarKind, Description, Doorbell, MsixLayout};
use crate::interrupts::Interrupts;
use crate::spec::{self, command};

/// A device model with all that the bus keeps about it.
pub(crate) struct Function {
    // Configuration.
    number: u8,
    bars: Vec<Bar>,
    doorbells: Vec<Doorbell>,
    msix: Option<MsixLayout>,
    at_reset: Box<[u8; spec::CONFIG_SIZE]>,
    // Wiring.
    interrupts: Option<Interrupts>,
    device: Box<dyn PciDevice>,
    // Volatile state.
    config: ConfigSpace,
}

impl Function {
    /// `config` is as firmware would leave it: that is the state a reset returns to.
    pub fn new(
        number: u8,
        description: Description,
        config: ConfigSpace,
        device: Box<dyn PciDevice>,
    ) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            number,
            bars: description.bars,
            doorbells: description.doorbells,
            msix: description.msix,
            at_reset: config.snapshot(),
            interrupts: description.interrupts,
            device,
            config,
        }))
    }

    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    pub fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    pub fn interrupts(&self) -> Option<&Interrupts> {
        self.interrupts.as_ref()
    }

    pub fn device(&self) -> &dyn PciDevice {
        &*self.device
    }

    pub fn device_mut(&mut self) -> &mut dyn PciDevice {
        &mut *self.device
    }

    /// A read of configuration space.
    pub fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        let access = offset..offset + data.len();
        if overlap(&access, &(spec::STATUS..spec::STATUS + 2)).is_some() {
            let pending = self.interrupts.as_ref().is_some_and(Interrupts::intx);
            self.config.set_interrupt_status(pending);
        }
        if let Some((index, touched)) = self.config.hit_capability(&access) {
            self.device.capability_read(index, self.config.capability_mut(index), touched);
        }
        self.config.read(offset, data);
    }

    /// A write to configuration space, and what follows from it.
    pub fn config_write(this: &Arc<Mutex<Self>>, decoder: &Decoder, offset: usize, data: &[u8]) {
        let mut function = this.lock().unwrap_or_else(PoisonError::into_inner);
        let access = offset..offset + data.len();
        let was_bus_master = function.config.command() & command::BUS_MASTER != 0;
        function.config.write(offset, data);

        let command = spec::COMMAND..spec::COMMAND + 2;
        let bars = spec::BAR0..spec::BAR0 + 4 * spec::BARS;
        let hits = |what: &Range<usize>| overlap(&access, what).is_some();
        if hits(&command) || hits(&bars) {
            function.place_bars(this, decoder);
        }
        if hits(&command) {
            function.apply_command(was_bus_master);
        }
        if function.config.hits_msix(&access) {
            function.apply_msix_control();
        }
        if let Some((index, touched)) = function.config.hit_capability(&access) {
            let Self { config, device, .. } = &mut *function;
            device.capability_written(index, config.capability_mut(index), touched);
        }
    }

    /// Puts the BARs where the registers say.
    pub fn place_bars(&self, this: &Arc<Mutex<Self>>, decoder: &Decoder) {
        for bar in &self.bars {
            let space = if bar.kind == BarKind::Io { Space::Io } else { Space::Memory };
            let id = (self.number, bar.index);
            decoder.place(id, space, self.config.bar_range(bar), || {
                let of_bar = self.doorbells.iter().filter(|bell| bell.bar == bar.index);
                Target {
                    device: Arc::new(Mutex::new(BarWindow {
                        function: this.clone(),
                        bar: bar.index,
                    })),
                    doorbells: of_bar.map(|bell| (bell.offset, bell.event.clone())).collect(),
                }
            });
        }
    }

    /// Changes anything, and has BARs and the device follow what configuration space then says.
    pub fn change<E>(
        this: &Arc<Mutex<Self>>,
        decoder: &Decoder,
        change: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut function = this.lock().unwrap_or_else(PoisonError::into_inner);
        let was_bus_master = function.config.command() & command::BUS_MASTER != 0;
        change(&mut function)?;
        function.place_bars(this, decoder);
        function.apply_command(was_bus_master);
        Ok(())
    }

    /// The bus is reset.
    pub fn reset(this: &Arc<Mutex<Self>>, decoder: &Decoder) {
        let mut function = this.lock().unwrap_or_else(PoisonError::into_inner);
        function.device.reset();
        if let Some(interrupts) = &function.interrupts {
            interrupts.reset();
        }
        let Self { config, at_reset, .. } = &mut *function;
        config.restore(at_reset);
        function.device.set_bus_master(false);
        function.place_bars(this, decoder);
    }

    /// Has nothing lead to the function any more, nor from it. Its BARs, and the addresses that they were given
    /// first.
    pub fn disconnect(this: &Arc<Mutex<Self>>, decoder: &Decoder) -> Vec<(Bar, u64)> {
        let mut function = this.lock().unwrap_or_else(PoisonError::into_inner);
        let Self { config, at_reset, .. } = &mut *function;
        config.restore(at_reset);
        let first = |bar: &Bar| Some((*bar, *function.config.bar_range(bar)?.start()));
        let addresses = function.bars.iter().filter_map(first).collect();
        function.config.set_command(0);
        function.place_bars(this, decoder);
        // An access that is on its way to configuration space brings none of them back.
        function.bars.clear();
        if let Some(interrupts) = &function.interrupts {
            interrupts.disconnect();
        }
        addresses
    }

    fn apply_command(&mut self, was_bus_master: bool) {
        let command = self.config.command();
        let bus_master = command & command::BUS_MASTER != 0;
        if let Some(interrupts) = &self.interrupts {
            interrupts.set_command(bus_master, command & command::INTX_DISABLE != 0);
        }
        if bus_master != was_bus_master {
            self.device.set_bus_master(bus_master);
        }
    }

    fn apply_msix_control(&mut self) {
        if let (Some(interrupts), Some((enabled, mask))) =
            (&self.interrupts, self.config.msix_control())
        {
            interrupts.set_msix_control(enabled, mask);
        }
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        match self.msix_part(bar, offset) {
            Some((MsixPart::Table, at, interrupts)) => interrupts.table_read(at, data),
            Some((MsixPart::Pba, at, interrupts)) => interrupts.pba_read(at, data),
            None => self.device.bar_read(bar, offset, data),
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        match self.msix_part(bar, offset) {
            Some((MsixPart::Table, at, interrupts)) => interrupts.table_write(at, data),
            Some((MsixPart::Pba, ..)) => {} // read-only
            None => self.device.bar_write(bar, offset, data),
        }
    }

    /// The MSI-X structure that an access to a BAR hits, and how far into it.
    fn msix_part(&self, bar: u8, offset: u64) -> Option<(MsixPart, usize, &Interrupts)> {
        let layout = self.msix.filter(|layout| layout.bar == bar)?;
        let interrupts = self.interrupts.as_ref()?;
        let parts = [
            (MsixPart::Table, layout.table_range(interrupts.vectors())),
            (MsixPart::Pba, layout.pba_range(interrupts.vectors())),
        ];
        let (part, range) = parts.into_iter().find(|(_, range)| range.contains(&offset))?;
        Some((part, (offset - range.start) as usize, interrupts))
    }
}

enum MsixPart {
    Table,
    Pba,
}

/// A BAR as the address spaces see it.
struct BarWindow {
    function: Arc<Mutex<Function>>,
    bar: u8,
}

impl BusDevice for BarWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut function = self.function.lock().unwrap_or_else(PoisonError::into_inner);
        function.bar_read(self.bar, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut function = self.function.lock().unwrap_or_else(PoisonError::into_inner);
        function.bar_write(self.bar, offset, data);
    }
}
