//! Addresses of network cards.

use crate::{ConfigError, NetConfig, card_number, parse_mac};

/// An address of a card that nobody chose one for: the same for the same guest each time, so that
/// its system recognizes the card, and likely another for another guest. It begins with 52:54:00,
/// which is locally administered (IEEE 802-2014, 8.4) and known as that of virtual machines.
#[must_use]
pub fn default_mac(name: &str, index: usize) -> [u8; 6] {
    // FNV-1a, 32 bits.
    let hash = name
        .bytes()
        .chain([0, index as u8])
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, _] = (hash ^ hash >> 24).to_le_bytes();
    [0x52, 0x54, 0x00, a, b, c]
}

/// The address of a guest's card: its own, or the one that [`default_mac`] makes of the guest's name.
///
/// # Errors
///
/// [`ConfigError::Mac`].
pub fn card_mac(name: &str, index: usize, card: &NetConfig) -> Result<[u8; 6], ConfigError> {
    match &card.mac {
        Some(mac) => parse_mac(mac),
        None => Ok(default_mac(name, card_number(index, card))),
    }
}

/// An address as people write it, and [`parse_mac`] reads it.
#[must_use]
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn default_addresses_are_stable_and_differ() {
        assert_eq!(default_mac("debian", 0), default_mac("debian", 0));
        let names = ["debian", "debian2", "debian-2", "a", "b", "web", "db"];
        let all: HashSet<_> = names
            .iter()
            .flat_map(|name| (0..8).map(move |index| default_mac(name, index)))
            .collect();
        assert_eq!(all.len(), names.len() * 8);
        for mac in all {
            assert_eq!(parse_mac(&format_mac(mac)), Ok(mac));
            assert_eq!(mac[0] & 0b11, 0b10, "locally administered, not multicast");
        }
    }
}
