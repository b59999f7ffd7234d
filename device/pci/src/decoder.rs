//! Which BAR answers where.
//!
//! The guest may move a BAR onto anything. What was there first keeps its addresses; the moved
//! BAR answers nowhere until they become free.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bus::{AddressSpace, BusDevice};

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
    device: Arc<Mutex<dyn BusDevice>>,
    attached: bool,
}

/// Keeps the address spaces in step with the BARs.
pub(crate) struct Decoder {
    // Weak, because the spaces hold the configuration window, which holds the bus.
    memory: Weak<AddressSpace>,
    io: Weak<AddressSpace>,
    windows: Mutex<BTreeMap<BarId, Window>>,
}

impl Decoder {
    pub fn new(memory: &Arc<AddressSpace>, io: &Arc<AddressSpace>) -> Self {
        Self { memory: Arc::downgrade(memory), io: Arc::downgrade(io), windows: Mutex::default() }
    }

    /// Moves a BAR to `range`, or nowhere.
    pub fn place(
        &self,
        id: BarId,
        space: Space,
        range: Option<RangeInclusive<u64>>,
        device: impl FnOnce() -> Arc<Mutex<dyn BusDevice>>,
    ) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.get(&id).map(|w| &w.range) == range.as_ref() {
            return;
        }
        if let Some(old) = windows.remove(&id)
            && old.attached
            && let Some(space) = self.space(old.space)
        {
            space.detach(*old.range.start());
        }
        if let Some(range) = range {
            windows.insert(id, Window { space, range, device: device(), attached: false });
        }
        // What was taken away may have made room for another.
        for ((number, bar), window) in windows.iter_mut().filter(|(_, w)| !w.attached) {
            let Some(space) = self.space(window.space) else { continue };
            let name = format!("PCI 00:{number:02x}.0 BAR {bar}");
            match space.attach(&name, window.range.clone(), window.device.clone()) {
                Ok(()) => window.attached = true,
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
