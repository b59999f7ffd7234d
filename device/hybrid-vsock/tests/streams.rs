//! Streams between programs of the host and a guest that keeps the rules.

mod guest;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use guest::{Guest, ROOM, is_at_end};
use hybrid_vsock::{BUFFER, Header, MAX_CONNECTIONS, Op, SOCKET, shutdown};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[test]
fn a_program_of_the_host_reaches_the_guest() {
    let guest = Guest::new();
    let (mut host, ports) = guest.connected();
    guest.send_data(ports, b"from the guest");
    let mut text = [0; 14];
    host.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"from the guest");
    host.write_all(b"from the host").unwrap();
    let packet = guest.expect(Op::Rw);
    assert_eq!((packet.ports(), packet.data.as_slice()), (ports, b"from the host".as_slice()));
    assert_eq!(packet.header.fwd_cnt, 14);
    assert_eq!(packet.header.buf_alloc as usize, BUFFER);
    assert!(guest.receive().is_none());
}

#[test]
fn what_is_said_in_the_same_breath_is_data() {
    let guest = Guest::new();
    let _host = guest.connect_from_host("CONNECT 7\r\nhello");
    let ports = guest.expect(Op::Request).ports();
    assert!(guest.receive().is_none(), "nothing before the guest has answered");
    guest.send(Op::Response, ports);
    assert_eq!(guest.expect(Op::Rw).data, b"hello");
}

#[test]
fn a_guest_may_refuse() {
    let guest = Guest::new();
    let host = guest.connect_from_host("CONNECT 9\n");
    guest.send(Op::Rst, guest.expect(Op::Request).ports());
    assert!(is_at_end(&host));
    assert_eq!(guest.vsock.kept(), (0, 0));
}

#[test]
fn whoever_makes_no_sense_is_turned_away() {
    let guest = Guest::new();
    for line in ["CONNECT\n", "CONNECT x\n", "connect 1\n", "\n", &"x".repeat(100), "\u{ff}\n"] {
        let host = guest.connect_from_host(line);
        assert!(guest.receive().is_none());
        assert!(is_at_end(&host), "{line:?}");
    }
    let silent = guest.connect_from_host("CONN");
    assert!(guest.receive().is_none());
    assert_eq!(guest.vsock.kept().0, 1);
    drop(silent);
    assert!(guest.receive().is_none());
    assert_eq!(guest.vsock.kept().0, 0);
}

#[test]
fn the_process_itself_connects() {
    let guest = Guest::new();
    let mut host = guest.vsock.connect(5).unwrap();
    let ports = guest.expect(Op::Request).ports();
    assert_eq!(ports.1, 5);
    guest.send(Op::Response, ports);
    guest.send_data(ports, b"x");
    guest.shut_down(ports, shutdown::BOTH);
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, format!("OK {}\nx", ports.0));
}

#[test]
fn the_guest_reaches_a_program_of_the_host() {
    let guest = Guest::new();
    let listener = UnixListener::bind(guest.directory.path().join(format!("{SOCKET}_77"))).unwrap();
    guest.send(Op::Request, (77, 4000));
    let response = guest.expect(Op::Response);
    assert_eq!(response.ports(), (77, 4000));
    let (mut host, _) = listener.accept().unwrap();
    guest.send_data((77, 4000), b"hello");
    guest.shut_down((77, 4000), shutdown::SEND);
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    host.write_all(b"goodbye").unwrap();
    assert_eq!(guest.expect(Op::Rw).data, b"goodbye");
    drop(host);
    assert_eq!(guest.expect(Op::Shutdown).header.flags, shutdown::BOTH);
    guest.send(Op::Rst, (77, 4000));
    assert_eq!(guest.vsock.kept(), (0, 0));
}

#[test]
fn where_nobody_listens_the_guest_is_refused() {
    let guest = Guest::new();
    guest.send(Op::Request, (78, 4000));
    assert_eq!(guest.expect(Op::Rst).ports(), (78, 4000));
    let alone = Guest { vsock: hybrid_vsock::Vsock::new(None).unwrap(), ..Guest::new() };
    alone.send(Op::Request, (78, 4000));
    assert_eq!(alone.expect(Op::Rst).ports(), (78, 4000));
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let guest = Guest::new();
    let (mut host, ports) = guest.connected();
    let data: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    host.write_all(&data).unwrap();
    let mut received = Vec::new();
    for taken in 0.. {
        while received.len() < (taken + 1) * ROOM as usize && received.len() < data.len() {
            received.extend(guest.receive_into(4052).expect("data").data);
        }
        assert!(received.len() <= (taken + 1) * ROOM as usize);
        if received.len() == data.len() {
            break;
        }
        // It is asked once, and gets nothing.
        guest.expect(Op::CreditRequest);
        assert!(guest.receive().is_none());
        let fwd_cnt = received.len() as u32;
        let header = Header { fwd_cnt, ..Guest::header(Op::CreditUpdate, ports) };
        guest.vsock.transmit(&header.bytes(), &[]);
    }
    assert_eq!(received, data);
}

#[test]
fn the_guest_learns_of_room_and_a_slow_reader_loses_nothing() {
    let guest = Guest::new();
    let (mut host, ports) = guest.connected();
    host.set_nonblocking(true).unwrap();
    let (mut sent, mut taken, mut next) = (0u32, 0u32, 0u8);
    let mut received = Vec::<u8>::new();
    while received.len() < 3 << 20 {
        // As much as the host says that there is room for.
        while (sent.wrapping_sub(taken) as usize) + 1000 <= BUFFER && sent < 3 << 20 {
            let data: Vec<u8> = (0..1000).map(|n| next.wrapping_add(n as u8)).collect();
            next = next.wrapping_add(7);
            guest.send_data(ports, &data);
            sent += 1000;
        }
        assert!(guest.vsock.kept().1 <= BUFFER);
        let mut piece = [0; 30_000];
        match host.read(&mut piece) {
            Ok(len) => received.extend(&piece[..len]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        while let Some(packet) = guest.receive() {
            assert_eq!(packet.op(), Op::CreditUpdate);
            taken = packet.header.fwd_cnt;
        }
        if sent as usize == received.len() && sent >= 3 << 20 {
            break;
        }
    }
    for (number, chunk) in received.chunks(1000).enumerate() {
        let first = (number as u8).wrapping_mul(7);
        let wanted = (0..1000).map(|n| first.wrapping_add(n as u8));
        assert!(chunk.iter().copied().eq(wanted.take(chunk.len())), "piece {number}");
    }
}

#[test]
fn either_side_may_end_its_half() {
    let guest = Guest::new();
    let (mut host, ports) = guest.connected();
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(Op::Rw).data, b"question");
    assert_eq!(guest.expect(Op::Shutdown).header.flags, shutdown::SEND);
    assert!(guest.receive().is_none());
    guest.send_data(ports, b"answer");
    guest.shut_down(ports, shutdown::BOTH);
    assert_eq!(guest.expect(Op::Rst).ports(), ports);
    let mut answer = String::new();
    host.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(guest.vsock.kept(), (0, 0));
}

#[test]
fn what_the_guest_said_before_it_closed_is_read_later() {
    let guest = Guest::new();
    let (mut host, ports) = guest.connected();
    let data = vec![7; BUFFER / 2];
    let mut sent = 0;
    // Until the socket is full and some of it waits here.
    while guest.vsock.kept().1 == 0 {
        guest.send_data(ports, &data);
        sent += data.len();
        while guest.receive().is_some() {}
    }
    guest.send(Op::Rst, ports);
    assert_eq!(guest.vsock.kept().0, 1);
    // The ports are free for another.
    let mut received = 0;
    let mut piece = [0; 4096];
    loop {
        let _ = guest.receive();
        match host.read(&mut piece).unwrap() {
            0 => break,
            len => received += len,
        }
    }
    assert_eq!(received, sent);
    assert!(guest.receive().is_none());
    assert_eq!(guest.vsock.kept(), (0, 0));
}

#[test]
fn a_program_that_goes_away_is_noticed() {
    let guest = Guest::new();
    // Before the guest has answered.
    let host = guest.connect_from_host("CONNECT 1\n");
    let ports = guest.expect(Op::Request).ports();
    drop(host);
    assert_eq!(guest.expect(Op::Rst).ports(), ports);
    // Later, with something still unread by the guest.
    let (mut host, ports) = guest.connected();
    host.write_all(b"last words").unwrap();
    drop(host);
    guest.send_data(ports, b"nobody reads this");
    let mut ops = Vec::new();
    let mut words = Vec::<u8>::new();
    while let Some(packet) = guest.receive() {
        words.extend(&packet.data);
        ops.push((packet.op(), packet.header.flags));
    }
    assert_eq!(words, b"last words");
    assert_eq!(ops.last(), Some(&(Op::Shutdown, shutdown::BOTH)));
    guest.send(Op::Rst, ports);
    assert_eq!(guest.vsock.kept(), (0, 0));
}

#[test]
fn a_reset_ends_what_the_guest_knew_of() {
    let guest = Guest::new();
    let (host, ports) = guest.connected();
    let waiting = guest.connect_from_host("CONN");
    assert!(guest.receive().is_none());
    guest.vsock.reset();
    assert!(!guest.vsock.is_live());
    assert!(is_at_end(&host));
    assert_eq!(guest.vsock.kept(), (1, 0));
    guest.vsock.start();
    guest.send_data(ports, b"old");
    assert_eq!(guest.expect(Op::Rst).ports(), ports);
    // Who had not connected yet does so now.
    (&waiting).write_all(b"ECT 3\n").unwrap();
    assert_eq!(guest.expect(Op::Request).header.dst_port, 3);
}

#[test]
fn there_are_only_so_many_connections() {
    let guest = Guest::new();
    let mut connections: Vec<_> = (0..MAX_CONNECTIONS).map(|_| guest.connected()).collect();
    assert!(guest.vsock.connect(1).is_err());
    let late = guest.connect_from_host("CONNECT 1\n");
    assert!(guest.receive().is_none());
    assert!(is_at_end(&late));
    // One that only the guest does not let go makes room.
    drop(connections.pop());
    assert_eq!(guest.expect(Op::Shutdown).header.flags, shutdown::BOTH);
    guest.connected();
}

#[test]
fn nothing_wakes_who_has_nothing_to_do() {
    let guest = Guest::new();
    let is_readable = || {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&guest.vsock, PollFlags::IN)], Some(&now)).unwrap() == 1
    };
    assert!(guest.receive().is_none());
    assert!(!is_readable());
    let (mut host, ports) = guest.connected();
    assert!(guest.receive().is_none());
    assert!(!is_readable());
    host.write_all(b"x").unwrap();
    assert!(is_readable());
    guest.expect(Op::Rw);
    assert!(guest.receive().is_none());
    assert!(!is_readable());
    host.shutdown(Shutdown::Write).unwrap();
    assert!(is_readable());
    guest.expect(Op::Shutdown);
    assert!(guest.receive().is_none());
    assert!(!is_readable());
    // What the guest asks is answered by the other queue's worker.
    guest.send(Op::CreditRequest, ports);
    assert!(is_readable());
    guest.expect(Op::CreditUpdate);
    assert!(guest.receive().is_none());
    assert!(!is_readable());
}

#[test]
fn a_guest_that_knocks_is_heard_once() {
    let guest = Guest::new();
    let (sender, heard) = std::sync::mpsc::channel();
    guest.vsock.listen_for(1023, move || sender.send(()).unwrap());
    for _ in 0..3 {
        guest.send(Op::Request, (1023, 5));
        guest.expect(Op::Rst);
    }
    assert_eq!(heard.try_iter().count(), 1);
    guest.vsock.reset();
    guest.send(Op::Request, (1023, 5));
    assert_eq!(heard.try_iter().count(), 1);
}

#[test]
fn the_socket_goes_with_the_guest() {
    let Guest { vsock, directory } = Guest::new();
    drop(vsock);
    assert!(UnixStream::connect(directory.path().join(SOCKET)).is_err());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
