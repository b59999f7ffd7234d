//! Debian boots in lockstep: all that translated code does is compared with the interpreter.

use guest_tests::{Lab, note};

/// How often each block is compared at first; then it is once in so many times. This number in the
/// environment is for more, or less: 1 compares everything.
const SAMPLE: &str = "LODGE_LOCKSTEP";

#[test]
fn debian_in_lockstep() {
    let Some(lab) = Lab::debian() else { return };
    let sample = std::env::var(SAMPLE).unwrap_or_else(|_| "64".to_owned());
    let mut guest = lab
        .guest("lockstep")
        .cpus(1)
        .memory("1G")
        .env(SAMPLE, &sample)
        .env("LODGE_LOG", "info")
        .start();
    guest.log_in();
    // Vectors of all lengths that this host has, and what compresses and sorts.
    guest.run("seq 1 20000 | gzip | gunzip | sort -R | sort -n | sha256sum | grep -q .");
    guest.run("openssl speed -seconds 1 -bytes 1024 sha256 aes-256-cbc 2>/dev/null; true");
    guest.run("awk 'BEGIN { for (i = 1; i < 2000; i++) s += sin(i) * exp(1 / i); print s }'");
    let errors = guest.power_off();
    let tally = errors.lines().find(|line| line.contains("lockstep: ")).unwrap_or_else(|| {
        panic!("nothing was compared:\n{errors}");
    });
    note(tally);
    assert!(tally.contains(", 0 differences"), "{errors}");
    let blocks = tally.rsplit("lockstep: ").next().and_then(|rest| rest.split(' ').next());
    let blocks: u64 = blocks.and_then(|number| number.parse().ok()).expect("a number of blocks");
    assert!(blocks > 1_000_000, "a boot has more blocks than {blocks}");
    lab.close();
}
