//! Taps on bridges, in a network namespace that the test makes itself.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use links::{Error, Links};
use net::{Backend, Tap};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Set in the process that is in the namespace.
const INSIDE: &str = "LODGE_TEST_NAMESPACE";
/// How long a frame may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const ONE: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];

/// Runs the test of this name again in a namespace; whether this is that run. Says loudly if there
/// can be none.
fn in_a_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--net", "--map-root-user", "--"]);
        command
    };
    let can = unshare().args(["test", "-w", "/dev/net/tun"]).status();
    if !can.is_ok_and(|status| status.success()) {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {test}: this host lets this user make no network namespace with taps in it"
        );
        return false;
    }
    let output = unshare()
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn bridge(links: &Links, name: &str) {
    assert!(links.add_bridge(name).expect("a bridge"));
    links.set_up(name, true).expect("a bridge that is on");
}

/// An Ethernet frame of a protocol that no kernel answers (IEEE 802, local experiment 1).
fn frame(to: [u8; 6], from: [u8; 6], text: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &[0x88, 0xb5], text, &[0; 46]].concat()
}

/// The next frame of the tests' protocol; `None` if none is there.
fn next(tap: &Tap) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    while let Some(len) = tap.receive(&mut buffer).expect("a tap that works") {
        if buffer[12..14] == [0x88, 0xb5] {
            return Some(buffer[..len].to_vec());
        }
    }
    None
}

/// Waits for a frame of the tests' protocol. A port that has just been connected may be deaf, so
/// that `send` is done now and then.
fn wait<R>(tap: &Tap, send: impl Fn() -> R) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        send();
        let moment = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        let readable = tap.readable();
        let mut fds = [PollFd::from_borrowed_fd(readable, PollFlags::IN)];
        poll(&mut fds, Some(&moment)).expect("a poll");
        if let Some(frame) = next(tap) {
            return frame;
        }
    }
    panic!("no frame came");
}

#[test]
fn cards_on_a_bridge_reach_each_other_and_nobody_else() {
    if !in_a_namespace("cards_on_a_bridge_reach_each_other_and_nobody_else") {
        return;
    }
    let links = Links::new().unwrap();
    bridge(&links, "br0");
    bridge(&links, "br1");
    let one = Tap::on_bridge("br0", ONE).unwrap();
    let other = Tap::on_bridge("br0", OTHER).unwrap();
    let stranger = Tap::on_bridge("br1", OTHER).unwrap();

    let hello = frame(OTHER, ONE, b"hello");
    assert_eq!(wait(&other, || one.transmit(&hello)), hello);
    let long = frame(ONE, OTHER, &[7; 1400]);
    assert_eq!(wait(&one, || other.transmit(&long)), long);
    let everybody = frame([0xff; 6], ONE, b"everybody");
    one.transmit(&everybody);
    // After this frame has come, the one before it would have.
    let last = frame([0xff; 6], ONE, b"last");
    one.transmit(&last);
    assert_eq!(std::iter::repeat_with(|| wait(&other, || {})).find(|it| *it == last), Some(last));
    assert_eq!(next(&stranger), None);

    // What no interface takes is lost, and harms nothing.
    one.transmit(&[]);
    one.transmit(&[0; 70_000]);
    let again = frame(OTHER, ONE, b"again");
    assert_eq!(
        std::iter::repeat_with(|| wait(&other, || one.transmit(&again))).find(|it| *it == again),
        Some(again)
    );
}

#[test]
fn a_tap_goes_with_its_descriptor() {
    if !in_a_namespace("a_tap_goes_with_its_descriptor") {
        return;
    }
    let links = Links::new().unwrap();
    bridge(&links, "br0");
    let tap = Tap::on_bridge("br0", ONE).unwrap();
    let name = tap.name().to_owned();
    assert!(links.index(&name).unwrap().is_some());
    assert!(Tap::existing(&name).is_err_and(|error| matches!(error, Error::InUse(_))));
    drop(tap);
    assert_eq!(links.index(&name).unwrap(), None);

    // One that was removed meanwhile is no endless source of nothing.
    let tap = Tap::on_bridge("br0", ONE).unwrap();
    let gone = Command::new("ip").args(["link", "delete", tap.name()]).status();
    if gone.is_ok_and(|status| status.success()) {
        assert!(tap.receive(&mut [0; 2000]).is_err());
        tap.transmit(&frame(OTHER, ONE, b"nobody"));
    }
}

#[test]
fn what_is_no_bridge_is_told() {
    if !in_a_namespace("what_is_no_bridge_is_told") {
        return;
    }
    let links = Links::new().unwrap();
    let refused = |name: &str| Tap::on_bridge(name, ONE).unwrap_err();
    assert!(matches!(refused("br7"), Error::Missing(name) if name == "br7"));
    assert!(matches!(refused("lo"), Error::NotABridge(name) if name == "lo"));
    assert!(matches!(refused("no/name"), Error::Name(_)));
    assert!(matches!(Tap::existing("tap7"), Err(Error::Missing(_))));
    assert!(matches!(Tap::existing("lo"), Err(Error::NotATap(_))));
    assert!(matches!(links.set_up("br7", true), Err(Error::Missing(_))));
    // Nothing is left of what was refused.
    assert_eq!(links.index("lodge0").unwrap(), None);
    assert!(!links.remove_bridge("br7").unwrap());
    bridge(&links, "br7");
    assert!(!links.add_bridge("br7").unwrap(), "it is there");
    links.set_address("br7", [192, 0, 2, 1].into(), [255, 255, 255, 0].into()).unwrap();
    links.set_up("br7", false).unwrap();
    assert!(links.remove_bridge("br7").unwrap());
    assert_eq!(links.index("br7").unwrap(), None);
}
