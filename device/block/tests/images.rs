//! Opening images: what is refused and how it is told, formats, locks, overlays.

mod common;

use block::{
    Backing, Cause, Disk, Error, Format, OpenOptions, Origin, create_qcow2, open, open_overlay,
};
use common::{Rng, check, contents, have_qemu_img, qemu_img, text, try_qemu_img};
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

fn refused(options: &OpenOptions) -> Error {
    match open(options) {
        Err(error) => error,
        Ok(_) => panic!("{options:?} was opened"),
    }
}

/// Opens are refused with this cause and a message that holds these words; nothing is left locked.
fn refuses(options: &OpenOptions, cause: Cause, words: &[&str]) {
    let error = refused(options);
    assert_eq!(error.cause(), cause, "{error}");
    for word in words.iter().chain([&text(&options.path)]) {
        assert!(error.to_string().contains(word), "{word:?} not in: {error}");
    }
    let again = refused(options);
    assert_eq!(again.cause(), cause, "the second time: {again}");
}

fn raw_file(dir: &Path, name: &str, len: u64) -> PathBuf {
    let path = dir.join(name);
    fs::File::create(&path).unwrap().set_len(len).unwrap();
    path
}

#[test]
fn the_host_side_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nowhere.raw");
    refuses(&OpenOptions::new(&missing), Cause::Missing, &["check the path"]);
    assert_eq!(refused(&OpenOptions::new(&missing)).origin(), Origin::Artifact);
    refuses(&OpenOptions::new(dir.path()), Cause::Misconfigured, &["a directory"]);
    refuses(&OpenOptions::new("/dev/null"), Cause::Misconfigured, &["block device"]);

    let secret = raw_file(dir.path(), "secret.raw", 1 << 20);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&secret).is_ok() {
        eprintln!("SKIPPED: an unreadable image: this user may read everything");
    } else {
        refuses(&OpenOptions::new(&secret), Cause::Denied, &["Permission denied", "access"]);
    }
}

#[test]
fn odd_sizes_follow_one_rule() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("odd.raw");
    fs::write(&odd, [7; 1000]).unwrap();
    refuses(&OpenOptions::new(&odd), Cause::Misconfigured, &["1000", "512", "truncate"]);
    let disk = open(&OpenOptions::new(&odd).readonly(true)).unwrap();
    assert_eq!(disk.size(), 1024);
    let mut data = [1; 1024];
    disk.read_at(0, &mut data).unwrap();
    assert!(data[..1000] == [7; 1000] && data[1000..] == [0; 24]);
    assert_eq!(disk.write_at(0, &[0; 512]).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(disk.discard(0, 512).unwrap_err().kind(), ErrorKind::PermissionDenied);
    disk.flush().unwrap();

    let empty = raw_file(dir.path(), "empty.raw", 0);
    refuses(&OpenOptions::new(&empty), Cause::Misconfigured, &["empty", "truncate"]);
}

#[test]
fn requests_that_leave_the_disk_fail() {
    let dir = tempfile::tempdir().unwrap();
    let qcow2 = dir.path().join("a.qcow2");
    create_qcow2(&qcow2, 1 << 20, None).unwrap();
    let raw = raw_file(dir.path(), "a.raw", 1 << 20);
    for path in [qcow2, raw] {
        let disk = open(&OpenOptions::new(&path)).unwrap();
        let size = disk.size();
        assert_eq!(size, 1 << 20);
        let invalid = |result: std::io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        };
        invalid(disk.read_at(size - 511, &mut [0; 512]));
        invalid(disk.write_at(size, &[0; 512]));
        invalid(disk.write_at(u64::MAX, &[0; 512]));
        invalid(disk.discard(512, size));
        invalid(disk.discard(512, u64::MAX));
        invalid(disk.write_zeroes(u64::MAX - 511, 512, true));
        disk.read_at(size, &mut []).unwrap();
        disk.discard(0, size).unwrap();
        disk.write_zeroes(0, size, true).unwrap();
    }
}

#[test]
fn a_guessed_raw_disk_does_not_become_another_format() {
    let dir = tempfile::tempdir().unwrap();
    let image = raw_file(dir.path(), "disk.raw", 1 << 20);
    let header = [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 504]].concat();

    let disk = open(&OpenOptions::new(&image)).unwrap();
    let denied = |disk: &Arc<dyn Disk>, offset, data: &[u8]| {
        assert_eq!(disk.write_at(offset, data).unwrap_err().kind(), ErrorKind::PermissionDenied);
    };
    denied(&disk, 0, &header);
    // Nor byte by byte.
    disk.write_at(0, b"QFI").unwrap();
    denied(&disk, 3, b"\xfb");
    denied(&disk, 0, b"vhdxfile");
    // All else is the guest's business: a boot sector, the header elsewhere, LUKS.
    disk.write_at(0, &[0x55; 512]).unwrap();
    disk.write_at(0, b"LUKS\xba\xbe").unwrap();
    disk.write_at(512, &header).unwrap();
    drop(disk);
    assert!(fs::read(&image).unwrap().starts_with(b"LUKS"));

    // Whoever says that it is raw is obeyed, before and after.
    for _ in 0..2 {
        let disk = open(&OpenOptions::new(&image).format(Format::Raw)).unwrap();
        assert_eq!(disk.size(), 1 << 20);
        disk.write_at(0, &header).unwrap();
    }
    refuses(&OpenOptions::new(&image), Cause::Damaged, &["qcow2"]);
}

#[test]
fn foreign_formats_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.vmdk");
    fs::write(&image, [b"KDMV".as_slice(), &[0; 1020]].concat()).unwrap();
    refuses(&OpenOptions::new(&image), Cause::Unsupported, &["VMDK", "qemu-img convert"]);
    open(&OpenOptions::new(&image).format(Format::Raw)).unwrap();
    let raw = raw_file(dir.path(), "disk.raw", 512);
    let options = OpenOptions::new(&raw).format(Format::Qcow2);
    refuses(&options, Cause::Misconfigured, &["not a qcow2 image"]);
}

#[test]
fn what_can_not_be_served_is_refused_by_name() {
    if !have_qemu_img("what_can_not_be_served_is_refused_by_name") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, options: &[&str]| {
        let image = dir.path().join(name);
        let fixed = ["create", "-q", "-f", "qcow2"];
        let made = try_qemu_img(&[&fixed, options, &[text(&image), "16M"]].concat());
        made.status.success().then_some(image).or_else(|| {
            eprintln!("SKIPPED: {name}: this qemu-img can't make it");
            None
        })
    };
    let data_file = format!("data_file={}", text(&dir.path().join("data.raw")));
    for (name, options, word) in [
        ("zstd", &["-o", "compression_type=zstd"][..], "zstd"),
        ("subclusters", &["-o", "extended_l2=on"], "extended L2"),
        ("external", &["-o", &data_file], "external data file"),
        (
            "luks",
            &["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s"],
            "LUKS",
        ),
    ] {
        if let Some(image) = make(name, options) {
            for readonly in [false, true] {
                let options = OpenOptions::new(&image).readonly(readonly);
                refuses(&options, Cause::Unsupported, &[word, "qemu-img convert"]);
                assert_eq!(refused(&options).origin(), Origin::Artifact);
            }
        }
    }
    // Lazy refcounts are no obstacle so long as the image was closed properly.
    let lazy = make("lazy", &["-o", "lazy_refcounts=on"]).unwrap();
    open(&OpenOptions::new(&lazy)).unwrap();
    for (bit, words) in [(1u8, "not closed properly"), (2, "corrupt")] {
        let mut bytes = fs::read(&lazy).unwrap();
        bytes[79] = bit;
        fs::write(&lazy, bytes).unwrap();
        refuses(&OpenOptions::new(&lazy), Cause::Unsupported, &[words, "qemu-img check -r all"]);
    }
}

/// Damage that imago alone would not notice, and what it would do to the image.
#[test]
fn damaged_tables_are_refused() {
    if !have_qemu_img("damaged_tables_are_refused") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.qcow2");
    create_qcow2(&image, 1 << 30, None).unwrap();
    let disk = open(&OpenOptions::new(&image)).unwrap();
    disk.write_at(0, &[1; 4 << 16]).unwrap();
    drop(disk);
    check(&image, false);
    let sound = fs::read(&image).unwrap();
    let l2 = be64(&sound, 3 << 16) & 0x00ff_ffff_ffff_fe00;

    let damage = |at: u64, bytes: &[u8], writable_only: bool, word: &str| {
        let mut broken = sound.clone();
        broken[at as usize..][..bytes.len()].copy_from_slice(bytes);
        fs::write(&image, &broken).unwrap();
        refuses(&OpenOptions::new(&image), Cause::Damaged, &[word, "qemu-img check"]);
        let readonly = open(&OpenOptions::new(&image).readonly(true));
        assert_eq!(readonly.is_ok(), writable_only, "{word}");
        assert!(fs::read(&image).unwrap() == broken, "a refused image was changed");
    };
    // The header counts as free: imago would put guest data there.
    damage(2 << 16, &[0, 0], true, "the header at 0x0, which counts as free");
    damage(1 << 16, &[0; 8], true, "counts as free");
    damage(1 << 16, &(1u64 << 40).to_be_bytes(), true, "beyond the end");
    damage(1 << 16, &0x10000u64.to_be_bytes(), true, "something else lies already");
    // The L1 table points at the L1 table, at nothing, beyond the file, twice at one table.
    damage(3 << 16, &(1u64 << 63 | 3 << 16).to_be_bytes(), false, "something else lies");
    damage(3 << 16, &(1u64 << 63 | (3 << 16 | 512)).to_be_bytes(), false, "impossible offset");
    damage(3 << 16, &(1u64 << 63 | 1 << 50).to_be_bytes(), false, "beyond the end");
    damage((3 << 16) + 8, &(1u64 << 63 | l2).to_be_bytes(), false, "something else lies");
    // Guest data in the header, in the file twice, beyond the file, with bits that mean nothing.
    damage(l2 + 800, &(1u64 << 63 | l2).to_be_bytes(), false, "something else lies");
    damage(l2 + 800, &sound[l2 as usize..l2 as usize + 8], false, "something else lies");
    damage(l2 + 800, &(1u64 << 63 | 1 << 40).to_be_bytes(), false, "beyond the end");
    damage(l2 + 800, &(1u64 << 60).to_be_bytes(), false, "entry");
    damage(l2 + 800, &(1u64 << 62 | 1 << 40).to_be_bytes(), false, "beyond the end");
    damage(l2 + 800, &(1u64 << 62 | 0x10000).to_be_bytes(), false, "within a table");
    // Cut short.
    fs::write(&image, &sound[..sound.len() - (2 << 16)]).unwrap();
    refuses(&OpenOptions::new(&image), Cause::Damaged, &["cut short"]);
    fs::write(&image, &sound).unwrap();
    open(&OpenOptions::new(&image)).unwrap();
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn an_image_has_one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let image = raw_file(dir.path(), "disk.raw", 1 << 20);
    let writing = OpenOptions::new(&image);
    let reading = OpenOptions::new(&image).readonly(true);
    let writer = open(&writing).unwrap();
    refuses(&writing, Cause::Busy, &["another process"]);
    refuses(&reading, Cause::Busy, &["another process"]);
    drop(writer);
    let readers = (open(&reading).unwrap(), open(&reading).unwrap());
    refuses(&writing, Cause::Busy, &["another process"]);
    drop(readers);
    open(&writing).unwrap();
}

#[test]
fn qemu_and_lodge_respect_each_other() {
    if !have_qemu_img("qemu_and_lodge_respect_each_other") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, format) in [("a.raw", "raw"), ("a.qcow2", "qcow2")] {
        let image = dir.path().join(name);
        qemu_img(&["create", "-q", "-f", format, text(&image), "1M"]);

        let writer = open(&OpenOptions::new(&image)).unwrap();
        // (QEMU's raw driver lets others read what is being written.)
        for args in [&["resize", "-f", format, text(&image), "2M"][..], &["info", text(&image)]] {
            if args[0] == "info" && format == "raw" {
                continue;
            }
            let output = try_qemu_img(args);
            assert!(!output.status.success(), "{args:?} while Lodge writes");
            assert!(String::from_utf8_lossy(&output.stderr).contains("lock"), "{output:?}");
        }
        drop(writer);
        let reader = open(&OpenOptions::new(&image).readonly(true)).unwrap();
        qemu_img(&["info", "-f", format, text(&image)]);
        let output = try_qemu_img(&["resize", "-f", format, text(&image), "2M"]);
        assert!(!output.status.success(), "qemu-img wrote an image that Lodge reads");
        drop(reader);

        for (qemu_io_mode, lodge_may_read) in [(None, false), (Some("-r"), true)] {
            let Ok(mut qemu) = Command::new("qemu-io")
                .args(qemu_io_mode)
                .args(["-f", format, text(&image)])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
            else {
                eprintln!("SKIPPED: an image that QEMU uses: qemu-io is not installed");
                continue;
            };
            // It asks for a command once it has opened the image.
            let mut prompt = [0; 8];
            qemu.stdout.take().unwrap().read_exact(&mut prompt).unwrap();
            assert_eq!(&prompt, b"qemu-io>");
            // (As a reader, QEMU's raw driver lets others write.)
            if !(lodge_may_read && format == "raw") {
                refuses(&OpenOptions::new(&image), Cause::Busy, &[]);
            }
            let read = open(&OpenOptions::new(&image).readonly(true));
            assert_eq!(read.is_ok(), lodge_may_read, "{name} {qemu_io_mode:?}");
            qemu.kill().unwrap();
            qemu.wait().unwrap();
        }
        open(&OpenOptions::new(&image)).unwrap();
    }
}

#[test]
fn backing_files_are_found_shared_and_limited() {
    if !have_qemu_img("backing_files_are_found_shared_and_limited") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let base = raw_file(dir.path(), "base.raw", 1 << 20);
    let overlay = |name: &str, backing: &str, format: &[&str]| {
        let image = path(name);
        let fixed = ["create", "-q", "-u", "-f", "qcow2", "-b", backing];
        qemu_img(&[&fixed, format, &[text(&image), "1M"]].concat());
        image
    };

    // Two guests on one base.
    let a = overlay("a.qcow2", "base.raw", &["-F", "raw"]);
    let b = overlay("b.qcow2", "file:base.raw", &["-F", "raw"]);
    let guests = (open(&OpenOptions::new(&a)).unwrap(), open(&OpenOptions::new(&b)).unwrap());
    refuses(&OpenOptions::new(&base), Cause::Busy, &[]);
    drop(guests);

    let writer = open(&OpenOptions::new(&base)).unwrap();
    let error = refused(&OpenOptions::new(&a));
    assert_eq!((error.cause(), error.path()), (Cause::Busy, base.as_path()));
    assert!(error.to_string().contains("a.qcow2"), "{error}");
    drop(writer);

    let lost = overlay("lost.qcow2", "nowhere.raw", &["-F", "raw"]);
    let error = refused(&OpenOptions::new(&lost));
    assert_eq!((error.cause(), error.path()), (Cause::Missing, path("nowhere.raw").as_path()));

    let selfish = overlay("self.qcow2", "self.qcow2", &["-F", "qcow2"]);
    // Its own write lock stands in the way of reading it; read-only, the loop is seen.
    refuses(&OpenOptions::new(&selfish), Cause::Busy, &[]);
    refuses(&OpenOptions::new(&selfish).readonly(true), Cause::Damaged, &["leads back"]);
    overlay("x.qcow2", "y.qcow2", &["-F", "qcow2"]);
    overlay("y.qcow2", "x.qcow2", &["-F", "qcow2"]);
    let x = path("x.qcow2");
    refuses(&OpenOptions::new(&x).readonly(true), Cause::Damaged, &["leads back"]);

    let mut deep = overlay("deep0.qcow2", "base.raw", &["-F", "raw"]);
    for depth in 1..70 {
        let below = format!("deep{}.qcow2", depth - 1);
        deep = overlay(&format!("deep{depth}.qcow2"), &below, &["-F", "qcow2"]);
    }
    refuses(&OpenOptions::new(&deep), Cause::Damaged, &["longer than"]);
    open(&OpenOptions::new(path("deep60.qcow2"))).unwrap();

    let remote = overlay("remote.qcow2", "nbd://host/disk", &["-F", "raw"]);
    refuses(&OpenOptions::new(&remote), Cause::Unsupported, &["nbd:"]);
    let foreign = overlay("foreign.qcow2", "base.raw", &["-F", "vmdk"]);
    let error = refused(&OpenOptions::new(&foreign));
    assert_eq!((error.cause(), error.path()), (Cause::Unsupported, base.as_path()));
}

/// An overlay that does not say what its backing file is: a guest may have written that file.
#[test]
fn an_unnamed_backing_format_is_guessed_with_care() {
    if !have_qemu_img("an_unnamed_backing_format_is_guessed_with_care") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // qemu-img does not make such overlays any more, so the record is taken out again.
    let overlay = |name: &str, backing: &str, format: &str| {
        let image = path(name);
        qemu_img(&[
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-b",
            backing,
            "-F",
            format,
            text(&image),
            "1M",
        ]);
        let mut bytes = fs::read(&image).unwrap();
        let at = bytes.windows(4).position(|w| w == 0xe279_2acau32.to_be_bytes()).unwrap();
        bytes[at..at + 4].copy_from_slice(&0x1234_5678u32.to_be_bytes());
        fs::write(&image, bytes).unwrap();
        image
    };
    raw_file(dir.path(), "base.raw", 1 << 20);
    open(&OpenOptions::new(overlay("a.qcow2", "base.raw", "raw"))).unwrap();
    create_qcow2(&path("plain.qcow2"), 1 << 20, None).unwrap();
    open(&OpenOptions::new(overlay("b.qcow2", "plain.qcow2", "qcow2"))).unwrap();

    let secret = Backing { path: path("base.raw"), relative: false, format: Format::Raw };
    create_qcow2(&path("guest-wrote-this.raw"), 1 << 20, Some(&secret)).unwrap();
    let error = refused(&OpenOptions::new(overlay("c.qcow2", "guest-wrote-this.raw", "qcow2")));
    assert_eq!(error.cause(), Cause::Misconfigured);
    assert!(error.to_string().contains("qemu-img rebase"), "{error}");
}

#[test]
fn new_images_are_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.qcow2");
    let cause = |result: Result<(), Error>| result.unwrap_err().cause();
    for size in [0, 1000, u64::MAX, u64::MAX - 511, (2 << 50) + 512] {
        assert_eq!(cause(create_qcow2(&image, size, None)), Cause::Misconfigured);
    }
    let untold = Backing { path: "base.raw".into(), relative: false, format: Format::Auto };
    assert_eq!(cause(create_qcow2(&image, 512, Some(&untold))), Cause::Misconfigured);
    let nowhere = dir.path().join("nowhere/disk.qcow2");
    assert_eq!(cause(create_qcow2(&nowhere, 512, None)), Cause::Missing);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");

    create_qcow2(&image, 512, None).unwrap();
    let bytes = fs::read(&image).unwrap();
    assert_eq!(cause(create_qcow2(&image, 1024, None)), Cause::Misconfigured);
    assert!(fs::read(&image).unwrap() == bytes, "an image was overwritten");
    assert_eq!(fs::metadata(&image).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
    assert_eq!(open(&OpenOptions::new(&image)).unwrap().size(), 512);

    if have_qemu_img("new_images_are_whole_or_not_there") {
        check(&image, false);
        for (name, size) in [("large", 8u64 << 40), ("largest", 2 << 50)] {
            let image = dir.path().join(name);
            create_qcow2(&image, size, None).unwrap();
            check(&image, false);
            let disk = open(&OpenOptions::new(&image)).unwrap();
            disk.write_at(size - 512, &[1; 512]).unwrap();
            disk.write_at(size / 2, &[2; 512]).unwrap();
            drop(disk);
            check(&image, false);
        }
    }
}

#[test]
fn an_overlay_takes_the_writes() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    let mut data = vec![0; 1 << 20];
    Rng(1).fill(&mut data);
    fs::write(&base, &data).unwrap();
    let overlay = dir.path().join("run.qcow2");
    let options = OpenOptions::new(&base).format(Format::Raw);

    for round in 0..2 {
        let disk = open_overlay(&overlay, &options).unwrap();
        assert!(!disk.is_readonly());
        let mut read = vec![0; 1 << 20];
        disk.read_at(0, &mut read).unwrap();
        assert!(read == data, "round {round}");
        data[5000..6000].fill(round + 1);
        disk.write_at(5000, &data[5000..6000]).unwrap();
    }
    assert!(fs::read(&base).unwrap() != data, "the base was written");
    if have_qemu_img("an_overlay_takes_the_writes") {
        check(&overlay, false);
        assert!(contents(&overlay, "qcow2") == data);
    }

    // Not another base's overlay.
    let other = raw_file(dir.path(), "other.raw", 1 << 20);
    let error = open_overlay(&overlay, &OpenOptions::new(&other)).err().unwrap();
    assert_eq!(error.cause(), Cause::Misconfigured, "{error}");
    // Of a base that is not there, nothing is made.
    let missing = OpenOptions::new(dir.path().join("missing.raw"));
    let new = dir.path().join("new.qcow2");
    assert_eq!(open_overlay(&new, &missing).err().unwrap().cause(), Cause::Missing);
    assert!(!new.exists());
    // The format of a base that is not told is guessed, and recorded.
    let qcow2_base = overlay;
    open_overlay(&new, &OpenOptions::new(&qcow2_base)).unwrap();
    let mut read = vec![0; 1 << 20];
    open(&OpenOptions::new(&new)).unwrap().read_at(0, &mut read).unwrap();
    assert!(read == data);
}

/// What is discarded goes back to the host.
#[test]
fn discards_free_room_on_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let allocated = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    let raw = raw_file(dir.path(), "a.raw", 8 << 20);
    let qcow2 = dir.path().join("a.qcow2");
    create_qcow2(&qcow2, 8 << 20, None).unwrap();
    for path in [raw, qcow2] {
        for zero in [false, true] {
            let disk = open(&OpenOptions::new(&path)).unwrap();
            disk.write_at(0, &vec![1; 8 << 20]).unwrap();
            disk.flush().unwrap();
            let full = allocated(&path);
            assert!(full >= 8 << 20);
            if zero {
                disk.write_zeroes(0, 8 << 20, true).unwrap();
            } else {
                disk.discard(0, 8 << 20).unwrap();
            }
            disk.flush().unwrap();
            drop(disk);
            if allocated(&path) > full - (7 << 20) {
                eprintln!("SKIPPED: this file system does not punch holes");
            }
        }
    }
}

/// A loop device that is given back.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["-f", "--show", text(file)]).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| LoopDevice(name.trim().into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", text(&self.0)]).status();
    }
}

#[test]
fn a_block_device_is_a_raw_disk() {
    let dir = tempfile::tempdir().unwrap();
    let file = raw_file(dir.path(), "disk.raw", 1 << 20);
    let Some(device) = LoopDevice::new(&file) else {
        eprintln!("SKIPPED: a_block_device_is_a_raw_disk: no loop devices for this user");
        return;
    };
    let options = OpenOptions::new(&device.0).format(Format::Raw);
    let disk = open(&options).unwrap();
    assert_eq!(disk.size(), 1 << 20);
    let mut model = vec![0; 1 << 20];
    Rng(1).fill(&mut model);
    disk.write_at(0, &model).unwrap();
    disk.write_zeroes(512, 1024, false).unwrap();
    model[512..1536].fill(0);
    disk.write_zeroes(8192, 65536, true).unwrap();
    model[8192..8192 + 65536].fill(0);
    disk.discard(1 << 19, 4096).unwrap();
    disk.flush().unwrap();
    let mut data = vec![1; 1 << 20];
    disk.read_at(0, &mut data).unwrap();
    model[1 << 19..][..4096].copy_from_slice(&data[1 << 19..][..4096]);
    assert!(data == model);
    // The kernel's own claim keeps a second writer off, whatever name it comes by.
    refuses(&options, Cause::Busy, &[]);
    drop(disk);
    open(&options.readonly(true)).unwrap();
}
