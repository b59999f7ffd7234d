//! A VMM that is killed leaves an image that holds all that was flushed, with leaked clusters at
//! worst.
//!
//! The child is this test binary itself. It does requests that are the same in each run and says
//! after each flush how many there were; the parent kills it at any moment and does them again in
//! memory.

mod common;

use block::{Disk, Format, OpenOptions, open};
use common::{Rng, check, contents, have_qemu_img, qemu_img, text};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const IMAGE: &str = "LODGE_BLOCK_CRASH_IMAGE";
const SIZE: u64 = 4 << 20;
const FLUSH_EVERY: u64 = 17;

/// Request number `n`: a range, and what it does.
struct Request {
    offset: u64,
    data: Vec<u8>,
    kind: Kind,
}

#[derive(PartialEq)]
enum Kind {
    Write,
    Zero { unmap: bool },
    Discard,
}

fn request(n: u64) -> Request {
    let mut rng = Rng(n);
    let sectors = SIZE / 512;
    let start = rng.below(sectors);
    let len = if rng.below(8) == 0 { rng.below(1000) } else { rng.below(30) } + 1;
    let mut data = vec![0; (len.min(sectors - start) * 512) as usize];
    let kind = match rng.below(12) {
        0 => Kind::Zero { unmap: true },
        1 => Kind::Zero { unmap: false },
        2 => Kind::Discard,
        _ => {
            rng.fill(&mut data);
            Kind::Write
        }
    };
    Request { offset: start * 512, data, kind }
}

fn perform(disk: &dyn Disk, n: u64) {
    let Request { offset, data, kind } = request(n);
    let len = data.len() as u64;
    match kind {
        Kind::Write => disk.write_at(offset, &data),
        Kind::Zero { unmap } => disk.write_zeroes(offset, len, unmap),
        Kind::Discard => disk.discard(offset, len),
    }
    .unwrap();
}

/// The child's life; as a test of its own it does nothing.
#[test]
fn crash_child() {
    let Some(image) = std::env::var_os(IMAGE) else { return };
    let disk = open(&OpenOptions::new(PathBuf::from(image)).format(Format::Qcow2)).unwrap();
    let mut stdout = std::io::stdout();
    writeln!(stdout, "begins").unwrap();
    for n in 0.. {
        perform(&*disk, n);
        if n % FLUSH_EVERY == 0 {
            disk.flush().unwrap();
            writeln!(stdout, "flushed {n}").unwrap();
        }
    }
}

/// Kills a child that has begun and flushed `flushes` times, after `patience`; returns the last
/// request that it said was flushed, if any.
fn kill_a_child(image: &Path, flushes: usize, patience: Duration) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash_child", "--nocapture"])
        .env(IMAGE, image)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "begins"));
    let mut flushed = lines.filter_map(|line| line.strip_prefix("flushed ")?.parse().ok());
    let last = flushed.by_ref().take(flushes).last();
    std::thread::sleep(patience);
    child.kill().unwrap();
    child.wait().unwrap();
    flushed.last().or(last)
}

/// Requires that `disk` is what the requests up to `flushed` make of `initial`, but for what later
/// requests may have touched.
fn verify(disk: &[u8], initial: &[u8], flushed: Option<u64>) {
    let mut model = initial.to_vec();
    // What may be anything: discarded, or changed after the flush.
    let mut unknown = vec![false; disk.len()];
    let done = flushed.map_or(0, |n| n + 1);
    for n in 0..done {
        let Request { offset, data, kind } = request(n);
        let range = offset as usize..offset as usize + data.len();
        unknown[range.clone()].fill(kind == Kind::Discard);
        model[range].copy_from_slice(&data);
    }
    // The child can't have got further than the next flush that it would have told of, and one
    // more whose word was lost.
    for n in done..done + 2 * FLUSH_EVERY {
        let Request { offset, data, .. } = request(n);
        unknown[offset as usize..offset as usize + data.len()].fill(true);
    }
    let wrong = (0..disk.len()).find(|&at| !unknown[at] && disk[at] != model[at]);
    if let Some(at) = wrong {
        panic!("after request {flushed:?}, byte {at:#x} is {:#x}, not {:#x}", disk[at], model[at]);
    }
}

fn survives(test: &str, make: impl Fn(&Path) -> PathBuf) {
    if !have_qemu_img(test) {
        return;
    }
    let mut rng = Rng(std::process::id().into());
    let mut flushes = 0;
    for round in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let image = make(dir.path());
        let initial = contents(&image, "qcow2");
        // From the very first requests to some thousands.
        let patience = Duration::from_micros(rng.below(30_000) * (round + 1));
        let flushed = kill_a_child(&image, round as usize, patience);
        flushes += flushed.map_or(0, |n| n / FLUSH_EVERY + 1);
        check(&image, true);
        verify(&contents(&image, "qcow2"), &initial, flushed);
        // And we take it up again where it stands.
        let disk = open(&OpenOptions::new(&image).format(Format::Qcow2)).unwrap();
        for n in 0..50 {
            perform(&*disk, n);
        }
        drop(disk);
        check(&image, true);
    }
    assert!(flushes > 0, "no child lived long enough to flush anything");
}

#[test]
fn small_clusters_survive() {
    survives("small_clusters_survive", |dir| {
        let image = dir.join("disk.qcow2");
        let size = SIZE.to_string();
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", text(&image), &size]);
        image
    });
}

#[test]
fn wide_refcounts_survive() {
    survives("wide_refcounts_survive", |dir| {
        let image = dir.join("disk.qcow2");
        let options = "cluster_size=512,refcount_bits=64";
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, text(&image), &SIZE.to_string()]);
        image
    });
}

#[test]
fn an_overlay_survives() {
    survives("an_overlay_survives", |dir| {
        let base = dir.join("base.raw");
        let mut data = vec![0; SIZE as usize];
        Rng(3).fill(&mut data);
        std::fs::write(&base, data).unwrap();
        let image = dir.join("disk.qcow2");
        let backing = block::Backing { path: base, relative: false, format: Format::Raw };
        block::create_qcow2(&image, SIZE, Some(&backing)).unwrap();
        image
    });
}

/// A raw image has no tables to lose, but flushed data must be there.
#[test]
fn a_raw_image_survives() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    std::fs::write(&image, vec![0; SIZE as usize]).unwrap();
    let disk = open(&OpenOptions::new(&image).format(Format::Raw)).unwrap();
    for n in 0..200 {
        perform(&*disk, n);
    }
    disk.flush().unwrap();
    drop(disk);
    verify(&std::fs::read(&image).unwrap(), &vec![0; SIZE as usize], Some(199));
}
