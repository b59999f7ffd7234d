//! Networks on a host that is a network namespace of the test's own, with guests that are namespaces
//! connected to its bridges.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;

use networks::{Network, Reach, Store};

/// Set in the process that is in the namespace.
const INSIDE: &str = "LODGE_TEST_NAMESPACE";
/// How often something that is to work is tried, a second or more each.
const TRIES: usize = 30;

/// Runs the test of this name again in namespaces of its own; whether this is that run. Says loudly if
/// there can be none.
fn in_a_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--map-root-user", "--"]);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    };
    let skip = |why: &str| {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
        false
    };
    for (program, argument) in [("nft", "--version"), ("ip", "-V"), ("busybox", "--help")] {
        if Command::new(program)
            .arg(argument)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .is_err()
        {
            return skip(&format!("{program} is not installed"));
        }
    }
    let can = unshare()
        .args(["sh", "-c", "mount -t tmpfs none /run && ip netns add x && nft list ruleset"])
        .output();
    match can {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            return skip(&format!("this host lets this user make no network namespaces: {why}"));
        }
        Err(error) => return skip(&format!("unshare: {error}")),
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

/// Runs a program, which has to do what it is told; what it prints.
#[track_caller]
fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().expect("a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A guest: a namespace with one card, on a network, with an address and the host as its way out.
fn guest(name: &str, network: &Network, address: &str) {
    let (bridge, gateway) = (network.bridge(), network.subnet.gateway());
    sh(&format!(
        "ip netns add {name}
         ip link add v-{name} type veth peer name eth0 netns {name}
         ip link set v-{name} master {bridge} up
         ip netns exec {name} ip address add {address}/24 dev eth0
         ip netns exec {name} ip link set eth0 up
         ip netns exec {name} ip route add default via {gateway}"
    ));
}

/// `from`: a guest, or the empty text for the host.
fn pings(from: &str, to: &str, tries: usize) -> bool {
    let ping = format!("busybox ping -c 1 -W 1 {to} > /dev/null 2>&1");
    let line = if from.is_empty() { ping } else { format!("ip netns exec {from} {ping}") };
    (0..tries).any(|_| Command::new("sh").args(["-c", &line]).status().expect("a shell").success())
}

#[track_caller]
fn assert_reaches(from: &str, to: &str) {
    assert!(pings(from, to, TRIES), "{from:?} does not reach {to}");
}

#[track_caller]
fn assert_apart(from: &str, to: &str) {
    assert!(!pings(from, to, 2), "{from:?} reaches {to}");
}

fn host_is_as_before(home: &Path) {
    assert_eq!(sh("nft list ruleset"), "");
    assert_eq!(sh("ip -o link show type bridge"), "");
    assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward"), "0\n");
    let left: Vec<_> = fs::read_dir(home.join("networks"))
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn who_reaches_whom() {
    if !in_a_namespace("who_reaches_whom") {
        return;
    }
    sh("mount -t tmpfs none /run; ip link set lo up; echo 0 > /proc/sys/net/ipv4/ip_forward");
    // The world outside, which knows no way back to networks that only this host has.
    sh("ip netns add world
        ip link add uplink type veth peer name eth0 netns world
        ip address add 198.51.100.1/24 dev uplink; ip link set uplink up
        ip netns exec world ip address add 198.51.100.2/24 dev eth0
        ip netns exec world ip link set eth0 up");
    let home = tempfile::tempdir().unwrap();
    let store = Store::at(home.path());
    let make = |name: &str, subnet: &str, reach| {
        store.create(name, Some(subnet.parse().unwrap()), reach).unwrap()
    };
    let host = make("host", "10.1.0.0/24", Reach::Host);
    let nat = make("nat", "10.2.0.0/24", Reach::Nat);
    let isolated = make("isolated", "10.3.0.0/24", Reach::Isolated);
    guest("h1", &host, "10.1.0.11");
    guest("h2", &host, "10.1.0.12");
    guest("n1", &nat, "10.2.0.11");
    guest("n2", &nat, "10.2.0.12");
    guest("i1", &isolated, "10.3.0.11");
    guest("i2", &isolated, "10.3.0.12");

    let check = || {
        // Guests of one network.
        assert_reaches("h1", "10.1.0.12");
        assert_reaches("n1", "10.2.0.12");
        assert_reaches("i1", "10.3.0.12");
        // The host.
        assert_reaches("h1", "10.1.0.1");
        assert_reaches("n1", "10.2.0.1");
        assert_apart("i1", "10.3.0.1");
        assert_reaches("", "10.1.0.11");
        assert_reaches("", "10.2.0.11");
        assert_apart("", "10.3.0.11");
        // The world.
        assert_reaches("n1", "198.51.100.2");
        assert_apart("h1", "198.51.100.2");
        assert_apart("i1", "198.51.100.2");
        // Guests of other networks.
        for (from, to) in
            [("h1", "10.2.0.11"), ("n1", "10.1.0.11"), ("n1", "10.3.0.11"), ("i1", "10.1.0.11")]
        {
            assert_apart(from, to);
        }
    };
    check();
    sh("ip netns exec world ip route add 10.0.0.0/8 via 198.51.100.1");
    assert_apart("world", "10.1.0.11");
    assert_apart("world", "10.2.0.11");

    // Doing it again changes nothing.
    for name in ["host", "nat", "isolated"] {
        store.connect(name, "guest", [2, 0, 0, 0, 0, 1]).unwrap();
    }
    check();

    // A reboot takes all that the host had; the next command makes it again.
    sh("nft flush ruleset; for bridge in br-host br-nat br-isolated; do ip link delete $bridge; done
        echo 0 > /proc/sys/net/ipv4/ip_forward");
    assert!(!store.is_up(&nat));
    for name in ["host", "nat", "isolated"] {
        store.connect(name, "guest", [2, 0, 0, 0, 0, 1]).unwrap();
    }
    sh(
        "ip link set v-n1 master br-nat; ip link set v-h1 master br-host; ip link set v-h2 master br-host",
    );
    assert_reaches("n1", "198.51.100.2");
    assert_reaches("h1", "10.1.0.12");
    assert_apart("h1", "198.51.100.2");

    for name in ["nat", "host", "isolated"] {
        store.remove(name).unwrap();
    }
    host_is_as_before(home.path());
}

#[test]
fn what_goes_wrong_leaves_nothing() {
    if !in_a_namespace("what_goes_wrong_leaves_nothing") {
        return;
    }
    sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    let home = tempfile::tempdir().unwrap();
    let store = Store::at(home.path());
    store.create("web", None, Reach::Nat).unwrap();
    let other = store.create("web", None, Reach::Host).unwrap_err();
    assert!(other.message.contains("another network web"), "{other}");
    let subnet = Some("10.77.0.0/24".parse().unwrap());
    let other = store.create("web", subnet, Reach::Nat).unwrap_err();
    assert!(other.message.contains("another network web"), "{other}");
    sh("ip link add br-mine type bridge");
    let taken = store.create("mine", None, Reach::Host).unwrap_err();
    assert!(taken.message.contains("none of Lodge's"), "{taken}");
    sh("ip link delete br-mine");
    // A route that leads elsewhere.
    sh("ip link add d0 type bridge; ip address add 10.99.0.1/16 dev d0; ip link set d0 up");
    let overlap =
        store.create("db", Some("10.99.3.0/24".parse().unwrap()), Reach::Host).unwrap_err();
    assert!(overlap.message.contains("10.99.0.0/16"), "{overlap}");
    sh("ip link delete d0");
    // Made once more, it is what it was, and has what it lacks.
    sh("ip link set br-web down; ip link delete br-web; nft delete table inet lodge_web");
    let before = store.get("web").unwrap();
    assert_eq!(store.create("web", None, Reach::Nat).unwrap(), before);
    assert_eq!(store.create("web", Some(before.subnet), Reach::Nat).unwrap(), before);
    sh("ip link show br-web; nft list table inet lodge_web");
    // As a kill in the midst of a removal leaves it.
    sh("ip link set br-web down; ip link delete br-web");
    store.remove("web").unwrap();
    assert!(store.remove("web").is_err());
    host_is_as_before(home.path());
}

#[test]
fn many_at_once_get_what_nobody_else_has() {
    if !in_a_namespace("many_at_once_get_what_nobody_else_has") {
        return;
    }
    sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let made: Vec<Network> = thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|number| {
                scope.spawn(move || {
                    let name = format!("n{}", number / 2);
                    Store::at(home).create(&name, None, Reach::Nat)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    });
    // Who wants the same gets the same.
    let made: HashMap<String, Network> =
        made.into_iter().map(|network| (network.subnet.to_string(), network)).collect();
    assert_eq!(made.len(), 3);
    thread::scope(|scope| {
        for network in made.values() {
            scope.spawn(move || Store::at(home).remove(&network.name).unwrap());
        }
    });
    host_is_as_before(home);
}
