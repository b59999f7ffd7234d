//! Who is on the link, and how they are asked and answered: ARP (RFC 826) and IPv6 neighbor
//! discovery with router advertisements (RFC 4861).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::time::Duration;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, IpRepr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation,
    NdiscRepr, NdiscRouterFlags,
};

use super::link::{Link, solicited_node};
use super::plan::{GATEWAY_LINK_LOCAL, PlanV6};

/// The most neighbors that are remembered: a guest and what it bridges to the network.
const MAX_NEIGHBORS: usize = 64;

/// Neighbor discovery packets must not come through a router (RFC 4861 section 6.1).
const NDISC_HOP_LIMIT: u8 = 255;

/// How long guests may use the router, the prefix and the resolver that we advertise. They ask
/// again whenever their link comes up.
const ROUTER_LIFETIME: Duration = Duration::from_secs(9000);
const PREFIX_VALID: Duration = Duration::from_secs(86400);
const PREFIX_PREFERRED: Duration = Duration::from_secs(14400);

/// How often the router advertises itself unasked: often enough to renew the lifetimes above.
pub const ADVERTISEMENT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(600);

/// The Ethernet addresses of the guest's IP addresses.
#[derive(Debug, Default)]
pub struct Neighbors {
    known: HashMap<IpAddr, EthernetAddress>,
    newcomers: Vec<IpAddr>,
}

impl Neighbors {
    /// The Ethernet address of `ip`.
    pub fn get(&self, ip: IpAddr) -> Option<EthernetAddress> {
        self.known.get(&ip).copied()
    }

    /// Remembers that `ip` is at `mac`.
    pub fn learn(&mut self, ip: IpAddr, mac: EthernetAddress) {
        if self.known.get(&ip) == Some(&mac) || !mac.is_unicast() {
            return;
        }
        if self.known.len() >= MAX_NEIGHBORS {
            // Whoever is forgotten here is asked for when it is needed next.
            let victim = self.known.keys().next().copied();
            victim.and_then(|victim| self.known.remove(&victim));
        }
        self.known.insert(ip, mac);
        if self.newcomers.len() < MAX_NEIGHBORS {
            self.newcomers.push(ip);
        }
    }

    /// Who was learned since this was asked last.
    pub fn take_newcomers(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.newcomers)
    }
}

impl Link {
    /// Asks for the Ethernet address of `ip`.
    pub fn solicit(&mut self, ip: IpAddr) {
        match (ip, self.plan.v6) {
            (IpAddr::V4(ip), _) => self.send_arp(
                ArpOperation::Request,
                self.plan.gateway,
                EthernetAddress::BROADCAST,
                ip,
            ),
            (IpAddr::V6(ip), Some(_)) => {
                let solicit = NdiscRepr::NeighborSolicit {
                    target_addr: ip,
                    lladdr: Some(self.plan.mac.into()),
                };
                self.send_ndisc(GATEWAY_LINK_LOCAL, solicited_node(ip), solicit, &[]);
            }
            (IpAddr::V6(_), None) => {}
        }
    }

    fn send_arp(
        &mut self,
        operation: ArpOperation,
        from: Ipv4Addr,
        mac: EthernetAddress,
        to: Ipv4Addr,
    ) {
        let arp = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: self.plan.mac,
            source_protocol_addr: from,
            target_hardware_addr: mac,
            target_protocol_addr: to,
        };
        self.send_frame(mac, EthernetProtocol::Arp, arp.buffer_len(), |packet| {
            arp.emit(&mut ArpPacket::new_unchecked(packet));
        });
    }

    /// Takes an ARP packet: learns its sender, and answers a request for one of our addresses.
    pub fn arp_input(&mut self, packet: &[u8]) {
        let Ok(packet) = ArpPacket::new_checked(packet) else { return };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: mac,
            source_protocol_addr: from,
            target_protocol_addr: wanted,
            ..
        }) = ArpRepr::parse(&packet)
        else {
            return;
        };
        // A probe for a free address comes from 0.0.0.0 (RFC 5227 section 2.1.1), and must be
        // answered like any other if the address is ours.
        if self.plan.is_guest(from.into()) {
            self.neighbors.learn(from.into(), mac);
        } else if !from.is_unspecified() {
            return;
        }
        if operation == ArpOperation::Request && self.plan.is_ours(wanted.into()) {
            self.send_arp(ArpOperation::Reply, wanted, mac, from);
        }
    }

    /// Takes a neighbor discovery packet. Its sender is learned already.
    pub fn ndisc_input(&mut self, ip: &IpRepr, mac: EthernetAddress, message: &NdiscRepr<'_>) {
        let (IpAddr::V6(from), Some(v6)) = (IpAddr::from(ip.src_addr()), self.plan.v6) else {
            return;
        };
        if ip.hop_limit() != NDISC_HOP_LIMIT {
            return;
        }
        match *message {
            NdiscRepr::RouterSolicit { .. } => self.advertise_router(),
            NdiscRepr::NeighborSolicit { target_addr, .. }
                if self.plan.is_ours(target_addr.into()) =>
            {
                let mut flags = NdiscNeighborFlags::OVERRIDE;
                if target_addr != v6.resolver {
                    flags |= NdiscNeighborFlags::ROUTER;
                }
                // Somebody who wants our address for itself has none yet, and is answered by
                // multicast (RFC 4861 section 7.2.4).
                let to = if from.is_unspecified() {
                    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
                } else {
                    flags |= NdiscNeighborFlags::SOLICITED;
                    self.neighbors.learn(from.into(), mac);
                    from
                };
                let advert = NdiscRepr::NeighborAdvert {
                    flags,
                    target_addr,
                    lladdr: Some(self.plan.mac.into()),
                };
                self.send_ndisc(target_addr, to, advert, &[]);
            }
            NdiscRepr::NeighborAdvert { target_addr, .. }
                if self.plan.is_guest(target_addr.into()) =>
            {
                self.neighbors.learn(target_addr.into(), mac);
            }
            _ => {}
        }
    }

    /// Advertises the router, the prefix, the MTU and the resolver to all.
    pub fn advertise_router(&mut self) {
        let Some(PlanV6 { prefix, resolver, .. }) = self.plan.v6 else { return };
        let advert = NdiscRepr::RouterAdvert {
            hop_limit: super::link::HOP_LIMIT,
            flags: NdiscRouterFlags::empty(),
            router_lifetime: ROUTER_LIFETIME,
            reachable_time: Duration::ZERO,
            retrans_time: Duration::ZERO,
            lladdr: Some(self.plan.mac.into()),
            mtu: u32::try_from(self.mtu).ok(),
            prefix_info: Some(NdiscPrefixInformation {
                prefix_len: 64,
                flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
                valid_lifetime: PREFIX_VALID,
                preferred_lifetime: PREFIX_PREFERRED,
                prefix,
            }),
        };
        // The recursive DNS server option, RFC 8106 section 5.1: type, length in 8 bytes,
        // reserved, lifetime in seconds, addresses.
        let mut rdnss = [0; 24];
        let (head, address) = rdnss.split_at_mut(8);
        let lifetime = u32::try_from(ROUTER_LIFETIME.secs()).unwrap_or(u32::MAX).to_be_bytes();
        head.copy_from_slice(&[[25, 3, 0, 0], lifetime].concat());
        address.copy_from_slice(&resolver.octets());
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        self.send_ndisc(GATEWAY_LINK_LOCAL, all_nodes, advert, &rdnss);
    }

    /// Sends a neighbor discovery message, with more options behind those of `message`.
    fn send_ndisc(&mut self, from: Ipv6Addr, to: Ipv6Addr, message: NdiscRepr<'_>, options: &[u8]) {
        let icmp = Icmpv6Repr::Ndisc(message);
        let len = icmp.buffer_len();
        let ip = IpRepr::new(
            from.into(),
            to.into(),
            IpProtocol::Icmpv6,
            len + options.len(),
            NDISC_HOP_LIMIT,
        );
        self.send_ip(ip, |payload| {
            let Some((head, tail)) = payload.split_at_mut_checked(len) else { return };
            icmp.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(head), &Self::checksums());
            tail.copy_from_slice(options);
            Icmpv6Packet::new_unchecked(payload).fill_checksum(&from, &to);
        });
    }
}
