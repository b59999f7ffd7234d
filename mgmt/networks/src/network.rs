//! What a network is.

use serde::{Deserialize, Serialize};
use vmm_api::Failure;

use crate::{Lease, Subnet};

/// The longest name: with [`PREFIX`] before it, it names an interface, which has 15 bytes at most.
const LONGEST: usize = 15 - PREFIX.len();
/// What bridges' names begin with.
const PREFIX: &str = "br-";

/// Whom guests on a network reach, besides each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Nobody.
    Isolated,
    /// This machine.
    Host,
    /// This machine, and through it whatever it reaches, with its address (NAT).
    Nat,
}

impl Reach {
    /// As people write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reach::Isolated => "isolated",
            Reach::Host => "host",
            Reach::Nat => "nat",
        }
    }
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The addresses of its guests; the first is this machine's.
    pub subnet: Subnet,
    /// Whom guests reach.
    pub reach: Reach,
    /// Who has which address.
    #[serde(default)]
    pub leases: Vec<Lease>,
}

impl Network {
    /// The bridge's name.
    #[must_use]
    pub fn bridge(&self) -> String {
        bridge(&self.name)
    }
}

/// The bridge of the network with this name.
pub(crate) fn bridge(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The name of the network with this bridge, if it is one of Lodge's.
pub(crate) fn name_of_bridge(bridge: &str) -> Option<&str> {
    bridge.strip_prefix(PREFIX).filter(|name| check_name(name).is_ok())
}

/// Checks a network's name: it becomes part of the names of a file, an interface and a table of rules.
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    // What --net means otherwise.
    let taken = ["none", "user", "bridge", "tap"].contains(&name);
    if begins && !taken && name.len() <= LONGEST && name.bytes().all(good) {
        return Ok(());
    }
    Err(Failure::configuration(format!(
        "{name:?} cannot name a network: a name has 1 to {LONGEST} small letters, digits and '-', begins with a \
         letter, and is not none, user, bridge or tap"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_interfaces() {
        for good in ["a", "web", "twelve-chars", "a1-"] {
            assert!(check_name(good).is_ok(), "{good}");
            assert!(bridge(good).len() <= 15);
            assert_eq!(name_of_bridge(&bridge(good)), Some(good));
        }
        for bad in
            ["", "-a", "1a", "Web", "a/b", "..", "a.b", "thirteen-char", "user", "none", "a b"]
        {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!(name_of_bridge("br0"), None);
        assert_eq!(name_of_bridge("br-3f2a9c0d1e2f"), None, "Docker's");
    }
}
