//! A client of the Dynamic Host Configuration Protocol (RFC 2131): it asks for an address, and for
//! the same one again before its time is over.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};

use crate::interface::Interface;

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// How long one answer may take before it is asked again.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// How often it is asked before it is begun anew.
const ATTEMPTS: u32 = 5;
/// Larger than any answer that fits in a frame.
const MAX_MESSAGE: usize = 1500;
/// Subnet mask, router, name servers, domain (RFC 2132).
const WANTED: &[u8] = &[1, 3, 6, DOMAIN];
const DOMAIN: u8 = 15;
/// One that is given for ever is looked after once a day.
const LONGEST: Duration = Duration::from_secs(86_400);
const SHORTEST: Duration = Duration::from_secs(30);

/// What a server has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub netmask: Ipv4Addr,
    pub router: Option<Ipv4Addr>,
    pub name_servers: Vec<Ipv4Addr>,
    pub domain: Option<String>,
    duration: Duration,
}

impl Lease {
    /// When to ask for it again: in the middle of its time (RFC 2131, section 4.4.5).
    pub fn renew_after(&self) -> Duration {
        (self.duration / 2).clamp(SHORTEST, LONGEST)
    }

    /// Whether the interface stays as it is.
    pub fn is_like(&self, other: &Lease) -> bool {
        Lease { duration: other.duration, ..self.clone() } == *other
    }

    fn read(answer: &DhcpRepr<'_>, packet: &DhcpPacket<&[u8]>) -> Lease {
        let domain = packet.options().find(|option| option.kind == DOMAIN);
        Lease {
            address: answer.your_ip,
            netmask: answer.subnet_mask.unwrap_or(Ipv4Addr::new(255, 255, 255, 0)),
            router: answer.router,
            name_servers: answer.dns_servers.iter().flatten().copied().collect(),
            domain: domain.map(|option| String::from_utf8_lossy(option.data).into_owned()),
            duration: Duration::from_secs(answer.lease_duration.unwrap_or(3600).into()),
        }
    }
}

/// Asks for an address, if possible for `before`.
pub fn obtain(interface: &Interface, before: Option<Ipv4Addr>) -> io::Result<Lease> {
    let socket = UdpSocket::from(interface.udp_socket(CLIENT_PORT)?);
    let client = Client { socket, hardware: EthernetAddress(interface.hardware_address()?) };
    let discover = client.message(DhcpMessageType::Discover, before, None);
    let (offer, server) = client.ask(&discover, DhcpMessageType::Offer)?;
    let request = client.message(DhcpMessageType::Request, Some(offer.address), server);
    Ok(client.ask(&request, DhcpMessageType::Ack)?.0)
}

struct Client {
    socket: UdpSocket,
    hardware: EthernetAddress,
}

impl Client {
    fn message(
        &self,
        message_type: DhcpMessageType,
        requested_ip: Option<Ipv4Addr>,
        server_identifier: Option<Ipv4Addr>,
    ) -> DhcpRepr<'static> {
        // Two clients of one network differ in their last bytes.
        let [_, _, a, b, c, d] = self.hardware.0;
        DhcpRepr {
            message_type,
            transaction_id: u32::from_ne_bytes([a, b, c, d]),
            secs: 0,
            client_hardware_address: self.hardware,
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            // The kernel takes nothing else without an address.
            broadcast: true,
            requested_ip,
            client_identifier: Some(self.hardware),
            server_identifier,
            parameter_request_list: Some(WANTED),
            dns_servers: None,
            max_size: u16::try_from(MAX_MESSAGE).ok(),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }

    /// Sends a message until it is answered. The answer, and whose it is.
    fn ask(
        &self,
        message: &DhcpRepr<'_>,
        wanted: DhcpMessageType,
    ) -> io::Result<(Lease, Option<Ipv4Addr>)> {
        let mut bytes = vec![0; message.buffer_len()];
        let mut packet = DhcpPacket::new_unchecked(&mut bytes);
        message.emit(&mut packet).map_err(io::Error::other)?;
        for _ in 0..ATTEMPTS {
            let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
            self.socket.send_to(&bytes, everybody)?;
            let deadline = Instant::now() + ANSWER_TIME;
            let mut answer = [0; MAX_MESSAGE];
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                self.socket.set_read_timeout(Some(left))?;
                let Ok((length, _)) = self.socket.recv_from(&mut answer) else { break };
                let answer = answer.get(..length).unwrap_or_default();
                match read(answer, message) {
                    Some((DhcpMessageType::Nak, _, _)) => {
                        return Err(io::Error::other("the server refuses the address"));
                    }
                    Some((kind, lease, server)) if kind == wanted => return Ok((lease, server)),
                    _ => {}
                }
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// Understands an answer to `message`; `None` for what is none.
fn read(
    answer: &[u8],
    message: &DhcpRepr<'_>,
) -> Option<(DhcpMessageType, Lease, Option<Ipv4Addr>)> {
    let packet = DhcpPacket::new_checked(answer).ok()?;
    let answer = DhcpRepr::parse(&packet).ok()?;
    let is_ours = answer.transaction_id == message.transaction_id
        && answer.client_hardware_address == message.client_hardware_address;
    is_ours.then(|| (answer.message_type, Lease::read(&answer, &packet), answer.server_identifier))
}
