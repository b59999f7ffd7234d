//! Guests on networks of the host, which is a network namespace of the test's own: guest to guest, host
//! to guest, and nothing left at the end.

use std::collections::HashSet;
use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::oci::{Entry, OciImage, static_busybox};
use guest_tests::{Lab, free_port, has_tool, note, skipped, tiny};

use serde_json::{Value, json};

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
fn debian_guests_on_networks() {
    if !in_a_namespace("debian_guests_on_networks") {
        return;
    }
    let Some(lab) = Lab::debian() else { return };
    let shell = |name: &str, script: &str| say(&lab, &["exec", name, "--", "sh", "-c", script]);
    // Guests' networks come up in their own time.
    let until = |name: &str, what: &str| {
        shell(name, &format!("for try in $(seq 120); do {what} && exit 0; sleep 1; done; exit 1"))
    };
    // Where ports of the host are.
    say_of("ip", &["link", "set", "lo", "up"]);
    say(&lab, &["network", "create", "lab", "--subnet", "10.1.0.0/24"]);
    say(&lab, &["network", "create", "closed", "--subnet", "10.2.0.0/24", "--isolated"]);
    let port = free_port();
    let publish = format!("{port}:8888");
    for (name, options) in [
        ("one", &["--net", "lab", "--net", "closed"][..]),
        ("two", &["--net", "lab"]),
        ("three", &["--net", "closed", "-p", &publish]),
    ] {
        let mut command =
            vec!["run", "-d", "debian:12", "--name", name, "--memory", "384M", "--wait"];
        command.extend(options);
        say(&lab, &command);
        note(&format!("{name} is there"));
    }
    let [one, two, three] =
        [("lab", "one"), ("lab", "two"), ("closed", "three")].map(|(network, guest)| {
            let address = address(&lab, network, guest);
            until(guest, &format!("ip -4 address | grep -q '{address}/24'"));
            address
        });
    for name in ["two", "three"] {
        shell(name, "nc -lk 8888 < /dev/null > /tmp/heard 2>&1 & sleep 1");
    }
    let heard = |name: &str, text: &str| until(name, &format!("grep -q '{text}' /tmp/heard"));
    // Guest to guest, by name.
    until("one", &format!("getent ahostsv4 two.lodge | grep -q '^{two} '"));
    until("one", "echo by name | nc -N -w 5 two.lodge 8888");
    heard("two", "by name");
    until("one", &format!("getent ahostsv4 three.lodge | grep -q '^{three} '"));
    until("one", "echo by its name | nc -N -w 5 three.lodge 8888");
    heard("three", "by its name");
    until("one", "getent ahostsv4 host.lodge | grep -q '^10.1.0.1 '");
    // Networks are apart: neither names nor addresses lead from one to another.
    shell("two", "! getent ahostsv4 three.lodge");
    shell("three", "! getent ahostsv4 two.lodge && ! getent ahostsv4 host.lodge");
    shell("two", &format!("! nc -z -w 3 {three} 8888"));
    shell("three", &format!("! nc -z -w 3 {two} 8888"));
    // From here to guests, and by a port even to one that is isolated.
    for (to, name, text) in [
        (format!("{two}:8888"), "two", "from the host"),
        (format!("127.0.0.1:{port}"), "three", "by a port"),
    ] {
        let mut stream = connect(&to);
        stream.write_all(format!("{text}\n").as_bytes()).expect("a connection");
        drop(stream);
        heard(name, text);
    }
    let isolated = format!("{three}:8888").parse().expect("an address");
    let reached = TcpStream::connect_timeout(&isolated, Duration::from_secs(3));
    assert!(reached.is_err(), "an isolated guest is reached");

    let list: String = say(&lab, &["network", "ls"]);
    assert!(list.contains("one, two") && list.contains("one, three"), "{list}");
    let refusal = lab.refusal(&["network", "rm", "lab"]);
    assert_eq!(refusal.status, Some(2));
    assert!(refusal.message.contains("in use by one, two"), "{}", refusal.message);

    // A card for a guest that runs, on the other network.
    let card = say(&lab, &["network", "attach", "two", "closed"]);
    let there = address(&lab, "closed", "two");
    until("two", &format!("ip -4 address | grep -q '{there}/24'"));
    until("two", &format!("nc -z -w 3 {three} 8888"));
    until("two", &format!("getent ahostsv4 three.lodge | grep -q '^{three} '"));
    say(&lab, &["network", "detach", "two", card.trim()]);
    shell("two", &format!("! ip -4 address | grep -q '{there}/24'"));
    assert!(leases(&lab, "closed").iter().all(|(guest, _)| guest != "two"));

    // A guest that is killed has the same address the next time.
    say(&lab, &["kill", "two"]);
    say(&lab, &["rename", "two", "zwei"]);
    say(&lab, &["start", "zwei"]);
    assert_eq!(address(&lab, "lab", "zwei"), two);
    assert_eq!(address(&lab, "lab", "one"), one);
    until("one", &format!("getent ahostsv4 zwei.lodge | grep -q '^{two} '"));
    // The old name goes with what the guest has remembered.
    until("one", "! getent ahostsv4 two.lodge");

    say(&lab, &["rm", "--force", "one", "zwei", "three"]);
    assert_eq!(leases(&lab, "lab").len(), 0);
    say(&lab, &["network", "rm", "lab", "closed"]);
    assert_eq!(interfaces(), ["lo"]);
    lab.close();
}

/// A connection to a server that may not have started yet.
fn connect(to: &str) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(to) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{to} is not reached: {error}"),
        }
        thread::sleep(Duration::from_millis(200));
    }
}

fn say_of(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect("the program");
    assert!(status.success(), "{program} {arguments:?}");
}

/// Guests and their addresses on a network.
fn leases(lab: &Lab, network: &str) -> Vec<(String, String)> {
    let text = say(lab, &["network", "inspect", network]);
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let leases = value[0]["leases"].as_array().expect("leases");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    leases.iter().map(|lease| (text(&lease["guest"]), text(&lease["address"]))).collect()
}

#[track_caller]
fn address(lab: &Lab, network: &str, guest: &str) -> String {
    let leases = leases(lab, network);
    let its = leases.iter().find(|(its, _)| its == guest);
    its.unwrap_or_else(|| panic!("{guest} has no address: {leases:?}")).1.clone()
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
    let before = leases(&lab, "lab");
    assert_eq!(before.len(), 3, "{before:?}");
    // A VMM that is killed leaves no tap, and addresses only while its guest is there.
    run("passing", &["--net", "lab"]);
    let passing = address(&lab, "lab", "passing");
    say(&lab, &["rm", "--force", "passing"]);
    assert_eq!(leases(&lab, "lab"), before);
    run("passing", &["--net", "lab"]);
    assert_eq!(address(&lab, "lab", "passing"), passing);
    say(&lab, &["rm", "--force", "passing"]);
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
    assert_eq!(leases(&lab, "lab"), before);
    assert!(interfaces().contains(&"br-lab".to_owned()));
    say(&lab, &["rm", "--force", "one-card", "two-cards"]);
    say(&lab, &["network", "rm", "lab"]);
    assert_eq!(interfaces(), ["lo"]);
    lab.close();
}

/// What a clone draws at random, and what it is called on a network, is not what its original has.
#[test]
fn clones_are_guests_of_their_own() {
    if !in_a_namespace("clones_are_guests_of_their_own") {
        return;
    }
    let Some(busybox) = static_busybox() else {
        return skipped("clones on a network", "there is no static busybox");
    };
    let Some(lab) = Lab::debian_apart().filter(Lab::has_agent_program) else {
        return skipped("clones on a network", "there is no image, or no lodge-agent beside lodge");
    };
    let commands =
        ["sh", "cat", "grep", "ip", "ping", "seq", "sleep"].map(|name| format!("bin/{name}"));
    let mut layer: Vec<Entry<'_>> =
        vec![("bin/", 0, 0o755, b""), ("bin/busybox", 0, 0o755, &busybox)];
    layer.extend(commands.iter().map(|name| (name.as_str(), 0, 0o777, &b"->busybox"[..])));
    let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sleep", "1000000"] });
    OciImage::new(config, &[&layer]).write_layout(&lab.path("layout"));
    let layout = format!("oci:{}", lab.path("layout").display());

    let exec = |name: &str, script: &str| say(&lab, &["exec", name, "--", "sh", "-c", script]);
    let until = |name: &str, what: &str| {
        exec(name, &format!("for try in $(seq 300); do {what} && exit 0; sleep 1; done; exit 1"));
    };
    say(&lab, &["network", "create", "lab", "--subnet", "10.1.0.0/24"]);
    say(&lab, &["run", "-d", "--wait", "--name", "web", "--net", "lab", &layout]);
    say(&lab, &["clone", "web", "--count", "2"]);
    // The first that each draws.
    let mut drawn = HashSet::new();
    for name in ["web-1", "web-2"] {
        assert!(drawn.insert(exec(name, "cat /proc/sys/kernel/random/uuid")), "{drawn:?}");
    }
    let leases = || {
        let all: Value =
            serde_json::from_str(&say(&lab, &["network", "inspect", "lab"])).expect("JSON");
        let leases = all[0]["leases"].as_array().expect("leases").clone();
        move |name: &str, what: &str| {
            let lease = leases.iter().find(|lease| lease["guest"] == name).expect("a lease");
            lease[what].as_str().expect("text").to_owned()
        }
    };
    let is_itself = |name: &str| {
        let of = leases();
        let (mac, address) = (of(name, "mac"), of(name, "address"));
        until(name, &format!("ip -o link show eth0 | grep -q {mac}"));
        until(name, &format!("ip -o -4 address show eth0 | grep -q ' {address}/24'"));
        (mac, address)
    };
    let all = ["web", "web-1", "web-2"];
    let own: HashSet<_> = all.iter().map(|name| is_itself(name)).collect();
    assert_eq!(own.len(), all.len());
    for name in all {
        for (_, address) in &own {
            until(name, &format!("ping -c 1 -W 2 {address} > /dev/null"));
        }
    }
    // Back to where it comes from, it does not become the original.
    let before = is_itself("web-1");
    say(&lab, &["snapshot", "restore", "--force", "web-1", "origin"]);
    assert!(drawn.insert(exec("web-1", "cat /proc/sys/kernel/random/uuid")), "{drawn:?}");
    assert_eq!(is_itself("web-1"), before);
    say(&lab, &["restart", "web-1"]);
    assert_eq!(is_itself("web-1"), before);
    say(&lab, &["rm", "--force", "web", "web-1", "web-2"]);
    say(&lab, &["network", "rm", "lab"]);
    lab.close();
}
