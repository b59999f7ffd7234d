//! Memory that a guest does not use goes back to the host: Debian's own driver, and what the host says of
//! the VMM.

use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Lab, skipped};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(600);
const MIB: u64 = 1 << 20;

struct Guest<'a> {
    lab: &'a Lab,
}

impl Guest<'_> {
    fn run(&self, arguments: &[&str]) -> Output {
        self.lab.lodge().args(arguments).output().expect("lodge starts")
    }

    #[track_caller]
    fn say(&self, arguments: &[&str]) -> String {
        self.lab.say(arguments)
    }

    #[track_caller]
    fn shell(&self, script: &str) -> String {
        self.say(&["exec", "it", "--", "sh", "-c", script])
    }

    /// What of the VMM is in the host's memory.
    fn resident(&self) -> u64 {
        let statistics = self.say(&["stats", "it", "--json"]);
        let statistics: Value = serde_json::from_str(&statistics).expect("JSON");
        statistics["memory"]["resident_bytes"].as_u64().expect("resident_bytes")
    }

    fn balloon(&self) -> Value {
        serde_json::from_str(&self.say(&["balloon", "it", "--json"])).expect("JSON")
    }

    #[track_caller]
    fn wait(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what} does not come");
            thread::sleep(Duration::from_millis(500));
        }
    }
}

#[test]
fn memory_that_debian_does_not_use_goes_back() {
    let Some(lab) = Lab::debian() else { return };
    if !lab.image().has_agent() {
        return skipped(
            "the balloon of Debian",
            "the image debian:12 was built without Lodge's agent",
        );
    }
    let guest = Guest { lab: &lab };
    guest.say(&[
        "run",
        "-d",
        "debian:12",
        "--name",
        "it",
        "--memory",
        "512M",
        "--net",
        "none",
        "--wait",
    ]);
    guest.shell("modprobe virtio_balloon");
    guest.wait("the driver", |guest| !guest.balloon()["guest"].is_null());

    // Filled, and then free: the guest's kernel reports it after some seconds.
    guest.shell("head -c 200M /dev/urandom > /dev/shm/it && sync");
    let full = guest.resident();
    assert!(full > 200 * MIB, "{full} bytes are resident");
    guest.shell("rm /dev/shm/it");
    guest.wait("memory that was free", |guest| guest.resident() + 150 * MIB < full);
    // It is there when it is needed.
    let sums = guest.shell(
        "head -c 100M /dev/urandom > /dev/shm/it; cat /dev/shm/it | sha256sum; sha256sum < /dev/shm/it; \
         rm /dev/shm/it",
    );
    let mut sums = sums.lines();
    assert_eq!(sums.next().expect("a sum"), sums.next().expect("another"));

    // Asked for: the guest has less then, and gets it again. (Linux counts as its own what it may take back.)
    let free = |guest: &Guest| guest.balloon()["guest"]["free_bytes"].as_u64().expect("free_bytes");
    let before = free(&guest);
    guest.say(&["balloon", "it", "300M"]);
    guest.wait("the balloon", |guest| guest.balloon()["actual_mib"] == 300);
    guest.wait("less free memory", |guest| free(guest) + 150 * MIB < before);
    guest.say(&["balloon", "it", "512M"]);
    guest.wait("the balloon", |guest| guest.balloon()["actual_mib"] == 512);
    guest.wait("more free memory", |guest| free(guest) + 50 * MIB > before);

    let refused = guest.run(&["balloon", "it", "1G"]);
    assert_eq!(refused.status.code(), Some(2));
    guest.say(&["rm", "--force", "it"]);
}
