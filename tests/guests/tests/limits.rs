//! Limits by control groups, where they can be seen whatever this machine has: in a Debian guest, in which
//! `lodge` runs a guest of its own.

use std::path::Path;

use guest_tests::{Lab, skipped};

/// Starts the guest in the guest, whose kernel finds nothing to run and resets itself for ever: it takes all
/// that it is given.
const START: &str = "
    mkdir -p /lodge /kernel
    mountpoint -q /lodge || mount -t virtiofs folder0 /lodge
    mountpoint -q /kernel || mount -t virtiofs folder1 /kernel
    /lodge/lodge run -d --name inner --kernel /kernel/vmlinuz --cmdline 'quiet panic=-1' --net none \
        --memory 128M --memory-limit 220M --cpu-limit 0.25
    ";
/// Where the limits are.
const GROUP: &str = "group=$(cat /root/.local/share/lodge/guests/inner/cgroup)";

#[test]
fn a_guest_takes_no_more_than_its_limits() {
    let Some(lab) = Lab::debian() else { return };
    if !lab.image().has_agent() {
        return skipped("limits by control groups", "the image was built without Lodge's agent");
    }
    let lodge = lab.lodge();
    let directory = |path: &Path| path.parent().expect("a directory").display().to_string();
    let programs = format!("{}:/lodge:ro", directory(Path::new(lodge.get_program())));
    let kernel = format!("{}:/kernel:ro", directory(lab.image().kernel()));
    let outer = ["run", "-d", "--wait", "debian:12", "--name", "outer", "--memory", "1G"];
    lab.say(&[&outer[..], &["--net", "none", "-v", &programs, "-v", &kernel]].concat());
    let sh = |script: &str| lab.say(&["exec", "outer", "--", "sh", "-ec", script]);
    sh(START);
    let limits = sh(&format!("{GROUP}; cat $group/cpu.max $group/memory.max"));
    assert_eq!(limits, format!("25000 100000\n{}\n", 220 << 20));
    // The VMM is in the group, and has been made to wait: it has had a quarter of a processor.
    let member = sh(&format!("{GROUP}; cat /proc/$(cat $group/cgroup.procs)/comm"));
    assert_eq!(member, "lodge-vmm\n");
    let count = |name: &str| -> u64 {
        let line = sh(&format!("{GROUP}; grep '^{name} ' $group/cpu.stat"));
        line.trim().rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a number")
    };
    while count("nr_throttled") < 10 {
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    let memory: u64 =
        sh(&format!("{GROUP}; cat $group/memory.current")).trim().parse().expect("bytes");
    assert!(memory > 1 << 20, "{memory} bytes are counted");
    sh(&format!("{GROUP}; /lodge/lodge rm --force inner; ! test -e $group"));
    lab.say(&["rm", "--force", "outer"]);
    lab.close();
}
