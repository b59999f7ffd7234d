//! Message-signalled interrupts: a device's write to the local APICs' address window.

use crate::line::Msi;
use crate::message::{DeliveryMode, Destination, Message, Trigger};

impl Msi {
    /// Decodes the write (SDM Vol. 3, 11.11.1 and 11.11.2).
    ///
    /// `None` if it is no interrupt: the address is outside `0xfee0_0000..=0xfeef_ffff`, the
    /// delivery mode is reserved, or it takes back a level that messages cannot take back.
    pub fn message(self) -> Option<Message> {
        if self.address >> 20 != 0xfee {
            return None;
        }
        let address = self.address as u32;
        let logical = address & (1 << 2) != 0;
        let redirect = address & (1 << 3) != 0;
        let destination = Destination::from_8_bit(logical, (address >> 12) as u8);

        let level = self.data & (1 << 15) != 0;
        let assert = self.data & (1 << 14) != 0;
        if level && !assert {
            return None;
        }
        let delivery = match DeliveryMode::from_bits(self.data >> 8)? {
            DeliveryMode::StartUp => return None,
            // The redirection hint asks for one processor out of the logical set.
            DeliveryMode::Fixed if logical && redirect => DeliveryMode::LowestPriority,
            mode => mode,
        };
        Some(Message {
            destination,
            delivery,
            vector: self.data as u8,
            trigger: if level { Trigger::Level } else { Trigger::Edge },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(address: u64, data: u32) -> Option<Message> {
        Msi { address, data }.message()
    }

    #[test]
    fn the_form_that_linux_programs() {
        assert_eq!(
            decode(0xfee0_3000, 0x0041),
            Some(Message {
                destination: Destination::Physical(3),
                delivery: DeliveryMode::Fixed,
                vector: 0x41,
                trigger: Trigger::Edge,
            })
        );
        assert_eq!(decode(0xfee0_3004, 0x41).unwrap().destination, Destination::Logical(3));
    }

    #[test]
    fn the_redirection_hint_selects_one_of_a_logical_set() {
        assert_eq!(decode(0xfee0_300c, 0x41).unwrap().delivery, DeliveryMode::LowestPriority);
        assert_eq!(decode(0xfee0_3008, 0x41).unwrap().delivery, DeliveryMode::Fixed);
    }

    #[test]
    fn level_messages_assert_only() {
        assert_eq!(decode(0xfee0_0000, 0xc041).unwrap().trigger, Trigger::Level);
        assert_eq!(decode(0xfee0_0000, 0x8041), None);
    }

    #[test]
    fn what_is_no_interrupt() {
        assert_eq!(decode(0xfed0_0000, 0x41), None);
        assert_eq!(decode(0x1_fee0_0000, 0x41), None);
        assert_eq!(decode(0xfee0_0000, 0x341), None, "reserved delivery mode");
        assert_eq!(decode(0xfee0_0000, 0x641), None, "no start-up by MSI");
    }

    #[test]
    fn nmi_by_message() {
        assert_eq!(decode(0xfeef_f000, 0x400).unwrap().delivery, DeliveryMode::Nmi);
        assert_eq!(decode(0xfeef_f000, 0x400).unwrap().destination, Destination::All);
    }
}
