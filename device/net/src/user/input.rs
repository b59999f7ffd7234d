//! What the guest sends, sorted by protocol.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet,
    Icmpv6Repr, IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6FragmentHeader, Ipv6Packet, Ipv6Repr,
    UdpPacket,
};

use super::Services;
use super::dhcp;
use super::dns;
use super::echo::Echo;
use super::errors::Quote;
use super::link::Link;
use super::plan::Destination;
use super::reassembly::FragmentKey;

/// The length of an IPv6 fragment header.
const FRAGMENT_HEADER: usize = 8;

/// Reads the headers of a packet that is not a fragment.
pub fn quote(packet: &[u8]) -> Option<Quote<'_>> {
    match packet.first()? >> 4 {
        4 => {
            let packet = Ipv4Packet::new_checked(packet).ok()?;
            Some(Quote { ip: IpRepr::Ipv4(ipv4_header(&packet)), payload: packet.payload() })
        }
        6 => {
            let packet = Ipv6Packet::new_checked(packet).ok()?;
            let header = Ipv6Repr::parse(&packet).ok()?;
            Some(Quote { ip: IpRepr::Ipv6(header), payload: packet.payload() })
        }
        _ => None,
    }
}

/// An IPv4 packet's header. smoltcp's own reader takes no fragments, unless it is made to put
/// them together itself, which would cost each flow's interface a buffer.
fn ipv4_header(packet: &Ipv4Packet<&[u8]>) -> Ipv4Repr {
    Ipv4Repr {
        src_addr: packet.src_addr(),
        dst_addr: packet.dst_addr(),
        next_header: packet.next_header(),
        payload_len: packet.payload().len(),
        hop_limit: packet.hop_limit(),
    }
}

impl Services {
    /// Takes a frame from the guest.
    pub fn frame_input(&mut self, frame: &[u8]) {
        let Ok(frame) = EthernetFrame::new_checked(frame) else { return };
        let to = frame.dst_addr();
        if to != self.io.link.plan.mac && to.is_unicast() {
            return;
        }
        let mac = frame.src_addr();
        match frame.ethertype() {
            EthernetProtocol::Arp => self.io.link.arp_input(frame.payload()),
            EthernetProtocol::Ipv4 => self.ipv4_input(mac, frame.payload()),
            EthernetProtocol::Ipv6 if self.io.link.plan.v6.is_some() => {
                self.ipv6_input(mac, frame.payload());
            }
            _ => {}
        }
    }

    fn ipv4_input(&mut self, mac: EthernetAddress, bytes: &[u8]) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else { return };
        if packet.version() != 4 {
            return;
        }
        let header = ipv4_header(&packet);
        let ip = IpRepr::Ipv4(header);
        if packet.more_frags() || packet.frag_offset() != 0 {
            let key = FragmentKey {
                from: header.src_addr.into(),
                to: header.dst_addr.into(),
                protocol: header.next_header.into(),
                id: packet.ident().into(),
            };
            let (offset, more) = (packet.frag_offset().into(), packet.more_frags());
            self.fragment_input(mac, ip, key, offset, more, packet.payload());
            return;
        }
        // Behind the packet there may be padding to the shortest Ethernet frame.
        let bytes = bytes.get(..packet.total_len().into()).unwrap_or(bytes);
        self.ip_input(mac, Quote { ip, payload: packet.payload() }, bytes);
    }

    fn ipv6_input(&mut self, mac: EthernetAddress, bytes: &[u8]) {
        let Ok(packet) = Ipv6Packet::new_checked(bytes) else { return };
        let Ok(header) = Ipv6Repr::parse(&packet) else { return };
        if header.next_header == IpProtocol::Ipv6Frag {
            let Some((fragment, data)) = packet.payload().split_at_checked(FRAGMENT_HEADER) else {
                return;
            };
            let [next_header, _, fragment @ ..] = fragment else { return };
            let Ok(fragment) = Ipv6FragmentHeader::new_checked(fragment) else { return };
            let mut ip = header;
            ip.next_header = (*next_header).into();
            let key = FragmentKey {
                from: header.src_addr.into(),
                to: header.dst_addr.into(),
                protocol: *next_header,
                id: fragment.ident(),
            };
            let offset = usize::from(fragment.frag_offset()) * 8;
            self.fragment_input(mac, IpRepr::Ipv6(ip), key, offset, fragment.more_frags(), data);
            return;
        }
        let bytes = bytes.get(..packet.total_len()).unwrap_or(bytes);
        self.ip_input(mac, Quote { ip: IpRepr::Ipv6(header), payload: packet.payload() }, bytes);
    }

    fn fragment_input(
        &mut self,
        mac: EthernetAddress,
        mut ip: IpRepr,
        key: FragmentKey,
        offset: usize,
        more: bool,
        data: &[u8],
    ) {
        // A guest that fragments TCP ignores the segment size that it was told.
        if ip.next_header() == IpProtocol::Tcp || !self.io.link.plan.is_guest(key.from) {
            return;
        }
        let whole = self.reassembly.add(self.io.now, key, offset, more, data);
        if let Some(payload) = whole {
            ip.set_payload_len(payload.len());
            self.ip_input(mac, Quote { ip, payload: &payload }, &[]);
        }
    }

    /// Takes a whole packet. `bytes` is the packet as it came, if it came in one piece.
    fn ip_input(&mut self, mac: EthernetAddress, quote: Quote<'_>, bytes: &[u8]) {
        let (from, to): (IpAddr, IpAddr) = (quote.ip.src_addr().into(), quote.ip.dst_addr().into());
        let is_guest = self.io.link.plan.is_guest(from);
        if is_guest {
            self.io.link.neighbors.learn(from, mac);
        }
        match quote.ip.next_header() {
            // These two talk to hosts that have no address yet.
            IpProtocol::Udp => self.udp_input(quote, is_guest),
            IpProtocol::Icmpv6 => self.icmpv6_input(mac, quote, is_guest),
            _ if !is_guest => {}
            IpProtocol::Tcp => {
                let Self { io, tcp, resolver, .. } = self;
                let upstream = |now: Instant| resolver.upstream(now).to_vec();
                tcp.input(io, quote, bytes, upstream);
            }
            IpProtocol::Icmp => self.icmpv4_input(quote),
            _ => {
                let destination = self.io.link.plan.destination(to);
                if matches!(destination, Destination::Outside(_) | Destination::Loopback(_)) {
                    self.io.link.send_unreachable(super::host::Refusal::Prohibited, quote);
                }
            }
        }
    }

    fn udp_input(&mut self, quote: Quote<'_>, is_guest: bool) {
        let Ok(packet) = UdpPacket::new_checked(quote.payload) else { return };
        let from = SocketAddr::new(quote.ip.src_addr().into(), packet.src_port());
        let to = SocketAddr::new(quote.ip.dst_addr().into(), packet.dst_port());
        let plan = &self.io.link.plan;
        let to_dhcp = to.port() == dhcp::SERVER_PORT
            && to.is_ipv4()
            && (to.ip() == plan.gateway || quote.ip.dst_addr().is_broadcast());
        if to_dhcp {
            return self.dhcp.input(&mut self.io.link, packet.payload());
        }
        if !is_guest || from.port() == 0 || to.port() == 0 {
            return;
        }
        let to_resolver = plan.destination(to.ip()) == Destination::Resolver;
        if to_resolver && to.port() == dns::PORT {
            self.resolver.input(&mut self.io, from, to, packet.payload());
        } else {
            self.udp.input(&mut self.io, from, to, packet.payload());
        }
    }

    fn icmpv4_input(&mut self, quote: Quote<'_>) {
        let Ok(packet) = Icmpv4Packet::new_checked(quote.payload) else { return };
        if let Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data }) =
            Icmpv4Repr::parse(&packet, &Link::checksums())
        {
            self.echo.input(&mut self.io, quote, Echo { ident, seq_no, data });
        }
    }

    fn icmpv6_input(&mut self, mac: EthernetAddress, quote: Quote<'_>, is_guest: bool) {
        let (IpAddr::V6(from), IpAddr::V6(to)) =
            (quote.ip.src_addr().into(), quote.ip.dst_addr().into())
        else {
            return;
        };
        let Ok(packet) = Icmpv6Packet::new_checked(quote.payload) else { return };
        match Icmpv6Repr::parse(&from, &to, &packet, &Link::checksums()) {
            Ok(Icmpv6Repr::Ndisc(message)) if is_guest || from.is_unspecified() => {
                self.io.link.ndisc_input(&quote.ip, mac, &message);
            }
            Ok(Icmpv6Repr::EchoRequest { ident, seq_no, data }) if is_guest => {
                self.echo.input(&mut self.io, quote, Echo { ident, seq_no, data });
            }
            _ => {}
        }
    }
}
