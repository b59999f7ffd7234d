//! What the devices' tests wire them to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use irqchip::{IrqLine, IrqSink, Msi};

/// Interrupt lines that remember their level and how often they rose.
#[derive(Default)]
pub struct Pins(Mutex<HashMap<u32, (bool, usize)>>);

impl Pins {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn line(self: &Arc<Self>, gsi: u32) -> IrqLine {
        IrqLine::new(self.clone(), gsi)
    }

    pub fn level(&self, gsi: u32) -> bool {
        self.0.lock().unwrap().get(&gsi).is_some_and(|pin| pin.0)
    }

    pub fn edges(&self, gsi: u32) -> usize {
        self.0.lock().unwrap().get(&gsi).map_or(0, |pin| pin.1)
    }
}

impl IrqSink for Pins {
    fn set_gsi(&self, gsi: u32, level: bool) {
        let mut pins = self.0.lock().unwrap();
        let pin = pins.entry(gsi).or_default();
        pin.1 += usize::from(level && !pin.0);
        pin.0 = level;
    }

    fn send_msi(&self, _: Msi) {}
}
