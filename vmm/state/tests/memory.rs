//! Memory goes into a file and comes out of it as it was.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use mem::{GuestAddress, GuestMemory, RamRange};
use state::memory::{self, Contents, Error, PIECE};
use vm_memory::Bytes;

const RANGES: [RamRange; 2] =
    [RamRange { start: 0, len: 0xa_0000 }, RamRange { start: 0x10_0000, len: 3 << 20 }];

fn guest() -> GuestMemory {
    let memory = mem::allocate(&RANGES).unwrap();
    for (at, text) in [(0x1000u64, "first"), (0x9_fff0, "last of low"), (0x2f_0ffe, "across")] {
        memory.write_slice(text.as_bytes(), GuestAddress(at)).unwrap();
    }
    // Touched, and zero.
    memory.write_slice(&[0; 8192], GuestAddress(0x18_0000)).unwrap();
    memory
}

fn text(memory: &GuestMemory, at: u64, len: usize) -> String {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn written(memory: &GuestMemory) -> (File, Contents) {
    let file = tempfile::tempfile().unwrap();
    let contents = memory::write(memory, &file).unwrap();
    (file, contents)
}

#[test]
fn what_was_written_is_mapped() {
    let (file, contents) = written(&guest());
    memory::verify(&file, &contents).unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 < 64 << 10, "zeroes are holes");
    let restored = mem::copy_on_write(&RANGES, file.try_clone().unwrap()).unwrap();
    assert_eq!(text(&restored, 0x1000, 5), "first");
    assert_eq!(text(&restored, 0x9_fff0, 11), "last of low");
    assert_eq!(text(&restored, 0x2f_0ffe, 6), "across");

    // One that was restored is written with what it has changed.
    restored.write_slice(b"FIRST", GuestAddress(0x1000)).unwrap();
    restored.write_slice(b"new", GuestAddress(0x30_0000)).unwrap();
    restored.write_slice(&[0; 16], GuestAddress(0x9_fff0)).unwrap();
    let (again, contents) = written(&restored);
    memory::verify(&again, &contents).unwrap();
    let restored = mem::copy_on_write(&RANGES, again).unwrap();
    assert_eq!(text(&restored, 0x1000, 5), "FIRST");
    assert_eq!(text(&restored, 0x30_0000, 3), "new");
    assert_eq!(text(&restored, 0x9_fff0, 4), "\0\0\0\0");
    assert_eq!(text(&restored, 0x2f_0ffe, 6), "across");
}

#[test]
fn damage_is_told_with_its_place() {
    let (file, contents) = written(&guest());
    let damaged = |offset: u64, byte: u8| {
        let mut before = [0];
        file.read_exact_at(&mut before, offset).unwrap();
        file.write_all_at(&[byte], offset).unwrap();
        let result = memory::verify(&file, &contents);
        file.write_all_at(&before, offset).unwrap();
        match result {
            Err(Error::Damaged { offset, .. }) => offset,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(damaged(0x1000, b'F'), 0);
    let across = 0xa_0000 + 0x2f_0ffe - 0x10_0000;
    assert_eq!(damaged(across, b'A'), across / PIECE as u64 * PIECE as u64);
    memory::verify(&file, &contents).unwrap();
    // Something in a hole.
    let last = 0xa_0000 + (3 << 20) - 1;
    assert_eq!(damaged(last, 1), last / PIECE as u64 * PIECE as u64);

    file.set_len(last).unwrap();
    assert!(matches!(memory::verify(&file, &contents), Err(Error::Damaged { .. })));
}
