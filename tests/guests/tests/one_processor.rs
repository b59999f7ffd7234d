//! Debian on one processor: is everything there that a machine should have, and does it work?

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_tests::{EchoServer, Guest, Lab, free_port, sha256, skipped};

const GUEST_PORT: u16 = 7777;

#[test]
fn debian_on_one_processor() {
    let Some(lab) = Lab::debian() else { return };
    let host_port = free_port();
    let mut guest = lab.guest("one").cpus(1).memory("512M").publish(host_port, GUEST_PORT).start();
    guest.log_in();

    the_machine_is_as_ordered(&mut guest);
    the_clock_is_right(&mut guest);
    the_network_is_set_up(&mut guest);
    names_are_resolved(&mut guest);
    the_host_echoes(&mut guest);
    a_port_of_the_host_leads_into_the_guest(&mut guest, host_port);
    there_are_random_numbers(&mut guest);
    programs_compute_what_they_should(&mut guest);
    the_system_is_content(&mut guest);

    guest.power_off();
    lab.close();
}

fn the_machine_is_as_ordered(guest: &mut Guest) {
    assert_eq!(guest.run("nproc"), "1\n");
    let processors = guest.run("lscpu");
    let count = processors.lines().find(|line| line.starts_with("CPU(s):")).unwrap_or_default();
    assert!(count.ends_with(" 1"), "{processors}");
    let memory: u64 = guest
        .run("awk '/^MemTotal:/ { print $2 }' /proc/meminfo")
        .trim()
        .parse()
        .expect("a number of KiB");
    assert!((400 << 10..=512 << 10).contains(&memory), "{memory} KiB of 512 MiB");
}

/// What a clock may be off for the rounding of its readings.
const ROUNDING: Duration = Duration::from_millis(20);

/// Reads a clock of the guest between two looks at the host's. However late either of them is
/// served, the guest's reading lies between these two.
fn read_clock(guest: &mut Guest) -> (Duration, Duration, Duration) {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    let before = now();
    let text = guest.run("date +%s.%N");
    let after = now();
    let seconds: f64 = text.trim().parse().expect("seconds");
    (before, Duration::from_secs_f64(seconds), after)
}

fn the_clock_is_right(guest: &mut Guest) {
    let (before, first, after) = read_clock(guest);
    let error = Duration::from_secs(3);
    assert!(
        (before - error..=after + error).contains(&first),
        "the guest's date is {first:?}, the host's {before:?} to {after:?}"
    );

    let slept = guest.run("a=$(date +%s%N); sleep 5; b=$(date +%s%N); echo $(((b - a) / 1000000))");
    let slept: u64 = slept.trim().parse().expect("milliseconds");
    assert!(slept >= 5000, "a sleep of 5 seconds took {slept} ms by the guest's clock");

    let (before_2, second, after_2) = read_clock(guest);
    let passed = second.checked_sub(first).expect("a clock that goes forward");
    // A thousandth more or less would be the worst of quartz.
    let shortest = (before_2 - after).mul_f64(0.999).saturating_sub(ROUNDING);
    let longest = (after_2 - before).mul_f64(1.001) + ROUNDING;
    assert!(
        (shortest..=longest).contains(&passed),
        "{passed:?} passed in the guest, {shortest:?} to {longest:?} on the host"
    );
}

fn the_network_is_set_up(guest: &mut Guest) {
    let addresses = guest.run("ip -4 -brief address show scope global");
    assert!(addresses.contains(" UP ") && addresses.contains(" 10.0.2.15/24 "), "{addresses}");
    let addresses = guest.run("ip -6 -brief address show scope global");
    assert!(addresses.contains(" fd00::"), "{addresses}");
    let routes = guest.run("ip route show default");
    assert!(routes.starts_with("default via 10.0.2.2 "), "{routes}");
    guest.run("ping -c 3 -W 20 10.0.2.2");
    guest.run("ping -c 3 -W 20 fd00::2");
}

fn names_are_resolved(guest: &mut Guest) {
    let answer = guest.run("getent ahostsv4 host.lodge");
    assert!(answer.starts_with("10.0.2.2 "), "{answer}");
    let servers = guest.run("resolvectl dns");
    assert!(servers.contains(" 10.0.2.3"), "{servers}");
    // By the server itself, not only by what the guest's own resolver makes of it.
    let answer = guest.run("resolvectl query --cache=no --type=A one.lodge");
    assert!(answer.contains("10.0.2.15"), "the guest's own name: {answer}");
}

fn the_host_echoes(guest: &mut Guest) {
    let server = EchoServer::start(Ipv4Addr::LOCALHOST.into()).expect("a server on 127.0.0.1");
    let port = server.port;
    assert_eq!(guest.run(&format!("echo hello | nc -N -w 60 10.0.2.2 {port}")), "hello\n");
    // Many segments, both ways at once, found by name.
    guest.run("head -c 1000000 /dev/urandom > /tmp/sent");
    guest.run(&format!("nc -4 -N -w 60 host.lodge {port} < /tmp/sent > /tmp/received"));
    guest.run("cmp /tmp/sent /tmp/received");
    let datagram = guest.run(&format!(
        "timeout 60 bash -c 'exec 3<> /dev/udp/10.0.2.2/{port}; echo datagram >&3; head -n 1 <&3'"
    ));
    assert_eq!(datagram, "datagram\n");
    let nobody = guest.try_run(&format!("nc -w 60 10.0.2.2 {}", free_port()));
    assert_eq!(nobody.status, 1, "nobody listens there: {}", nobody.output);

    match EchoServer::start(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
        Ok(server) => {
            let command = format!("echo hello | nc -N -w 60 fd00::2 {}", server.port);
            assert_eq!(guest.run(&command), "hello\n");
        }
        Err(error) => skipped("TCP by IPv6", &format!("the host has no ::1: {error}")),
    }
}

fn a_port_of_the_host_leads_into_the_guest(guest: &mut Guest, host_port: u16) {
    guest.run(&format!(
        "nc -N -l {GUEST_PORT} < /etc/hostname > /tmp/visitor 2>&1 &
         until ss -Hltn 'sport = :{GUEST_PORT}' | grep -q .; do sleep 0.1; done"
    ));
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, host_port)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
    stream.write_all(b"from the host\n").expect("an open connection");
    stream.shutdown(std::net::Shutdown::Write).expect("an open connection");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert_eq!(answer, "debian\n");
    guest.run("while pgrep -x nc > /dev/null; do sleep 0.1; done");
    assert_eq!(guest.run("cat /tmp/visitor"), "from the host\n");
}

fn there_are_random_numbers(guest: &mut Guest) {
    assert!(guest.run("cat /sys/class/misc/hw_random/rng_current").starts_with("virtio_rng"));
    let mut draw = || guest.run("head -c 64 /dev/hwrng | sha256sum");
    assert_ne!(draw(), draw());
    assert_eq!(guest.run("head -c 5000 /dev/hwrng | wc -c"), "5000\n");
}

/// Stock programs that use much of the processor: integers, SSE to AVX-512, x87, 32 bits.
fn programs_compute_what_they_should(guest: &mut Guest) {
    let floats = guest.run("awk 'BEGIN { printf \"%.9f %.9f %.9f\\n\", exp(1), sin(2), 2^0.5 }'");
    assert_eq!(floats, "2.718281828 0.909297427 1.414213562\n");
    let text = "Lodge ".repeat(100_000);
    let command = "perl -e 'print \"Lodge \" x 100000' > /tmp/text; sha256sum < /tmp/text";
    assert_eq!(guest.run(command), format!("{}  -\n", sha256(text.as_bytes())));
    guest.run("gzip -k /tmp/text && gzip -dc /tmp/text.gz | cmp - /tmp/text");
    let sum = guest.run(
        "seq 1 20000 | sort -R | sort -n | awk '{ s += $1 * NR } END { printf \"%.0f\\n\", s }'",
    );
    assert_eq!(sum, "2666866670000\n");
    for command in ["uptime", "free", "ps aux", "top -b -n 1", "vmstat", "w", "lsblk", "df -h"] {
        assert!(!guest.run(command).is_empty(), "{command}");
    }
}

fn the_system_is_content(guest: &mut Guest) {
    let failed = guest.run("systemctl list-units --failed --no-legend --plain");
    if !failed.is_empty() {
        let why = guest.run(
            "systemctl list-units --failed --no-legend --plain \
             | while read -r unit rest; do systemctl status --no-pager -l \"$unit\"; done; true",
        );
        panic!("units failed:\n{failed}{why}");
    }
    guest.assert_no_complaints();
}
