//! A guest that goes on from a snapshot is made another one than that which it was.

use std::time::Duration;

use agent_protocol::{CardChange, Renewal, Task};
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_api::{Failure, NetworkConfig, VmConfig, card_mac};

use super::Agent;
use crate::failure;

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Has a guest that goes on from a snapshot of the guest `before` draw other random numbers, and its
/// cards have the addresses that they have here. A guest without an agent goes on as it is.
pub fn renew(before: &VmConfig, now: &VmConfig) {
    let result = cards(before, now).and_then(|cards| {
        let is_needed = !cards.is_empty();
        match ask(&now.name, cards) {
            Err(failure) if is_needed => Err(failure),
            _ => Ok(()),
        }
    });
    if let Err(failure) = result {
        eprintln!(
            "lodge: {0} has the addresses of {1} on its networks, where both are in each other's way, until \
             its cards are given others (`lodge inspect {0}`) or it is restarted: {failure}",
            now.name, before.name
        );
    }
}

fn ask(name: &str, cards: Vec<CardChange>) -> Result<(), Failure> {
    let mut entropy = [0; 32];
    // The kernel gives so few bytes whole.
    getrandom(&mut entropy, GetRandomFlags::empty())
        .map_err(|error| Failure::host(format!("this machine has no random numbers: {error}")))?;
    Agent::ask_now(name, Task::Renew(Renewal { entropy, cards }), PATIENCE)?.reply().map(drop)
}

/// The cards that have other addresses now. On a user-mode network, each guest's own, that does not
/// matter.
fn cards(before: &VmConfig, now: &VmConfig) -> Result<Vec<CardChange>, Failure> {
    let mut cards = Vec::new();
    for (index, (old, new)) in before.nets.iter().zip(&now.nets).enumerate() {
        let address = |guest: &VmConfig, card| card_mac(&guest.name, index, card);
        let from = address(before, old).map_err(failure::config)?;
        let to = address(now, new).map_err(failure::config)?;
        if from != to && new.network != NetworkConfig::User {
            cards.push(CardChange { from, to });
        }
    }
    Ok(cards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::empty_config;
    use vmm_api::{NetConfig, default_mac};

    #[test]
    fn cards_on_shared_networks_get_other_addresses() {
        let bridge =
            NetConfig { network: NetworkConfig::Bridge("br0".into()), ..NetConfig::default() };
        let named = NetConfig { mac: Some("52:54:00:00:00:01".into()), ..bridge.clone() };
        let mut before = empty_config();
        before.nets = vec![NetConfig::default(), bridge, named];
        let mut now = before.clone();
        assert_eq!(cards(&before, &now).unwrap(), []);
        now.name = "clone".into();
        now.nets[2].mac = None;
        let changes = [
            CardChange { from: default_mac("guest", 1), to: default_mac("clone", 1) },
            CardChange { from: [0x52, 0x54, 0, 0, 0, 1], to: default_mac("clone", 2) },
        ];
        assert_eq!(cards(&before, &now).unwrap(), changes);
    }
}
