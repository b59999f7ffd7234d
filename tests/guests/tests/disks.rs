//! Disks of a Debian guest: the one for cloud-init, and what is on its own disk after its VMM was killed
//! while it wrote.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Lab, has_tool, note, skipped, tool};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a guest may take to get somewhere on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// Writes files for ever, and the sum of each once it is on the disk.
const LOAD: &str = "mkdir -p /root/load && cd /root/load && printf %s '
n=0
while :; do
    n=$((n + 1))
    head -c 300000 /dev/urandom > file$n
    sync file$n
    sha256sum file$n > sum$n.new
    sync sum$n.new
    mv sum$n.new sum$n
    sync .
done' > /root/load.sh && (setsid sh /root/load.sh > /dev/null 2>&1 &)";

/// Runs a command as root in the guest, which has to succeed.
#[track_caller]
fn exec(lab: &Lab, command: &str) -> String {
    lab.say(&["exec", "deb", "--", "sh", "-c", command])
}

#[track_caller]
fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(200));
    }
}

#[track_caller]
fn state(lab: &Lab) -> String {
    let all: Value = serde_json::from_str(&lab.say(&["ps", "--all", "--json"])).expect("JSON");
    all[0]["state"].as_str().expect("a state").to_owned()
}

/// Has the VMM end at once, as for want of memory.
fn kill_vmm(lab: &Lab) {
    let pid = fs::read_to_string(lab.path("home/guests/deb/vmm.pid")).expect("a VMM");
    let pid = Pid::from_raw(pid.trim().parse().expect("a number")).expect("a number");
    kill_process(pid, Signal::KILL).expect("a kill");
}

#[test]
fn disks_of_debian() {
    let Some(lab) = Lab::debian() else { return };
    if !lab.image().has_agent() {
        skipped("disks of Debian", "its image was built without Lodge's agent");
        return;
    }
    let key = lab.file("key.pub", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me@here\n");
    let script = lab.file("user-data", "#!/bin/sh\necho hello > /root/hello\n");
    let (key, script) = (key.display().to_string(), script.display().to_string());
    let told = ["--ssh-key", &key, "--user-data", &script, "--hostname", "deb1"];
    let run = ["run", "-d", "--wait", "debian:12", "--name", "deb", "--memory", "384M"];
    lab.say(&[&run[..], &told].concat());

    the_seed_is_there(&lab);
    a_kill_under_load_loses_nothing(&lab);
    lab.say(&["rm", "--force", "deb"]);
    lab.close();
}

#[track_caller]
fn the_seed_is_there(lab: &Lab) {
    exec(lab, "mkdir -p /run/seed && mount -o ro LABEL=cidata /run/seed");
    let meta: Value = serde_json::from_str(&exec(lab, "cat /run/seed/meta-data")).expect("JSON");
    assert_eq!(meta["local-hostname"], "deb1");
    assert_eq!(meta["instance-id"], "lodge-deb");
    assert_eq!(meta["public-keys"][0], "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me@here");
    assert_eq!(exec(lab, "cat /run/seed/user-data"), "#!/bin/sh\necho hello > /root/hello\n");
    let mac = exec(lab, "cat /sys/class/net/e*/address");
    assert!(exec(lab, "cat /run/seed/network-config").contains(mac.trim()), "{mac}");
    exec(lab, "umount /run/seed; ! touch /dev/vdb 2> /dev/null || ! echo x > /dev/vdb");
}

/// Files that were synced are whole after the VMM was killed, on an image that qemu-img calls clean, in
/// a file system whose journal replays.
#[track_caller]
fn a_kill_under_load_loses_nothing(lab: &Lab) {
    exec(lab, LOAD);
    let count = || exec(lab, "ls /root/load | grep -c '^sum[0-9]*$' || true");
    wait("a dozen files", || count().trim().parse::<u32>().expect("a number") >= 12);
    let before: u32 = count().trim().parse().expect("a number");
    kill_vmm(lab);
    wait("the truth", || state(lab) == "crashed");
    let disk = lab.path("home/guests/deb/disk.qcow2").display().to_string();
    if has_tool("qemu-img") {
        let report = tool("qemu-img", &["check", "-U", &disk]);
        let said = String::from_utf8_lossy(&report.stdout).into_owned();
        // qemu-img(1): 3 is clusters that nothing uses, which cost room and nothing else.
        assert!(matches!(report.status.code(), Some(0 | 3)), "{said}");
        note(said.lines().next().unwrap_or_default());
    } else {
        skipped("the image of a killed guest", "qemu-img is not installed");
    }
    lab.say(&["start", "deb"]);
    assert!(exec(lab, "dmesg").contains("recovery complete"), "no journal was replayed");
    let whole = "cd /root/load && for sum in $(ls | grep '^sum[0-9]*$'); do sha256sum --quiet -c $sum || exit 1; \
                 done; ls | grep -c '^sum[0-9]*$'";
    let after: u32 = exec(lab, whole).trim().parse().expect("a number");
    assert!(after >= before, "{before} files were on the disk, and {after} are there");
    assert_eq!(state(lab), "running");
}
