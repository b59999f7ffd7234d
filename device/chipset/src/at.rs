//! A second window onto a device.

use std::sync::{Arc, Mutex, PoisonError};

use bus::BusDevice;

/// Shows the registers of a device from some offset on, for a device whose registers are in
/// several places: the i8042's data port is its offset 0, and its command port, four ports
/// further, the window `At::new(i8042, 4)`.
pub struct At<T: ?Sized> {
    device: Arc<Mutex<T>>,
    offset: u64,
}

impl<T: BusDevice + ?Sized> At<T> {
    /// A window that starts at `offset` of `device`, ready to be attached.
    pub fn new(device: Arc<Mutex<T>>, offset: u64) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { device, offset }))
    }
}

impl<T: BusDevice + ?Sized> BusDevice for At<T> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let offset = self.offset.wrapping_add(offset);
        self.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let offset = self.offset.wrapping_add(offset);
        self.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}
