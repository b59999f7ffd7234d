//! The guest's side of the network: an Ethernet segment with the guest at its other end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, IpRepr, Ipv4Packet,
    Ipv6FragmentHeader, Ipv6FragmentRepr, UdpPacket, UdpRepr,
};

use super::frames::{Batch, Outbox};
use super::neighbors::Neighbors;
use super::plan::Plan;

/// The length of an Ethernet header.
const ETHERNET: usize = EthernetFrame::<&[u8]>::header_len();

/// How far our packets may travel: one hop would do, 64 is what everybody sends.
pub const HOP_LIMIT: u8 = 64;

/// How many staged bytes are worth handing over before the end of a round.
const HANDOVER: usize = 128 << 10;

/// Sends packets to the guest.
#[derive(Debug)]
pub struct Link {
    /// The network's addresses.
    pub plan: Plan,
    /// The longest IP packet in bytes.
    pub mtu: usize,
    /// Who is out there.
    pub neighbors: Neighbors,
    outbox: Arc<Outbox>,
    staged: Batch,
    fragment_id: u32,
}

impl Link {
    /// A link that leaves its frames in `outbox`.
    pub fn new(plan: Plan, mtu: usize, outbox: Arc<Outbox>) -> Self {
        Self {
            plan,
            mtu,
            neighbors: Neighbors::default(),
            outbox,
            staged: Batch::default(),
            fragment_id: 0,
        }
    }

    /// The checksums that we compute and verify. What the guest sends is not verified: no wire
    /// could have damaged it, the host's stack protects the data from here on, and a card that
    /// offers checksum offload may leave them out.
    pub fn checksums() -> ChecksumCapabilities {
        let mut checksums = ChecksumCapabilities::default();
        checksums.ipv4 = Checksum::Tx;
        checksums.udp = Checksum::Tx;
        checksums.tcp = Checksum::Tx;
        checksums.icmpv4 = Checksum::Tx;
        checksums.icmpv6 = Checksum::Tx;
        checksums
    }

    /// Whether there is room for a frame. If not, the thread is woken when there is again.
    pub fn has_room(&self) -> bool {
        self.outbox.has_room(self.staged.size() + ETHERNET + self.mtu)
    }

    /// Hands the staged frames to the guest.
    pub fn flush(&mut self) {
        self.outbox.put(&mut self.staged);
    }

    /// Sends a frame of `len` bytes behind the Ethernet header, which `fill` writes over zeros.
    pub fn send_frame(
        &mut self,
        to: EthernetAddress,
        protocol: EthernetProtocol,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) {
        if self.outbox.is_overfull(self.staged.size() + len) {
            return;
        }
        let from = self.plan.mac;
        self.staged.push_with(ETHERNET + len, |frame| {
            let mut frame = EthernetFrame::new_unchecked(frame);
            frame.set_dst_addr(to);
            frame.set_src_addr(from);
            frame.set_ethertype(protocol);
            fill(frame.payload_mut());
        });
        if self.staged.size() > HANDOVER {
            self.flush();
        }
    }

    /// Sends an IP packet of `len` bytes, which `fill` writes over zeros, to a neighbor. If the
    /// neighbor is unknown the packet is lost, and the neighbor is asked to show itself.
    pub fn send_packet(&mut self, to: IpAddr, len: usize, fill: impl FnOnce(&mut [u8])) {
        let Some(mac) = self.hardware_address(to) else {
            self.solicit(to);
            return;
        };
        let protocol = match to {
            IpAddr::V4(_) => EthernetProtocol::Ipv4,
            IpAddr::V6(_) => EthernetProtocol::Ipv6,
        };
        self.send_frame(mac, protocol, len, fill);
    }

    fn hardware_address(&self, to: IpAddr) -> Option<EthernetAddress> {
        match to {
            IpAddr::V4(Ipv4Addr::BROADCAST) => Some(EthernetAddress::BROADCAST),
            // RFC 2464 section 7.
            IpAddr::V6(to) if to.is_multicast() => {
                let [.., a, b, c, d] = to.octets();
                Some(EthernetAddress([0x33, 0x33, a, b, c, d]))
            }
            _ => self.neighbors.get(to),
        }
    }

    /// Sends an IP packet whose payload `fill` writes over zeros, in fragments if it is longer
    /// than the MTU.
    pub fn send_ip(&mut self, ip: IpRepr, fill: impl FnOnce(&mut [u8])) {
        let to = ip.dst_addr().into();
        let header = ip.header_len();
        if ip.buffer_len() <= self.mtu {
            self.send_packet(to, ip.buffer_len(), |packet| {
                ip.emit(&mut *packet, &Self::checksums());
                if let Some(payload) = packet.get_mut(header..) {
                    fill(payload);
                }
            });
            return;
        }
        let mut payload = vec![0; ip.payload_len()];
        fill(&mut payload);
        self.fragment_id = self.fragment_id.wrapping_add(1);
        let fragment_header = match ip {
            IpRepr::Ipv4(_) => 0,
            IpRepr::Ipv6(_) => size_of::<u64>(),
        };
        // Fragments but the last are multiples of 8 bytes (RFC 791 section 3.2, RFC 8200
        // section 4.5).
        let room = (self.mtu - header - fragment_header) & !7;
        let mut offset = 0;
        for data in payload.chunks(room) {
            let more = offset + data.len() < payload.len();
            let id = self.fragment_id;
            let mut part = ip.clone();
            part.set_payload_len(fragment_header + data.len());
            if let IpRepr::Ipv6(part) = &mut part {
                part.next_header = IpProtocol::Ipv6Frag;
            }
            self.send_packet(to, part.buffer_len(), |packet| {
                part.emit(&mut *packet, &Self::checksums());
                if let Some(room) = packet.get_mut(header + fragment_header..) {
                    room.copy_from_slice(data);
                }
                emit_fragment_header(packet, &ip, id, offset, more);
            });
            offset += data.len();
        }
    }

    /// Sends a UDP datagram.
    pub fn send_udp(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
        let len = udp.header_len() + payload.len();
        let ip = IpRepr::new(from.ip().into(), to.ip().into(), IpProtocol::Udp, len, HOP_LIMIT);
        if u16::try_from(ip.buffer_len()).is_err() {
            return;
        }
        self.send_ip(ip, |packet| {
            udp.emit(
                &mut UdpPacket::new_unchecked(packet),
                &from.ip().into(),
                &to.ip().into(),
                payload.len(),
                |room| room.copy_from_slice(payload),
                &Self::checksums(),
            );
        });
    }
}

/// Makes a fragment of an emitted packet: in the IPv4 header (RFC 791 section 3.1), or in the
/// fragment header that follows an IPv6 header (RFC 8200 section 4.5).
fn emit_fragment_header(packet: &mut [u8], whole: &IpRepr, id: u32, offset: usize, more: bool) {
    // An IP packet's payload is shorter than 64 KiB, so its offsets fit.
    let Ok(offset) = u16::try_from(offset) else { return };
    match whole {
        IpRepr::Ipv4(_) => {
            let mut packet = Ipv4Packet::new_unchecked(packet);
            let [.., high, low] = id.to_be_bytes();
            packet.set_ident(u16::from_be_bytes([high, low]));
            packet.set_dont_frag(false);
            packet.set_more_frags(more);
            packet.set_frag_offset(offset);
            packet.fill_checksum();
        }
        IpRepr::Ipv6(_) => {
            let start = whole.header_len();
            let Some(header) = packet.get_mut(start..start + size_of::<u64>()) else { return };
            // The first two bytes: the next header and a reserved one.
            header[0] = whole.next_header().into();
            header[1] = 0;
            let repr = Ipv6FragmentRepr { frag_offset: offset >> 3, more_frags: more, ident: id };
            repr.emit(&mut Ipv6FragmentHeader::new_unchecked(&mut header[2..]));
        }
    }
}

/// The IPv6 address that a neighbor's solicitations go to (RFC 4291 section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let base = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0);
    Ipv6Addr::from_bits(base.to_bits() | address.to_bits() & 0xff_ffff)
}
