//! What the API does, and what its clients cannot do to the guest.

mod common;

use std::io::{Read, Write};
use std::time::Duration;

use common::{ECHOES, HEEDS_POWER_BUTTON, IGNORES_POWER_BUTTON, SLEEPS, Vmm, WRITES, wait};
use serde_json::json;
use vmm_api::{Event, RunState, StopReason, StopRequest};
use vmm_client::{Client, Error};

fn stopped(events: &mut Vmm) -> Event {
    loop {
        if let stopped @ Event::Stopped { .. } = events.event().expect("a last event") {
            return stopped;
        }
    }
}

#[test]
fn a_paused_guest_does_nothing_and_goes_on() {
    let mut vmm = Vmm::start(WRITES, json!({}));
    let length = || std::fs::metadata(vmm.dir.path().join("console.log")).map_or(0, |m| m.len());
    wait("output", || length() > 100);
    let mut client = vmm.client();
    for _ in 0..5 {
        client.pause().unwrap();
        client.pause().unwrap();
        assert_eq!(client.instance().unwrap().state, RunState::Paused);
        assert!(client.statistics().unwrap().processors.iter().all(|p| p.current));
        // What was on its way comes yet.
        let mut before = length();
        wait("an end of output", || {
            std::thread::sleep(Duration::from_millis(50));
            std::mem::replace(&mut before, length()) == length()
        });
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(length(), before);
        client.resume().unwrap();
        assert_eq!(client.instance().unwrap().state, RunState::Running);
        wait("more output", || length() != before);
    }
    client.pause().unwrap();
    client.stop(StopRequest { timeout_s: 0 }).unwrap();
    assert_eq!(stopped(&mut vmm), Event::Stopped { reason: StopReason::Requested });
    assert_eq!(vmm.end(), 0);
}

#[test]
fn a_guest_is_asked_to_stop_and_then_ended() {
    let mut vmm = Vmm::start(HEEDS_POWER_BUTTON, json!({}));
    vmm.wait_until_it_listens();
    vmm.client().press_power_button().unwrap();
    assert_eq!(vmm.end(), 0);

    let mut vmm = Vmm::start(IGNORES_POWER_BUTTON, json!({}));
    vmm.wait_until_it_listens();
    let mut client = vmm.client();
    client.stop(StopRequest { timeout_s: 100_000 }).unwrap();
    assert_eq!(client.instance().unwrap().state, RunState::Stopping);
    // The less patient counts.
    client.stop(StopRequest { timeout_s: 1 }).unwrap();
    assert_eq!(stopped(&mut vmm), Event::Stopped { reason: StopReason::Requested });
    assert_eq!(vmm.end(), 0);

    // A paused guest is resumed, so that it can heed the button.
    let mut vmm = Vmm::start(HEEDS_POWER_BUTTON, json!({ "name": "paused" }));
    vmm.wait_until_it_listens();
    vmm.client().pause().unwrap();
    vmm.client().stop(StopRequest::default()).unwrap();
    assert_eq!(vmm.end(), 0);
}

#[test]
fn many_consoles_share_one_guest_and_the_log_keeps_it() {
    let mut vmm = Vmm::start(ECHOES, json!({}));
    let (mut first, begun) = vmm.client().console(0).unwrap();
    assert!(begun.is_empty());
    first.write_all(b"one").unwrap();
    let mut text = [0; 3];
    first.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"one");
    let (mut second, mut begun) = vmm.client().console(1).unwrap();
    while begun.len() < 3 {
        let mut byte = [0];
        second.read_exact(&mut byte).unwrap();
        begun.push(byte[0]);
    }
    assert_eq!(begun, b"one");
    second.write_all(b"two").unwrap();
    for console in [&mut first, &mut second] {
        console.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"two");
    }
    drop(first);
    let following = vmm.client().log(u64::MAX, true).unwrap();
    second.write_all(b"three").unwrap();
    let mut five = [0; 5];
    second.read_exact(&mut five).unwrap();
    let log: Vec<u8> =
        vmm.client().log(u64::MAX, false).unwrap().flat_map(Result::unwrap).collect();
    assert_eq!(log, b"onetwothree");
    vmm.client().stop(StopRequest { timeout_s: 0 }).unwrap();
    let log: Vec<u8> = following.flat_map(Result::unwrap).collect();
    assert_eq!(log, b"onetwothree");
    assert_eq!(second.read(&mut five).unwrap(), 0, "the console ends with the guest");
    assert_eq!(vmm.end(), 0);
    let file = std::fs::read(vmm.dir.path().join("console.log")).unwrap();
    assert_eq!(file, b"onetwothree");
}

#[test]
fn hostile_clients_hold_up_neither_the_guest_nor_others() {
    let mut vmm = Vmm::start(WRITES, json!({}));
    let length = || std::fs::metadata(vmm.dir.path().join("console.log")).map_or(0, |m| m.len());
    // Consoles and followers that never read.
    let mut idle: Vec<_> = (0..8)
        .map(|number| {
            let mut stream = vmm.connect();
            let request = match number % 2 {
                0 => {
                    "GET /v1/console HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
                      Upgrade: lodge-console\r\n\r\n"
                }
                _ => "GET /v1/log?follow=true HTTP/1.1\r\nHost: x\r\n\r\n",
            };
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    // Nonsense, endless heads, half requests, an upgrade of what is none.
    for nonsense in [
        b"\x00\xff\x00\r\n\r\n".to_vec(),
        b"GET /v1/instance".to_vec(),
        [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 1 << 20]].concat(),
        b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n{".to_vec(),
        b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"
            .to_vec(),
        b"GET /v1/instance HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: lodge-console\r\n\r\n"
            .to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ] {
        let mut stream = vmm.connect();
        // It may be disconnected before all is written.
        let _ = stream.write_all(&nonsense);
        idle.push(stream);
    }
    // So many that some are turned away: they are told so, or cut off.
    let crowd: Vec<_> = (0..40).map(|_| vmm.connect()).collect();
    let before = length();
    wait("output", || length() != before);
    drop(crowd);
    wait("a seat", || match Client::new(vmm.connect()).and_then(|mut c| c.instance()) {
        Ok(instance) => instance.state == RunState::Running,
        Err(Error::Busy | Error::Gone) => false,
        Err(error) => panic!("{error}"),
    });
    drop(idle);
    vmm.client().stop(StopRequest { timeout_s: 0 }).unwrap();
    assert_eq!(vmm.end(), 0);
}

#[test]
fn requests_from_all_sides_are_carried_out() {
    let mut vmm = Vmm::start(SLEEPS, json!({}));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = vmm.client();
                for round in 0..25 {
                    let result = match round % 4 {
                        0 => client.pause(),
                        1 => client.resume(),
                        2 => client.reset(),
                        _ => client.statistics().map(drop),
                    };
                    match result {
                        Ok(()) | Err(Error::Refused(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    vmm.client().stop(StopRequest { timeout_s: 0 }).unwrap();
    assert_eq!(vmm.end(), 0);
}

#[test]
fn a_guest_that_fails_tells_those_who_follow() {
    let mut vmm = Vmm::start(SLEEPS, json!({}));
    let mut events = vmm.client().events(true).unwrap();
    let first = events.next().unwrap().unwrap();
    assert!(first.number == 1 && matches!(first.event, Event::Started { .. }), "{first:?}");
    vmm.client().pause().unwrap();
    vmm.client().resume().unwrap();
    vmm.client().stop(StopRequest { timeout_s: 0 }).unwrap();
    let rest: Vec<Event> = events.map(|record| record.unwrap().event).collect();
    let end = Event::Stopped { reason: StopReason::Requested };
    assert_eq!(rest, [Event::Paused { reason: None }, Event::Resumed, end]);
    assert_eq!(vmm.end(), 0);
}
