//! The block device on images in files, whose data goes straight to the guest's memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Backing, Disk, Format, OpenOptions, create_qcow2, open};
use virtio::BlockOptions;

use crate::block::{BUFFER, request};
use crate::driver::*;

const LEN: usize = 600 << 10;

fn bytes() -> Vec<u8> {
    (0..LEN).map(|n| (n / 512 * 7 + n) as u8).collect()
}

fn raw(dir: &Path) -> PathBuf {
    let image = dir.join("disk.raw");
    fs::write(&image, bytes()).unwrap();
    image
}

fn guest(disk: Arc<dyn Disk>) -> (Guest, Queue) {
    let memory = ram();
    let device = virtio::block(disk, BlockOptions::default(), memory.clone()).unwrap();
    let g = Guest::new(device, memory);
    let queue = g.start().remove(0);
    (g, queue)
}

/// Reads all of it in one request, to two places of which one is odd.
fn read(g: &Guest, q: &mut Queue, sector: u64, len: usize) -> Vec<u8> {
    let first = 1001.min(len);
    let pieces = [(HIGH_RAM + 3, first as u32, true), (BUFFER, (len - first) as u32, true)];
    assert_eq!(request(g, q, 0, sector, &pieces), (0, len as u32 + 1));
    [g.read(HIGH_RAM + 3, first), g.read(BUFFER, len - first)].concat()
}

#[test]
fn raw_images_are_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(&OpenOptions::new(raw(dir.path())).format(Format::Raw)).unwrap();
    let (g, mut q) = guest(disk);
    let mut expected = bytes();
    assert!(read(&g, &mut q, 0, LEN) == expected);
    g.write(BUFFER, &[9; 512]);
    assert_eq!(request(&g, &mut q, 1, 3, &[(BUFFER, 512, false)]).0, 0);
    expected[3 * 512..4 * 512].fill(9);
    assert!(read(&g, &mut q, 0, LEN) == expected);
    assert!(read(&g, &mut q, 5, 512) == expected[5 * 512..6 * 512]);
    // One that leaves the disk is refused, and nothing is stored.
    g.write(BUFFER, &[1; 1024]);
    assert_eq!(request(&g, &mut q, 0, LEN as u64 / 512 - 1, &[(BUFFER, 1024, true)]).0, 1);
    assert_eq!(g.read(BUFFER, 1024), [1; 1024]);
}

#[test]
fn the_last_sector_of_a_file_may_be_short() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("odd.raw");
    fs::write(&image, [5; 700]).unwrap();
    let options = OpenOptions::new(&image).format(Format::Raw).readonly(true);
    let (g, mut q) = guest(open(&options).unwrap());
    g.write(BUFFER, &[1; 1024]);
    assert_eq!(request(&g, &mut q, 0, 0, &[(BUFFER, 1024, true)]), (0, 1025));
    assert_eq!(g.read(BUFFER, 1024), [vec![5; 700], vec![0; 324]].concat());
}

#[test]
fn overlays_are_read_wherever_the_data_is() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = dir.path().join("disk.qcow2");
    let backing = Backing { path: raw(dir.path()), relative: false, format: Format::Raw };
    create_qcow2(&overlay, LEN as u64 + 4096, Some(&backing)).unwrap();
    let disk = open(&OpenOptions::new(&overlay).format(Format::Qcow2)).unwrap();
    let (g, mut q) = guest(disk.clone());
    let mut expected = [bytes(), vec![0; 4096]].concat();
    // In the file below, then in both, with nothing behind it.
    for sector in [300, 301] {
        assert!(read(&g, &mut q, 0, LEN + 4096) == expected);
        assert!(read(&g, &mut q, sector, 512) == expected[sector as usize * 512..][..512]);
        g.write(BUFFER, &[9; 512]);
        assert_eq!(request(&g, &mut q, 1, sector, &[(BUFFER, 512, false)]).0, 0);
        expected[sector as usize * 512..][..512].fill(9);
        assert!(read(&g, &mut q, sector, 512) == expected[sector as usize * 512..][..512]);
    }
    assert!(read(&g, &mut q, 0, LEN + 4096) == expected);
    assert!(fs::read(dir.path().join("disk.raw")).unwrap() == bytes());
}
