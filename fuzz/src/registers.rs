//! Sequences of register accesses.

use std::sync::Mutex;

use arbitrary::Arbitrary;
use bus::BusDevice;
use runtime::Expire;

/// One access of the guest to a device's window.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Access {
    is_write: bool,
    size: u8,
    offset: u16,
    value: u64,
}

/// The widest access that a bus makes, in bytes.
#[derive(Clone, Copy, Debug)]
pub enum Bus {
    /// IN and OUT: 1, 2 and 4 bytes.
    Ports = 4,
    /// Memory-mapped registers: 8 bytes, too.
    Memory = 8,
}

impl Access {
    /// Brings the access into a window of `window` bytes as the bus would let it through: offset
    /// and length.
    fn place(&self, window: u64, bus: Bus) -> (u64, usize) {
        let offset = u64::from(self.offset) % window;
        let mut len = (1 << (self.size & 3)).min(bus as u64);
        while offset + len > window {
            len /= 2;
        }
        (offset, len as usize)
    }

    /// Does it, by way of `read` or `write`, which are given an offset in the window and the data.
    pub fn perform<T: ?Sized>(
        &self,
        device: &mut T,
        (window, bus): (u64, Bus),
        read: impl FnOnce(&mut T, u64, &mut [u8]),
        write: impl FnOnce(&mut T, u64, &[u8]),
    ) {
        let (offset, len) = self.place(window, bus);
        let mut data = self.value.to_le_bytes();
        if self.is_write {
            write(device, offset, &data[..len]);
        } else {
            read(device, offset, &mut data[..len]);
        }
    }

    /// Does it to a device whose window has `window` bytes.
    pub fn on(&self, device: &mut dyn BusDevice, window: u64, bus: Bus) {
        self.perform(
            device,
            (window, bus),
            |device, offset, data| device.read(offset, data),
            |device, offset, data| device.write(offset, data),
        );
    }
}

/// What happens to a device that has a timer.
#[derive(Arbitrary, Debug)]
pub enum Step {
    /// The guest accesses a register.
    Access(Access),
    /// The timer expires, in time or not.
    Expire(u64),
    /// The machine is reset.
    Reset,
}

/// Does `steps` to a device on a bus of ports.
pub fn play<T: BusDevice + Expire>(
    device: &Mutex<T>,
    window: u64,
    steps: &[Step],
    reset: impl Fn(&mut T),
) {
    let mut device = device.lock().unwrap();
    for step in steps {
        match step {
            Step::Access(access) => access.on(&mut *device, window, Bus::Ports),
            Step::Expire(deadline) => device.expired(*deadline),
            Step::Reset => reset(&mut device),
        }
    }
}
