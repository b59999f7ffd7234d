//! IPv4 subnets, as in `10.88.0.0/24`.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 subnet with room for some guests: its prefix has 8 to 29 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    /// The first address, with no bits behind the prefix.
    base: Ipv4Addr,
    /// The length of the prefix in bits.
    prefix: u8,
}

impl Subnet {
    /// The first of the subnets that are chosen for networks that ask for none.
    pub(crate) fn proposals() -> impl Iterator<Item = Subnet> {
        (0..=255).map(|third| Subnet { base: Ipv4Addr::new(10, 88, third, 0), prefix: 24 })
    }

    /// A route's destination, of any length.
    pub(crate) fn of_route(base: Ipv4Addr, mask: Ipv4Addr) -> Subnet {
        Subnet { base, prefix: mask.to_bits().leading_ones() as u8 }
    }

    /// The host's address: the first behind the subnet's own.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() | 1)
    }

    /// Where guests are served: the second behind the subnet's own.
    #[must_use]
    pub fn server(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() | 2)
    }

    /// The addresses of guests, as numbers. In a subnet that has many, the first ones are left to
    /// machines that get theirs by hand.
    pub(crate) fn pool(&self) -> Range<u32> {
        let (base, size) = (self.base.to_bits(), !self.netmask().to_bits() + 1);
        base + (size / 16).clamp(3, 16)..base + size - 1
    }

    /// The length of the prefix in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// As in 255.255.255.0.
    #[must_use]
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }

    /// Whether there is an address in both.
    #[must_use]
    pub fn overlaps(&self, other: &Subnet) -> bool {
        let common = self.netmask().to_bits() & other.netmask().to_bits();
        self.base.to_bits() & common == other.base.to_bits() & common
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Subnet, String> {
        let form = || format!("{text:?} is not an IPv4 subnet: write one as in 10.88.0.0/24");
        let (base, prefix) = text.split_once('/').ok_or_else(form)?;
        let base: Ipv4Addr = base.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        if !(8..=29).contains(&prefix) {
            return Err(format!("a network has a prefix of 8 to 29 bits, and {text} has {prefix}"));
        }
        let subnet = Subnet { base, prefix };
        let first = Ipv4Addr::from_bits(base.to_bits() & subnet.netmask().to_bits());
        if first != base {
            return Err(format!(
                "{base} is an address within a subnet: did you mean {first}/{prefix}?"
            ));
        }
        if base.is_multicast()
            || base.is_loopback()
            || base.is_unspecified()
            || base.octets()[0] >= 240
        {
            return Err(format!(
                "no machine can have an address in {text}; private ones begin with 10, 172.16 or 192.168"
            ));
        }
        Ok(subnet)
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Subnet, String> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_are_read() {
        let it = subnet("10.88.3.0/24");
        assert_eq!(it.to_string(), "10.88.3.0/24");
        assert_eq!(
            (it.gateway(), it.netmask()),
            ([10, 88, 3, 1].into(), [255, 255, 255, 0].into())
        );
        let pool = |text: &str| {
            let pool = subnet(text).pool();
            (Ipv4Addr::from_bits(pool.start), Ipv4Addr::from_bits(pool.end - 1))
        };
        assert_eq!(it.server(), Ipv4Addr::new(10, 88, 3, 2));
        assert_eq!(pool("10.88.3.0/24"), ([10, 88, 3, 16].into(), [10, 88, 3, 254].into()));
        assert_eq!(pool("10.0.0.0/8"), ([10, 0, 0, 16].into(), [10, 255, 255, 254].into()));
        assert_eq!(pool("223.255.255.248/29").1, Ipv4Addr::new(223, 255, 255, 254));
        assert_eq!(subnet("192.168.1.8/29").netmask(), Ipv4Addr::new(255, 255, 255, 248));
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/30",
            "10.0.0.0/7",
            "10.0.0.1/24",
            "224.0.0.0/8",
            "127.0.0.0/8",
            "::/64",
            "10.0.0.0/x",
            "255.0.0.0/8",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad:?}");
        }
        assert!("10.0.0.1/24".parse::<Subnet>().unwrap_err().contains("10.0.0.0/24"));
    }

    #[test]
    fn what_overlaps() {
        assert!(subnet("10.0.0.0/8").overlaps(&subnet("10.88.0.0/24")));
        assert!(subnet("10.88.0.0/24").overlaps(&subnet("10.88.0.0/16")));
        assert!(!subnet("10.88.0.0/24").overlaps(&subnet("10.88.1.0/24")));
        // The default route leads everywhere.
        let everything = Subnet::of_route(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);
        assert!(everything.overlaps(&subnet("10.88.0.0/24")));
    }
}
