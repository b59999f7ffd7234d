//! Several workers use one disk at a time.

mod common;

use block::{Disk, Format, OpenOptions, create_qcow2, open};
use common::{Rng, check, contents, have_qemu_img, qemu_img, text};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const WORKERS: u64 = 4;
const SIZE: u64 = 8 << 20;
const SECTORS: u64 = SIZE / 512;

/// Each worker owns every fourth run of three sectors, so that workers meet in all clusters but
/// never in a sector, and does all kinds of requests in its own.
fn hammer(disk: &Arc<dyn Disk>) -> Vec<u8> {
    let models = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..WORKERS).map(|worker| scope.spawn(move || work(&**disk, worker))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    (0..SIZE).map(|at| models[owner(at / 512) as usize][at as usize]).collect()
}

fn owner(sector: u64) -> u64 {
    sector / 3 % WORKERS
}

fn work(disk: &dyn Disk, worker: u64) -> Vec<u8> {
    let mut rng = Rng(worker);
    let mut model = vec![0; SIZE as usize];
    let runs = SECTORS / 3 / WORKERS;
    for round in 0..4000 {
        let sector = (rng.below(runs) * WORKERS + worker) * 3 + rng.below(3);
        let len = (1 + rng.below(3 - sector % 3)) * 512;
        let offset = sector * 512;
        let mine = &mut model[offset as usize..(offset + len) as usize];
        match rng.below(16) {
            0 => disk.discard(offset, len).and_then(|()| disk.read_at(offset, mine)).unwrap(),
            1..=3 => {
                disk.write_zeroes(offset, len, round % 2 == 0).unwrap();
                mine.fill(0);
            }
            4 if round % 10 == 0 => disk.flush().unwrap(),
            4..=8 => {
                let mut data = vec![0xa5; len as usize];
                disk.read_at(offset, &mut data).unwrap();
                assert!(data == mine, "worker {worker}, round {round}, {len} bytes at {offset:#x}");
            }
            _ => {
                rng.fill(mine);
                disk.write_at(offset, mine).unwrap();
            }
        }
    }
    model
}

fn holds_together(image: &Path) {
    let disk = open(&OpenOptions::new(image).format(Format::Qcow2)).unwrap();
    let model = hammer(&disk);
    let mut data = vec![0; SIZE as usize];
    disk.read_at(0, &mut data).unwrap();
    assert!(data == model);
    drop(disk);
    if have_qemu_img("holds_together") {
        check(image, false);
        assert!(contents(image, "qcow2") == model);
    }
}

#[test]
fn workers_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.qcow2");
    create_qcow2(&image, SIZE, None).unwrap();
    holds_together(&image);
}

#[test]
fn workers_do_not_disturb_each_other_in_small_clusters() {
    if !have_qemu_img("workers_do_not_disturb_each_other_in_small_clusters") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.qcow2");
    let size = SIZE.to_string();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=1024", text(&image), &size]);
    holds_together(&image);
}

/// Zeroing a part of a cluster whose rest is zero too must not lose a write to the rest.
#[test]
fn zeroing_a_part_spares_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, clusters) = (64 << 10, 4096);
    for round in 0..2 {
        let image = dir.path().join(format!("disk{round}.qcow2"));
        create_qcow2(&image, cluster * clusters, None).unwrap();
        let disk = open(&OpenOptions::new(&image)).unwrap();
        let barrier = std::sync::Barrier::new(2);
        // In step, cluster by cluster: one zeroes the first sector, one writes the second.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..clusters {
                    barrier.wait();
                    disk.write_zeroes(i * cluster, 512, i % 2 == 0).unwrap();
                }
            });
            for i in 0..clusters {
                barrier.wait();
                disk.write_at(i * cluster + 512, &[7; 512]).unwrap();
            }
        });
        let lost = (0..clusters).filter(|i| {
            let mut data = [0; 512];
            disk.read_at(i * cluster + 512, &mut data).unwrap();
            data != [7; 512]
        });
        assert_eq!(lost.count(), 0, "writes were lost in round {round}");
    }
}

/// `cargo test -p block --release --test threads -- --ignored --nocapture` prints how fast the
/// formats are with one worker and with four.
#[test]
#[ignore = "prints numbers, asserts nothing"]
fn throughput() {
    let dir =
        tempfile::tempdir_in(std::env::var("LODGE_BENCH_DIR").unwrap_or("/tmp".into())).unwrap();
    let size = 1u64 << 30;
    let raw = dir.path().join("disk.raw");
    std::fs::File::create(&raw).unwrap().set_len(size).unwrap();
    let qcow2 = dir.path().join("disk.qcow2");
    create_qcow2(&qcow2, size, None).unwrap();
    for path in [raw, qcow2] {
        let name = path.extension().unwrap().to_owned();
        let disk = open(&OpenOptions::new(&path)).unwrap();
        let started = Instant::now();
        let mut at = 0;
        while at < size {
            disk.write_at(at, &[1; 1 << 20]).unwrap();
            at += 1 << 20;
        }
        disk.flush().unwrap();
        println!("{name:?}: first write, 1 MiB each: {:?} for 1 GiB", started.elapsed());
        for workers in [1, 4] {
            for (what, write) in [("read", false), ("write", true)] {
                let done = AtomicU64::new(0);
                let end = Instant::now() + Duration::from_secs(2);
                std::thread::scope(|scope| {
                    for worker in 0..workers {
                        let (disk, done) = (&disk, &done);
                        scope.spawn(move || {
                            let mut rng = Rng(worker);
                            let mut data = [0; 4096];
                            while Instant::now() < end {
                                let offset = rng.below(size / 4096) * 4096;
                                if write {
                                    disk.write_at(offset, &data).unwrap();
                                } else {
                                    disk.read_at(offset, &mut data).unwrap();
                                }
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                });
                let rate = done.into_inner() / 2;
                println!("{name:?}: {workers} workers, random {what} of 4 KiB: {rate}/s");
            }
        }
        let mut flushes = Vec::new();
        for i in 0..50 {
            disk.write_at(i * 8192, &[2; 4096]).unwrap();
            let started = Instant::now();
            disk.flush().unwrap();
            flushes.push(started.elapsed());
        }
        flushes.sort();
        println!("{name:?}: flush after one write: median {:?}", flushes[25]);
    }
}
