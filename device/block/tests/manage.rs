//! Making, resizing and converting images, held against what qemu-img makes of them.

mod common;

use block::{
    Backing, Cause, Disk, Error, Format, OpenOptions, convert, create_qcow2, create_raw, info,
    open, resize,
};
use common::{Rng, check, contents, have_qemu_img, qemu_img, text};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

fn qcow2(path: &Path) -> OpenOptions {
    OpenOptions::new(path).format(Format::Qcow2)
}

fn raw(path: &Path) -> OpenOptions {
    OpenOptions::new(path).format(Format::Raw)
}

/// Pieces of random bytes here and there.
fn fill(disk: &dyn Disk, rng: &mut Rng) {
    for _ in 0..40 {
        let mut data = vec![0; 512 * (1 + rng.below(300) as usize)];
        rng.fill(&mut data);
        let offset = rng.below((disk.size() - data.len() as u64) / 512) * 512;
        disk.write_at(offset, &data).unwrap();
    }
    disk.flush().unwrap();
}

fn all(options: &OpenOptions) -> Vec<u8> {
    let disk = open(&options.clone().readonly(true)).unwrap();
    let mut data = vec![0; disk.size() as usize];
    disk.read_at(0, &mut data).unwrap();
    data
}

fn converted(source: &OpenOptions, target: &Path, format: Format) {
    let copied = convert(source, target, format, |_, _| ControlFlow::Continue(())).unwrap();
    assert!(copied.is_continue());
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn raw_images_are_made_sparse_and_resized() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.raw");
    create_raw(&image, 1 << 30).unwrap();
    let made = info(&OpenOptions::new(&image)).unwrap();
    assert_eq!((made.format, made.size, made.in_use), (Format::Raw, 1 << 30, false));
    assert!(made.allocated < MIB, "{made:?}");
    assert_eq!(create_raw(&image, MIB).unwrap_err().cause(), Cause::Misconfigured);

    let disk = open(&raw(&image)).unwrap();
    disk.write_at(0, &[1; 1024]).unwrap();
    assert!(info(&raw(&image)).unwrap().in_use);
    assert_eq!(resize(&raw(&image), 2 * MIB).unwrap_err().cause(), Cause::Busy);
    drop(disk);
    resize(&raw(&image), 512).unwrap();
    resize(&raw(&image), 1536).unwrap();
    assert_eq!(all(&raw(&image)), [vec![1; 512], vec![0; 1024]].concat());
    for size in [0, 513, u64::MAX] {
        assert_eq!(resize(&raw(&image), size).unwrap_err().cause(), Cause::Misconfigured);
    }
}

#[test]
fn qcow2_images_grow_and_shrink() {
    let have_qemu_img =
        have_qemu_img("qcow2_images_grow_and_shrink (its comparison with qemu-img)");
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    create_qcow2(&image, 8 * MIB, None).unwrap();
    let mut rng = Rng(7);
    let mut expected = vec![0; 8 << 20];
    // To sizes within a cluster, over the reach of an L2 table (512 MiB), and far beyond that of
    // the first L1 table.
    for size in
        [9 * MIB, 9 * MIB + 512, 3 * MIB + 512, 5 * MIB, 600 * MIB, 4 * MIB, 6 << 40, 7 * MIB]
    {
        let disk = open(&qcow2(&image)).unwrap();
        let mut data = vec![0; 70_000 / 512 * 512];
        rng.fill(&mut data);
        // The end of what is compared, so that it is cut when the disk shrinks.
        let offset = expected.len() - data.len();
        disk.write_at(offset as u64, &data).unwrap();
        expected[offset..].copy_from_slice(&data);
        drop(disk);
        resize(&qcow2(&image), size).unwrap();
        assert_eq!(info(&qcow2(&image)).unwrap().size, size);
        expected.resize(size.min(16 * MIB) as usize, 0);
        let disk = open(&qcow2(&image)).unwrap();
        let mut start = vec![1; expected.len()];
        disk.read_at(0, &mut start).unwrap();
        assert!(start == expected, "other contents at {size}");
        // All of it can be written.
        disk.write_at(size - 512, &[0; 512]).unwrap();
        drop(disk);
        if have_qemu_img {
            check(&image, false);
        }
    }
    if have_qemu_img {
        assert!(contents(&image, "qcow2") == expected);
    }
}

#[test]
fn what_was_cut_off_stays_away_and_a_backing_file_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.raw");
    fs::write(&base, vec![b'b'; 4 << 20]).unwrap();
    let image = dir.path().join("a.qcow2");
    let backing = Backing { path: base, relative: false, format: Format::Raw };
    create_qcow2(&image, 4 * MIB, Some(&backing)).unwrap();
    resize(&qcow2(&image), MIB + 512).unwrap();
    resize(&qcow2(&image), 6 * MIB).unwrap();
    let data = all(&qcow2(&image));
    let kept = MIB as usize + 512;
    assert!(data[..kept].iter().all(|byte| *byte == b'b'));
    assert!(data[kept..].iter().all(|byte| *byte == 0));
    if have_qemu_img("what_was_cut_off_stays_away (its comparison with qemu-img)") {
        check(&image, false);
        assert!(contents(&image, "qcow2") == data);
    }
}

#[test]
fn images_that_hold_more_than_a_disk_are_not_resized() {
    if !have_qemu_img("images_that_hold_more_than_a_disk_are_not_resized") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    let refused = |words: &str| {
        let before = fs::read(&image).unwrap();
        let error = resize(&qcow2(&image), 8 * MIB).unwrap_err();
        assert_eq!(error.cause(), Cause::Unsupported, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(fs::read(&image).unwrap() == before);
    };
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "compat=0.10", text(&image), "4M"]);
    refused("version 2");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&image), "4M"]);
    qemu_img(&["snapshot", "-c", "s", text(&image)]);
    assert_eq!(info(&qcow2(&image)).unwrap().qcow2.unwrap().snapshots, 1);
    refused("snapshots");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&image), "4M"]);
    qemu_img(&["bitmap", "--add", text(&image), "b"]);
    refused("bitmaps");
}

#[test]
fn copies_are_alike_and_sparse() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut rng = Rng(11);
    let size = 64 * MIB;
    create_raw(&path("a.raw"), size).unwrap();
    fill(&*open(&raw(&path("a.raw"))).unwrap(), &mut rng);
    // A chain of two, of which the upper one has zeroes of its own.
    let backing = Backing { path: path("a.raw"), relative: false, format: Format::Raw };
    create_qcow2(&path("over.qcow2"), size, Some(&backing)).unwrap();
    let disk = open(&qcow2(&path("over.qcow2"))).unwrap();
    fill(&*disk, &mut rng);
    disk.write_zeroes(10 * MIB, 20 * MIB, true).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let expected = all(&qcow2(&path("over.qcow2")));

    converted(&OpenOptions::new(path("over.qcow2")), &path("b.qcow2"), Format::Qcow2);
    converted(&OpenOptions::new(path("b.qcow2")), &path("c.raw"), Format::Raw);
    converted(&OpenOptions::new(path("c.raw")), &path("d.qcow2"), Format::Qcow2);
    assert!(fs::read(path("c.raw")).unwrap() == expected);
    assert!(all(&qcow2(&path("d.qcow2"))) == expected);
    let data = expected.chunks(4096).filter(|page| page.iter().any(|b| *b != 0)).count() as u64;
    assert!(info(&raw(&path("c.raw"))).unwrap().allocated <= data * 4096 + MIB);
    let clusters = expected.chunks(65536).filter(|c| c.iter().any(|b| *b != 0)).count() as u64;
    for copy in ["b.qcow2", "d.qcow2"] {
        assert!(fs::metadata(path(copy)).unwrap().len() <= (clusters + 16) * 65536);
        let qcow2 = info(&OpenOptions::new(path(copy))).unwrap().qcow2.unwrap();
        assert_eq!(qcow2.backing, None);
    }
    if have_qemu_img("copies_are_alike_and_sparse (its comparison with qemu-img)") {
        for (a, b) in [("over.qcow2", "b.qcow2"), ("b.qcow2", "c.raw"), ("a.raw", "a.raw")] {
            qemu_img(&["compare", text(&path(a)), text(&path(b))]);
        }
        check(&path("b.qcow2"), false);
        check(&path("d.qcow2"), false);
        // What qemu-img makes, compressed and with other clusters, is read.
        for (name, option) in [("-c", "cluster_size=65536"), ("-q", "cluster_size=4096")] {
            let image = path("theirs.qcow2");
            qemu_img(&[
                "convert",
                name,
                "-O",
                "qcow2",
                "-o",
                option,
                text(&path("c.raw")),
                text(&image),
            ]);
            converted(&qcow2(&image), &path("theirs.raw"), Format::Raw);
            qemu_img(&["compare", text(&path("c.raw")), text(&path("theirs.raw"))]);
            fs::remove_file(path("theirs.raw")).unwrap();
        }
    }
}

#[test]
fn an_odd_file_is_copied_whole() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("odd.raw");
    fs::write(&odd, [7; 1000]).unwrap();
    let copy = dir.path().join("copy.qcow2");
    converted(&OpenOptions::new(&odd), &copy, Format::Qcow2);
    assert_eq!(all(&qcow2(&copy)), [vec![7; 1000], vec![0; 24]].concat());
}

#[test]
fn what_is_cut_off_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    create_qcow2(&image, 64 * MIB, None).unwrap();
    let disk = open(&qcow2(&image)).unwrap();
    disk.write_at(0, &vec![1; 32 << 20]).unwrap();
    drop(disk);
    let before = info(&qcow2(&image)).unwrap().allocated;
    resize(&qcow2(&image), 4 * MIB).unwrap();
    let after = info(&qcow2(&image)).unwrap().allocated;
    assert!(before >= 32 * MIB && after < 8 * MIB, "{before} {after}");
}

/// Whatever ends the work early, nothing is left of it.
#[test]
fn no_half_copy_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    fs::write(path("a.raw"), vec![1; 8 << 20]).unwrap();
    let source = raw(&path("a.raw"));
    for format in [Format::Raw, Format::Qcow2] {
        let mut steps = 0;
        let stopped = convert(&source, &path("b"), format, |done, total| {
            assert!(done <= total && total == 8 * MIB);
            steps += 1;
            if steps == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(stopped.unwrap().is_break());
        assert_eq!(names(dir.path()), ["a.raw"]);
    }
    fs::write(path("b"), "mine").unwrap();
    let refused = |result: Result<ControlFlow<()>, Error>| {
        assert_eq!(result.unwrap_err().cause(), Cause::Misconfigured);
    };
    refused(convert(&source, &path("b"), Format::Raw, |_, _| ControlFlow::Continue(())));
    refused(convert(&source, &path("c"), Format::Auto, |_, _| ControlFlow::Continue(())));
    assert_eq!(fs::read(path("b")).unwrap(), b"mine");
    assert_eq!(names(dir.path()), ["a.raw", "b"]);
    let writer = open(&source).unwrap();
    let busy = convert(&source, &path("c"), Format::Raw, |_, _| ControlFlow::Continue(()));
    assert_eq!(busy.unwrap_err().cause(), Cause::Busy);
    drop(writer);
    assert_eq!(names(dir.path()), ["a.raw", "b"]);
}

#[test]
fn what_cannot_be_opened_is_not_worked_on() {
    if !have_qemu_img("what_cannot_be_opened_is_not_worked_on") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("secret.qcow2");
    let secret =
        ["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s"];
    let create = ["create", "-q", "-f", "qcow2"];
    qemu_img(&[&create[..], &secret, &[text(&image), "1M"]].concat());
    let target = dir.path().join("copy");
    let errors = [
        info(&qcow2(&image)).unwrap_err(),
        resize(&qcow2(&image), 2 * MIB).unwrap_err(),
        convert(&qcow2(&image), &target, Format::Raw, |_, _| ControlFlow::Continue(()))
            .unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.cause(), Cause::Unsupported);
        assert!(error.to_string().contains("encrypted"), "{error}");
    }
    assert!(!target.exists());
}
