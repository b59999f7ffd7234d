//! What the network itself does for a guest: ARP, neighbor discovery, DHCP, DNS, ICMP.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use net::Backend;
use net::user::{Resolvers, UserNetwork, UserNetworkConfig};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::dhcpv4;
use smoltcp::wire::*;

use crate::guest::{ADDRESS, ADDRESS_V6, GATEWAY, GATEWAY_V6, Guest, MAC};
use crate::wire::{self, GATEWAY_MAC};

const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

fn network(config: UserNetworkConfig) -> UserNetwork {
    UserNetwork::new(config).unwrap()
}

#[test]
fn arp_answers_for_the_network_alone() {
    let network = network(UserNetworkConfig::default());
    for wanted in [Ipv4Addr::new(10, 0, 2, 99), DNS, ADDRESS, GATEWAY] {
        network.transmit(&wire::arp(ArpOperation::Request, EthernetAddress::BROADCAST, wanted));
    }
    let answers: Vec<_> = (0..2)
        .map(|_| {
            wire::receive(&network, |bytes| {
                let frame = EthernetFrame::new_checked(bytes).unwrap();
                assert_eq!(frame.dst_addr(), MAC);
                let packet = ArpPacket::new_checked(frame.payload()).unwrap();
                Some(ArpRepr::parse(&packet).unwrap())
            })
        })
        .collect();
    let answer = |ours| ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: GATEWAY_MAC,
        source_protocol_addr: ours,
        target_hardware_addr: MAC,
        target_protocol_addr: ADDRESS,
    };
    assert_eq!(answers, [answer(DNS), answer(GATEWAY)]);
}

#[test]
fn dhcp_gives_a_lease() {
    let mut guest = Guest::bare(UserNetworkConfig {
        mtu: 1400,
        hostname: Some("burrow".into()),
        ..UserNetworkConfig::default()
    });
    let mut socket = dhcpv4::Socket::new();
    socket.set_receive_packet_buffer(vec![0; 1500].leak());
    let handle = guest.sockets.add(socket);
    let options = guest.until("a lease", |guest| {
        match guest.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            Some(dhcpv4::Event::Configured(config)) => {
                assert_eq!(config.address, Ipv4Cidr::new(ADDRESS, 24));
                assert_eq!(config.router, Some(GATEWAY));
                assert_eq!(config.dns_servers.as_slice(), [DNS]);
                assert_eq!(config.server.identifier, GATEWAY);
                let packet = config.packet.unwrap();
                assert_eq!(packet.your_ip(), ADDRESS);
                let all = packet.options().map(|found| (found.kind, found.data.to_vec()));
                Some(all.collect::<Vec<_>>())
            }
            _ => None,
        }
    });
    let option = |kind| options.iter().find(|found| found.0 == kind).map(|found| &found.1[..]);
    assert_eq!(option(12), Some(&b"burrow"[..]));
    assert_eq!(option(15), Some(&b"lodge"[..]));
    assert_eq!(option(26), Some(&1400_u16.to_be_bytes()[..]));
    assert_eq!(option(28), Some(&[10, 0, 2, 255][..]));
    assert_eq!(option(51), Some(&86400_u32.to_be_bytes()[..]));
}

/// Sends a DHCP message from `mac`, and returns the answer's type and address.
fn dhcp(
    network: &UserNetwork,
    mac: u8,
    kind: DhcpMessageType,
    want: Option<Ipv4Addr>,
) -> (DhcpMessageType, Ipv4Addr) {
    let client = EthernetAddress([2, 0, 0, 0, 0, mac]);
    let any = Ipv4Addr::UNSPECIFIED;
    let message = DhcpRepr {
        message_type: kind,
        transaction_id: u32::from(mac) + 5000,
        secs: 0,
        client_hardware_address: client,
        client_ip: any,
        your_ip: any,
        server_ip: any,
        router: None,
        subnet_mask: None,
        relay_agent_ip: any,
        broadcast: true,
        requested_ip: want,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[DhcpOption { kind: 61, data: &[0xff, 1, 2, 3, mac] }],
    };
    let udp = UdpRepr { src_port: 68, dst_port: 67 };
    let (from, to) = (any.into(), Ipv4Addr::BROADCAST.into());
    let len = 8 + message.buffer_len();
    let repr = IpRepr::new(from, to, IpProtocol::Udp, len, 64);
    let mut bytes = wire::ip(repr, |room| {
        let caps = ChecksumCapabilities::default();
        let mut packet = UdpPacket::new_unchecked(room);
        udp.emit(
            &mut packet,
            &from,
            &to,
            len - 8,
            |room| {
                message.emit(&mut DhcpPacket::new_unchecked(room)).unwrap();
            },
            &caps,
        );
    });
    EthernetFrame::new_unchecked(&mut bytes).set_dst_addr(EthernetAddress::BROADCAST);
    network.transmit(&bytes);
    wire::receive(network, |bytes| {
        let (ip, payload) = wire::read_ipv4(bytes)?;
        assert_eq!((ip.src_addr, ip.dst_addr), (GATEWAY, Ipv4Addr::BROADCAST));
        let packet = UdpPacket::new_checked(payload).unwrap();
        let packet = DhcpPacket::new_checked(packet.payload()).unwrap();
        assert!(packet.options().any(|o| o.kind == 61 && o.data == [0xff, 1, 2, 3, mac]));
        let reply = DhcpRepr::parse(&packet).unwrap();
        assert_eq!(reply.transaction_id, message.transaction_id);
        assert_eq!(reply.client_hardware_address, client);
        Some((reply.message_type, reply.your_ip))
    })
}

#[test]
fn dhcp_keeps_leases_apart_and_refuses_strangers() {
    use DhcpMessageType::{Ack, Discover, Nak, Offer, Request};
    let network = network(UserNetworkConfig::default());
    let first = Ipv4Addr::new(10, 0, 2, 15);
    let second = Ipv4Addr::new(10, 0, 2, 16);
    assert_eq!(dhcp(&network, 1, Discover, None), (Offer, first));
    assert_eq!(dhcp(&network, 2, Discover, None), (Offer, second));
    assert_eq!(dhcp(&network, 2, Request, Some(second)), (Ack, second));
    assert_eq!(dhcp(&network, 1, Request, Some(first)), (Ack, first));
    let elsewhere = Ipv4Addr::new(192, 168, 1, 5);
    assert_eq!(dhcp(&network, 1, Request, Some(elsewhere)), (Nak, Ipv4Addr::UNSPECIFIED));
    // More clients than leases: somebody's is taken away.
    for mac in 3..=16 {
        dhcp(&network, mac, Discover, None);
    }
    assert_eq!(dhcp(&network, 17, Discover, None), (Offer, first));
}

#[test]
fn router_advertisements_configure_ipv6() {
    let mut guest = Guest::bare(UserNetworkConfig::default());
    let address = guest.until("an address of the prefix", |guest| {
        let addresses = guest.interface.ip_addrs().to_vec();
        addresses.into_iter().find_map(|cidr| match cidr {
            IpCidr::Ipv6(cidr) if !cidr.address().is_unicast_link_local() => Some(cidr),
            _ => None,
        })
    });
    assert_eq!(address.prefix_len(), 64);
    assert_eq!(address.address().segments()[..4], [0xfd00, 0, 0, 0]);
}

#[test]
fn router_advertisements_name_the_resolver_and_the_mtu() {
    let network = network(UserNetworkConfig { mtu: 9000, ..UserNetworkConfig::default() });
    let from: Ipv6Addr = "fe80::15".parse().unwrap();
    let routers: Ipv6Addr = "ff02::2".parse().unwrap();
    let solicit = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None });
    // Not from this link.
    network.transmit(&wire::icmpv6(from, routers, &solicit, 64));
    network.transmit(&wire::icmpv6(from, routers, &solicit, 255));
    let receive = || {
        wire::receive(&network, |bytes| {
            wire::read_icmpv6(bytes, |from, to, message, bytes| {
                assert_eq!(from, "fe80::2".parse::<Ipv6Addr>().unwrap());
                assert_eq!(to, "ff02::1".parse::<Ipv6Addr>().unwrap());
                let Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert { mtu, router_lifetime, .. }) =
                    message
                else {
                    panic!("{message:?}");
                };
                assert_eq!(mtu, Some(9000));
                assert!(router_lifetime.secs() >= 1800);
                bytes.to_vec()
            })
        })
    };
    let bytes = receive();
    let rdnss = [&[25, 3, 0, 0, 0, 0, 0x23, 0x28], &DNS_V6.octets()[..]].concat();
    assert!(bytes.ends_with(&rdnss));
}

#[test]
fn neighbor_discovery_answers_for_the_network_alone() {
    let network = network(UserNetworkConfig::default());
    let link_local: Ipv6Addr = "fe80::2".parse().unwrap();
    let stranger: Ipv6Addr = "fd00::99".parse().unwrap();
    for target in [stranger, ADDRESS_V6, GATEWAY_V6, DNS_V6, link_local] {
        let solicit = NdiscRepr::NeighborSolicit { target_addr: target, lladdr: Some(MAC.into()) };
        let group = Ipv6Addr::from_bits(
            "ff02::1:ff00:0".parse::<Ipv6Addr>().unwrap().to_bits() | target.to_bits() & 0xff_ffff,
        );
        network.transmit(&wire::icmpv6(ADDRESS_V6, group, &Icmpv6Repr::Ndisc(solicit), 255));
    }
    let answers: Vec<Ipv6Addr> = (0..3)
        .map(|_| {
            wire::receive(&network, |bytes| {
                wire::read_icmpv6(bytes, |from, to, message, _| {
                    let Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
                        target_addr, lladdr, ..
                    }) = message
                    else {
                        panic!("{message:?}");
                    };
                    assert_eq!((from, to), (target_addr, ADDRESS_V6));
                    assert_eq!(lladdr, Some(GATEWAY_MAC.into()));
                    target_addr
                })
            })
        })
        .collect();
    assert_eq!(answers, [GATEWAY_V6, DNS_V6, link_local]);
}

#[test]
fn the_gateway_answers_pings() {
    let network = network(UserNetworkConfig::default());
    wire::ping(&network, 1);
    wire::ping(&network, 2);

    let data = [7; 1000];
    let request = Icmpv6Repr::EchoRequest { ident: 5, seq_no: 6, data: &data };
    network.transmit(&wire::icmpv6(ADDRESS_V6, GATEWAY_V6, &request, 64));
    wire::receive(&network, |bytes| {
        wire::read_icmpv6(bytes, |from, to, message, _| {
            let expected = Icmpv6Repr::EchoReply { ident: 5, seq_no: 6, data: &data };
            (message == expected).then(|| assert_eq!((from, to), (GATEWAY_V6, ADDRESS_V6)))
        })
        .flatten()
    });
}

#[test]
fn nobody_is_there() {
    let network = network(UserNetworkConfig::default());
    wire::ping(&network, 1);
    let nobody = Ipv4Addr::new(169, 254, 169, 254);
    let icmp = Icmpv4Repr::EchoRequest { ident: 1, seq_no: 1, data: &[] };
    let mut echo = [0; 8];
    icmp.emit(&mut Icmpv4Packet::new_unchecked(&mut echo), &ChecksumCapabilities::default());
    let packets = [
        wire::ipv4(nobody, IpProtocol::Icmp, &echo),
        wire::ipv4(nobody, IpProtocol::Udp, &wire::udp(1000, (nobody, 80), b"x")),
        wire::tcp(nobody, &wire::segment(1000, 80, TcpControl::Syn)),
    ];
    for packet in packets {
        network.transmit(&packet);
        assert_eq!(wire::receive_unreachable(&network, &packet), (GATEWAY, 1), "no such host");
    }
}

/// A DNS query for `name`'s A record.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

pub fn ask<N: Backend>(guest: &mut Guest<N>, resolver: SocketAddr, query: &[u8]) -> Vec<u8> {
    let handle = guest.udp_socket(50000 + u16::from(query[1]));
    guest.udp(handle).send_slice(query, resolver).unwrap();
    guest.until("an answer", |guest| {
        let (answer, from) = guest.udp(handle).recv().ok()?;
        assert_eq!(from.endpoint, resolver.into());
        Some(answer.to_vec())
    })
}

/// A resolver that knows one address for all names, and its address.
pub fn upstream() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let mut answer = buffer[..len].to_vec();
            answer[2] |= 0x80;
            answer[7] = 1;
            // What nobody asked for comes first, and must not reach the guest.
            let mut forged = answer.clone();
            forged[0] ^= 1;
            forged.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 6, 6, 6, 6]);
            socket.send_to(&forged, from).unwrap();
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 7]);
            socket.send_to(&answer, from).unwrap();
        }
    });
    address
}

/// A loopback address where nobody listens.
fn closed() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn with_resolvers(resolvers: Vec<SocketAddr>) -> UserNetworkConfig {
    UserNetworkConfig { resolvers: Resolvers::Fixed(resolvers), ..UserNetworkConfig::default() }
}

#[test]
fn dns_is_passed_on() {
    for resolvers in [vec![upstream()], vec![closed(), upstream()]] {
        let mut guest = Guest::new(with_resolvers(resolvers));
        for (i, us) in
            [SocketAddr::from((DNS, 53)), SocketAddr::from((DNS_V6, 53))].into_iter().enumerate()
        {
            let query = query(0x1200 + i as u16, "www.example.org");
            let answer = ask(&mut guest, us, &query);
            assert_eq!(answer[..2], query[..2]);
            assert_eq!(answer[12..query.len()], query[12..]);
            assert!(answer.ends_with(&[0, 4, 192, 0, 2, 7]), "{answer:?}");
        }
    }
}

#[test]
fn dns_knows_the_host() {
    let mut guest = Guest::new(with_resolvers(vec![]));
    let answer = ask(&mut guest, (DNS, 53).into(), &query(1, "host.lodge"));
    assert!(answer.ends_with(&[0, 4, 10, 0, 2, 2]), "{answer:?}");
}

#[test]
fn dns_fails_where_nobody_answers() {
    for resolvers in [vec![], vec![closed(), closed()]] {
        let mut guest = Guest::new(with_resolvers(resolvers));
        let answer = ask(&mut guest, (DNS, 53).into(), &query(2, "example.org"));
        assert_eq!(answer[3] & 15, 2, "server failure");
    }
}

#[test]
fn dns_goes_on_after_a_silent_resolver() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let resolvers = vec![silent.local_addr().unwrap(), upstream()];
    let mut guest = Guest::new(with_resolvers(resolvers));
    let answer = ask(&mut guest, (DNS, 53).into(), &query(3, "example.org"));
    assert!(answer.ends_with(&[0, 4, 192, 0, 2, 7]), "{answer:?}");
}

#[test]
fn dns_works_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut query = Vec::new();
        stream.read_to_end(&mut query).unwrap();
        stream.write_all(&query).unwrap();
    });
    // The first resolver refuses.
    let mut guest = Guest::new(with_resolvers(vec![closed(), upstream]));
    let handle = guest.connect((DNS, 53).into(), 40000, 4096);
    let query = query(4, "example.org");
    assert_eq!(guest.exchange(handle, &query), query);
}
