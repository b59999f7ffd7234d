//! Guests on networks of the host, which is a network namespace of the test's own: guest to guest, host
//! to guest, and nothing left at the end.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Lab, has_tool, note, skipped, tiny};

/// Set in the process that is in the namespace.
const INSIDE: &str = "LODGE_TEST_NAMESPACE";
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs the test of this name again in a namespace; whether this is that run. Says loudly if there can
/// be none.
fn in_a_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    for program in ["unshare", "ip", "nft"] {
        if !has_tool(program) {
            skipped(test, &format!("{program} is not installed"));
            return false;
        }
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--net", "--map-root-user", "--"]);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    };
    let can = unshare().args(["sh", "-c", "test -w /dev/net/tun && nft list ruleset"]).status();
    if !can.is_ok_and(|status| status.success()) {
        skipped(test, "this host lets this user make no network namespace with taps in it");
        return false;
    }
    let status = unshare()
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare starts");
    assert!(status.success(), "{test} failed in its namespace: see above");
    false
}

/// What `lodge` prints; it has to succeed.
#[track_caller]
fn say(lab: &Lab, arguments: &[&str]) -> String {
    let output = lab.lodge().args(arguments).output().expect("lodge starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The namespace's interfaces.
fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/net/dev").expect("the interfaces");
    let name = |line: &str| line.split_once(':').map(|(name, _)| name.trim().to_owned());
    table.lines().filter_map(name).collect()
}

#[test]
fn debian_guests_on_a_network() {
    if !in_a_namespace("debian_guests_on_a_network") {
        return;
    }
    let Some(lab) = Lab::debian() else { return };
    let shell = |name: &str, script: &str| say(&lab, &["exec", name, "--", "sh", "-c", script]);
    say(&lab, &["network", "create", "lab", "--subnet", "10.1.0.0/24"]);
    for (name, address) in [("one", "10.1.0.11"), ("two", "10.1.0.12")] {
        say(
            &lab,
            &[
                "run",
                "-d",
                "debian:12",
                "--name",
                name,
                "--memory",
                "512M",
                "--net",
                "lab",
                "--wait",
            ],
        );
        note(&format!("{name} is there"));
        shell(
            name,
            &format!(
                "card=$(ls /sys/class/net | grep -v lo); ip link set $card up; ip address add {address}/24 dev $card"
            ),
        );
    }
    // Guest to guest.
    shell("two", "nc -lk 8888 < /dev/null > /tmp/heard 2>&1 & sleep 1");
    shell(
        "one",
        "for try in $(seq 60); do echo from one | nc -N -w 5 10.1.0.12 8888 && exit 0; sleep 1; done; exit 1",
    );
    shell(
        "two",
        "for try in $(seq 60); do grep -q 'from one' /tmp/heard && exit 0; sleep 1; done; exit 1",
    );
    // Host to guest.
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match TcpStream::connect("10.1.0.12:8888") {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "the guest is not reached: {error}"),
        }
        thread::sleep(Duration::from_millis(200));
    };
    stream.write_all(b"from the host\n").expect("a connection");
    drop(stream);
    shell(
        "two",
        "for try in $(seq 60); do grep -q 'from the host' /tmp/heard && exit 0; sleep 1; done; exit 1",
    );

    let list: String = say(&lab, &["network", "ls"]);
    assert!(list.contains("one, two"), "{list}");
    let refusal = lab.refusal(&["network", "rm", "lab"]);
    assert_eq!(refusal.status, Some(2));
    assert!(refusal.message.contains("in use by one, two"), "{}", refusal.message);
    say(&lab, &["rm", "--force", "one", "two"]);
    say(&lab, &["network", "rm", "lab"]);
    assert_eq!(interfaces(), ["lo"]);
    lab.close();
}

#[test]
fn taps_go_with_their_guests() {
    if !in_a_namespace("taps_go_with_their_guests") {
        return;
    }
    let lab = Lab::empty();
    let kernel = lab.file("sleeper", tiny::sleeper()).display().to_string();
    let run = |name: &'static str, nets: &[&str]| {
        let mut command = vec!["run", "-d", "--name", name, "--kernel", &kernel, "--memory", "32M"];
        command.extend(nets);
        say(&lab, &command);
    };
    for (net, why) in [
        ("nowhere", "lodge network create nowhere"),
        ("bridge=br9", "there is no network interface br9"),
        ("bridge=lo", "not a bridge"),
        ("tap=tap9", "there is no network interface tap9"),
    ] {
        let refusal = lab.refusal(&["run", "--kernel", &kernel, "--net", net]);
        assert_eq!(refusal.status, Some(2), "{}", refusal.message);
        assert!(refusal.message.contains(why), "{net}: {}", refusal.message);
    }
    say(&lab, &["network", "create", "lab"]);
    assert_eq!(interfaces(), ["lo", "br-lab"]);
    run("two-cards", &["--net", "lab", "--net", "bridge=br-lab"]);
    run("one-card", &["--net", "lab,mac=52:54:00:00:00:09"]);
    assert_eq!(interfaces().len(), 5, "{:?}", interfaces());
    // A VMM that is killed leaves no tap.
    say(&lab, &["kill", "two-cards"]);
    let deadline = Instant::now() + PATIENCE;
    while interfaces().len() != 3 {
        assert!(Instant::now() < deadline, "{:?}", interfaces());
        thread::sleep(Duration::from_millis(20));
    }
    // The cards stay the same from start to start, and the bridge is made anew where it is gone.
    let definition = |name: &str| {
        let path = lab.path(&format!("home/guests/{name}/guest.toml"));
        let text = std::fs::read_to_string(path).expect("a definition");
        text.lines().filter(|line| line.starts_with("mac")).map(str::to_owned).collect::<Vec<_>>()
    };
    let macs = definition("two-cards");
    assert_eq!(macs.len(), 2);
    assert_ne!(macs[0], macs[1]);
    assert_eq!(definition("one-card"), ["mac = \"52:54:00:00:00:09\""]);
    say(&lab, &["kill", "one-card"]);
    let delete = Command::new("ip").args(["link", "delete", "br-lab"]).status().expect("ip");
    assert!(delete.success());
    say(&lab, &["start", "two-cards"]);
    assert_eq!(definition("two-cards"), macs);
    assert!(interfaces().contains(&"br-lab".to_owned()));
    say(&lab, &["rm", "--force", "one-card", "two-cards"]);
    say(&lab, &["network", "rm", "lab"]);
    assert_eq!(interfaces(), ["lo"]);
    lab.close();
}
