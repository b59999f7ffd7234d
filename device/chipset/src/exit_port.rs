//! The port by which a guest that runs one program ends with the program's exit status.

use bus::{BadState, BusDevice, Snapshot};

use crate::{PowerRequest, PowerSender};

/// A write of N ends the machine with status N, of 8 bits. Lodge's own: QEMU's isa-debug-exit
/// ([`DebugExit`](crate::DebugExit)) has odd numbers only, so that none of them means success. One
/// port long; it reads as zero.
pub struct ExitPort {
    power: PowerSender,
}

impl ExitPort {
    /// The device, wired to the machine.
    pub fn new(power: PowerSender) -> Self {
        Self { power }
    }
}

impl BusDevice for ExitPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let Some(&status) = data.first() {
            self.power.send(PowerRequest::Exit { status });
        }
    }
}

/// A guest that wrote to it has ended.
impl Snapshot for ExitPort {
    type State = ();

    fn save(&self) {}

    fn restore(&mut self, (): ()) -> Result<(), BadState> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_ends_the_machine_with_that_status() {
        let (sender, requests) = crate::power_channel().unwrap();
        let mut port = ExitPort::new(sender);
        let mut data = [0xff; 2];
        port.read(0, &mut data);
        assert_eq!((data, requests.take()), ([0, 0], None));
        for status in [0, 7, 0xff] {
            port.write(0, &[status, 9]);
            assert_eq!(requests.take(), Some(PowerRequest::Exit { status }));
        }
    }
}
