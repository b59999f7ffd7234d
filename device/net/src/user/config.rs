//! What a user-mode network is made from, and why one may not come to be.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The smallest MTU: what every IPv6 link must carry (RFC 8200 section 5).
pub const MIN_MTU: u16 = 1280;

/// The largest MTU: an Ethernet header and a full IPv4 packet still fit 64 KiB - 1.
pub const MAX_MTU: u16 = 65521;

/// The makings of a user-mode network. [`Default`] gives the addresses that QEMU's user-mode
/// network gives, so that guests and scripts made for it work unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNetworkConfig {
    /// The IPv4 network, say 10.0.2.0. The host is its address 2, the resolver 3, and DHCP
    /// leases 15 to 30, the first of them to the first card that asks.
    pub ipv4_network: Ipv4Addr,
    /// The length of the IPv4 network's prefix, from 8 to 26 bits.
    pub ipv4_prefix_len: u8,
    /// The IPv6 /64 network, say fd00::, or `None` for a network without IPv6. The host is its
    /// address 2, the resolver 3; guests make their own addresses (SLAAC).
    pub ipv6_prefix: Option<Ipv6Addr>,
    /// The longest IP packet in bytes, [`MIN_MTU`] to [`MAX_MTU`]. Guests learn it by DHCP and
    /// router advertisements.
    pub mtu: u16,
    /// The name that DHCP gives the guest, and under which the resolver knows it.
    pub hostname: Option<String>,
    /// Who answers the guest's DNS queries.
    pub resolvers: Resolvers,
    /// Host ports that lead into the guest.
    pub forwards: Vec<Forward>,
    /// Whether the gateway's addresses lead to the host's loopback interface. Without it the
    /// guest's connections to the gateway are refused.
    pub host_loopback: bool,
}

impl Default for UserNetworkConfig {
    fn default() -> Self {
        Self {
            ipv4_network: Ipv4Addr::new(10, 0, 2, 0),
            ipv4_prefix_len: 24,
            ipv6_prefix: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0)),
            mtu: 1500,
            hostname: None,
            resolvers: Resolvers::System,
            forwards: Vec::new(),
            host_loopback: true,
        }
    }
}

impl UserNetworkConfig {
    pub(super) fn validate(&self) -> Result<(), Error> {
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(Error::Mtu(self.mtu));
        }
        let len = self.ipv4_prefix_len;
        let host_bits = u32::MAX.checked_shr(u32::from(len)).unwrap_or(0);
        let network = self.ipv4_network;
        let usable = (8..=26).contains(&len)
            && network.to_bits() & host_bits == 0
            && !network.is_loopback()
            && !network.is_multicast()
            && !network.is_link_local()
            && (1..240).contains(&network.octets()[0]);
        if !usable {
            return Err(Error::Ipv4Network(network, len));
        }
        if let Some(prefix) = self.ipv6_prefix {
            let usable = prefix.to_bits() as u64 == 0
                && prefix.segments()[0] != 0
                && !prefix.is_unicast_link_local()
                && !prefix.is_multicast();
            if !usable {
                return Err(Error::Ipv6Prefix(prefix));
            }
        }
        if let Some(name) = &self.hostname {
            // One label of a host name: RFC 952 with RFC 1123 section 2.1.
            let label = (1..=63).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !name.starts_with('-')
                && !name.ends_with('-');
            if !label {
                return Err(Error::Hostname(name.clone()));
            }
        }
        if self.forwards.iter().any(|forward| forward.guest_port == 0) {
            return Err(Error::GuestPortZero);
        }
        Ok(())
    }
}

/// Who answers the guest's DNS queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolvers {
    /// The name servers in the host's `/etc/resolv.conf`, read again as it changes.
    System,
    /// These, in the order of preference.
    Fixed(Vec<SocketAddr>),
}

/// A host port that leads to a port of the guest's first IPv4 address. The guest sees a client
/// on the host's loopback interface as the gateway, and any other IPv4 client as itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub transport: Transport,
    /// The host's address and port to listen at. With port 0 the host chooses one, which
    /// [`UserNetwork::forwarded`](super::UserNetwork::forwarded) tells.
    pub host: SocketAddr,
    /// The guest's port, not 0.
    pub guest_port: u16,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Why a user-mode network could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An MTU out of range.
    #[error("an MTU of {0} bytes cannot be used: choose one from {MIN_MTU} to {MAX_MTU}")]
    Mtu(u16),
    /// Not an IPv4 network for guests.
    #[error(
        "the IPv4 network {0}/{1} cannot be used: give a unicast network with all host bits \
         zero and a prefix of 8 to 26 bits, such as 10.0.2.0/24"
    )]
    Ipv4Network(Ipv4Addr, u8),
    /// Not an IPv6 network for guests.
    #[error(
        "the IPv6 network {0}/64 cannot be used: give a unicast /64 network whose last 64 bits \
         are zero, such as fd00::"
    )]
    Ipv6Prefix(Ipv6Addr),
    /// Not a host name.
    #[error(
        "the host name {0:?} cannot be used: it takes 1 to 63 letters, digits and hyphens, and \
         no hyphen at either end"
    )]
    Hostname(String),
    /// A forward to no port.
    #[error("guest port 0 cannot be reached: forward to a port from 1 to 65535")]
    GuestPortZero,
    /// Another program listens at the host port.
    #[error(
        "{transport} port {} of {} is in use by another program: stop it or forward another \
         host port",
        .host.port(), .host.ip()
    )]
    PortInUse {
        /// The port's protocol.
        transport: Transport,
        /// The address that was asked for.
        host: SocketAddr,
    },
    /// The host port needs privilege.
    #[error(
        "{transport} port {} may not be opened by this user: choose a host port of 1024 or above, \
         or lower the sysctl net.ipv4.ip_unprivileged_port_start",
        .host.port()
    )]
    PortDenied {
        /// The port's protocol.
        transport: Transport,
        /// The address that was asked for.
        host: SocketAddr,
    },
    /// The host does not have the address.
    #[error("the host has no address {0} to listen at: use one of its own, or 127.0.0.1")]
    NoSuchAddress(std::net::IpAddr),
    /// Another refusal of the host.
    #[error("the user-mode network cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn host(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Host { what, source: source.into() }
    }

    /// Tells why `host` could not be listened at.
    pub(super) fn listen(transport: Transport, host: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::PortInUse { transport, host },
            io::ErrorKind::PermissionDenied => Self::PortDenied { transport, host },
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress(host.ip()),
            _ => Self::host("listen at a forwarded port", error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_valid() {
        UserNetworkConfig::default().validate().unwrap();
    }

    #[test]
    fn refuses_what_cannot_work() {
        let base = UserNetworkConfig::default;
        assert!(matches!(UserNetworkConfig { mtu: 1279, ..base() }.validate(), Err(Error::Mtu(_))));
        for (network, len) in [
            (Ipv4Addr::new(10, 0, 2, 1), 24),
            (Ipv4Addr::new(10, 0, 2, 0), 27),
            (Ipv4Addr::new(0, 0, 0, 0), 8),
            (Ipv4Addr::new(127, 0, 0, 0), 8),
            (Ipv4Addr::new(224, 0, 0, 0), 8),
            (Ipv4Addr::new(169, 254, 0, 0), 16),
            (Ipv4Addr::new(10, 0, 0, 0), 0),
            (Ipv4Addr::new(10, 0, 0, 0), 255),
        ] {
            let config =
                UserNetworkConfig { ipv4_network: network, ipv4_prefix_len: len, ..base() };
            assert!(matches!(config.validate(), Err(Error::Ipv4Network(..))), "{network}/{len}");
        }
        for prefix in ["fe80::", "ff02::", "::", "fd00::1"] {
            let config = UserNetworkConfig { ipv6_prefix: prefix.parse().ok(), ..base() };
            assert!(matches!(config.validate(), Err(Error::Ipv6Prefix(_))), "{prefix}");
        }
        for name in ["", "-a", "a-", "a.b", "grüße", &"x".repeat(64)] {
            let config = UserNetworkConfig { hostname: Some(name.into()), ..base() };
            assert!(matches!(config.validate(), Err(Error::Hostname(_))), "{name}");
        }
    }
}
