//! Disks and network cards that come and go while Debian runs.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use guest_tests::{Lab, note, skipped};
use serde_json::Value;

/// How long a guest may take to get somewhere on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs a command as root in the guest, which has to succeed.
#[track_caller]
fn exec(lab: &Lab, command: &str) -> String {
    lab.say(&["exec", "deb", "--", "sh", "-c", command])
}

/// Waits until a command in the guest succeeds.
#[track_caller]
fn wait(lab: &Lab, command: &str) {
    let deadline = Instant::now() + PATIENCE;
    let is_so = || lab.lodge().args(["exec", "deb", "--", "sh", "-c", command]).output();
    while !is_so().expect("lodge starts").status.success() {
        assert!(Instant::now() < deadline, "{command} does not come true");
        thread::sleep(Duration::from_millis(300));
    }
}

/// What the VMM says that the guest is made of.
#[track_caller]
fn config(lab: &Lab) -> Value {
    let mut all: Value = serde_json::from_str(&lab.say(&["inspect", "deb"])).expect("JSON");
    all[0]["config"].take()
}

#[track_caller]
fn count(lab: &Lab, devices: &str) -> usize {
    config(lab)[devices].as_array().expect("devices").len()
}

/// What `lodge` says that it cannot do.
#[track_caller]
fn refused(lab: &Lab, arguments: &[&str], why: &str) {
    let output = lab.lodge().args(arguments).output().expect("lodge starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains(why), "{arguments:?}: {errors}");
}

#[test]
fn devices_of_debian_come_and_go() {
    let Some(lab) = Lab::debian() else { return };
    if !lab.image().has_agent() {
        skipped("hot plug in Debian", "its image was built without Lodge's agent");
        return;
    }
    lab.say(&["run", "-d", "--wait", "debian:12", "--name", "deb", "--memory", "384M"]);
    let (base, data) = (lab.path("base.qcow2"), lab.path("data.qcow2"));
    let (base, data) = (base.display().to_string(), data.display().to_string());
    lab.say(&["disk", "create", &base, "128M"]);
    lab.say(&["disk", "create", &data, "--backing", &base]);

    a_disk_is_written_and_read_again(&lab, &data);
    note("a card");
    a_card_gets_an_address(&lab);
    note("a snapshot");
    a_snapshot_has_what_was_attached(&lab, &data);
    note("a disk in use");
    a_disk_in_use_goes(&lab, &data);
    note("the next start");
    what_is_to_stay_is_there_at_the_next_start(&lab, &data);
    lab.say(&["rm", "--force", "deb"]);
    lab.close();
}

/// The image stands on another, and neither is where the VMM may open files.
#[track_caller]
fn a_disk_is_written_and_read_again(lab: &Lab, data: &str) {
    assert_eq!(lab.say(&["disk", "attach", "deb", data]), "disk-24\n");
    refused(lab, &["disk", "attach", "deb", data], "uses it");
    refused(lab, &["disk", "detach", "deb", "disk-30"], "it has disk-24");
    refused(lab, &["disk", "attach", "deb", "/etc/hostname/x"], "/etc/hostname/x");
    refused(lab, &["network", "detach", "deb", "disk-24"], "no disk-24");
    assert_eq!(count(lab, "disks"), 2);
    wait(lab, "test -b /dev/disk/by-id/virtio-disk-24");
    exec(
        lab,
        "mkfs.ext4 -q /dev/disk/by-id/virtio-disk-24 && mount /dev/disk/by-id/virtio-disk-24 /mnt && \
         head -c 5000000 /dev/urandom > /mnt/file && sha256sum < /mnt/file > /root/sum && umount /mnt",
    );
    let stats: Value = serde_json::from_str(&lab.say(&["stats", "deb", "--json"])).expect("JSON");
    let text = stats.to_string();
    assert!(text.contains("written_bytes"), "{text}");
    lab.say(&["disk", "detach", "deb", data]);
    exec(lab, "! test -e /dev/disk/by-id/virtio-disk-24 && ! ls /sys/block/vdb");
    assert_eq!(count(lab, "disks"), 1);
    let events = lab.say(&["events", "--once", "deb"]);
    assert!(events.contains("has disk-24 attached") && events.contains("has disk-24 no more"));

    // The image is nobody's now, and the guest finds on it what it wrote.
    let info: Value = serde_json::from_str(&lab.say(&["disk", "info", data, "--json"])).unwrap();
    assert_eq!(info["in_use"], false);
    let readonly = format!("{data},readonly,serial=mine");
    let attached = lab.say(&["disk", "attach", "deb", &readonly, "--json"]);
    let attached: Value = serde_json::from_str(&attached).expect("JSON");
    assert_eq!((&attached["id"], &attached["disk"]["slot"]), (&"disk-25".into(), &25.into()));
    wait(lab, "test -b /dev/disk/by-id/virtio-mine");
    exec(
        lab,
        "mount -o ro /dev/disk/by-id/virtio-mine /mnt && sha256sum < /mnt/file | cmp - /root/sum",
    );
    exec(lab, "umount /mnt");
    lab.say(&["disk", "detach", "deb", "mine"]);
}

#[track_caller]
fn a_card_gets_an_address(lab: &Lab) {
    let mac = "52:54:00:aa:bb:01";
    let id = lab.say(&["network", "attach", "deb", &format!("user,mac={mac}")]);
    let id = id.trim();
    let find = format!("grep -l {mac} /sys/class/net/*/address");
    wait(lab, &find);
    // A network of its own: that of its slot.
    wait(
        lab,
        &format!("ip -4 addr show dev $(basename $(dirname $({find}))) | grep '10\\.0\\.[23].\\.'"),
    );
    lab.say(&["network", "detach", "deb", mac]);
    exec(lab, &format!("! {find}"));
    refused(lab, &["network", "detach", "deb", id], "no net-");
    assert_eq!(count(lab, "nets"), 1);
}

/// One that the guest only reads: snapshots would change with one that it writes.
#[track_caller]
fn a_snapshot_has_what_was_attached(lab: &Lab, data: &str) {
    let id = lab.say(&["disk", "attach", "deb", data]);
    refused(lab, &["snapshot", "create", "deb", "wrong"], "detach the disk");
    lab.say(&["disk", "detach", "deb", id.trim()]);
    lab.say(&["disk", "attach", "deb", &format!("{data},readonly,serial=kept")]);
    wait(lab, "test -b /dev/disk/by-id/virtio-kept");
    lab.say(&["snapshot", "create", "deb", "with"]);
    lab.say(&["disk", "detach", "deb", "kept"]);
    exec(lab, "! test -e /dev/disk/by-id/virtio-kept");
    lab.say(&["snapshot", "restore", "--force", "deb", "with"]);
    wait(
        lab,
        "mount -o ro /dev/disk/by-id/virtio-kept /mnt && sha256sum < /mnt/file | cmp - /root/sum; \
         s=$?; umount /mnt; exit $s",
    );
    assert_eq!(count(lab, "disks"), 2);
    lab.say(&["disk", "detach", "deb", "kept"]);
    exec(lab, "! test -e /dev/disk/by-id/virtio-kept");
}

#[track_caller]
fn a_disk_in_use_goes(lab: &Lab, data: &str) {
    let id = lab.say(&["disk", "attach", "deb", &format!("{data},serial=pulled")]);
    wait(lab, "test -b /dev/disk/by-id/virtio-pulled");
    exec(lab, "mount /dev/disk/by-id/virtio-pulled /mnt");
    lab.say(&["disk", "detach", "deb", id.trim(), "--force"]);
    // Linux lets go of it although it is in use, goes on, and can be given another.
    wait(lab, "! test -e /dev/disk/by-id/virtio-pulled");
    exec(lab, "umount -l /mnt");
    lab.say(&["disk", "attach", "deb", &format!("{data},readonly,serial=again")]);
    wait(lab, "test -b /dev/disk/by-id/virtio-again");
    lab.say(&["disk", "detach", "deb", "again"]);
}

#[track_caller]
fn what_is_to_stay_is_there_at_the_next_start(lab: &Lab, data: &str) {
    let definition = || {
        let path = lab.path("home/guests/deb/guest.toml");
        fs::read_to_string(path).expect("the guest's definition")
    };
    let other = lab.path("other.qcow2").display().to_string();
    lab.say(&["disk", "create", &other, "8M"]);
    let before = definition();
    lab.say(&["disk", "attach", "deb", &other]);
    lab.say(&["disk", "attach", "deb", &format!("{data},serial=stays"), "--persist"]);
    assert!(definition().contains("stays") && !definition().contains("other.qcow2"));
    lab.say(&["stop", "deb"]);
    lab.say(&["start", "deb"]);
    wait(lab, "test -b /dev/disk/by-id/virtio-stays");
    assert_eq!(count(lab, "disks"), 2);
    lab.say(&["disk", "detach", "deb", "stays", "--persist"]);
    exec(lab, "! test -e /dev/disk/by-id/virtio-stays");
    assert_eq!(definition().replace("disks = []\n", ""), before.replace("disks = []\n", ""));
}
