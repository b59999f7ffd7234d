//! Random requests give what a plain array of bytes gives, and leave images that qemu-img finds
//! clean and reads as we do.

mod common;

use block::{Backing, Disk, Format, OpenOptions, create_qcow2, open};
use common::{Rng, check, contents, have_qemu_img, qemu_img, text};
use proptest::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SIZE: u64 = 3 << 20;

#[derive(Clone, Debug)]
enum Op {
    Write { offset: u64, len: u64, seed: u64 },
    Read { offset: u64, len: u64 },
    Discard { offset: u64, len: u64 },
    Zero { offset: u64, len: u64, unmap: bool },
    Flush,
    Reopen,
}

/// Ranges of sectors, many of them small, some large, some at the disk's ends.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let sectors = SIZE / 512;
    (0..sectors, prop_oneof![4 => 1u64..16, 2 => 1u64..300, 1 => 1..sectors])
        .prop_map(move |(start, len)| (start * 512, len.min(sectors - start) * 512))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (range(), any::<u64>())
            .prop_map(|((offset, len), seed)| Op::Write { offset, len, seed }),
        3 => range().prop_map(|(offset, len)| Op::Read { offset, len }),
        2 => range().prop_map(|(offset, len)| Op::Discard { offset, len }),
        2 => (range(), any::<bool>())
            .prop_map(|((offset, len), unmap)| Op::Zero { offset, len, unmap }),
        2 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..60)
}

/// Does `ops` to the image and to an array that starts out the same; returns the array.
fn run(options: &OpenOptions, ops: &[Op]) -> Vec<u8> {
    let mut disk = open(options).unwrap();
    assert_eq!(disk.size(), SIZE);
    let mut model = vec![0; SIZE as usize];
    disk.read_at(0, &mut model).unwrap();
    for op in ops {
        match *op {
            Op::Write { offset, len, seed } => {
                let range = offset as usize..(offset + len) as usize;
                Rng(seed).fill(&mut model[range.clone()]);
                disk.write_at(offset, &model[range]).unwrap();
            }
            Op::Read { offset, len } => compare(&*disk, &model, offset, len),
            Op::Discard { offset, len } => {
                disk.discard(offset, len).unwrap();
                // Anything goes, but it must stay so.
                disk.read_at(offset, &mut model[offset as usize..(offset + len) as usize]).unwrap();
            }
            Op::Zero { offset, len, unmap } => {
                disk.write_zeroes(offset, len, unmap).unwrap();
                model[offset as usize..(offset + len) as usize].fill(0);
            }
            Op::Flush => disk.flush().unwrap(),
            Op::Reopen => {
                drop(disk);
                disk = open(options).unwrap();
            }
        }
    }
    compare(&*disk, &model, 0, SIZE);
    model
}

fn compare(disk: &dyn Disk, model: &[u8], offset: u64, len: u64) {
    let mut data = vec![0xa5; len as usize];
    disk.read_at(offset, &mut data).unwrap();
    let expected = &model[offset as usize..(offset + len) as usize];
    if let Some(at) = data.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("byte {:#x} is {:#x}, not {:#x}", offset + at as u64, data[at], expected[at]);
    }
    // If it lies in a file as it is, then the same is found there.
    let mut place = |file: &File, at: u64| {
        let read = file.read_at(&mut data, at)?;
        data[read..].fill(0);
        Ok(())
    };
    if disk.read_in_file(offset, len, &mut place).unwrap() {
        assert!(data == expected, "the file has something else at {offset:#x}");
    }
}

/// Runs `cases` random tests on images that `make` makes, and has qemu-img look at each.
fn agrees_with_qemu(test: &str, cases: u32, make: impl Fn(&Path) -> PathBuf) {
    if !have_qemu_img(test) {
        return;
    }
    let config = ProptestConfig { cases, failure_persistence: None, ..Default::default() };
    proptest!(config, |(ops in ops())| {
        let dir = tempfile::tempdir().unwrap();
        let image = make(dir.path());
        let model = run(&OpenOptions::new(&image).format(Format::Qcow2), &ops);
        check(&image, false);
        prop_assert!(contents(&image, "qcow2") == model, "qemu-img reads something else");
    });
}

fn qemu_create(dir: &Path, options: &str) -> PathBuf {
    let image = dir.join("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, text(&image), &SIZE.to_string()]);
    image
}

fn raw_base(dir: &Path, len: u64) -> PathBuf {
    let mut data = vec![0; len as usize];
    Rng(7).fill(&mut data);
    let path = dir.join("base.raw");
    std::fs::write(&path, data).unwrap();
    path
}

#[test]
fn raw() {
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() };
    proptest!(config, |(ops in ops())| {
        let dir = tempfile::tempdir().unwrap();
        let image = raw_base(dir.path(), SIZE);
        let model = run(&OpenOptions::new(&image).format(Format::Raw), &ops);
        prop_assert!(std::fs::read(&image).unwrap() == model);
    });
}

#[test]
fn qcow2_of_our_own() {
    agrees_with_qemu("qcow2_of_our_own", 30, |dir| {
        let image = dir.join("disk.qcow2");
        create_qcow2(&image, SIZE, None).unwrap();
        check(&image, false);
        image
    });
}

#[test]
fn qcow2_overlay_of_raw() {
    agrees_with_qemu("qcow2_overlay_of_raw", 30, |dir| {
        // Shorter than the overlay, and not a whole number of clusters or sectors.
        let path = raw_base(dir, SIZE - 300_001);
        let image = dir.join("disk.qcow2");
        create_qcow2(&image, SIZE, Some(&Backing { path, relative: false, format: Format::Raw }))
            .unwrap();
        image
    });
}

/// The smallest clusters make the most tables: L2 tables of 32 KiB, refcount blocks of 128 KiB.
#[test]
fn qcow2_smallest_clusters() {
    agrees_with_qemu("qcow2_smallest_clusters", 30, |dir| qemu_create(dir, "cluster_size=512"));
}

/// Refcount blocks of 32 KiB; the refcount table of one cluster has to grow at 2 MiB.
#[test]
fn qcow2_growing_refcount_table() {
    agrees_with_qemu("qcow2_growing_refcount_table", 30, |dir| {
        qemu_create(dir, "cluster_size=512,refcount_bits=64")
    });
}

#[test]
fn qcow2_single_bit_refcounts() {
    agrees_with_qemu("qcow2_single_bit_refcounts", 15, |dir| {
        qemu_create(dir, "cluster_size=4096,refcount_bits=1")
    });
}

#[test]
fn qcow2_largest_clusters() {
    agrees_with_qemu("qcow2_largest_clusters", 10, |dir| qemu_create(dir, "cluster_size=2M"));
}

#[test]
fn qcow2_version_2() {
    agrees_with_qemu("qcow2_version_2", 15, |dir| qemu_create(dir, "compat=0.10"));
}

#[test]
fn qcow2_preallocated() {
    agrees_with_qemu("qcow2_preallocated", 10, |dir| qemu_create(dir, "preallocation=metadata"));
}

#[test]
fn qcow2_over_compressed_clusters() {
    agrees_with_qemu("qcow2_over_compressed_clusters", 20, |dir| {
        let base = dir.join("base.raw");
        let text_like: Vec<u8> = (0..SIZE).map(|i| (i / 1000 % 251) as u8).collect();
        std::fs::write(&base, text_like).unwrap();
        let image = dir.join("disk.qcow2");
        let (from, to) = (text(&base), text(&image));
        qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", from, to]);
        image
    });
}

/// Clusters that a snapshot shares must be copied before they are written, and the snapshot must
/// stay as it was.
#[test]
fn qcow2_with_a_snapshot() {
    if !have_qemu_img("qcow2_with_a_snapshot") {
        return;
    }
    let config = ProptestConfig { cases: 20, failure_persistence: None, ..Default::default() };
    proptest!(config, |(before in ops(), after in ops())| {
        let dir = tempfile::tempdir().unwrap();
        let image = qemu_create(dir.path(), "cluster_size=4096");
        let options = OpenOptions::new(&image).format(Format::Qcow2);
        let old = run(&options, &before);
        qemu_img(&["snapshot", "-c", "old", text(&image)]);
        let new = run(&options, &after);
        check(&image, false);
        prop_assert!(contents(&image, "qcow2") == new);
        qemu_img(&["snapshot", "-a", "old", text(&image)]);
        prop_assert!(contents(&image, "qcow2") == old, "the snapshot has changed");
    });
}

#[test]
fn a_chain_is_read_through_and_only_its_top_written() {
    if !have_qemu_img("a_chain_is_read_through_and_only_its_top_written") {
        return;
    }
    let config = ProptestConfig { cases: 10, failure_persistence: None, ..Default::default() };
    proptest!(config, |(middle in ops(), top in ops())| {
        let dir = tempfile::tempdir().unwrap();
        raw_base(dir.path(), SIZE);
        let (mid, over) = (dir.path().join("mid.qcow2"), dir.path().join("over.qcow2"));
        // Names relative to the overlay.
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", text(&mid)]);
        let read = run(&OpenOptions::new(&mid), &middle);
        let mid_bytes = std::fs::read(&mid).unwrap();
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", text(&over)]);
        let disk: Arc<dyn Disk> = open(&OpenOptions::new(&over)).unwrap();
        compare(&*disk, &read, 0, SIZE);
        drop(disk);
        let model = run(&OpenOptions::new(&over), &top);
        check(&over, false);
        prop_assert!(contents(&over, "qcow2") == model);
        prop_assert!(std::fs::read(&mid).unwrap() == mid_bytes, "the middle has changed");
    });
}
