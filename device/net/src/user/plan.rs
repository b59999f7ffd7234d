//! The network's addresses, and where a guest's packet may go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::EthernetAddress;

use super::config::UserNetworkConfig;
use crate::edge::EdgeConfig;

/// The gateway's link-local address, from which router advertisements come
/// (RFC 4861 section 4.2).
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// How many addresses DHCP leases.
pub const LEASES: u8 = 16;

/// The addresses of a network.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The gateway's Ethernet address, which answers for every address on the network but the
    /// guest's.
    pub mac: EthernetAddress,
    /// The IPv4 network.
    pub network: Ipv4Addr,
    /// The length of its prefix in bits.
    pub prefix_len: u8,
    /// Where DHCP answers, and where clients of forwarded ports come from. In the user-mode network it
    /// is the way out, and the host's loopback interface too.
    pub gateway: Ipv4Addr,
    /// The DNS resolver, which may be the same.
    pub resolver: Ipv4Addr,
    /// The way out, as DHCP tells it.
    pub router: Option<Ipv4Addr>,
    /// The host, as DNS tells it.
    pub host: Option<Ipv4Addr>,
    /// The first leased address, to which forwarded ports lead.
    pub guest: Ipv4Addr,
    /// The IPv6 network, if there is one.
    pub v6: Option<PlanV6>,
    reach: Reach,
}

/// Where our packets may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Wherever the host's sockets lead.
    Everywhere {
        /// To the host's loopback interface as well, by the gateway.
        host_loopback: bool,
    },
    /// To our own services. All else is somebody else's business.
    Services,
}

/// The addresses of an IPv6 network.
#[derive(Clone, Copy, Debug)]
pub struct PlanV6 {
    /// The /64 network.
    pub prefix: Ipv6Addr,
    /// The gateway, which is the host's loopback interface too.
    pub gateway: Ipv6Addr,
    /// The DNS resolver.
    pub resolver: Ipv6Addr,
}

/// Where a guest's packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the host's loopback interface, at this address.
    Loopback(IpAddr),
    /// To the gateway, where the host's loopback interface is closed to the guest.
    ClosedGateway,
    /// To the DNS resolver.
    Resolver,
    /// Out, through the host's own network.
    Outside(IpAddr),
    /// Nobody has the address, or packets to it must not leave a link: tell the guest.
    Nobody,
    /// Broadcast, multicast or no address at all: drop.
    Ignored,
}

impl Plan {
    /// The plan of a valid configuration.
    pub fn new(config: &UserNetworkConfig) -> Self {
        let base = config.ipv4_network.to_bits();
        let gateway = Ipv4Addr::from_bits(base | 2);
        let [a, b, c, d] = gateway.octets();
        Self {
            mac: EthernetAddress([0x52, 0x55, a, b, c, d]),
            network: config.ipv4_network,
            prefix_len: config.ipv4_prefix_len,
            gateway,
            resolver: Ipv4Addr::from_bits(base | 3),
            router: Some(gateway),
            host: Some(gateway),
            guest: Ipv4Addr::from_bits(base | 15),
            v6: config.ipv6_prefix.map(|prefix| PlanV6 {
                prefix,
                gateway: Ipv6Addr::from_bits(prefix.to_bits() | 2),
                resolver: Ipv6Addr::from_bits(prefix.to_bits() | 3),
            }),
            reach: Reach::Everywhere { host_loopback: config.host_loopback },
        }
    }

    /// The plan of a network of the host, at the edge of which we answer for the services alone.
    pub fn of_edge(config: &EdgeConfig) -> Self {
        let [a, b, c, d] = config.server.octets();
        let mut plan = Self {
            mac: EthernetAddress([0x52, 0x55, a, b, c, d]),
            network: config.server,
            prefix_len: config.prefix_len,
            gateway: config.server,
            resolver: config.server,
            router: config.router,
            host: config.host,
            guest: config.address,
            v6: None,
            reach: Reach::Services,
        };
        plan.network = Ipv4Addr::from_bits(config.server.to_bits() & plan.netmask().to_bits());
        plan
    }

    /// The IPv4 netmask.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(!u32::MAX.checked_shr(u32::from(self.prefix_len)).unwrap_or(0))
    }

    /// The address of lease `index`, below [`LEASES`].
    pub fn lease(&self, index: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.guest.to_bits() + u32::from(index.min(LEASES - 1)))
    }

    fn on_link_v4(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.netmask().to_bits() == self.network.to_bits()
    }

    fn on_link_v6(v6: &PlanV6, address: Ipv6Addr) -> bool {
        address.to_bits() >> 64 == v6.prefix.to_bits() >> 64
    }

    /// Whether a guest may use `address` as its own: an address of the network that is not ours.
    pub fn is_guest(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                self.on_link_v4(address)
                    && !self.is_ours(address.into())
                    && address != self.network
                    && address.to_bits() != self.network.to_bits() | !self.netmask().to_bits()
            }
            IpAddr::V6(address) => self.v6.as_ref().is_some_and(|v6| {
                (address.is_unicast_link_local() || Self::on_link_v6(v6, address))
                    && !self.is_ours(address.into())
            }),
        }
    }

    /// Whether `address` is the gateway's or the resolver's.
    pub fn is_ours(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.gateway || address == self.resolver,
            IpAddr::V6(address) => self.v6.as_ref().is_some_and(|v6| {
                address == v6.gateway || address == v6.resolver || address == GATEWAY_LINK_LOCAL
            }),
        }
    }

    /// The gateway's address in the protocol of `like`.
    pub fn gateway_like(&self, like: IpAddr) -> IpAddr {
        match (like, &self.v6) {
            (IpAddr::V6(_), Some(v6)) => v6.gateway.into(),
            _ => self.gateway.into(),
        }
    }

    /// Where a packet to `address` goes.
    pub fn destination(&self, address: IpAddr) -> Destination {
        match address {
            IpAddr::V4(address) => self.destination_v4(address),
            IpAddr::V6(address) => match &self.v6 {
                Some(v6) => self.destination_v6(v6, address),
                None => Destination::Ignored,
            },
        }
    }

    fn gateway_destination(&self, loopback: IpAddr) -> Destination {
        match self.reach {
            Reach::Everywhere { host_loopback: true } => Destination::Loopback(loopback),
            _ => Destination::ClosedGateway,
        }
    }

    fn destination_v4(&self, address: Ipv4Addr) -> Destination {
        if address == self.resolver {
            return Destination::Resolver;
        }
        if self.reach == Reach::Services {
            return Destination::Ignored;
        }
        if address == self.gateway {
            return self.gateway_destination(Ipv4Addr::LOCALHOST.into());
        }
        let host_bits = !self.netmask().to_bits();
        if self.on_link_v4(address) {
            return match address.to_bits() & host_bits {
                0 => Destination::Ignored,
                bits if bits == host_bits => Destination::Ignored,
                _ => Destination::Nobody,
            };
        }
        match address.octets()[0] {
            // "This network", multicast and reserved: RFC 1122 section 3.2.1.3.
            0 | 224.. => Destination::Ignored,
            // Loopback addresses never appear on a wire; on the host they would be its own.
            127 => Destination::Ignored,
            // Routers must not forward link-local packets (RFC 3927 section 7). On the host
            // they would reach a cloud's metadata service and with it the host's credentials.
            _ if address.is_link_local() => Destination::Nobody,
            _ => Destination::Outside(address.into()),
        }
    }

    fn destination_v6(&self, v6: &PlanV6, address: Ipv6Addr) -> Destination {
        if address == v6.gateway || address == GATEWAY_LINK_LOCAL {
            return self.gateway_destination(Ipv6Addr::LOCALHOST.into());
        }
        if address == v6.resolver {
            return Destination::Resolver;
        }
        if address.is_multicast() || address.is_unspecified() || address.is_loopback() {
            return Destination::Ignored;
        }
        // An IPv4 address in IPv6's clothes would pass the checks above and reach the host's
        // loopback interface: ::a.b.c.d and ::ffff:a.b.c.d never appear on a wire (RFC 4291
        // section 2.5.5). Link-local packets must not be forwarded (section 2.5.6).
        let embeds_v4 = address.to_bits() >> 48 == 0;
        if embeds_v4 || address.is_unicast_link_local() || Self::on_link_v6(v6, address) {
            return Destination::Nobody;
        }
        Destination::Outside(address.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::Resolvers;

    fn plan() -> Plan {
        Plan::new(&UserNetworkConfig::default())
    }

    #[test]
    fn addresses_are_slirps() {
        let plan = plan();
        assert_eq!(plan.gateway, Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!(plan.resolver, Ipv4Addr::new(10, 0, 2, 3));
        assert_eq!(plan.guest, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(plan.netmask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(plan.v6.unwrap().gateway, "fd00::2".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn destinations() {
        let plan = plan();
        let to = |text: &str| plan.destination(text.parse().unwrap());
        assert_eq!(to("10.0.2.2"), Destination::Loopback(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(to("fd00::2"), Destination::Loopback(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(to("fe80::2"), Destination::Loopback(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(to("10.0.2.3"), Destination::Resolver);
        assert_eq!(to("fd00::3"), Destination::Resolver);
        assert_eq!(to("192.0.2.1"), Destination::Outside("192.0.2.1".parse().unwrap()));
        assert_eq!(to("2001:db8::1"), Destination::Outside("2001:db8::1".parse().unwrap()));
        for nobody in ["10.0.2.77", "169.254.169.254", "fd00::77", "fe80::77", "::ffff:127.0.0.1"] {
            assert_eq!(to(nobody), Destination::Nobody, "{nobody}");
        }
        for ignored in
            ["10.0.2.255", "10.0.2.0", "255.255.255.255", "0.0.0.0", "127.0.0.1", "224.0.0.1"]
        {
            assert_eq!(to(ignored), Destination::Ignored, "{ignored}");
        }
        for ignored in ["::", "::1", "ff02::1"] {
            assert_eq!(to(ignored), Destination::Ignored, "{ignored}");
        }
    }

    #[test]
    fn a_closed_gateway_leads_nowhere() {
        let config = UserNetworkConfig { host_loopback: false, ..UserNetworkConfig::default() };
        let plan = Plan::new(&config);
        for gateway in ["10.0.2.2", "fd00::2", "fe80::2"] {
            let destination = plan.destination(gateway.parse().unwrap());
            assert_eq!(destination, Destination::ClosedGateway);
        }
    }

    #[test]
    fn at_an_edge_there_are_services_only() {
        let config = EdgeConfig {
            card: [0x52, 0x54, 0, 0, 0, 1],
            address: [10, 88, 3, 16].into(),
            prefix_len: 24,
            server: [10, 88, 3, 2].into(),
            host: Some([10, 88, 3, 1].into()),
            router: None,
            resolvers: Resolvers::System,
            hostname: None,
            hosts: "/hosts".into(),
            forwards: Vec::new(),
        };
        let plan = Plan::of_edge(&config);
        assert_eq!((plan.network, plan.router), ([10, 88, 3, 0].into(), None));
        let to = |text: &str| plan.destination(text.parse().unwrap());
        assert_eq!(to("10.88.3.2"), Destination::Resolver);
        for elsewhere in ["10.88.3.1", "10.88.3.17", "192.0.2.1", "127.0.0.1", "fd00::2"] {
            assert_eq!(to(elsewhere), Destination::Ignored, "{elsewhere}");
        }
        assert!(plan.is_guest([10, 88, 3, 16].into()) && !plan.is_guest([10, 88, 3, 2].into()));
    }

    #[test]
    fn guests_do_not_take_our_addresses() {
        let plan = plan();
        let guest = |text: &str| plan.is_guest(text.parse().unwrap());
        for good in ["10.0.2.15", "10.0.2.254", "fd00::15", "fe80::5054:ff:fe12:3456"] {
            assert!(guest(good), "{good}");
        }
        for bad in
            ["10.0.2.2", "10.0.2.3", "10.0.2.0", "10.0.2.255", "10.0.3.1", "127.0.0.1", "0.0.0.0"]
        {
            assert!(!guest(bad), "{bad}");
        }
        for bad in ["fd00::2", "fd00::3", "fe80::2", "2001:db8::1", "::", "ff02::1"] {
            assert!(!guest(bad), "{bad}");
        }
    }
}
