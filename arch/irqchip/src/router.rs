//! A PC's interrupt wiring: global system interrupts to the 8259 pair and the I/O APIC.

use alloc::vec::Vec;

use crate::ioapic::{IOAPIC_PINS, IoApic, IoApicState};
use crate::message::Message;
use crate::pic::{PicPair, PicPort, PicState};

/// What a change at the [`Router`] makes necessary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Work {
    /// Messages to deliver to local APICs, in this order.
    pub messages: Vec<Message>,
    /// The new level of the 8259 pair's output, if it has changed. It is wired to
    /// [LINT0](crate::Lint::Lint0) of the bootstrap processor.
    pub intr: Option<bool>,
}

/// The I/O APIC and the 8259 pair as a PC wires them. Plain data: a clone is a snapshot.
///
/// Both see every interrupt, as they do on a board; software masks one of them. ISA IRQ 0 is pin
/// 2 of the I/O APIC (which the firmware's MADT tells by an interrupt source override), since
/// pin 0 is the 8259 pair's output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Router {
    pic: PicPair,
    ioapic: IoApic,
}

impl Router {
    /// The wiring after power-up.
    pub fn new() -> Self {
        Self::default()
    }

    /// Resets both controllers. The lines keep their levels.
    pub fn reset(&mut self) -> Work {
        self.change(|this| {
            this.pic.reset();
            this.ioapic.reset();
            Vec::new()
        })
    }

    /// The state of the controllers now: the pair's two, and the I/O APIC's.
    pub fn save(&self) -> (PicState, PicState, IoApicState) {
        let (master, slave) = self.pic.save();
        (master, slave, self.ioapic.save())
    }

    /// Takes over a state. What it causes has been caused already: by those who have saved it.
    pub fn restore(&mut self, master: &PicState, slave: &PicState, ioapic: &IoApicState) {
        self.pic.restore(master, slave);
        self.ioapic.restore(ioapic);
    }

    /// Drives a global system interrupt.
    ///
    /// 0 to 15 are the ISA IRQs, 0 of them pin 2 of the I/O APIC; 16 to 23 go to the I/O APIC
    /// alone. 2 and numbers beyond the last pin do not exist and do nothing.
    pub fn set_gsi(&mut self, gsi: u32, level: bool) -> Work {
        let pin = match gsi {
            0 => 2,
            2 | IOAPIC_PINS.. => return Work::default(),
            gsi => gsi,
        };
        self.change(|this| {
            if gsi < 16 {
                this.pic.set_irq(gsi as u8, level);
            }
            this.ioapic.set_pin(pin, level).into_iter().collect()
        })
    }

    /// The 8259 pair's output.
    pub fn intr(&self) -> bool {
        self.pic.output()
    }

    /// Acknowledges an interrupt at the 8259 pair, for a processor that
    /// [takes an ExtINT](crate::Lapic::take_ext_int), and gives its vector.
    pub fn acknowledge_pic(&mut self) -> (u8, Work) {
        let mut vector = 0;
        let work = self.change(|this| {
            vector = this.pic.acknowledge();
            // The acknowledge drops the output for a moment, so that pin 0 sees an edge if
            // another request follows.
            let low = this.ioapic.set_pin(0, false);
            let again = this.pic.output().then(|| this.ioapic.set_pin(0, true)).flatten();
            low.into_iter().chain(again).collect()
        });
        (vector, work)
    }

    /// Reads a port of the 8259 pair.
    pub fn read_pic(&mut self, port: PicPort) -> (u8, Work) {
        let mut value = 0;
        let work = self.change(|this| {
            value = this.pic.read(port);
            Vec::new()
        });
        (value, work)
    }

    /// Writes a port of the 8259 pair.
    pub fn write_pic(&mut self, port: PicPort, value: u8) -> Work {
        self.change(|this| {
            this.pic.write(port, value);
            Vec::new()
        })
    }

    /// Reads from the I/O APIC's register page.
    pub fn read_ioapic(&self, offset: u64, data: &mut [u8]) {
        self.ioapic.read(offset, data);
    }

    /// Writes to the I/O APIC's register page.
    pub fn write_ioapic(&mut self, offset: u64, data: &[u8]) -> Work {
        self.change(|this| this.ioapic.write(offset, data))
    }

    /// The end of a level-triggered interrupt, as [`Effects::eoi`](crate::Effects::eoi) reports
    /// it.
    pub fn eoi(&mut self, vector: u8) -> Work {
        Work { messages: self.ioapic.eoi(vector), intr: None }
    }

    /// Makes a change and follows what it does to the 8259 pair's output.
    fn change(&mut self, change: impl FnOnce(&mut Self) -> Vec<Message>) -> Work {
        let before = self.pic.output();
        let mut messages = change(self);
        let after = self.pic.output();
        if before != after {
            messages.extend(self.ioapic.set_pin(0, after));
        }
        Work { messages, intr: (before != after).then_some(after) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> Router {
        let mut router = Router::new();
        for (command, data, base) in [
            (PicPort::MasterCommand, PicPort::MasterData, 0x30),
            (PicPort::SlaveCommand, PicPort::SlaveData, 0x38),
        ] {
            for (port, value) in [(command, 0x11), (data, base), (data, 4), (data, 1)] {
                assert_eq!(router.write_pic(port, value), Work::default());
            }
        }
        router
    }

    fn redirect(router: &mut Router, pin: u8, low: u32) {
        assert_eq!(router.write_ioapic(0, &[0x10 + 2 * pin]), Work::default());
        let _ = router.write_ioapic(0x10, &low.to_le_bytes());
    }

    #[test]
    fn the_timer_reaches_irq_0_and_pin_2() {
        let mut router = router();
        redirect(&mut router, 2, 0x40);
        let work = router.set_gsi(0, true);
        assert_eq!(work.intr, Some(true));
        assert_eq!(work.messages.len(), 1);
        assert_eq!(work.messages[0].vector, 0x40);
        let (vector, work) = router.acknowledge_pic();
        assert_eq!((vector, work.intr), (0x30, Some(false)));
    }

    #[test]
    fn pci_interrupts_reach_the_ioapic_alone() {
        let mut router = router();
        redirect(&mut router, 20, 0x8050);
        let work = router.set_gsi(20, true);
        assert_eq!((work.intr, work.messages.len()), (None, 1));
        assert_eq!(router.set_gsi(20, false), Work::default());
        assert_eq!(router.eoi(0x50), Work::default());
    }

    #[test]
    fn what_does_not_exist_does_nothing() {
        let mut router = router();
        for gsi in [2, 24, u32::MAX] {
            assert_eq!(router.set_gsi(gsi, true), Work::default());
        }
    }

    #[test]
    fn pin_0_is_the_pair() {
        let mut router = router();
        redirect(&mut router, 0, 0x700);
        let work = router.set_gsi(4, true);
        assert_eq!(work.messages[0].delivery, crate::DeliveryMode::ExtInt);
        // With automatic EOI a second request follows the first at once: a new edge at pin 0.
        for (port, value) in [(PicPort::MasterCommand, 0x11), (PicPort::MasterData, 0x30)] {
            let _ = router.write_pic(port, value);
        }
        for value in [4, 3] {
            let _ = router.write_pic(PicPort::MasterData, value);
        }
        assert_eq!(router.set_gsi(5, true).messages.len(), 1);
        assert!(router.set_gsi(3, true).messages.is_empty());
        let (vector, work) = router.acknowledge_pic();
        assert_eq!((vector, work.messages.len(), work.intr), (0x33, 1, None));
    }

    #[test]
    fn polling_takes_the_interrupt_back() {
        let mut router = router();
        assert_eq!(router.set_gsi(4, true).intr, Some(true));
        let _ = router.write_pic(PicPort::MasterCommand, 0x0c);
        let (value, work) = router.read_pic(PicPort::MasterCommand);
        assert_eq!((value, work.intr), (0x84, Some(false)));
    }
}
