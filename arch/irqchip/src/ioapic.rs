//! The I/O APIC: an 82093AA with 24 pins and the EOI register of its successors, version 0x20
//! (Intel 82093AA datasheet; ICH9 datasheet, 13.5).

mod state;

use alloc::vec::Vec;

pub use state::IoApicState;

use crate::message::{DeliveryMode, Destination, Message, Trigger};

/// How many pins there are.
pub const IOAPIC_PINS: u32 = 24;

const PINS: usize = IOAPIC_PINS as usize;

// The memory-mapped registers (ICH9 13.5.1).
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const IOEOI: u64 = 0x40;

// The registers behind the window (82093AA, 3.2).
const IOAPICID: u8 = 0x00;
const IOAPICVER: u8 = 0x01;
const IOAPICARB: u8 = 0x02;
const IOREDTBL: u8 = 0x10;
const IOREDTBL_LAST: u8 = IOREDTBL + 2 * IOAPIC_PINS as u8 - 1;

const VERSION: u32 = 0x20 | ((IOAPIC_PINS - 1) << 16);

/// An entry of the redirection table (82093AA, 3.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Redirection(u64);

impl Redirection {
    const LOGICAL: u64 = 1 << 11;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    /// All but delivery status, which is always idle, remote IRR, and reserved bits.
    const WRITABLE: u64 = 0xff00_0000_0001_afff;

    fn masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    fn remote_irr(self) -> bool {
        self.0 & Self::REMOTE_IRR != 0
    }

    fn vector(self) -> u8 {
        self.0 as u8
    }

    fn delivery(self) -> Option<DeliveryMode> {
        DeliveryMode::from_bits((self.0 >> 8) as u32)
    }

    /// Only the two modes that are ended by an EOI can be level-triggered.
    fn level(self) -> bool {
        self.0 & Self::LEVEL != 0
            && matches!(self.delivery(), Some(DeliveryMode::Fixed | DeliveryMode::LowestPriority))
    }

    fn message(self) -> Option<Message> {
        let delivery = match self.delivery()? {
            // Reserved in the table.
            DeliveryMode::StartUp => return None,
            mode => mode,
        };
        Some(Message {
            destination: Destination::from_8_bit(self.0 & Self::LOGICAL != 0, (self.0 >> 56) as u8),
            delivery,
            vector: self.vector(),
            trigger: if self.level() { Trigger::Level } else { Trigger::Edge },
        })
    }
}

/// An I/O APIC. It is plain data: a clone is a snapshot.
///
/// A pin's level `true` means asserted; the polarity bit of its entry is remembered but changes
/// nothing, as if the board had the inverters that the firmware's tables speak of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoApic {
    // Wiring: the pins' levels, which a reset does not change.
    pins: u32,

    // Registers.
    select: u8,
    id: u8,
    table: [Redirection; PINS],
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// An I/O APIC after power-up: all pins masked.
    pub fn new() -> Self {
        Self { pins: 0, select: 0, id: 0, table: [Redirection(Redirection::MASKED); PINS] }
    }

    /// Resets the registers.
    pub fn reset(&mut self) {
        *self = Self { pins: self.pins, ..Self::new() };
    }

    /// Reads from the register page. Registers are 32 bits wide; what is none reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset & 0xff {
            IOREGSEL => self.select.into(),
            IOWIN => self.read_window(),
            _ => 0,
        };
        let bytes = value.to_le_bytes().into_iter().chain(core::iter::repeat(0));
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
    }

    /// Writes to the register page, and gives the messages that this releases.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Vec<Message> {
        let value = data.iter().take(4).rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        match offset & 0xff {
            IOREGSEL => self.select = value as u8,
            // The window is a 32-bit register (82093AA, 3.1.2).
            IOWIN if data.len() >= 4 => return self.write_window(value).into_iter().collect(),
            IOEOI => return self.eoi(value as u8),
            _ => {}
        }
        Vec::new()
    }

    fn read_window(&self) -> u32 {
        match self.select {
            IOAPICID | IOAPICARB => u32::from(self.id) << 24,
            IOAPICVER => VERSION,
            IOREDTBL..=IOREDTBL_LAST => {
                let entry = self.entry(u32::from(self.select - IOREDTBL) / 2).0;
                (if self.select & 1 == 0 { entry } else { entry >> 32 }) as u32
            }
            _ => 0,
        }
    }

    fn write_window(&mut self, value: u32) -> Option<Message> {
        match self.select {
            IOAPICID => {
                self.id = (value >> 24) as u8 & 0x0f;
                None
            }
            IOREDTBL..=IOREDTBL_LAST => {
                self.write_redirection(u32::from(self.select - IOREDTBL), value)
            }
            _ => None,
        }
    }

    fn write_redirection(&mut self, half: u32, value: u32) -> Option<Message> {
        let pin = half / 2;
        let old = self.entry(pin).0;
        let written = if half.is_multiple_of(2) {
            (old & !0xffff_ffff) | u64::from(value)
        } else {
            (old & 0xffff_ffff) | u64::from(value) << 32
        };
        let mut entry = Redirection(written & Redirection::WRITABLE);
        // Software for versions without an EOI register ends an interrupt by making the pin
        // edge-triggered for a moment.
        if entry.level() {
            entry.0 |= old & Redirection::REMOTE_IRR;
        }
        *self.entry_mut(pin)? = entry;
        self.service_level(pin)
    }

    fn entry(&self, pin: u32) -> Redirection {
        self.table.get(pin as usize).copied().unwrap_or(Redirection(Redirection::MASKED))
    }

    fn entry_mut(&mut self, pin: u32) -> Option<&mut Redirection> {
        self.table.get_mut(pin as usize)
    }

    /// Drives a pin. Pins beyond the last do not exist and do nothing.
    pub fn set_pin(&mut self, pin: u32, level: bool) -> Option<Message> {
        if pin >= IOAPIC_PINS {
            return None;
        }
        let bit = 1 << pin;
        let rose = level && self.pins & bit == 0;
        self.pins = if level { self.pins | bit } else { self.pins & !bit };

        let entry = self.entry(pin);
        if entry.level() {
            self.service_level(pin)
        } else if rose && !entry.masked() {
            // An edge at a masked pin is lost (82093AA, 3.2.4 "Interrupt Mask").
            entry.message()
        } else {
            None
        }
    }

    /// Sends a level-triggered pin's interrupt if it is asserted and none is in service.
    fn service_level(&mut self, pin: u32) -> Option<Message> {
        let asserted = self.pins & 1u32.checked_shl(pin)? != 0;
        let entry = self.entry_mut(pin)?;
        if !asserted || !entry.level() || entry.masked() || entry.remote_irr() {
            return None;
        }
        entry.0 |= Redirection::REMOTE_IRR;
        entry.message()
    }

    /// The end of a level-triggered interrupt: local APICs broadcast it, software writes it to
    /// the EOI register. Pins that are still asserted interrupt again.
    pub fn eoi(&mut self, vector: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        for pin in 0..IOAPIC_PINS {
            let Some(entry) = self.entry_mut(pin) else { continue };
            if entry.remote_irr() && entry.vector() == vector {
                entry.0 &= !Redirection::REMOTE_IRR;
                messages.extend(self.service_level(pin));
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEVEL: u32 = 1 << 15;
    const MASKED: u32 = 1 << 16;

    fn write(ioapic: &mut IoApic, register: u8, value: u32) -> Vec<Message> {
        assert!(ioapic.write(IOREGSEL, &[register, 0, 0, 0]).is_empty());
        ioapic.write(IOWIN, &value.to_le_bytes())
    }

    fn read(ioapic: &mut IoApic, register: u8) -> u32 {
        assert!(ioapic.write(IOREGSEL, &[register, 0, 0, 0]).is_empty());
        let mut data = [0; 4];
        ioapic.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    fn redirect(ioapic: &mut IoApic, pin: u8, high: u32, low: u32) -> Vec<Message> {
        write(ioapic, IOREDTBL + 2 * pin + 1, high);
        write(ioapic, IOREDTBL + 2 * pin, low)
    }

    #[test]
    fn identifies_itself() {
        let mut ioapic = IoApic::new();
        assert_eq!(read(&mut ioapic, IOAPICVER), 0x0017_0020);
        write(&mut ioapic, IOAPICID, 0x0200_0000);
        assert_eq!(read(&mut ioapic, IOAPICID), 0x0200_0000);
        assert_eq!(read(&mut ioapic, IOREDTBL), MASKED);
        assert_eq!(read(&mut ioapic, IOREDTBL_LAST + 1), 0);
    }

    #[test]
    fn an_edge_is_one_message() {
        let mut ioapic = IoApic::new();
        assert!(redirect(&mut ioapic, 4, 0x0300_0000, 0x31).is_empty());
        let message = Message {
            destination: Destination::Physical(3),
            delivery: DeliveryMode::Fixed,
            vector: 0x31,
            trigger: Trigger::Edge,
        };
        assert_eq!(ioapic.set_pin(4, true), Some(message));
        assert_eq!(ioapic.set_pin(4, true), None);
        assert_eq!(ioapic.set_pin(4, false), None);
        assert_eq!(ioapic.set_pin(4, true), Some(message));
    }

    #[test]
    fn an_edge_at_a_masked_pin_is_lost() {
        let mut ioapic = IoApic::new();
        redirect(&mut ioapic, 4, 0, 0x31 | MASKED);
        assert_eq!(ioapic.set_pin(4, true), None);
        assert!(redirect(&mut ioapic, 4, 0, 0x31).is_empty());
    }

    #[test]
    fn a_level_lasts_until_it_is_taken_back() {
        let mut ioapic = IoApic::new();
        redirect(&mut ioapic, 16, 0, 0x51 | LEVEL);
        assert_eq!(ioapic.set_pin(16, true).unwrap().trigger, Trigger::Level);
        assert_eq!(read(&mut ioapic, IOREDTBL + 32), 0x51 | LEVEL | 1 << 14);
        assert_eq!(ioapic.set_pin(16, false), None);
        assert_eq!(ioapic.set_pin(16, true), None, "still in service");
        assert_eq!(ioapic.eoi(0x52), []);
        assert_eq!(ioapic.eoi(0x51).len(), 1, "still asserted");
        ioapic.set_pin(16, false);
        assert_eq!(ioapic.eoi(0x51), []);
        assert_eq!(read(&mut ioapic, IOREDTBL + 32), 0x51 | LEVEL);
    }

    #[test]
    fn unmasking_an_asserted_level_interrupts() {
        let mut ioapic = IoApic::new();
        redirect(&mut ioapic, 16, 0, 0x51 | LEVEL | MASKED);
        assert_eq!(ioapic.set_pin(16, true), None);
        assert_eq!(redirect(&mut ioapic, 16, 0, 0x51 | LEVEL).len(), 1);
    }

    #[test]
    fn the_eoi_register_ends_every_pin_with_the_vector() {
        let mut ioapic = IoApic::new();
        for pin in [16, 17] {
            redirect(&mut ioapic, pin, 0, 0x51 | LEVEL);
            assert!(ioapic.set_pin(pin.into(), true).is_some());
        }
        assert_eq!(ioapic.write(IOEOI, &[0x51, 0, 0, 0]).len(), 2);
    }

    #[test]
    fn a_moment_of_edge_mode_ends_the_interrupt() {
        let mut ioapic = IoApic::new();
        redirect(&mut ioapic, 16, 0, 0x51 | LEVEL);
        assert!(ioapic.set_pin(16, true).is_some());
        assert!(redirect(&mut ioapic, 16, 0, 0x51 | MASKED).is_empty());
        assert_eq!(redirect(&mut ioapic, 16, 0, 0x51 | LEVEL).len(), 1);
    }

    #[test]
    fn logical_and_lowest_priority_destinations() {
        let mut ioapic = IoApic::new();
        redirect(&mut ioapic, 1, 0x0600_0000, 0x931);
        let message = ioapic.set_pin(1, true).unwrap();
        assert_eq!(message.destination, Destination::Logical(6));
        assert_eq!(message.delivery, DeliveryMode::LowestPriority);
    }

    #[test]
    fn an_nmi_is_never_level_triggered() {
        let mut ioapic = IoApic::new();
        redirect(&mut ioapic, 2, 0, 0x400 | LEVEL);
        assert_eq!(ioapic.set_pin(2, true).unwrap().trigger, Trigger::Edge);
        assert!(!ioapic.entry(2).remote_irr());
    }

    proptest! {
        /// Whatever software does, an interrupt in service is remembered by exactly those pins
        /// that have sent a level message and not seen its end.
        #[test]
        fn a_level_pin_has_at_most_one_message_in_flight(
            ops in prop::collection::vec((0u8..3, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let mut ioapic = IoApic::new();
            redirect(&mut ioapic, 20, 0, 0x61 | LEVEL);
            let mut in_flight = 0i32;
            let mut asserted = false;
            for (op, flag, _) in ops {
                let sent = match op {
                    0 => { asserted = flag; ioapic.set_pin(20, flag).into_iter().count() }
                    1 => { let ended = in_flight; in_flight = 0; let n = ioapic.eoi(0x61).len();
                           prop_assert!(ended == 1 || n == 0); n }
                    _ => redirect(&mut ioapic, 20, 0, 0x61 | LEVEL | if flag { MASKED } else { 0 }).len(),
                };
                in_flight += sent as i32;
                prop_assert!((0..=1).contains(&in_flight));
                prop_assert_eq!(ioapic.entry(20).remote_irr(), in_flight == 1);
                if asserted && !ioapic.entry(20).masked() {
                    prop_assert_eq!(in_flight, 1, "an asserted pin is being served");
                }
            }
        }

        #[test]
        fn hostile_accesses_do_no_harm(ops: std::vec::Vec<(u64, std::vec::Vec<u8>)>, pins: std::vec::Vec<(u32, bool)>) {
            let mut ioapic = IoApic::new();
            for (offset, data) in ops {
                ioapic.write(offset, &data);
                ioapic.read(offset, &mut [0; 9]);
            }
            for (pin, level) in pins {
                ioapic.set_pin(pin, level);
            }
            for select in 0..=255 {
                read(&mut ioapic, select);
            }
        }
    }

    extern crate std;
}
