//! Disks of a Debian guest: the one for cloud-init, one that the host has no room for, and what is on its own
//! after its VMM was killed while it wrote.

use std::fs;
use std::path::PathBuf;
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
    echo $n > /run/load
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
    let all: Value = serde_json::from_str(&lab.say(&["ps", "--json"])).expect("JSON");
    let pid = all[0]["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32)).expect("a VMM");
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
    let small = Tmpfs::mount(&lab);
    let disk = small.as_ref().map(|small| {
        let disk = small.0.join("data.qcow2").display().to_string();
        lab.say(&["disk", "create", &disk, "256M"]);
        format!("{disk},serial=small")
    });
    let disk: Vec<&str> = disk.iter().flat_map(|disk| ["--disk", disk]).collect();
    let told = ["--ssh-key", &key, "--user-data", &script, "--hostname", "deb1"];
    let run = ["run", "-d", "--wait", "debian:12", "--name", "deb", "--memory", "384M"];
    lab.say(&[&run[..], &told, &disk].concat());

    the_seed_is_there(&lab);
    if let Some(small) = &small {
        a_full_host_pauses_the_guest(&lab, small);
    }
    a_kill_under_load_loses_nothing(&lab);
    lab.say(&["rm", "--force", "deb"]);
    drop(small);
    lab.close();
}

/// A file system of the host with little room, until it is dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, said loudly, where that is not allowed.
    fn mount(lab: &Lab) -> Option<Tmpfs> {
        let place = lab.path("small");
        fs::create_dir(&place).expect("a directory");
        let path = place.display().to_string();
        let mounted = tool("mount", &["-t", "tmpfs", "-o", "size=32m", "tmpfs", &path]);
        if mounted.status.success() {
            return Some(Tmpfs(place));
        }
        skipped("a full host", &String::from_utf8_lossy(&mounted.stderr));
        None
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = tool("umount", &["--lazy", &self.0.display().to_string()]);
    }
}

/// What `lodge ps` says of why the guest is paused.
#[track_caller]
fn pause_reason(lab: &Lab) -> String {
    let all: Value = serde_json::from_str(&lab.say(&["ps", "--json"])).expect("JSON");
    all[0]["pause_reason"].as_str().unwrap_or_default().to_owned()
}

/// The guest writes more than the host can take, stands still, and goes on when there is room, without having
/// noticed anything.
#[track_caller]
fn a_full_host_pauses_the_guest(lab: &Lab, small: &Tmpfs) {
    // Takes the room of the half of what will be written.
    let filler = small.0.join("filler");
    fs::write(&filler, vec![1; 16 << 20]).expect("a file");
    let write = "openssl rand -out /run/random 20000000 2> /dev/null || head -c 20000000 /dev/urandom > /run/random
        (setsid sh -c 'dd if=/run/random of=/dev/disk/by-id/virtio-small bs=1M oflag=direct 2> /run/dd.log; \
        echo $? > /run/dd' > /dev/null 2>&1 &)";
    exec(lab, write);
    wait("a full disk", || state(lab) == "paused");
    let reason = pause_reason(lab);
    assert!(reason.contains("small/data.qcow2") && reason.contains("no room"), "{reason}");
    assert!(lab.say(&["ps"]).contains("deb is paused: the host has no room"));
    assert!(lab.say(&["events", "--once", "deb"]).contains("was paused: the host has no room"));
    // It tries when it is told to, and finds that nothing has changed.
    lab.say(&["resume", "deb"]);
    wait("a full disk, again", || state(lab) == "paused");

    fs::remove_file(&filler).expect("the file");
    wait("room", || state(lab) == "running");
    assert_eq!(pause_reason(lab), "");
    wait("the end of the write", || exec(lab, "cat /run/dd 2> /dev/null || true").trim() == "0");
    exec(
        lab,
        "sync; echo 3 > /proc/sys/vm/drop_caches; cmp -n 20000000 /run/random /dev/disk/by-id/virtio-small",
    );
    exec(lab, "rm /run/random; ! dmesg | grep -E 'I/O error|blocked for more'");
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
    assert_eq!(
        exec(lab, "umount /run/seed; blockdev --getro /dev/disk/by-label/cidata").trim(),
        "1"
    );
}

/// Files that were synced are whole after the VMM was killed, on an image that qemu-img calls clean, in
/// a file system whose journal replays.
#[track_caller]
fn a_kill_under_load_loses_nothing(lab: &Lab) {
    exec(lab, LOAD);
    // A name that is there may not be on the disk yet.
    let count = || exec(lab, "cat /run/load 2> /dev/null || echo 0");
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
    // By the kernel, or before it mounts the file system by the initial RAM disk.
    let mounted = exec(lab, "dmesg; cat /run/initramfs/fsck.log");
    let replayed =
        ["recovery complete", "recovering journal"].iter().any(|word| mounted.contains(word));
    assert!(replayed, "no journal was replayed");
    let whole = "cd /root/load && for sum in $(ls | grep '^sum[0-9]*$'); do sha256sum --quiet -c $sum || exit 1; \
                 done; ls | grep -c '^sum[0-9]*$'";
    let after: u32 = exec(lab, whole).trim().parse().expect("a number");
    assert!(after >= before, "{before} files were on the disk, and {after} are there");
    assert_eq!(state(lab), "running");
}
