//! The PC's pair of 8259A interrupt controllers with the chipset's edge/level control registers
//! (Intel 8259A datasheet, 231468; ICH9 datasheet, 5.8 and 13.4).

mod chip;
mod state;

#[cfg(test)]
mod tests;

use chip::Chip;
pub use state::{PicInit, PicState};

/// The master's input that the slave drives.
const CASCADE: u8 = 2;

// Inputs that the ELCR cannot make level-sensitive: timer, keyboard, cascade; RTC and FERR#
// (ICH9 13.4.10, 13.4.11).
const ELCR_MASTER: u8 = 0b1111_1000;
const ELCR_SLAVE: u8 = 0b1101_1110;

/// A port of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PicPort {
    /// Master, A0=0: port 0x20.
    MasterCommand,
    /// Master, A0=1: port 0x21.
    MasterData,
    /// Slave, A0=0: port 0xa0.
    SlaveCommand,
    /// Slave, A0=1: port 0xa1.
    SlaveData,
    /// Edge/level control of IRQ 0 to 7: port 0x4d0.
    MasterElcr,
    /// Edge/level control of IRQ 8 to 15: port 0x4d1.
    SlaveElcr,
}

impl PicPort {
    /// The register at an I/O port of a PC.
    pub fn from_port(port: u16) -> Option<Self> {
        Some(match port {
            0x20 => Self::MasterCommand,
            0x21 => Self::MasterData,
            0xa0 => Self::SlaveCommand,
            0xa1 => Self::SlaveData,
            0x4d0 => Self::MasterElcr,
            0x4d1 => Self::SlaveElcr,
            _ => return None,
        })
    }
}

/// The two controllers, the second behind input 2 of the first. Plain data: a clone is a
/// snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PicPair {
    master: Chip,
    slave: Chip,
}

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}

impl PicPair {
    /// The pair after power-up, which interrupts nobody until it is initialised.
    pub fn new() -> Self {
        // The slave's output is sampled as a level, since it may have another request ready
        // when it has been acknowledged.
        Self { master: Chip::new(1 << CASCADE), slave: Chip::new(0) }
    }

    /// Resets both. The lines keep their levels.
    pub fn reset(&mut self) {
        self.master.reset();
        self.slave.reset();
        self.cascade();
    }

    /// Drives IRQ `irq`. 2 and numbers above 15 do not exist and do nothing.
    pub fn set_irq(&mut self, irq: u8, level: bool) {
        match irq {
            CASCADE | 16.. => {}
            0..8 => self.master.set_line(irq, level),
            8..16 => self.slave.set_line(irq - 8, level),
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        self.master.set_line(CASCADE, self.slave.output());
    }

    /// The INTR output.
    pub fn output(&self) -> bool {
        self.master.output()
    }

    /// Acknowledges an interrupt and gives its vector. If nothing requests one any more it is
    /// the spurious vector, IRQ 7's or IRQ 15's.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.acknowledge() {
            Some(CASCADE) => {
                let ir = self.slave.acknowledge();
                self.slave.vector(ir)
            }
            ir => self.master.vector(ir),
        };
        self.cascade();
        vector
    }

    /// Reads a port. In poll mode the read acknowledges, so the output may change.
    pub fn read(&mut self, port: PicPort) -> u8 {
        let value = match port {
            PicPort::MasterCommand => self.master.read(false),
            PicPort::MasterData => self.master.read(true),
            PicPort::SlaveCommand => self.slave.read(false),
            PicPort::SlaveData => self.slave.read(true),
            PicPort::MasterElcr => self.master.elcr(),
            PicPort::SlaveElcr => self.slave.elcr(),
        };
        self.cascade();
        value
    }

    /// Writes a port. The output may change.
    pub fn write(&mut self, port: PicPort, value: u8) {
        match port {
            PicPort::MasterCommand => self.master.write(false, value),
            PicPort::MasterData => self.master.write(true, value),
            PicPort::SlaveCommand => self.slave.write(false, value),
            PicPort::SlaveData => self.slave.write(true, value),
            PicPort::MasterElcr => self.master.set_elcr(value & ELCR_MASTER),
            PicPort::SlaveElcr => self.slave.set_elcr(value & ELCR_SLAVE),
        }
        self.cascade();
    }
}
