//! Which BAR answers where.
//!
//! The guest may move a BAR onto anything. What was there first keeps its addresses; the moved
//! BAR answers nowhere until they become free.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bus::{AddressSpace, BusDevice};
use runtime::{Doorbells, Event};

/// Names a BAR: device number, BAR index.
pub(crate) type BarId = (u8, u8);

/// The two spaces that BARs live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Memory,
    Io,
}

struct Window {
    space: Space,
    range: RangeInclusive<u64>,
    target: Target,
    attached: bool,
    /// How many of the target's doorbells somebody rings in its place: the first ones.
    rung: usize,
}

/// What is behind a BAR.
pub(crate) struct Target {
    pub device: Arc<Mutex<dyn BusDevice>>,
    /// Doorbells by their offset in the BAR.
    pub doorbells: Vec<(u64, Arc<Event>)>,
}

impl Window {
    /// Has the doorbells rung by who can. What that one refuses, the device is told of as before.
    fn attach_doorbells(&mut self, doorbells: &dyn Doorbells) {
        for (offset, event) in &self.target.doorbells {
            let address = self.range.start() + offset;
            if let Err(error) = doorbells.attach(address, event) {
                tracing::debug!("the doorbell at {address:#x} takes the long way: {error}");
                return;
            }
            self.rung += 1;
        }
    }

    fn detach_doorbells(&mut self, doorbells: &dyn Doorbells) {
        for (offset, event) in self.target.doorbells.iter().take(self.rung) {
            doorbells.detach(self.range.start() + offset, event);
        }
        self.rung = 0;
    }
}

/// Keeps the address spaces in step with the BARs.
pub(crate) struct Decoder {
    // Weak, because the spaces hold the configuration window, which holds the bus.
    memory: Weak<AddressSpace>,
    io: Weak<AddressSpace>,
    doorbells: Option<Arc<dyn Doorbells>>,
    windows: Mutex<BTreeMap<BarId, Window>>,
}

impl Decoder {
    pub fn new(
        memory: &Arc<AddressSpace>,
        io: &Arc<AddressSpace>,
        doorbells: Option<Arc<dyn Doorbells>>,
    ) -> Self {
        Self {
            memory: Arc::downgrade(memory),
            io: Arc::downgrade(io),
            doorbells,
            windows: Mutex::default(),
        }
    }

    /// Moves a BAR to `range`, or nowhere.
    pub fn place(
        &self,
        id: BarId,
        space: Space,
        range: Option<RangeInclusive<u64>>,
        target: impl FnOnce() -> Target,
    ) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.get(&id).map(|w| &w.range) == range.as_ref() {
            return;
        }
        if let Some(mut old) = windows.remove(&id)
            && old.attached
            && let Some(space) = self.space(old.space)
        {
            if let Some(doorbells) = &self.doorbells {
                old.detach_doorbells(&**doorbells);
            }
            space.detach(*old.range.start());
        }
        if let Some(range) = range {
            let window = Window { space, range, target: target(), attached: false, rung: 0 };
            windows.insert(id, window);
        }
        // What was taken away may have made room for another.
        for ((number, bar), window) in windows.iter_mut().filter(|(_, w)| !w.attached) {
            let Some(space) = self.space(window.space) else { continue };
            let name = format!("PCI 00:{number:02x}.0 BAR {bar}");
            match space.attach(&name, window.range.clone(), window.target.device.clone()) {
                Ok(()) => {
                    window.attached = true;
                    if let Some(doorbells) = &self.doorbells {
                        window.attach_doorbells(&**doorbells);
                    }
                }
                Err(conflict) => tracing::debug!("{conflict}; the BAR stays hidden"),
            }
        }
    }

    fn space(&self, space: Space) -> Option<Arc<AddressSpace>> {
        match space {
            Space::Memory => self.memory.upgrade(),
            Space::Io => self.io.upgrade(),
        }
    }
}
