//! Debian on two processors: do both work, and does a restart bring all back?

use guest_tests::{Guest, Lab, sha256};

#[test]
fn debian_on_two_processors() {
    let Some(lab) = Lab::debian() else { return };
    let mut guest = lab.guest("two").cpus(2).memory("1G").start();
    guest.log_in();
    assert_eq!(guest.run("nproc"), "2\n");
    let processors = guest.run("lscpu");
    let count = processors.lines().find(|line| line.starts_with("CPU(s):")).unwrap_or_default();
    assert!(count.ends_with(" 2"), "{processors}");
    both_compute(&mut guest);
    threads_meet(&mut guest);

    let lodge = guest.lodge();
    let first_boot = guest.run("cat /proc/sys/kernel/random/boot_id");
    guest.run("echo kept > /root/kept; sync");
    guest.reboot();
    assert!(lodge.is_some() && guest.lodge() == lodge, "it is the same lodge");
    assert!(guest.errors().contains("restarts"), "{}", guest.errors());
    assert_ne!(guest.run("cat /proc/sys/kernel/random/boot_id"), first_boot);
    assert_eq!(guest.run("nproc"), "2\n");
    assert_eq!(guest.run("cat /root/kept"), "kept\n");
    both_compute(&mut guest);
    assert!(guest.run("ip -4 -brief address").contains(" 10.0.2.15/24 "));
    assert_eq!(guest.run("systemctl list-units --failed --no-legend --plain"), "");
    guest.assert_no_complaints();

    guest.power_off();
    lab.close();
}

/// Both processors compute at the same time, each another sum.
fn both_compute(guest: &mut Guest) {
    let text = |word: &str| format!("{word}\n").repeat(600_000);
    let job = |cpu: u32, word: &str| {
        format!("yes {word} | head -n 600000 | taskset -c {cpu} sha256sum > /tmp/sum{cpu} &")
    };
    let busy = "awk '/^cpu[01] / { print $2 + $3 + $4 }' /proc/stat";
    let ticks = |guest: &mut Guest| -> Vec<u64> {
        guest.run(busy).lines().map(|line| line.parse().expect("clock ticks")).collect()
    };
    let before = ticks(guest);
    guest.run(&format!("{} {} wait", job(0, "zero"), job(1, "one")));
    let after = ticks(guest);
    assert!(before.len() == 2 && after.len() == 2, "{before:?} {after:?}");
    for (before, after) in before.iter().zip(&after) {
        assert!(after > before, "a processor did nothing: {before:?} {after:?} clock ticks");
    }
    for (cpu, word) in [(0, "zero"), (1, "one")] {
        let sum = guest.run(&format!("cat /tmp/sum{cpu}"));
        assert_eq!(sum, format!("{}  -\n", sha256(text(word).as_bytes())), "processor {cpu}");
    }
}

/// Two processes on two processors pass a token to and fro: wake-ups go both ways.
fn threads_meet(guest: &mut Guest) {
    let count = guest.run(
        r#"rm -f /tmp/a /tmp/b; mkfifo /tmp/a /tmp/b
           taskset -c 1 perl -e '$| = 1; open A, "<", "/tmp/a"; open B, ">", "/tmp/b"; select B; $| = 1;
               while (<A>) { print $_ + 1, "\n" }' &
           taskset -c 0 perl -e 'open A, ">", "/tmp/a"; open B, "<", "/tmp/b"; select A; $| = 1; $n = 0;
               for (1 .. 1000) { print $n, "\n"; $n = <B>; chomp $n; $n++ } print STDOUT $n, "\n"'
           wait"#,
    );
    assert_eq!(count, "2000\n");
}
