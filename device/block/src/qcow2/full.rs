//! A test: requests that the host had no room for are made again, until there is. The image must then hold
//! what it would hold otherwise, with leaked clusters at worst.

use crate::disk::Disk;
use crate::file::HostFile;
use proptest::prelude::*;
use std::io;
use std::process::Command;
use std::sync::atomic::Ordering;

const SIZE: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum Op {
    Write { sector: u64, sectors: u64, byte: u8 },
    Zero { sector: u64, sectors: u64, unmap: bool },
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    let range = || {
        (0..SIZE / 512, 1u64..300)
            .prop_map(|(sector, sectors)| (sector, sectors.min(SIZE / 512 - sector)))
    };
    prop_oneof![
        6 => (range(), 1u8..)
            .prop_map(|((sector, sectors), byte)| Op::Write { sector, sectors, byte }),
        2 => (range(), any::<bool>())
            .prop_map(|((sector, sectors), unmap)| Op::Zero { sector, sectors, unmap }),
        1 => Just(Op::Flush),
    ]
}

fn perform(disk: &dyn Disk, op: &Op) -> io::Result<()> {
    match *op {
        Op::Write { sector, sectors, byte } => {
            disk.write_at(sector * 512, &vec![byte; sectors as usize * 512])
        }
        Op::Zero { sector, sectors, unmap } => {
            disk.write_zeroes(sector * 512, sectors * 512, unmap)
        }
        Op::Flush => disk.flush(),
    }
}

fn apply(model: &mut [u8], op: &Op) {
    let (sector, sectors, byte) = match *op {
        Op::Write { sector, sectors, byte } => (sector, sectors, byte),
        Op::Zero { sector, sectors, .. } => (sector, sectors, 0),
        Op::Flush => return,
    };
    model[sector as usize * 512..][..sectors as usize * 512].fill(byte);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn requests_that_found_no_room_succeed_later(
        ops in prop::collection::vec(op(), 1..40),
        steps in prop::collection::vec(0u64..400_000, 1..20),
    ) {
        // Where flushes and holes wait for no disk, if there is such a place.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = dir.path().join("a.qcow2");
        super::create_qcow2(&path, SIZE, None).unwrap();
        let disk = super::open(HostFile::open(&path, true).unwrap(), false, &HostFile::open).unwrap();
        let room = &disk.host().room;
        room.store(disk.host().allocated().unwrap(), Ordering::Relaxed);
        let mut steps = steps.iter().cycle();
        let mut model = vec![0; SIZE as usize];
        for op in &ops {
            let mut failures = 0;
            while let Err(error) = perform(&disk, op) {
                prop_assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{}", error);
                // What a request has taken before it failed may be lost, so that little room more and more
                // often is not enough.
                failures += 1;
                room.fetch_add(failures * steps.next().unwrap() + 4096, Ordering::Relaxed);
            }
            apply(&mut model, op);
        }
        room.store(u64::MAX, Ordering::Relaxed);
        disk.flush().unwrap();
        drop(disk);
        let disk = super::open(HostFile::open(&path, true).unwrap(), false, &HostFile::open).unwrap();
        let mut found = vec![1; SIZE as usize];
        disk.read_at(0, &mut found).unwrap();
        prop_assert!(found == model);
        drop(disk);
        if let Ok(report) = Command::new("qemu-img").arg("check").arg(&path).output() {
            // qemu-img(1): 0 is clean, 3 is leaked clusters only.
            prop_assert!(matches!(report.status.code(), Some(0 | 3)), "{:?}", report);
        }
    }
}
