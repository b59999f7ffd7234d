//! What the guest is told when its packets lead nowhere: ICMP errors (RFC 792, RFC 4443) and
//! TCP resets.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::host::Refusal;
use super::link::{HOP_LIMIT, Link};

/// How much of a packet's payload an error quotes: enough for the ports, the echo's number or
/// the sequence number by which the guest knows whom to tell.
const QUOTED: usize = 8;

/// The header of a packet that the guest sent, and its payload or the start of it.
#[derive(Clone, Debug)]
pub struct Quote<'a> {
    /// The IP header.
    pub ip: IpRepr,
    /// What followed it.
    pub payload: &'a [u8],
}

impl Link {
    /// Answers a packet with an ICMP error "destination unreachable".
    pub fn send_unreachable(&mut self, why: Refusal, quote: Quote<'_>) {
        let data = quote.payload.get(..QUOTED).unwrap_or(quote.payload);
        let to = quote.ip.src_addr();
        // Whom nobody refused does not answer either: the gateway tells.
        let from = match why {
            Refusal::Refused => quote.ip.dst_addr(),
            _ => self.plan.gateway_like(to.into()).into(),
        };
        match quote.ip {
            IpRepr::Ipv4(header) => {
                let reason = match why {
                    Refusal::Refused => Icmpv4DstUnreachable::PortUnreachable,
                    Refusal::Network => Icmpv4DstUnreachable::NetUnreachable,
                    Refusal::Host => Icmpv4DstUnreachable::HostUnreachable,
                    Refusal::Prohibited => Icmpv4DstUnreachable::CommProhibited,
                };
                let icmp = Icmpv4Repr::DstUnreachable { reason, header, data };
                let ip = IpRepr::new(from, to, IpProtocol::Icmp, icmp.buffer_len(), HOP_LIMIT);
                self.send_ip(ip, |payload| {
                    icmp.emit(&mut Icmpv4Packet::new_unchecked(payload), &Self::checksums());
                });
            }
            IpRepr::Ipv6(header) => {
                let reason = match why {
                    Refusal::Refused => Icmpv6DstUnreachable::PortUnreachable,
                    Refusal::Network => Icmpv6DstUnreachable::NoRoute,
                    Refusal::Host => Icmpv6DstUnreachable::AddrUnreachable,
                    Refusal::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
                };
                let icmp = Icmpv6Repr::DstUnreachable { reason, header, data };
                let ip = IpRepr::new(from, to, IpProtocol::Icmpv6, icmp.buffer_len(), HOP_LIMIT);
                let (IpAddr::V6(from), IpAddr::V6(to)) = (from.into(), to.into()) else { return };
                self.send_ip(ip, |payload| {
                    let mut packet = Icmpv6Packet::new_unchecked(payload);
                    icmp.emit(&from, &to, &mut packet, &Self::checksums());
                });
            }
        }
    }

    /// Tells the guest that a datagram which it sent earlier, and which nobody kept, was
    /// refused: the UDP header is made again.
    pub fn send_udp_unreachable(&mut self, why: Refusal, from: SocketAddr, to: SocketAddr) {
        let mut header = [0; QUOTED];
        header[..2].copy_from_slice(&from.port().to_be_bytes());
        header[2..4].copy_from_slice(&to.port().to_be_bytes());
        header[4..6].copy_from_slice(&(QUOTED as u16).to_be_bytes());
        let (src, dst) = (from.ip().into(), to.ip().into());
        let ip = IpRepr::new(src, dst, IpProtocol::Udp, header.len(), HOP_LIMIT);
        self.send_unreachable(why, Quote { ip, payload: &header });
    }

    /// Answers a TCP segment with a reset, as a host does that has no such connection
    /// (RFC 9293 section 3.10.7.1).
    pub fn send_reset(&mut self, ip: &IpRepr, segment: &TcpPacket<&[u8]>) {
        if segment.rst() {
            return;
        }
        let acked = segment.ack();
        let reset = TcpRepr {
            src_port: segment.dst_port(),
            dst_port: segment.src_port(),
            control: TcpControl::Rst,
            seq_number: if acked { segment.ack_number() } else { TcpSeqNumber(0) },
            ack_number: (!acked).then(|| segment.seq_number() + segment.segment_len()),
            window_len: 0,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let (from, to) = (ip.dst_addr(), ip.src_addr());
        let ip = IpRepr::new(from, to, IpProtocol::Tcp, reset.buffer_len(), HOP_LIMIT);
        self.send_ip(ip, |payload| {
            let mut packet = TcpPacket::new_unchecked(payload);
            reset.emit(&mut packet, &from, &to, &Self::checksums());
        });
    }
}
