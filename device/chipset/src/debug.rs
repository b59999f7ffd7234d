//! The debug console and isa-debug-exit.

use std::sync::Arc;

use bus::{BadState, BusDevice, Snapshot};
use chardev::Chardev;

use crate::{PowerRequest, PowerSender};

/// The debug console at port E9h (Bochs; QEMU's isa-debugcon): what is written appears on a
/// console. One port long.
///
/// The port has no way to say "busy": what finds the console's buffer full is lost.
pub struct DebugConsole {
    // Wiring.
    console: Arc<Chardev>,
    // Volatile state.
    lost: bool,
}

impl DebugConsole {
    /// What a read returns, so that a guest can tell that the console is there.
    const READBACK: u8 = 0xe9;

    /// A debug console that writes to `console`.
    pub fn new(console: Arc<Chardev>) -> Self {
        Self { console, lost: false }
    }
}

impl BusDevice for DebugConsole {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(byte) = data.first_mut() {
            *byte = Self::READBACK;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let Some(byte) = data.get(..1) else { return };
        if self.console.write(byte) == 0 && !std::mem::replace(&mut self.lost, true) {
            tracing::warn!("the debug console's reader is too slow: output is lost");
        }
    }
}

/// QEMU's isa-debug-exit: a write of N ends the VMM with status `(N << 1) | 1`. At port F4h,
/// [`DebugExit::LEN`] ports long.
pub struct DebugExit {
    power: PowerSender,
}

impl DebugExit {
    /// How many ports it takes.
    pub const LEN: u64 = 4;

    /// The device, wired to the machine.
    pub fn new(power: PowerSender) -> Self {
        Self { power }
    }
}

impl BusDevice for DebugExit {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let value = data.iter().take(4).rev().fold(0, |v, byte| v << 8 | u32::from(*byte));
        self.power.send(PowerRequest::DebugExit { value });
    }
}

/// What was written has left.
impl Snapshot for DebugConsole {
    type State = ();

    fn save(&self) {}

    fn restore(&mut self, (): ()) -> Result<(), BadState> {
        Ok(())
    }
}

/// A guest that wrote to it has ended.
impl Snapshot for DebugExit {
    type State = ();

    fn save(&self) {}

    fn restore(&mut self, (): ()) -> Result<(), BadState> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power_channel;
    use chardev::Backend;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn debug_output_appears() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let console = Arc::new(Chardev::open(Backend::Stream(near.into())).unwrap());
        let mut port = DebugConsole::new(console);
        for byte in b"hello" {
            port.write(0, &[*byte]);
        }
        let mut data = [0];
        port.read(0, &mut data);
        assert_eq!(data, [0xe9]);
        drop(port);
        let mut text = String::new();
        far.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn exit_takes_accesses_of_each_width() {
        let (sender, requests) = power_channel().unwrap();
        let mut port = DebugExit::new(sender);
        for (data, value) in
            [(&[0x10][..], 0x10), (&[0x34, 0x12], 0x1234), (&[1, 0, 0, 0x80], 0x8000_0001)]
        {
            port.write(0, data);
            assert_eq!(requests.take(), Some(PowerRequest::DebugExit { value }));
        }
    }
}
