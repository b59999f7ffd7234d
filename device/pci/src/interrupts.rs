//! A function's interrupts, shared between its register model and its workers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::BadState;
use irqchip::{IrqLine, Msi, MsiRoute, MsiTarget};

use crate::msix::Msix;
use crate::snapshot::{self, InterruptsState};

/// How a device raises interrupts: MSI-X vectors, or INTA. Cheap to clone, callable from any
/// thread. Until the device is added to a bus, nothing is connected and nothing is sent.
#[derive(Clone)]
pub struct Interrupts(Arc<Mutex<State>>);

struct State {
    // Wiring.
    msi: Option<MsiTarget>,
    /// A way of its own for each vector that was sent, where the accelerator has one to offer.
    routes: BTreeMap<u16, Option<Box<dyn MsiRoute>>>,
    pin: Option<Pin>,
    // Volatile state.
    msix: Msix,
    /// What the device drives, before Interrupt Disable and MSI-X.
    intx: bool,
    intx_disabled: bool,
}

impl Interrupts {
    /// Interrupts with this many MSI-X vectors, at most 2048; 0 leaves only INTA.
    pub fn new(vectors: u16) -> Self {
        Self(Arc::new(Mutex::new(State {
            msi: None,
            routes: BTreeMap::new(),
            pin: None,
            msix: Msix::new(vectors),
            intx: false,
            intx_disabled: false,
        })))
    }

    /// The number of MSI-X vectors.
    pub fn vectors(&self) -> u16 {
        self.state().msix.vectors()
    }

    /// Whether the guest has enabled MSI-X, so that INTA is out of use.
    pub fn msix_enabled(&self) -> bool {
        self.state().msix.enabled()
    }

    /// Sends an MSI-X vector, or remembers it while it is masked. Vectors that do not exist, and
    /// all of them while MSI-X is disabled, are dropped.
    pub fn raise(&self, vector: u16) {
        let mut state = self.state();
        if let Some(message) = state.msix.raise(vector) {
            state.send_on_route(vector, message);
        }
    }

    /// Drives INTA. The level shows on the pin unless MSI-X is enabled or INTx is disabled.
    pub fn set_intx(&self, level: bool) {
        let mut state = self.state();
        state.intx = level;
        state.drive_pin();
    }

    pub(crate) fn connect(&self, msi: MsiTarget, pin: Option<Pin>) {
        let mut state = self.state();
        state.msi = Some(msi);
        state.pin = pin;
    }

    /// Lowers the pin, and leads nowhere any more.
    pub(crate) fn disconnect(&self) {
        let mut state = self.state();
        state.msix.reset();
        state.intx = false;
        state.drive_pin();
        (state.msi, state.pin) = (None, None);
        state.routes.clear();
    }

    /// The level of INTA before Interrupt Disable, for the status register.
    pub(crate) fn intx(&self) -> bool {
        self.state().intx
    }

    pub(crate) fn set_msix_control(&self, enabled: bool, function_mask: bool) {
        let mut state = self.state();
        let messages = state.msix.set_control(enabled, function_mask);
        state.send(messages);
        state.drive_pin();
    }

    pub(crate) fn set_command(&self, bus_master: bool, intx_disabled: bool) {
        let mut state = self.state();
        let messages = state.msix.set_bus_master(bus_master);
        state.send(messages);
        state.intx_disabled = intx_disabled;
        state.drive_pin();
    }

    pub(crate) fn table_read(&self, offset: usize, data: &mut [u8]) {
        self.state().msix.table_read(offset, data);
    }

    pub(crate) fn table_write(&self, offset: usize, data: &[u8]) {
        let mut state = self.state();
        let messages = state.msix.table_write(offset, data);
        state.send(messages);
    }

    pub(crate) fn pba_read(&self, offset: usize, data: &mut [u8]) {
        self.state().msix.pba_read(offset, data);
    }

    pub(crate) fn save(&self) -> InterruptsState {
        let state = self.state();
        snapshot::save_msix(&state.msix, state.intx)
    }

    /// `control`: what the MSI-X capability says. The command register is told later.
    pub(crate) fn restore(
        &self,
        saved: &InterruptsState,
        control: (bool, bool),
    ) -> Result<(), BadState> {
        let mut state = self.state();
        snapshot::restore_msix(&mut state.msix, saved, control)?;
        state.intx = saved.intx;
        Ok(())
    }

    pub(crate) fn reset(&self) {
        let mut state = self.state();
        state.msix.reset();
        (state.intx, state.intx_disabled) = (false, false);
        state.drive_pin();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Sends under the lock: once the guest has masked a vector, no message may come any more.
    fn send(&self, messages: impl IntoIterator<Item = Msi>) {
        if let Some(msi) = &self.msi {
            messages.into_iter().for_each(|m| msi.send(m));
        }
    }

    /// The same for what a vector sends again and again.
    fn send_on_route(&mut self, vector: u16, message: Msi) {
        let Some(msi) = &self.msi else { return };
        match self.routes.entry(vector).or_insert_with(|| msi.open_route()) {
            Some(route) => route.send(message),
            None => msi.send(message),
        }
    }

    fn drive_pin(&self) {
        if let Some(pin) = &self.pin {
            pin.set(self.intx && !self.intx_disabled && !self.msix.enabled());
        }
    }
}

impl std::fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupts").field("vectors", &self.vectors()).finish_non_exhaustive()
    }
}

/// One of the four interrupt lines of the bus. Functions share it: it is high while any of them
/// drives it.
#[derive(Clone, Debug)]
pub(crate) struct SharedLine {
    line: IrqLine,
    /// A bit for each device that drives the line.
    drivers: Arc<Mutex<u32>>,
}

impl SharedLine {
    pub fn new(line: IrqLine) -> Self {
        Self { line, drivers: Arc::default() }
    }

    pub fn gsi(&self) -> u32 {
        self.line.gsi()
    }

    /// The line as device number `device` (0 to 31) drives it.
    pub fn pin(&self, device: u8) -> Pin {
        Pin { line: self.clone(), bit: 1 << (device & 31) }
    }
}

/// One device's share in a line.
#[derive(Clone, Debug)]
pub(crate) struct Pin {
    line: SharedLine,
    bit: u32,
}

impl Pin {
    fn set(&self, level: bool) {
        let mut drivers = self.line.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *drivers;
        *drivers = if level { before | self.bit } else { before & !self.bit };
        if (before != 0) != (*drivers != 0) {
            self.line.line.set_level(*drivers != 0);
        }
    }
}
