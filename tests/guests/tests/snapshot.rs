//! Snapshots and clones of guests, and what their disks hold then.

use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Guest, Lab, has_tool, note, skipped, tool};
use serde_json::Value;

/// How long a guest may take to get somewhere on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// Writes files for ever, and the sum of each when it is whole.
const LOAD: &str = "mkdir -p /root/load && cd /root/load && printf %s '
n=0
while :; do
    n=$((n + 1))
    head -c 200000 /dev/urandom > file$n
    sha256sum file$n > sum$n
    [ $((n % 4)) != 0 ] || sync
done' > /root/load.sh";
const START: &str = "cd /root/load && (setsid sh /root/load.sh > /dev/null 2>&1 &)";
/// How many files are whole.
const COUNT: &str = "ls /root/load | grep -c sum || true";
/// Ends the load, forgets what is in memory, and reads all of it again from the disk.
const VERIFY: &str = "pkill -f load.sh; sync; echo 3 > /proc/sys/vm/drop_caches; cd /root/load && \
                      for f in sum*; do [ -s $f ] && sha256sum --quiet -c $f; done; \
                      sha256sum $(ls file* | sort -V | head -5) | sha256sum";

#[track_caller]
fn count(guest: &mut Guest) -> u32 {
    guest.run(COUNT).trim().parse().expect("a number")
}

/// Waits until so many files are whole.
#[track_caller]
fn wait_for_files(guest: &mut Guest, wanted: u32) {
    let deadline = Instant::now() + PATIENCE;
    while count(guest) < wanted {
        assert!(Instant::now() < deadline, "the guest writes no files");
        thread::sleep(Duration::from_millis(200));
    }
}

#[track_caller]
fn check_images(lab: &Lab, name: &str) {
    if !has_tool("qemu-img") {
        skipped("images by qemu-img", "it is not installed");
        return;
    }
    let directory = lab.path("home/guests").join(name);
    for entry in directory.read_dir().expect("the guest's directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "qcow2") {
            let report = tool("qemu-img", &["check", &path.display().to_string()]);
            let said = String::from_utf8_lossy(&report.stdout);
            assert!(report.status.success(), "{}: {said}", path.display());
        }
    }
}

#[test]
fn debian_goes_on_with_its_disk_under_load() {
    let Some(lab) = Lab::debian() else { return };
    let mut guest = lab.guest("deb").memory("384M").start_in_background();
    guest.log_in();
    guest.run(LOAD);
    guest.run(START);
    wait_for_files(&mut guest, 6);
    lab.say(&["snapshot", "create", "deb", "loaded"]);
    let snapshots: Value =
        serde_json::from_str(&lab.say(&["snapshot", "ls", "--json", "deb"])).expect("JSON");
    note(&format!("the guest stood still for {} us", snapshots[0]["pause_us"]));
    // It goes on, and its files are whole.
    let then = count(&mut guest);
    wait_for_files(&mut guest, then + 2);
    let first = guest.run(VERIFY);

    // Twice from the same moment: both have written the same files until then.
    for round in 0..2 {
        let refusal = lab.refusal(&["snapshot", "restore", "deb", "loaded"]);
        assert_eq!(refusal.status, Some(2), "{}", refusal.message);
        lab.say(&["kill", "deb"]);
        lab.say(&["snapshot", "restore", "deb", "loaded"]);
        guest = guest.again(&lab, "deb");
        let at_first = count(&mut guest);
        assert!(at_first >= 6, "round {round}: {at_first} files");
        wait_for_files(&mut guest, at_first + 2);
        assert_eq!(guest.run(VERIFY), first, "round {round}");
        // The event has come; kernels without the driver do nothing about it.
        let event = guest.run("cat /sys/firmware/acpi/interrupts/gpe00");
        assert!(event.trim().starts_with('1'), "round {round}: {event}");
        guest.assert_no_complaints();
    }

    // A clone of what runs now.
    assert_eq!(lab.say(&["clone", "deb", "twin"]), "twin\n");
    let mut twin = guest.again(&lab, "twin");
    twin.run("echo written by the twin > /root/mine && sync");
    assert_eq!(twin.run(VERIFY), first);
    let random = "head -c 16 /dev/urandom | od -An -tx1";
    let mut guest = twin.again(&lab, "deb");
    assert_ne!(guest.try_run("cat /root/mine").status, 0, "the twin has a disk of its own");
    let own = guest.run(random);
    let mut twin = guest.again(&lab, "twin");
    assert_ne!(twin.run(random), own);
    assert_eq!(twin.run("cat /root/mine").trim(), "written by the twin");
    drop(twin);

    // One goes without the other.
    lab.say(&["rm", "--force", "deb"]);
    lab.say(&["stop", "twin"]);
    check_images(&lab, "twin");
    lab.say(&["start", "twin"]);
    lab.say(&["rm", "--force", "twin"]);
    lab.close();
}
