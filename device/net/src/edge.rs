//! DHCP, DNS and forwarded ports for a guest on a network of the host, at the edge of it: between the
//! guest's card and the tap.
//!
//! The services are those of the user-mode network ([`crate::user`]), at an address of the network
//! that no machine has. Each card has services of its own, all at the same address, and what a guest
//! sends them is taken here, so that nothing of them is ever seen on the network: no server to start,
//! to find or to leave behind, and nobody whose part another guest could play. All other frames pass.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::epoll;
use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet,
    UdpPacket,
};

use crate::Backend;
use crate::user::{
    DHCP_CLIENT, DHCP_SERVER, Error, Forward, Plan, Resolvers, Settings, UserNetwork,
};

/// The longest IP packet on networks of the host.
const MTU: u16 = 1500;

/// What a guest is told on a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeConfig {
    /// The card's address: nobody else behind the card is given an address.
    pub card: [u8; 6],
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The length of the network's prefix in bits, 8 to 29.
    pub prefix_len: u8,
    /// Where the services are: an address on the network that no machine has.
    pub server: Ipv4Addr,
    /// The host, if it is reached.
    pub host: Option<Ipv4Addr>,
    /// The way out, if there is one.
    pub router: Option<Ipv4Addr>,
    /// Who is asked about names that nobody here has.
    pub resolvers: Resolvers,
    /// The name that DHCP gives the guest.
    pub hostname: Option<String>,
    /// The names of the network's guests: a file as hosts(5) describes it.
    pub hosts: PathBuf,
    /// Host ports that lead into the guest.
    pub forwards: Vec<Forward>,
}

/// A network of the host with services at its edge. Dropping it ends them.
pub struct Edge {
    network: Arc<dyn Backend>,
    services: UserNetwork,
    mac: EthernetAddress,
    server: Ipv4Addr,
    /// Readable while either has frames.
    readable: OwnedFd,
}

impl Edge {
    /// Puts services at the edge of `network`. All forwarded ports are open when this returns.
    ///
    /// # Errors
    ///
    /// A host port that cannot be opened, or a host without file descriptors or threads to spare.
    pub fn new(network: Arc<dyn Backend>, config: EdgeConfig) -> Result<Self, Error> {
        let plan = Plan::of_edge(&config);
        let (mac, server) = (plan.mac, plan.resolver);
        let services = UserNetwork::start(Settings {
            plan,
            mtu: MTU,
            card: Some(EthernetAddress(config.card)),
            hostname: config.hostname,
            hosts: Some(config.hosts),
            resolvers: config.resolvers,
            forwards: config.forwards,
        })?;
        let both = || {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            for fd in [network.readable(), services.readable()] {
                epoll::add(&epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
            }
            Ok(epoll)
        };
        let readable =
            both().map_err(|error: rustix::io::Errno| Error::host("make an epoll", error))?;
        Ok(Self { network, services, mac, server, readable })
    }

    /// The host addresses at which the configuration's forwards are open, in its order.
    pub fn forwarded(&self) -> &[SocketAddr] {
        self.services.forwarded()
    }
}

impl Backend for Edge {
    fn transmit(&self, frame: &[u8]) -> bool {
        if is_for_services(frame, self.mac, self.server) {
            self.services.transmit(frame)
        } else {
            self.network.transmit(frame)
        }
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        // First what is rare, which a network that is never silent would keep away.
        if self.services.has_frames()
            && let Some(len) = self.services.receive(frame)?
        {
            return Ok(Some(len));
        }
        while let Some(len) = self.network.receive(frame)? {
            if !frame.get(..len).is_some_and(|frame| plays_services(frame, self.server)) {
                return Ok(Some(len));
            }
        }
        // Has their descriptor be readable no more, unless there is something after all.
        self.services.receive(frame)
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

/// Whether what a guest sends is for the services: what goes to them, questions of who they are, and
/// all that looks for a DHCP server.
fn is_for_services(frame: &[u8], mac: EthernetAddress, server: Ipv4Addr) -> bool {
    // Whatever goes there, also what is no whole frame.
    if frame.starts_with(mac.as_bytes()) {
        return true;
    }
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return false };
    match frame.ethertype() {
        EthernetProtocol::Arp => arp(frame.payload()).is_some_and(|(_, wanted)| wanted == server),
        EthernetProtocol::Ipv4 => udp_port(frame.payload()) == Some(DHCP_SERVER),
        _ => false,
    }
}

/// Whether somebody on the network plays the services' part, which nobody there has: speaks with their
/// address, or as a DHCP server.
fn plays_services(frame: &[u8], server: Ipv4Addr) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return false };
    let packet = frame.payload();
    match frame.ethertype() {
        EthernetProtocol::Arp => arp(packet).is_some_and(|(sender, _)| sender == server),
        EthernetProtocol::Ipv4 => {
            Ipv4Packet::new_checked(packet).is_ok_and(|packet| packet.src_addr() == server)
                || udp_port(packet) == Some(DHCP_CLIENT)
        }
        _ => false,
    }
}

/// The sender's and the wanted address in an ARP packet.
fn arp(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    match ArpRepr::parse(&ArpPacket::new_checked(packet).ok()?).ok()? {
        ArpRepr::EthernetIpv4 { source_protocol_addr, target_protocol_addr, .. } => {
            Some((source_protocol_addr, target_protocol_addr))
        }
        _ => None,
    }
}

/// The port that a whole datagram goes to.
fn udp_port(packet: &[u8]) -> Option<u16> {
    let packet = Ipv4Packet::new_checked(packet).ok()?;
    if packet.next_header() != IpProtocol::Udp || packet.frag_offset() != 0 {
        return None;
    }
    Some(UdpPacket::new_checked(packet.payload()).ok()?.dst_port())
}
