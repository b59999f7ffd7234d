//! Network cards.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use net::user::{Forward, Transport, UserNetwork, UserNetworkConfig};
use vmm_api::{NetConfig, Protocol, parse_mac};

use super::Board;
use crate::BuildError;

/// Starts a user-mode network for each card and puts the card on the bus.
pub fn attach(board: &Board) -> Result<(), BuildError> {
    let config = board.parts.config;
    for (index, card) in config.nets.iter().enumerate() {
        let mac = match &card.mac {
            Some(mac) => parse_mac(mac)?,
            None => default_mac(&config.name, index),
        };
        let network = UserNetwork::new(network(&config.name, index, card))?;
        let device = virtio::net(Arc::new(network), mac, board.parts.memory.clone())?;
        board.pci.add(None, Box::new(device))?;
    }
    Ok(())
}

fn network(name: &str, index: usize, card: &NetConfig) -> UserNetworkConfig {
    let forwards = card
        .forwards
        .iter()
        .map(|forward| Forward {
            transport: match forward.protocol {
                Protocol::Tcp => Transport::Tcp,
                Protocol::Udp => Transport::Udp,
            },
            host: SocketAddr::new(forward.host_addr, forward.host_port),
            guest_port: forward.guest_port,
        })
        .collect();
    // Each card has a network of its own: 10.0.2.0 and fd00::/64, 10.0.3.0 and fd00:0:0:1::/64, ...
    let number = index as u8; // `VmConfig::validate` allows only a few cards
    UserNetworkConfig {
        ipv4_network: Ipv4Addr::new(10, 0, 2 + number, 0),
        ipv6_prefix: Some(Ipv6Addr::new(0xfd00, 0, 0, number.into(), 0, 0, 0, 0)),
        hostname: host_name(name),
        forwards,
        ..Default::default()
    }
}

/// The guest's name as a host name: letters, digits and inner hyphens (RFC 1123, 2.1).
fn host_name(name: &str) -> Option<String> {
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    let name = name.trim_matches('-');
    (!name.is_empty()).then(|| name.to_owned())
}

/// An address of a card that nobody chose one for: the same for the same guest each time, so that
/// its system recognizes the card, and likely another for another guest. It begins with 52:54:00,
/// which is locally administered (IEEE 802-2014, 8.4) and known as that of virtual machines.
fn default_mac(name: &str, index: usize) -> [u8; 6] {
    // FNV-1a, 32 bits.
    let hash = name
        .bytes()
        .chain([0, index as u8])
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, _] = (hash ^ hash >> 24).to_le_bytes();
    [0x52, 0x54, 0x00, a, b, c]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_become_host_names() {
        assert_eq!(host_name("web").as_deref(), Some("web"));
        assert_eq!(host_name("debian_12.test-").as_deref(), Some("debian-12-test"));
        assert_eq!(host_name("_"), None);
    }

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
            assert_eq!(mac[0] & 0b11, 0b10, "locally administered, not multicast");
        }
    }
}
