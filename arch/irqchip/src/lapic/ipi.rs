//! Messages: sending them by the interrupt command register, and receiving them
//! (SDM Vol. 3, 11.6 and 11.12.9, 11.12.10).

use super::{Lapic, regs};
use crate::message::{DeliveryMode, Destination, Message, Trigger};

impl Lapic {
    /// The logical x2APIC ID (11.12.10.2): cluster in the high half, one bit in the low half.
    fn logical_x2apic_id(&self) -> u32 {
        let id = self.config.id;
        (id >> 4) << 16 | 1 << (id & 0xf)
    }

    /// The logical destination register.
    pub(super) fn ldr(&self) -> u32 {
        if self.x2apic_mode() { self.logical_x2apic_id() } else { u32::from(self.logical_id) << 24 }
    }

    fn matches_logical(&self, destination: u32) -> bool {
        if self.x2apic_mode() {
            let own = self.logical_x2apic_id();
            return own >> 16 == destination >> 16 && own & destination & 0xffff != 0;
        }
        let Ok(destination) = u8::try_from(destination) else { return false };
        match self.dfr >> 28 {
            0xf => self.logical_id & destination != 0,
            0x0 => {
                self.logical_id >> 4 == destination >> 4 && self.logical_id & destination & 0xf != 0
            }
            _ => false,
        }
    }

    /// Whether `message` is for this local APIC, as it is now.
    ///
    /// Fixed interrupts are for those only that software has enabled, so that a message of the
    /// lowest priority goes to one that takes it.
    pub fn accepts(&self, message: &Message) -> bool {
        let listens = match message.delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.software_enabled(),
            _ => self.enabled(),
        };
        listens
            && match message.destination {
                Destination::Physical(id) => id == self.config.id,
                Destination::Logical(id) => self.matches_logical(id),
                Destination::All => true,
                Destination::AllExcept(sender) => sender != self.config.id,
            }
    }

    /// Receives a message that this local APIC [accepts](Self::accepts).
    ///
    /// `true` means that something is pending that was not before: if
    /// [`attention`](Self::attention) is not empty, the processor wants to be woken. `false`
    /// means that the message merged with one that is still pending, or was without effect.
    pub fn deliver(&mut self, message: &Message) -> bool {
        if !self.enabled() {
            return false;
        }
        match message.delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.request(message.vector, message.trigger)
            }
            DeliveryMode::Nmi => !core::mem::replace(&mut self.nmi, true),
            DeliveryMode::Init => {
                self.signal_init();
                true
            }
            DeliveryMode::StartUp => self.signal_startup(message.vector),
            DeliveryMode::ExtInt => !core::mem::replace(&mut self.ext_int, true),
            DeliveryMode::Smi => false,
        }
    }

    /// Carries out a write to the interrupt command register. What this local APIC sends to
    /// itself alone is delivered at once; the rest is returned.
    pub(super) fn send_ipi(&mut self, icr: u64) -> Option<Message> {
        self.icr = icr;
        let delivery = DeliveryMode::from_bits((icr >> 8) as u32)?;
        let vector = icr as u8;
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < 16 => {
                self.error(regs::ESR_SEND_ILLEGAL_VECTOR);
                return None;
            }
            // "INIT level de-assert", which newer processors ignore (table 11-3).
            DeliveryMode::Init if icr & regs::ICR_LEVEL != 0 && icr & regs::ICR_ASSERT == 0 => {
                return None;
            }
            // Reserved in the ICR.
            DeliveryMode::ExtInt => return None,
            _ => {}
        }
        let shorthand = (icr >> 18) & 3;
        // A processor can neither INIT nor start itself by shorthand (table 11-3).
        if matches!(delivery, DeliveryMode::Init | DeliveryMode::StartUp)
            && matches!(shorthand, 1 | 2)
        {
            return None;
        }
        let logical = icr & regs::ICR_LOGICAL != 0;
        let destination = match shorthand {
            0 if self.x2apic_mode() => match (icr >> 32) as u32 {
                u32::MAX => Destination::All,
                id if logical => Destination::Logical(id),
                id => Destination::Physical(id),
            },
            0 => Destination::from_8_bit(logical, (icr >> 56) as u8),
            1 => Destination::Physical(self.config.id),
            2 => Destination::All,
            _ => Destination::AllExcept(self.config.id),
        };
        // The trigger mode bit means nothing beyond INIT (11.6.1 "Trigger Mode").
        let message = Message { destination, delivery, vector, trigger: Trigger::Edge };
        if shorthand == 1 {
            self.deliver(&message);
            return None;
        }
        Some(message)
    }

    /// The self-IPI register of x2APIC mode (11.12.11).
    pub(super) fn send_self_ipi(&mut self, vector: u8) {
        if vector < 16 {
            self.error(regs::ESR_SEND_ILLEGAL_VECTOR);
        } else {
            self.request(vector, Trigger::Edge);
        }
    }
}
