//! Two guests at once: their disks hold what they wrote, seen from outside, they know nothing of
//! each other, and one does not notice when the other's VMM is killed.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guest_tests::{Guest, Lab, has_tool, note, sha256, skipped, tool};

const MIB: u64 = 1 << 20;
const DISK: u64 = 96 * MIB;

#[test]
fn two_guests_and_their_disks() {
    for program in ["qemu-img", "e2fsck", "debugfs"] {
        if !has_tool(program) {
            return skipped("disks, seen from outside", &format!("{program} is not installed"));
        }
    }
    let Some(lab) = Lab::debian() else { return };
    let disk = |name: &str| Disk::new(&lab, name);
    let (steady_raw, steady_qcow2) = (disk("steady.raw"), disk("steady.qcow2"));
    let (doomed_raw, doomed_qcow2) = (disk("doomed.raw"), disk("doomed.qcow2"));
    let shared_bytes: Vec<u8> = (0..3 * MIB).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect();
    let shared = lab.file("shared.raw", &shared_bytes);

    let launch = |name: &str, raw: &Disk, qcow2: &Disk| {
        lab.guest(name)
            .cpus(1)
            .memory("512M")
            .disk(&raw.path, "raw", "")
            .disk(&qcow2.path, "qcow2", "")
            .disk(&shared, "shared", ",format=raw,readonly")
            .start()
    };
    let mut steady = launch("steady", &steady_raw, &steady_qcow2);
    let mut doomed = launch("doomed", &doomed_raw, &doomed_qcow2);
    steady.log_in();
    doomed.log_in();

    a_read_only_disk_stays_as_it_is(&mut steady, &sha256(&shared_bytes[..]));
    a_read_only_disk_stays_as_it_is(&mut doomed, &sha256(&shared_bytes[..]));
    guests_do_not_see_each_other(&mut steady, &mut doomed);

    let mut written = Vec::new();
    for (disk, serial) in [(&steady_raw, "raw"), (&steady_qcow2, "qcow2")] {
        let files = write_files(&mut steady, serial);
        trimmed_space_is_given_back(&mut steady, serial, disk);
        steady.run(&format!("umount /{serial}"));
        written.push((disk, files));
    }
    let mut synced = Vec::new();
    for (disk, serial) in [(&doomed_raw, "raw"), (&doomed_qcow2, "qcow2")] {
        let files = write_files(&mut doomed, serial);
        synced.push((disk, files));
    }
    // What is not synced may be lost; what is may not, and no disk may be damaged.
    doomed.run(
        "for disk in raw qcow2; do
             (i=0; while :; do head -c 300000 /dev/urandom > /$disk/$((i % 40)); i=$((i + 1)); done) &
         done; sleep 3",
    );
    let (status, message) = doomed.kill_vmm();
    assert_eq!(status, Some(8), "{message}");
    assert!(message.contains("signal 9"), "{message}");
    assert_eq!(steady.run("echo still here"), "still here\n");
    steady.power_off();
    note("looking at the disks from outside");

    for (disk, files) in written {
        disk.assert_sound(&lab);
        disk.assert_holds(&lab, &files);
    }
    for (disk, files) in synced {
        disk.recover(&lab);
        disk.assert_sound(&lab);
        disk.assert_holds(&lab, &files);
    }
    assert_eq!(fs::read(&shared).expect("the shared disk"), shared_bytes);
    lab.image().assert_every_byte();
    lab.close();
}

/// The path of a disk in the guest.
fn device(serial: &str) -> String {
    format!("/dev/disk/by-id/virtio-{serial}")
}

fn a_read_only_disk_stays_as_it_is(guest: &mut Guest, sum: &str) {
    let shared = device("shared");
    assert_eq!(guest.run(&format!("blockdev --getro {shared}")), "1\n");
    assert_eq!(guest.run(&format!("sha256sum < {shared}")), format!("{sum}  -\n"));
    let write = guest.try_run(&format!("dd if=/dev/zero of={shared} bs=4096 count=1 conv=fsync"));
    assert_ne!(write.status, 0, "{}", write.output);
    assert_eq!(guest.run(&format!("sha256sum < {shared}")), format!("{sum}  -\n"));
}

fn guests_do_not_see_each_other(one: &mut Guest, other: &mut Guest) {
    for guest in [&mut *one, &mut *other] {
        assert!(guest.run("ip -4 -brief address").contains(" 10.0.2.15/24 "));
    }
    let mac = "cat /sys/class/net/e*/address";
    assert_ne!(one.run(mac), other.run(mac));
    one.run("echo mine > /root/mine; nc -lk 9999 > /dev/null & sleep 1");
    assert_eq!(one.run("cat /root/mine"), "mine\n");
    assert_ne!(other.try_run("cat /root/mine").status, 0);
    for address in ["10.0.2.2", "10.0.2.15"] {
        let visit = other.try_run(&format!("nc -z -w 5 {address} 9999"));
        assert_ne!(visit.status, 0, "another guest's port answers at {address}");
    }
    one.run("nc -z -w 5 10.0.2.15 9999 && pkill -x nc");
}

/// Makes a file system, mounts it in a directory of the disk's name, and puts files on it, which
/// are synced. The files' names and sums.
fn write_files(guest: &mut Guest, serial: &str) -> Vec<(String, String)> {
    let device = device(serial);
    guest.run(&format!("mkfs.ext4 -q {device} && mkdir /{serial} && mount {device} /{serial}"));
    guest.run(&format!("cd /{serial}; yes {serial} | head -n 200000 > words"));
    guest.run(&format!(
        "cd /{serial}; head -c 5000001 /dev/urandom > random; mkdir d; echo small > d/small"
    ));
    guest.run("sync");
    let random = guest.run(&format!("sha256sum < /{serial}/random"));
    let words = format!("{serial}\n").repeat(200_000);
    let sum = |bytes: &[u8]| sha256(bytes);
    let random = random.split(' ').next().unwrap_or_default().to_owned();
    vec![
        ("/words".into(), sum(words.as_bytes())),
        ("/random".into(), random),
        ("/d/small".into(), sum(b"small\n")),
    ]
}

fn trimmed_space_is_given_back(guest: &mut Guest, serial: &str, disk: &Disk) {
    guest.run(&format!("head -c 20000000 /dev/urandom > /{serial}/ballast; sync"));
    let full = disk.allocated();
    guest.run(&format!("rm /{serial}/ballast; sync; fstrim /{serial}; sync"));
    let trimmed = disk.allocated();
    assert!(
        trimmed + 15_000_000 < full,
        "{serial}: {full} bytes are taken before fstrim, {trimmed} after it"
    );
}

/// A disk of a guest, as the host has it.
struct Disk {
    path: PathBuf,
    is_qcow2: bool,
}

impl Disk {
    /// An empty disk of the format that its name ends with.
    fn new(lab: &Lab, name: &str) -> Disk {
        let path = lab.path(name);
        let is_qcow2 = name.ends_with(".qcow2");
        if is_qcow2 {
            qemu_img(&["create", "-q", "-f", "qcow2", text(&path), &DISK.to_string()]);
        } else {
            File::create(&path).and_then(|file| file.set_len(DISK)).expect("an empty disk");
        }
        Disk { path, is_qcow2 }
    }

    /// The bytes of the host's disk that it takes.
    fn allocated(&self) -> u64 {
        self.path.metadata().expect("the disk").blocks() * 512
    }

    /// Asserts that image and file system are without fault.
    fn assert_sound(&self, lab: &Lab) {
        if self.is_qcow2 {
            qemu_img(&["check", "-f", "qcow2", text(&self.path)]);
        }
        let raw = self.raw(lab);
        let check = tool("e2fsck", &["-fn", text(&raw)]);
        let said = String::from_utf8_lossy(&check.stdout);
        assert_eq!(check.status.code(), Some(0), "{:?}: {said}", self.path);
    }

    /// Does for a file system that was in use what comes before its next mount: plays its journal,
    /// and counts free blocks and inodes, which are written only when it is unmounted. Anything
    /// else would be a fault, at which e2fsck stops.
    fn recover(&self, lab: &Lab) {
        let recovery = tool("e2fsck", &["-fp", text(&self.raw(lab))]);
        let said = String::from_utf8_lossy(&recovery.stdout);
        // 1: there was something to do (e2fsck(8), "EXIT CODE").
        assert!(matches!(recovery.status.code(), Some(0 | 1)), "{:?}: {said}", self.path);
    }

    /// Asserts that the file system has these files.
    fn assert_holds(&self, lab: &Lab, files: &[(String, String)]) {
        let raw = self.raw(lab);
        for (name, sum) in files {
            let copy = lab.path("copy");
            let dump = format!("dump {name} {}", text(&copy));
            let output = tool("debugfs", &["-R", &dump, text(&raw)]);
            let contents = fs::read(&copy).unwrap_or_else(|error| {
                let said = String::from_utf8_lossy(&output.stderr);
                panic!("{:?} has no {name}: {error}\n{said}", self.path)
            });
            fs::remove_file(&copy).expect("a file in the lab");
            assert_eq!(sha256(&contents[..]), *sum, "{:?}: {name} is changed", self.path);
        }
    }

    /// The disk as a raw one: itself or a copy made once.
    fn raw(&self, lab: &Lab) -> PathBuf {
        if !self.is_qcow2 {
            return self.path.clone();
        }
        let stem = self.path.file_name().expect("a file").to_string_lossy();
        let raw = lab.path(&format!("{stem}.as-raw"));
        if !raw.exists() {
            let arguments = ["convert", "-f", "qcow2", "-O", "raw"];
            qemu_img(&[&arguments[..], &[text(&self.path), text(&raw)]].concat());
        }
        raw
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of plain characters")
}

/// Runs qemu-img, which has to find nothing wrong.
#[track_caller]
fn qemu_img(arguments: &[&str]) {
    let output = tool("qemu-img", arguments);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "qemu-img {arguments:?}: {said}");
}
