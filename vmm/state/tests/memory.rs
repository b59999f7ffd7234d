//! Memory goes into files and comes out of them as it was.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use mem::{GuestAddress, GuestMemory, Patch, RamRange};
use state::memory::{self, Base, Contents, Error, MAX_OLDER, PAGE, PIECE};
use vm_memory::{Bytes, GuestMemoryBackend};

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

fn bytes(memory: &GuestMemory) -> Vec<u8> {
    let mut all = Vec::new();
    for range in RANGES {
        let mut bytes = vec![0; range.len as usize];
        memory.read_slice(&mut bytes, GuestAddress(range.start)).unwrap();
        all.extend(bytes);
    }
    all
}

/// Writes it, on top of a snapshot or whole.
fn written(memory: &GuestMemory, base: Option<&Base>) -> Base {
    let file = tempfile::tempfile().unwrap();
    let contents = memory::write(memory, &file, base).unwrap();
    // The files of the snapshot that it stands on, by the numbers that they have in this one.
    let mut files = Vec::new();
    if let Some(base) = base {
        let Contents { older, .. } = base.contents();
        let numbers = older.iter().map(|older| older.number);
        let numbers = std::iter::once(base.contents().number()).chain(numbers);
        files.extend(numbers.zip(base.parts().map(|part| part.file)));
    }
    let older = contents.older.iter().map(|older| {
        let (_, file) = files.iter().find(|(number, _)| *number == older.number).unwrap();
        file.try_clone().unwrap()
    });
    let older = older.collect();
    let written = Base::new(contents, file, older).unwrap();
    written.verify().unwrap();
    written
}

fn restored(base: &Base) -> GuestMemory {
    let patch = |part: memory::Part| Patch {
        file: part.file.try_clone().unwrap(),
        places: part.pages.runs().map(|run| run.start * PAGE..run.end * PAGE).collect(),
    };
    let mut parts: Vec<Patch> = base.parts().map(patch).collect();
    let own = parts.remove(0).file;
    mem::copy_on_write(&RANGES, own, &parts).unwrap()
}

/// How much room the own file takes, in pages.
fn size(base: &Base) -> u64 {
    base.parts().next().unwrap().file.metadata().unwrap().blocks() * 512 / PAGE
}

#[test]
fn what_was_written_is_mapped() {
    let first = written(&guest(), None);
    assert!(size(&first) < 16, "zeroes are holes");
    let again = restored(&first);
    assert_eq!(text(&again, 0x1000, 5), "first");
    assert_eq!(text(&again, 0x9_fff0, 11), "last of low");
    assert_eq!(text(&again, 0x2f_0ffe, 6), "across");

    // One that was restored is written with what it has changed.
    again.write_slice(b"FIRST", GuestAddress(0x1000)).unwrap();
    again.write_slice(b"new", GuestAddress(0x30_0000)).unwrap();
    again.write_slice(&[0; 16], GuestAddress(0x9_fff0)).unwrap();
    for base in [None, Some(&first)] {
        let restored = restored(&written(&again, base));
        assert_eq!(text(&restored, 0x1000, 5), "FIRST");
        assert_eq!(text(&restored, 0x30_0000, 3), "new");
        assert_eq!(text(&restored, 0x9_fff0, 4), "\0\0\0\0");
        assert_eq!(text(&restored, 0x2f_0ffe, 6), "across");
    }
}

#[test]
fn only_what_has_changed_is_written() {
    let memory = guest();
    let first = written(&memory, None);
    let same = written(&memory, Some(&first));
    assert_eq!(size(&same), 0);
    assert_eq!(bytes(&restored(&same)), bytes(&memory));
    memory.write_slice(b"one page", GuestAddress(0x20_0000)).unwrap();
    let second = written(&memory, Some(&same));
    assert_eq!(size(&second), 1);
    // Nothing is left of the one that had nothing.
    let numbers: Vec<u32> = second.contents().older.iter().map(|older| older.number).collect();
    assert_eq!(numbers, [1]);
    assert_eq!(bytes(&restored(&second)), bytes(&memory));
}

/// A number that looks like chance.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    *state >> 33
}

#[test]
fn chains_hold_every_moment() {
    let mut state = 7;
    let mut memory = guest();
    let mut chain = vec![(written(&memory, None), bytes(&memory))];
    for round in 0..3 * MAX_OLDER {
        for _ in 0..next(&mut state) % 40 {
            let range = RANGES[(next(&mut state) % 2) as usize];
            let at = range.start + next(&mut state) % (range.len - 8);
            let value = if next(&mut state).is_multiple_of(3) { 0 } else { next(&mut state) };
            memory.write_obj(value, GuestAddress(at)).unwrap();
        }
        let (last, _) = chain.last().unwrap();
        let next_one = written(&memory, Some(last));
        assert!(next_one.contents().older.len() <= MAX_OLDER);
        chain.push((next_one, bytes(&memory)));
        if next(&mut state).is_multiple_of(4) {
            // It goes on from one of them, as a copy.
            let back = (next(&mut state) % chain.len() as u64) as usize;
            chain.truncate(back + 1);
            memory = restored(&chain[back].0);
            assert!(bytes(&memory) == chain[back].1, "round {round}");
        }
    }
    for (at, (base, wanted)) in chain.iter().enumerate() {
        assert!(bytes(&restored(base)) == *wanted, "{at}");
    }
}

#[test]
fn another_amount_of_memory_is_written_whole() {
    let first = written(&guest(), None);
    let other = mem::allocate(&RANGES[..1]).unwrap();
    let contents = memory::write(&other, &tempfile::tempfile().unwrap(), Some(&first)).unwrap();
    assert!(contents.older.is_empty());
    assert_eq!(other.num_regions(), contents.regions.len());
}

/// Where damage is noticed if a byte of a file is another.
fn damaged(base: &Base, file: &File, offset: u64, byte: u8) -> (String, u64) {
    let mut before = [0];
    file.read_exact_at(&mut before, offset).unwrap();
    file.write_all_at(&[byte], offset).unwrap();
    let result = base.verify();
    file.write_all_at(&before, offset).unwrap();
    match result {
        Err(Error::Damaged { file, offset, .. }) => (file, offset),
        other => panic!("{other:?}"),
    }
}

#[test]
fn damage_is_told_with_its_place() {
    let memory = guest();
    let first = written(&memory, None);
    memory.write_slice(b"more", GuestAddress(0x20_0000)).unwrap();
    let second = written(&memory, Some(&first));
    let files: Vec<File> = second.parts().map(|it| it.file.try_clone().unwrap()).collect();
    let (own, older) = (&files[0], &files[1]);
    let at = |offset: u64| offset / PIECE as u64 * PIECE as u64;
    assert_eq!(damaged(&second, older, 0x1000, b'F'), ("memory.1".to_owned(), 0));
    let across = 0xa_0000 + 0x2f_0ffe - 0x10_0000;
    assert_eq!(damaged(&second, older, across, b'A'), ("memory.1".to_owned(), at(across)));
    let more = 0xa_0000 + 0x20_0000 - 0x10_0000;
    assert_eq!(damaged(&second, own, more, b'A'), ("memory".to_owned(), at(more)));
    // Something in a hole.
    let last = 0xa_0000 + (3 << 20) - 1;
    assert_eq!(damaged(&second, own, last, 1), ("memory".to_owned(), at(last)));
    second.verify().unwrap();

    older.set_len(last).unwrap();
    let again = Base::new(
        second.contents().clone(),
        own.try_clone().unwrap(),
        vec![older.try_clone().unwrap()],
    );
    let why = again.unwrap_err().to_string();
    assert!(why.contains("another length") && why.contains("memory.1"), "{why}");
}

#[test]
fn what_contradicts_itself_is_refused() {
    let memory = guest();
    let first = written(&memory, None);
    memory.write_slice(b"more", GuestAddress(0x20_0000)).unwrap();
    let contents = written(&memory, Some(&first)).contents().clone();
    let refused = |change: &dyn Fn(&mut Contents)| {
        let mut contents = contents.clone();
        change(&mut contents);
        let files = (0..=contents.older.len()).map(|_| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(0xa_0000 + (3 << 20)).unwrap();
            file
        });
        let mut files: Vec<File> = files.collect();
        Base::new(contents, files.remove(0), files).unwrap_err().to_string()
    };
    let twice = refused(&|contents| contents.older.push(contents.older[0].clone()));
    assert!(twice.contains("in two"), "{twice}");
    let many = refused(&|contents| contents.older = vec![contents.older[0].clone(); 16]);
    assert!(many.contains("too many"), "{many}");
    let beyond = refused(&|contents| {
        contents.older[0].pages = memory::Pages::all(1 << 40);
    });
    assert!(beyond.contains("none of the memory's"), "{beyond}");
    let sum = refused(&|contents| contents.regions[0].len = u64::MAX);
    assert!(sum.contains("no sum"), "{sum}");
    let sums = refused(&|contents| contents.older[0].sums.clear());
    assert!(sums.contains("no checksum for each piece"), "{sums}");
}
