//! Who has which address.

use std::fmt::Write;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use vmm_api::{Failure, format_mac, host_name};

use crate::Network;

/// An address that a guest's card has on a network, for as long as the guest is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The guest's name.
    pub guest: String,
    /// The card's address, `52:54:00:12:34:56`.
    pub mac: String,
    /// Its address on the network.
    pub address: Ipv4Addr,
}

impl Network {
    /// The address of a guest's card: the one that it has, or one that is free. Which one that is
    /// follows from the card, so that a guest that is made anew mostly has the address of before.
    pub(crate) fn grant(&mut self, guest: &str, mac: [u8; 6]) -> Result<Ipv4Addr, Failure> {
        let text = format_mac(mac);
        if let Some(lease) = self.leases.iter().find(|lease| lease.mac == text) {
            if lease.guest == guest {
                return Ok(lease.address);
            }
            return Err(Failure::configuration(format!(
                "the card address {text} is the guest {}'s on the network {}: give one of them another \
                 with --net {},mac=ADDRESS",
                lease.guest, self.name, self.name
            )));
        }
        let pool = self.subnet.pool();
        let taken = |address: &Ipv4Addr| self.leases.iter().any(|it| it.address == *address);
        // FNV-1a, as the card's own address is made.
        let hash = mac.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        let start = hash % (pool.end - pool.start);
        let mut proposals = (pool.start + start..pool.end).chain(pool.start..pool.start + start);
        // One more than are taken is enough to find a free one, however large the subnet.
        let tries = self.leases.len() + 1;
        let free = proposals.by_ref().take(tries).map(Ipv4Addr::from_bits).find(|it| !taken(it));
        let address = free.ok_or_else(|| {
            Failure::configuration(format!(
                "all addresses of the network {} are taken: remove guests, or make a larger network \
                 with --subnet",
                self.name
            ))
        })?;
        self.leases.push(Lease { guest: guest.to_owned(), mac: text, address });
        Ok(address)
    }

    /// The names of the guests, as hosts(5) describes it.
    pub(crate) fn hosts(&self) -> String {
        let mut text = format!("# Guests of the network {}; written by lodge\n", self.name);
        for Lease { guest, address, .. } in &self.leases {
            if let Some(name) = host_name(guest) {
                let _ = writeln!(text, "{address} {name}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reach;

    fn network(subnet: &str) -> Network {
        Network {
            name: "lab".into(),
            subnet: subnet.parse().unwrap(),
            reach: Reach::Host,
            leases: Vec::new(),
        }
    }

    #[test]
    fn a_card_keeps_its_address() {
        let mut network = network("10.88.0.0/24");
        let mac = |number| [0x52, 0x54, 0, 0, 0, number];
        let first = network.grant("web", mac(1)).unwrap();
        let second = network.grant("db_1", mac(2)).unwrap();
        assert_ne!(first, second);
        assert_eq!(network.grant("web", mac(1)).unwrap(), first);
        assert_eq!(network.leases.len(), 2);
        let failure = network.grant("db_1", mac(1)).unwrap_err();
        assert!(failure.message.contains("the guest web's"), "{failure}");
        assert!(network.hosts().ends_with(&format!("\n{first} web\n{second} db-1\n")));
        // One that was gone gets the same again, if nobody else has it.
        network.leases.clear();
        network.grant("db_1", mac(2)).unwrap();
        assert_eq!(network.grant("web", mac(1)).unwrap(), first);
    }

    #[test]
    fn a_small_network_can_be_full() {
        let mut network = network("192.168.7.8/29");
        // The subnet, the host, the services, four guests, broadcast.
        let mut all: Vec<_> =
            (1..=4).map(|number| network.grant("web", [2, 0, 0, 0, 0, number]).unwrap()).collect();
        all.sort();
        assert_eq!(all, [11, 12, 13, 14].map(|last| Ipv4Addr::new(192, 168, 7, last)));
        let failure = network.grant("web", [2, 0, 0, 0, 0, 5]).unwrap_err();
        assert!(failure.message.contains("are taken"), "{failure}");
    }
}
