//! A DHCP server (RFC 2131, options in RFC 2132) for one guest and what it bridges to its card.

use std::net::{Ipv4Addr, SocketAddr};

use smoltcp::wire::{
    DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress, EthernetProtocol,
    IpProtocol, IpRepr, UdpPacket, UdpRepr,
};

use super::link::{HOP_LIMIT, Link};
use super::plan::LEASES;

/// The server's and the client's ports.
pub const SERVER_PORT: u16 = 67;
pub const CLIENT_PORT: u16 = 68;

/// How long a lease lasts. The address is the guest's for as long as the network is, so this
/// only says how often the guest shows that it is alive.
const LEASE_SECONDS: u32 = 86400;

/// The domain of the names that the resolver answers itself.
pub const DOMAIN: &str = "lodge";

/// RFC 951: clients may insist on at least this much of a message.
const MIN_MESSAGE: usize = 300;

/// Options that smoltcp's representation does not have.
mod option {
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const INTERFACE_MTU: u8 = 26;
    pub const BROADCAST_ADDRESS: u8 = 28;
    pub const CLIENT_IDENTIFIER: u8 = 61;
}

/// The leases.
#[derive(Debug, Default)]
pub struct DhcpServer {
    /// The holders of the plan's leases, in the order of the addresses.
    holders: [Option<EthernetAddress>; LEASES as usize],
    /// Which lease to take away next when there are more clients than leases.
    next_victim: u8,
    hostname: Option<String>,
    /// The only client that gets a lease, if there is only one.
    card: Option<EthernetAddress>,
}

/// A reply, before it is a packet.
struct Reply {
    kind: DhcpMessageType,
    address: Option<Ipv4Addr>,
    lease: bool,
}

impl DhcpServer {
    /// A server that names its guests, and serves one card or any.
    pub fn new(hostname: Option<String>, card: Option<EthernetAddress>) -> Self {
        Self { hostname, card, ..Self::default() }
    }

    /// Takes the payload of a datagram to the server's port.
    pub fn input(&mut self, link: &mut Link, message: &[u8]) {
        let Ok(packet) = DhcpPacket::new_checked(message) else { return };
        let Ok(request) = DhcpRepr::parse(&packet) else { return };
        let client = request.client_hardware_address;
        if !client.is_unicast() || self.card.is_some_and(|card| card != client) {
            return;
        }
        let Some(reply) = self.answer(link, &request) else { return };
        // RFC 6842: the client finds its identifier in the reply as it was.
        let identifier = packet
            .options()
            .find(|found| found.kind == option::CLIENT_IDENTIFIER)
            .map(|found| found.data);
        self.send(link, &request, &reply, identifier);
    }

    /// Decides on a message: RFC 2131 section 4.3.
    fn answer(&mut self, link: &Link, request: &DhcpRepr<'_>) -> Option<Reply> {
        let client = request.client_hardware_address;
        match request.message_type {
            DhcpMessageType::Discover => Some(Reply {
                kind: DhcpMessageType::Offer,
                address: Some(link.plan.lease(self.lease(client))),
                lease: true,
            }),
            DhcpMessageType::Request => {
                if request.server_identifier.is_some_and(|server| server != link.plan.gateway) {
                    return None;
                }
                let wanted = request.requested_ip.unwrap_or(request.client_ip);
                let address = link.plan.lease(self.lease(client));
                // A guest that was at home elsewhere must ask anew (section 4.3.2).
                Some(if wanted == address {
                    Reply { kind: DhcpMessageType::Ack, address: Some(address), lease: true }
                } else {
                    Reply { kind: DhcpMessageType::Nak, address: None, lease: false }
                })
            }
            DhcpMessageType::Inform => {
                Some(Reply { kind: DhcpMessageType::Ack, address: None, lease: false })
            }
            // A released lease stays its holder's until somebody else needs it.
            _ => None,
        }
    }

    /// The index of a client's lease.
    fn lease(&mut self, client: EthernetAddress) -> u8 {
        let find = |wanted| self.holders.iter().position(|holder| *holder == wanted);
        let index = find(Some(client)).or_else(|| find(None)).and_then(|i| u8::try_from(i).ok());
        let index = index.unwrap_or_else(|| {
            let victim = self.next_victim;
            self.next_victim = (victim + 1) % LEASES;
            victim
        });
        if let Some(holder) = self.holders.get_mut(usize::from(index)) {
            *holder = Some(client);
        }
        index
    }

    fn send(
        &self,
        link: &mut Link,
        request: &DhcpRepr<'_>,
        reply: &Reply,
        identifier: Option<&[u8]>,
    ) {
        let plan = &link.plan;
        let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX).to_be_bytes();
        let broadcast = Ipv4Addr::from_bits(plan.network.to_bits() | !plan.netmask().to_bits());
        let broadcast = broadcast.octets();
        let mut options = Vec::new();
        let mut add = |kind, data| options.push(DhcpOption { kind, data });
        let configures = reply.kind != DhcpMessageType::Nak;
        if configures {
            add(option::INTERFACE_MTU, &mtu[..]);
            add(option::BROADCAST_ADDRESS, &broadcast);
            add(option::DOMAIN_NAME, DOMAIN.as_bytes());
            if let Some(name) = &self.hostname {
                add(option::HOST_NAME, name.as_bytes());
            }
        }
        if let Some(identifier) = identifier {
            add(option::CLIENT_IDENTIFIER, identifier);
        }
        let message = DhcpRepr {
            message_type: reply.kind,
            transaction_id: request.transaction_id,
            secs: 0,
            client_hardware_address: request.client_hardware_address,
            client_ip: if configures { request.client_ip } else { Ipv4Addr::UNSPECIFIED },
            your_ip: reply.address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: plan.router.filter(|_| configures),
            subnet_mask: configures.then(|| plan.netmask()),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: request.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(plan.gateway),
            parameter_request_list: None,
            dns_servers: configures.then(|| [plan.resolver].into_iter().collect()),
            max_size: None,
            lease_duration: reply.lease.then_some(LEASE_SECONDS),
            renew_duration: None,
            rebind_duration: None,
            additional_options: &options,
        };
        let from = SocketAddr::new(plan.gateway.into(), SERVER_PORT);

        // Where replies go: RFC 2131 section 4.1. A client without an address that did not ask
        // for a broadcast gets a unicast to the address it is about to have.
        let unicast = if !configures {
            None
        } else if !request.client_ip.is_unspecified() {
            Some(request.client_ip)
        } else if request.broadcast {
            None
        } else {
            reply.address
        };
        let (to, mac) = match unicast {
            Some(to) if plan.is_guest(to.into()) => (to, request.client_hardware_address),
            _ => (Ipv4Addr::BROADCAST, EthernetAddress::BROADCAST),
        };
        let to = SocketAddr::new(to.into(), CLIENT_PORT);

        let mut bytes = vec![0; message.buffer_len().max(MIN_MESSAGE)];
        if message.emit(&mut DhcpPacket::new_unchecked(bytes.as_mut_slice())).is_err() {
            return;
        }
        send_udp_to(link, mac, from, to, &bytes);
    }
}

/// Sends a datagram to a client that ARP cannot find yet.
fn send_udp_to(
    link: &mut Link,
    mac: EthernetAddress,
    from: SocketAddr,
    to: SocketAddr,
    data: &[u8],
) {
    let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let len = udp.header_len() + data.len();
    let (from, to) = (from.ip().into(), to.ip().into());
    let ip = IpRepr::new(from, to, IpProtocol::Udp, len, HOP_LIMIT);
    if ip.buffer_len() > link.mtu {
        return;
    }
    link.send_frame(mac, EthernetProtocol::Ipv4, ip.buffer_len(), |packet| {
        ip.emit(&mut *packet, &Link::checksums());
        let Some(payload) = packet.get_mut(ip.header_len()..) else { return };
        udp.emit(
            &mut UdpPacket::new_unchecked(payload),
            &from,
            &to,
            data.len(),
            |room| room.copy_from_slice(data),
            &Link::checksums(),
        );
    });
}
