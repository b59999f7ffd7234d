//! TCP between a guest and the host, both ways.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::guest::{GATEWAY, GATEWAY_V6, Guest, PATIENCE};
use crate::wire;
use net::Backend;
use net::user::{Error, Forward, Transport, UserNetwork, UserNetworkConfig};
use smoltcp::socket::tcp::State;
use smoltcp::wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

const MIB: usize = 1 << 20;

/// The host's loopback addresses, and how the guest reaches them.
const WAYS: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(GATEWAY)),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(GATEWAY_V6)),
];

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
        .collect()
}

/// A server on the loopback interface that handles each client in a thread.
fn serve(address: IpAddr, handle: impl Fn(TcpStream) + Send + Clone + 'static) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, handle) = (stream.unwrap(), handle.clone());
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            thread::spawn(move || handle(stream));
        }
    });
    port
}

/// Sends everything back as it comes.
fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        stream.write_all(&buffer[..len]).unwrap();
    }
}

#[test]
fn a_mebibyte_goes_both_ways_and_ends_in_order() {
    for (host, gateway) in WAYS {
        let port = serve(host, echo);
        let mut guest = Guest::new(UserNetworkConfig::default());
        let handle = guest.connect(SocketAddr::new(gateway, port), 40000, 1 << 16);
        let data = pattern(MIB, 1);
        assert!(guest.exchange(handle, &data) == data, "{host}");
    }
}

#[test]
fn an_answer_may_follow_the_guests_end() {
    for (host, gateway) in WAYS {
        let port = serve(host, |mut stream| {
            let mut request = Vec::new();
            stream.read_to_end(&mut request).unwrap();
            stream.write_all(&pattern(MIB, request.len() as u32)).unwrap();
        });
        let mut guest = Guest::new(UserNetworkConfig::default());
        let handle = guest.connect(SocketAddr::new(gateway, port), 40000, 1 << 15);
        let answer = guest.exchange(handle, &pattern(300_000, 0));
        assert!(answer == pattern(MIB, 300_000), "{host}");
    }
}

#[test]
fn the_guest_may_go_on_after_the_hosts_end() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let port = serve(Ipv4Addr::LOCALHOST.into(), move |mut stream| {
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        sender.send(rest).unwrap();
    });
    let mut guest = Guest::new(UserNetworkConfig::default());
    let handle = guest.connect(SocketAddr::new(GATEWAY.into(), port), 40000, 1 << 15);
    guest.until("the host's end", |guest| {
        (guest.tcp(handle).state() == State::CloseWait).then_some(())
    });
    let data = pattern(MIB, 3);
    let mut sent = 0;
    let received = guest.until("the rest", |guest| {
        let socket = guest.tcp(handle);
        if sent < data.len() && socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
            if sent == data.len() {
                socket.close();
            }
        }
        receiver.try_recv().ok()
    });
    assert!(received == data);
    let mut greeting = [0; 8];
    assert_eq!(guest.tcp(handle).recv_slice(&mut greeting), Ok(5));
    guest.until("the end", |guest| (guest.tcp(handle).state() == State::Closed).then_some(()));
}

#[test]
fn jumbo_packets() {
    for mtu in [9000, 65521] {
        let port = serve(Ipv4Addr::LOCALHOST.into(), echo);
        let mut guest = Guest::new(UserNetworkConfig { mtu, ..UserNetworkConfig::default() });
        let handle = guest.connect(SocketAddr::new(GATEWAY.into(), port), 40000, 1 << 18);
        let data = pattern(4 * MIB, 1);
        assert!(guest.exchange(handle, &data) == data, "{mtu}");
    }
}

#[test]
fn who_refuses_is_not_accepted() {
    for (host, gateway) in WAYS {
        // A port that was free a moment ago.
        let port = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port();
        let mut guest = Guest::new(UserNetworkConfig::default());
        let handle = guest.connect(SocketAddr::new(gateway, port), 40000, 4096);
        guest.until("the refusal", |guest| {
            let state = guest.tcp(handle).state();
            assert_ne!(state, State::Established);
            (state == State::Closed).then_some(())
        });
    }
}

#[test]
fn a_closed_gateway_refuses() {
    let port = serve(Ipv4Addr::LOCALHOST.into(), echo);
    let config = UserNetworkConfig { host_loopback: false, ..UserNetworkConfig::default() };
    let mut guest = Guest::new(config);
    let handle = guest.connect(SocketAddr::new(GATEWAY.into(), port), 40000, 4096);
    guest.until("the refusal", |guest| {
        let state = guest.tcp(handle).state();
        assert_ne!(state, State::Established);
        (state == State::Closed).then_some(())
    });
}

#[test]
fn two_hundred_flows_at_a_time() {
    let port = serve(Ipv4Addr::LOCALHOST.into(), echo);
    let mut guest = Guest::new(UserNetworkConfig::default());
    let mut flows: Vec<_> = (0..200_u16)
        .map(|i| {
            let to = SocketAddr::new(GATEWAY.into(), port);
            let data = pattern(20_000 + usize::from(i), i.into());
            (guest.connect(to, 40000 + i, 4096), data, 0, Vec::new())
        })
        .collect();
    guest.until("200 flows' data", |guest| {
        let mut open = 0;
        for (handle, data, sent, received) in &mut flows {
            let socket = guest.tcp(*handle);
            if *sent < data.len() && socket.can_send() {
                *sent += socket.send_slice(&data[*sent..]).unwrap();
                if *sent == data.len() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                let taken = socket.recv(|data| (data.len(), data.to_vec())).unwrap();
                received.extend_from_slice(&taken);
            }
            open += usize::from(received.len() < data.len());
        }
        (open == 0).then_some(())
    });
    for (_, data, _, received) in flows {
        assert!(data == received);
    }
}

#[test]
fn more_flows_than_there_is_room_for() {
    let port = serve(Ipv4Addr::LOCALHOST.into(), echo);
    let mut guest = Guest::new(UserNetworkConfig::default());
    let to = SocketAddr::new(GATEWAY.into(), port);
    let handles: Vec<_> = (0..600_u16).map(|i| guest.connect(to, 30000 + i, 512)).collect();
    guest.until("the last flow", |guest| {
        let opened = |state| state != State::SynSent;
        handles.iter().all(|handle| opened(guest.tcp(*handle).state())).then_some(())
    });
    let alive =
        handles.iter().filter(|handle| guest.tcp(**handle).state() == State::Established).count();
    assert!((400..=512).contains(&alive), "{alive}");
}

#[test]
fn resets_pass_through() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let port = serve(Ipv4Addr::LOCALHOST.into(), move |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        if byte[0] == b'h' {
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        } else {
            sender.send(stream.read(&mut byte).unwrap_err().kind()).unwrap();
        }
    });
    let to = SocketAddr::new(GATEWAY.into(), port);
    let mut guest = Guest::new(UserNetworkConfig::default());

    let handle = guest.connect(to, 40000, 4096);
    guest.until("a connection", |guest| guest.tcp(handle).send_slice(b"h").ok());
    guest.until("the host's reset", |guest| {
        (guest.tcp(handle).state() == State::Closed).then_some(())
    });

    let handle = guest.connect(to, 40001, 4096);
    guest.until("a connection", |guest| guest.tcp(handle).send_slice(b"g").ok());
    guest.until("the data to go", |guest| (guest.tcp(handle).send_queue() == 0).then_some(()));
    guest.tcp(handle).abort();
    let kind = guest.until("the guest's reset", |_| receiver.try_recv().ok());
    assert_eq!(kind, ErrorKind::ConnectionReset);
}

#[test]
fn a_slow_reader_stops_the_writer() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        receiver.recv().unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        data
    });
    let mut guest = Guest::new(UserNetworkConfig::default());
    let handle = guest.connect(SocketAddr::new(GATEWAY.into(), port), 40000, 1 << 16);
    let data = pattern(64 * MIB, 5);
    let mut sent = 0;
    let mut last_progress = Instant::now();
    guest.until("the writer to stop", |guest| {
        let socket = guest.tcp(handle);
        if socket.can_send() {
            let len = socket.send_slice(&data[sent..]).unwrap();
            sent += len;
            last_progress = if len > 0 { Instant::now() } else { last_progress };
        }
        (sent > 0 && last_progress.elapsed() > Duration::from_millis(300)).then_some(())
    });
    // Our buffers and the host's: far less than the guest would send.
    assert!(sent < 16 * MIB, "{sent}");
    sender.send(()).unwrap();
    guest.exchange(handle, &data[sent..]);
    assert!(server.join().unwrap() == data);
}

#[test]
fn a_guest_that_does_not_read_stops_the_host() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let port = serve(Ipv4Addr::LOCALHOST.into(), move |mut stream| {
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let chunk = pattern(1 << 16, 0);
        let mut sent = 0;
        while let Ok(len) = stream.write(&chunk[sent % chunk.len()..]) {
            sent += len;
        }
        sender.send(sent).unwrap();
    });
    let mut guest = Guest::new(UserNetworkConfig::default());
    let handle = guest.connect(SocketAddr::new(GATEWAY.into(), port), 40000, 1 << 16);
    let sent = guest.until("the host to stop", |_| receiver.try_recv().ok());
    assert!(sent < 32 * MIB, "{sent}");
    let received = guest.exchange(handle, &[]);
    assert_eq!(received.len(), sent);
    assert!(received.chunks(1 << 16).all(|chunk| *chunk == pattern(1 << 16, 0)[..chunk.len()]));
}

fn forward(transport: Transport, host: &str, guest_port: u16) -> UserNetworkConfig {
    UserNetworkConfig {
        forwards: vec![Forward { transport, host: host.parse().unwrap(), guest_port }],
        ..UserNetworkConfig::default()
    }
}

#[test]
fn a_forwarded_port_leads_into_the_guest() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let mut guest = Guest::new(forward(Transport::Tcp, host, 22));
        let handle = guest.tcp_socket(1 << 14);
        guest.tcp(handle).listen(22).unwrap();
        let address = guest.network.forwarded()[0];
        let data = pattern(MIB, 9);
        let client = thread::spawn(move || {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let (mut reader, mut writer) = (stream.try_clone().unwrap(), stream);
            let writing = thread::spawn(move || {
                writer.write_all(&pattern(MIB, 9)).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut back = Vec::new();
            reader.read_to_end(&mut back).unwrap();
            writing.join().unwrap();
            back
        });
        let mut pending = Vec::new();
        guest.until("the client's end", |guest| {
            let socket = guest.tcp(handle);
            if socket.can_recv() {
                let taken = socket.recv(|data| (data.len(), data.to_vec())).unwrap();
                pending.extend_from_slice(&taken);
            }
            if socket.can_send() && !pending.is_empty() {
                let sent = socket.send_slice(&pending).unwrap();
                pending.drain(..sent);
            }
            if pending.is_empty() && socket.state() == State::CloseWait && !socket.can_recv() {
                assert_eq!(socket.remote_endpoint().unwrap().addr, GATEWAY.into());
                socket.close();
            }
            client.is_finished().then_some(())
        });
        assert!(client.join().unwrap() == data, "{host}");
    }
}

#[test]
fn a_guest_that_comes_late_is_found_at_once() {
    let network = UserNetwork::new(forward(Transport::Tcp, "127.0.0.1:0", 22)).unwrap();
    let _client = TcpStream::connect(network.forwarded()[0]).unwrap();
    // By now the first SYNs have been lost, and the next would be sent a second or more from now.
    thread::sleep(Duration::from_millis(2500));
    // What the guest does first makes it known. The network is done with each of its pings before
    // the next one is sent, so that the SYN, sent at once, comes between the answers.
    let mut found = false;
    for seq_no in 1..=2 {
        wire::ping_while(&network, seq_no, |bytes| {
            found |= wire::read_ipv4(bytes).is_some_and(|(ip, payload)| {
                ip.next_header == IpProtocol::Tcp && {
                    let packet = TcpPacket::new_checked(payload).unwrap();
                    packet.syn() && packet.dst_port() == 22
                }
            });
        });
    }
    assert!(found, "no SYN was sent");
}

#[test]
fn a_guest_that_refuses_resets_the_client() {
    let mut guest = Guest::new(forward(Transport::Tcp, "127.0.0.1:0", 22));
    let mut client = TcpStream::connect(guest.network.forwarded()[0]).unwrap();
    client.set_nonblocking(true).unwrap();
    let error = guest.until("the reset", |_| match client.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        result => Some(result.unwrap_err()),
    });
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_port_in_use_is_told_before_the_guest_starts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    let error = UserNetwork::new(forward(Transport::Tcp, &host.to_string(), 22)).unwrap_err();
    assert!(matches!(error, Error::PortInUse { transport: Transport::Tcp, .. }));
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("TCP port {} of 127.0.0.1 is in use", host.port())),
        "{text}"
    );

    let error = UserNetwork::new(forward(Transport::Tcp, "192.0.2.1:1234", 22)).unwrap_err();
    assert!(matches!(error, Error::NoSuchAddress(_)), "{error}");
}

#[test]
fn dropping_the_network_ends_its_flows() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let port = serve(Ipv4Addr::LOCALHOST.into(), move |mut stream| {
        sender.send(stream.read(&mut [0]).map_err(|error| error.kind())).unwrap();
    });
    let mut guest = Guest::new(UserNetworkConfig::default());
    let handle = guest.connect(SocketAddr::new(GATEWAY.into(), port), 40000, 4096);
    guest.until("a connection", |guest| guest.tcp(handle).may_send().then_some(()));
    drop(guest);
    let end = receiver.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{end:?}");
}

/// As a card with offloads leaves a segment to whoever is behind it: far longer than the MTU, and with no
/// checksum.
#[test]
fn unfinished_segments_are_taken() {
    const DATA: usize = 30_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let network = UserNetwork::new(UserNetworkConfig::default()).unwrap();
    assert!(network.takes_unfinished());
    network.transmit(&wire::tcp(GATEWAY, &wire::segment(5000, port, TcpControl::Syn)));
    let theirs = wire::receive(&network, |bytes| {
        let (_, payload) = wire::read_ipv4(bytes)?;
        let segment = TcpPacket::new_checked(payload).ok()?;
        (segment.syn() && segment.ack()).then(|| segment.seq_number())
    });
    let data: Vec<u8> = (0..DATA).map(|n| n as u8).collect();
    let segment = TcpRepr {
        seq_number: TcpSeqNumber(1001),
        ack_number: Some(theirs + 1),
        payload: &data,
        ..wire::segment(5000, port, TcpControl::Psh)
    };
    let mut frame = wire::tcp(GATEWAY, &segment);
    TcpPacket::new_unchecked(&mut frame[14 + 20..]).set_checksum(0);
    network.transmit(&frame);
    let mut came = vec![0; DATA];
    listener.accept().unwrap().0.read_exact(&mut came).unwrap();
    assert_eq!(came, data);
}
