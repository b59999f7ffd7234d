//! Damaged images are refused or served; they never make us panic, hang or take much memory, and a
//! writable image that was accepted is no worse afterwards.

mod common;

use block::{Format, OpenOptions, open};
use common::{Rng, have_qemu_img, qemu_img, text, try_qemu_img};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Counts what is allocated, and its peak.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static PANICS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes all on to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that opening and using a small image may take: the limits of both tables (32 and
/// 8 MiB), read and parsed, with room to spare.
const MAX_MEMORY: usize = 160 << 20;
const MAX_TIME: Duration = Duration::from_secs(120);

/// An image with everything in it: several L2 tables, a snapshot, compressed and zero clusters.
fn sample(dir: &Path, cluster_size: &str, version: &str) -> Vec<u8> {
    let (raw, image) = (dir.join("sample.raw"), dir.join("sample.qcow2"));
    let mut data = vec![0; 1 << 20];
    Rng(5).fill(&mut data[..200_000]);
    data[300_000..500_000].fill(3);
    std::fs::write(&raw, data).unwrap();
    let options = format!("cluster_size={cluster_size},compat={version}");
    qemu_img(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        &options,
        text(&raw),
        text(&image),
    ]);
    let disk = open(&OpenOptions::new(&image)).unwrap();
    disk.write_at(4096, &[9; 65536]).unwrap();
    disk.write_zeroes(131_072, 65536, true).unwrap();
    drop(disk);
    qemu_img(&["snapshot", "-c", "one", text(&image)]);
    let disk = open(&OpenOptions::new(&image)).unwrap();
    disk.write_at(8192, &[9; 8192]).unwrap();
    drop(disk);
    std::fs::read(&image).unwrap()
}

/// Opens an image and, if it is accepted, uses it. Returns whether it was.
fn use_image(image: &Path, readonly: bool) -> bool {
    let options = OpenOptions::new(image).format(Format::Qcow2).readonly(readonly);
    let Ok(disk) = open(&options) else { return false };
    let size = disk.size();
    let mut data = vec![0; 128 << 10];
    for offset in [0, 60_000, 140_000, 300_032, size.saturating_sub(4096)] {
        let len = data.len().min(size.saturating_sub(offset) as usize);
        let _ = disk.read_at(offset, &mut data[..len]);
        if !readonly {
            let _ = disk.write_at(offset, &data[..len.min(4096)]);
            let _ = disk.discard(offset, len.min(65536) as u64);
            let _ = disk.write_zeroes(offset, len.min(5000) as u64, false);
            let _ = disk.flush();
        }
    }
    true
}

/// Damages `sample` as told and requires decent behaviour.
fn try_damaged(dir: &Path, sample: &[u8], changes: &[(usize, u8)], cut: Option<usize>) {
    let image = dir.join("damaged.qcow2");
    let mut bytes = sample.to_vec();
    for (at, byte) in changes {
        if let Some(target) = bytes.get_mut(*at) {
            *target = *byte;
        }
    }
    bytes.truncate(cut.unwrap_or(bytes.len()));
    for readonly in [true, false] {
        std::fs::write(&image, &bytes).unwrap();
        let before = NOW.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let start = Instant::now();
        let accepted = use_image(&image, readonly);
        let (took, peak) = (start.elapsed(), PEAK.load(Ordering::Relaxed) - before);
        let what = || format!("{changes:x?}, cut to {cut:?}, readonly {readonly}");
        assert!(took < MAX_TIME, "{took:?} for {}", what());
        assert!(peak < MAX_MEMORY, "{peak} bytes for {}", what());
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "a panic for {}", what());
        if !accepted || readonly {
            assert!(std::fs::read(&image).unwrap() == bytes, "changed by {}", what());
        } else {
            // The active tables were found sound and must still be. What a snapshot refers to is
            // not checked, nor are refcounts that are too high; the refcounts and flags that
            // follow from those are not ours either. What must not be is a cluster in use that
            // counts as free, or that two things use.
            let output = try_qemu_img(&["check", "-f", "qcow2", "-U", text(&image)]);
            let report = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            let before = dir.join("before.qcow2");
            std::fs::write(&before, &bytes).unwrap();
            let sound = try_qemu_img(&["check", "-f", "qcow2", text(&before)]);
            if matches!(sound.status.code(), Some(0 | 3)) {
                let clean = matches!(output.status.code(), Some(0 | 3));
                assert!(clean, "made worse, {}: {report}", what());
            }
        }
    }
}

/// Counts panics in all threads from now on. Only one test of this binary expects none.
fn watch_panics() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.location().is_some_and(|at| at.file().contains("tests/damage.rs")) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        hook(info);
    }));
}

/// One test for all, since it watches the whole process.
#[test]
fn damage_is_borne() {
    if !have_qemu_img("damage_is_borne") {
        return;
    }
    watch_panics();
    let dir = tempfile::tempdir().unwrap();
    let samples = [("512", "1.1"), ("4096", "1.1"), ("65536", "1.1"), ("4096", "0.10")]
        .map(|(cluster_size, version)| sample(dir.path(), cluster_size, version));

    corpus(dir.path(), &samples[2]);

    let byte = prop_oneof![Just(0u8), Just(1), Just(0x80), Just(0xff), any::<u8>()];
    let place = prop_oneof![
        // The header and its extensions,
        4 => (0usize..120).prop_map(Place::Absolute),
        1 => (0usize..600).prop_map(Place::Absolute),
        // the start of each of the first clusters, where tables are,
        6 => (0usize..24, 0usize..64).prop_map(|(c, at)| Place::InCluster(c, at)),
        // anywhere.
        3 => any::<prop::sample::Index>().prop_map(Place::Anywhere),
    ];
    let changes = prop::collection::vec((place, byte), 1..6);
    let cut = prop_oneof![9 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    let config = ProptestConfig {
        cases: 150,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Default::default()
    };
    proptest!(config, |(which in 0usize..4, changes in changes, cut in cut)| {
        let sample = &samples[which];
        let cluster = [512, 4096, 65536, 4096][which];
        let changes: Vec<_> = changes
            .iter()
            .map(|(place, byte)| match place {
                Place::Absolute(at) => (*at, *byte),
                Place::InCluster(c, at) => (c * cluster + at, *byte),
                Place::Anywhere(index) => (index.index(sample.len()), *byte),
            })
            .collect();
        try_damaged(dir.path(), sample, &changes, cut.map(|cut| cut.index(sample.len())));
    });
}

#[derive(Clone, Debug)]
enum Place {
    Absolute(usize),
    InCluster(usize, usize),
    Anywhere(prop::sample::Index),
}

/// Header fields with the values that have hurt other readers.
fn corpus(dir: &Path, sample: &[u8]) {
    let fields: &[(usize, usize)] = &[
        (4, 4),   // version
        (8, 8),   // backing_file_offset
        (16, 4),  // backing_file_size
        (20, 4),  // cluster_bits
        (24, 8),  // size
        (32, 4),  // crypt_method
        (36, 4),  // l1_size
        (40, 8),  // l1_table_offset
        (48, 8),  // refcount_table_offset
        (56, 4),  // refcount_table_clusters
        (60, 4),  // nb_snapshots
        (64, 8),  // snapshots_offset
        (72, 8),  // incompatible_features
        (80, 8),  // compatible_features
        (88, 8),  // autoclear_features
        (96, 4),  // refcount_order
        (100, 4), // header_length
        (104, 1), // compression_type
        (112, 4), // the first extension's type
        (116, 4), // and length
    ];
    let values: &[u64] = &[
        0,
        1,
        2,
        8,
        9,
        22,
        63,
        72,
        112,
        512,
        1024,
        65536,
        0x7fff_ffff,
        0xffff_ffff,
        0xffff_0000,
        1 << 40,
        1 << 56,
        1 << 63,
        u64::MAX - 65535,
        u64::MAX,
    ];
    for (at, len) in fields {
        for value in values {
            let bytes = value.to_be_bytes();
            let changes: Vec<_> =
                bytes[8 - len..].iter().enumerate().map(|(i, byte)| (at + i, *byte)).collect();
            try_damaged(dir, sample, &changes, None);
        }
    }
    for cut in [0, 1, 4, 71, 72, 103, 104, 500, 65536, 70000, 131_072, 200_000] {
        try_damaged(dir, sample, &[], Some(cut));
    }
    // imago panics on a feature name table whose last entry has one byte: an extension of 49 bytes
    // where the first one stands.
    let table: Vec<_> = [0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 49]
        .into_iter()
        .enumerate()
        .map(|(i, byte)| (112 + i, byte))
        .chain((0..49).map(|i| (120 + i, 0)))
        .collect();
    try_damaged(dir, sample, &table, None);
}
