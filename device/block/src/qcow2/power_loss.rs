//! A test: a host that loses power keeps what was synced, and of the rest any sectors it likes. The
//! image must then hold all that was flushed, with leaked clusters at worst.

use super::disk::Qcow2Disk;
use crate::disk::Disk;
use crate::file::{Event, HostFile};
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const SIZE: u64 = 1 << 20;
const SECTORS: u64 = SIZE / 512;

#[derive(Clone, Debug)]
enum Op {
    Write { sector: u64, sectors: u64, byte: u8 },
    Zero { sector: u64, sectors: u64, unmap: bool },
    Discard { sector: u64, sectors: u64 },
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    let range = || {
        (0..SECTORS, prop_oneof![4 => 1u64..12, 1 => 1u64..200])
            .prop_map(|(sector, sectors)| (sector, sectors.min(SECTORS - sector)))
    };
    prop_oneof![
        8 => (range(), any::<u8>())
            .prop_map(|((sector, sectors), byte)| Op::Write { sector, sectors, byte }),
        2 => (range(), any::<bool>())
            .prop_map(|((sector, sectors), unmap)| Op::Zero { sector, sectors, unmap }),
        2 => range().prop_map(|(sector, sectors)| Op::Discard { sector, sectors }),
        // Many compressed clusters lie in one of the file's, which is free when all are.
        1 => Just(Op::Discard { sector: 0, sectors: SECTORS }),
        2 => Just(Op::Flush),
    ]
}

/// What the guest may rely on for each sector: a byte that fills it, or nothing.
type Known = Vec<Option<u8>>;

/// Does `ops` and returns, for each flush, how long the journal was then and what was known.
fn run(disk: &Qcow2Disk, host: &HostFile, ops: &[Op], initial: Known) -> Vec<(usize, Known)> {
    let mut now = initial.clone();
    let mut flushes = vec![(0, initial)];
    for op in ops {
        match *op {
            Op::Write { sector, sectors, byte } => {
                disk.write_at(sector * 512, &vec![byte; sectors as usize * 512]).unwrap();
                now[sector as usize..][..sectors as usize].fill(Some(byte));
            }
            Op::Zero { sector, sectors, unmap } => {
                disk.write_zeroes(sector * 512, sectors * 512, unmap).unwrap();
                now[sector as usize..][..sectors as usize].fill(Some(0));
            }
            Op::Discard { sector, sectors } => {
                disk.discard(sector * 512, sectors * 512).unwrap();
                now[sector as usize..][..sectors as usize].fill(None);
            }
            Op::Flush => {
                disk.flush().unwrap();
                flushes.push((host.journal.lock().unwrap().len(), now.clone()));
            }
        }
    }
    flushes
}

/// The file after a loss of power when `journal` is all that was done to it; `keep` says which
/// sectors of writes that were not synced survive.
fn after_loss(initial: &[u8], journal: &[Event], mut keep: impl FnMut() -> bool) -> Vec<u8> {
    let synced = journal.iter().rposition(|e| matches!(e, Event::Sync)).map_or(0, |at| at + 1);
    let mut file = initial.to_vec();
    for (i, event) in journal.iter().enumerate() {
        let Event::Write(offset, data) = event else { continue };
        let (mut at, mut data) = (*offset as usize, &data[..]);
        file.resize(file.len().max(at + data.len()), 0);
        while !data.is_empty() {
            let (sector, rest) = data.split_at(data.len().min(512 - at % 512));
            if i < synced || keep() {
                file[at..at + sector.len()].copy_from_slice(sector);
            }
            at += sector.len();
            data = rest;
        }
    }
    file
}

/// What a guest may rely on when power is lost after `cut` entries of the journal: what it had
/// flushed, but for the sectors that it changed after that.
fn known_at(cut: usize, ops: &[Op], flushes: &[(usize, Known)]) -> Known {
    let flushed = flushes.iter().rposition(|(at, _)| *at <= cut).unwrap();
    let mut known = flushes[flushed].1.clone();
    let mut flushes_seen = 0;
    for op in ops {
        match *op {
            Op::Flush => flushes_seen += 1,
            Op::Write { sector, sectors, .. }
            | Op::Zero { sector, sectors, .. }
            | Op::Discard { sector, sectors }
                if flushes_seen >= flushed =>
            {
                known[sector as usize..][..sectors as usize].fill(None);
            }
            _ => {}
        }
    }
    known
}

/// The content of the disk at first: every other 32 KiB are zeroes, and take no room.
fn initial_byte(sector: u64) -> u8 {
    if (sector / 64).is_multiple_of(2) { sector as u8 } else { 0 }
}

fn qemu_img(args: &[&str]) -> Option<Output> {
    Command::new("qemu-img").args(args).output().ok()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn survives(test: &str, how: &[&str]) {
    if qemu_img(&["--version"]).is_none() {
        eprintln!("SKIPPED: {test}: qemu-img is not installed (Debian: qemu-utils)");
        return;
    }
    let config = ProptestConfig { cases: 20, failure_persistence: None, ..Default::default() };
    let ops = prop::collection::vec(op(), 1..50);
    proptest!(config, |(ops in ops, seed in any::<u64>())| {
        let dir = tempfile::tempdir().unwrap();
        let (raw, image) = (dir.path().join("raw"), dir.path().join("image"));
        let bytes: Vec<u8> = (0..SIZE).map(|at| initial_byte(at / 512)).collect();
        fs::write(&raw, &bytes).unwrap();
        let args = [&["convert", "-f", "raw", "-O", "qcow2"], how, &[text(&raw), text(&image)]];
        let made = qemu_img(&args.concat()).unwrap();
        assert!(made.status.success(), "{made:?}");
        let initial = fs::read(&image).unwrap();

        let disk = super::open(HostFile::open(&image, true).unwrap(), false, &HostFile::open).unwrap();
        let known = (0..SECTORS).map(|sector| Some(initial_byte(sector))).collect();
        let flushes = run(&disk, disk.host(), &ops, known);
        let journal = std::mem::take(&mut *disk.host().journal.lock().unwrap());
        drop(disk);

        let mut random = seed;
        let mut next = || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            random >> 32
        };
        // Most is at stake right before a sync.
        let syncs: Vec<_> = (0..journal.len())
            .filter(|&i| matches!(journal[i], Event::Sync))
            .chain([journal.len()])
            .collect();
        for i in 0..8 {
            let cut = match i % 2 {
                0 => syncs[next() as usize % syncs.len()],
                _ => next() as usize % (journal.len() + 1),
            };
            // Nearly nothing is kept, nearly all, or half.
            let kept = [16, 128, 240][next() as usize % 3];
            let file = after_loss(&initial, &journal[..cut], || next() % 256 < kept);
            fs::write(&image, file).unwrap();

            let check = qemu_img(&["check", "-f", "qcow2", text(&image)]).unwrap();
            prop_assert!(
                matches!(check.status.code(), Some(0 | 3)),
                "after {cut} of {}: {}", journal.len(), String::from_utf8_lossy(&[check.stdout, check.stderr].concat())
            );
            let args = ["convert", "-f", "qcow2", "-O", "raw", text(&image), text(&raw)];
            let converted = qemu_img(&args).unwrap();
            prop_assert!(
                converted.status.success(),
                "after {cut} of {}: {converted:?}", journal.len()
            );
            let disk = fs::read(&raw).unwrap();
            for (sector, byte) in known_at(cut, &ops, &flushes).into_iter().enumerate() {
                let data = &disk[sector * 512..][..512];
                prop_assert!(
                    byte.is_none_or(|byte| data == [byte; 512]),
                    "after {cut} of {}: sector {sector} is {:#x}, not {byte:x?}",
                    journal.len(), data[0]
                );
            }
        }
    });
}

#[test]
fn small_clusters() {
    survives("small_clusters", &["-o", "cluster_size=512"]);
}

#[test]
fn wide_refcounts() {
    survives("wide_refcounts", &["-o", "cluster_size=512,refcount_bits=64"]);
}

#[test]
fn clusters_of_several_sectors() {
    survives("clusters_of_several_sectors", &["-o", "cluster_size=4096"]);
}

#[test]
fn compressed_clusters() {
    survives("compressed_clusters", &["-c", "-o", "cluster_size=4096"]);
}
