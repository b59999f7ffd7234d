//! Directories, read in pieces while they change.

use std::collections::BTreeSet;
use std::fs;

use crate::driver::*;

struct Entry {
    node: Option<u64>,
    offset: u64,
    kind: u32,
    name: String,
}

fn parse(mut bytes: &[u8], plus: bool) -> Vec<Entry> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let mut node = None;
        if plus {
            node = Some(u64_at(bytes, 0));
            bytes = &bytes[128..];
        }
        let len = u32_at(bytes, 16) as usize;
        let name = String::from_utf8(bytes[24..24 + len].to_vec()).unwrap();
        entries.push(Entry { node, offset: u64_at(bytes, 8), kind: u32_at(bytes, 20), name });
        bytes = &bytes[(24 + len).next_multiple_of(8)..];
    }
    entries
}

fn open(c: &mut Client, node: u64) -> Result<u64, i32> {
    c.ask(op::OPENDIR, node, body().u64(0)).map(|out| u64_at(&out, 0))
}

fn read(c: &mut Client, handle: u64, offset: u64, size: u32, plus: bool) -> Vec<Entry> {
    let opcode = if plus { op::READDIRPLUS } else { op::READDIR };
    let body = body().u64(handle).u64(offset).u32(size).bytes(&[0; 20]);
    let answer = c.ask(opcode, ROOT, body).unwrap();
    assert!(answer.len() <= size as usize);
    parse(&answer, plus)
}

#[test]
fn thousands_of_files_each_once() {
    let mut c = Client::new();
    let names: BTreeSet<String> = (0..5000).map(|n| format!("file number {n}")).collect();
    names.iter().for_each(|name| fs::write(c.host.join(name), "").unwrap());
    fs::create_dir(c.host.join("d")).unwrap();
    for plus in [false, true] {
        let handle = open(&mut c, ROOT).unwrap();
        let (mut found, mut offset) = (Vec::new(), 0);
        loop {
            let entries = read(&mut c, handle, offset, 4096, plus);
            let Some(last) = entries.last() else { break };
            offset = last.offset;
            for entry in entries {
                match entry.name.as_str() {
                    "." | ".." => assert_eq!((entry.kind, entry.node.unwrap_or(0)), (4, 0)),
                    "d" => assert_eq!(entry.kind, 4),
                    _ => {
                        assert_eq!(entry.kind, 8);
                        assert_ne!(entry.node, Some(0));
                        found.push(entry.name);
                    }
                }
            }
        }
        assert_eq!(found.len(), 5000);
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), names);
        // From the beginning again.
        assert!(read(&mut c, handle, 0, 4096, plus).iter().any(|entry| entry.name == "."));
    }
}

#[test]
fn a_directory_that_changes_meanwhile() {
    let mut c = Client::new();
    (0..300).for_each(|n| fs::write(c.host.join(format!("{n}")), "").unwrap());
    let handle = open(&mut c, ROOT).unwrap();
    let mut seen = Vec::new();
    let mut offset = 0;
    loop {
        let entries = read(&mut c, handle, offset, 1024, true);
        let Some(last) = entries.last() else { break };
        offset = last.offset;
        // What was seen is removed.
        for entry in entries.into_iter().filter(|entry| entry.name.parse::<u32>().is_ok()) {
            assert!(c.ask(op::UNLINK, ROOT, body().name(&entry.name)).is_ok());
            seen.push(entry.name);
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 300);
    assert_eq!(fs::read_dir(&c.host).unwrap().count(), 0);
}

#[test]
fn only_directories_and_only_from_places_that_are_there() {
    let mut c = Client::new();
    let (file, handle) = c.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    assert_eq!(open(&mut c, file), Err(ENOTDIR));
    let body = |handle: u64, offset: u64| body().u64(handle).u64(offset).u32(4096).bytes(&[0; 20]);
    assert_eq!(c.ask(op::READDIR, file, body(handle, 0)), Err(ENOTDIR));
    let directory = open(&mut c, ROOT).unwrap();
    assert_eq!(c.read(directory, 0, 10), Err(EISDIR));
    for offset in [1 << 40, u64::MAX, u64::MAX / 2] {
        // Whatever the file system makes of it.
        let _ = c.ask(op::READDIR, ROOT, body(directory, offset));
        let _ = c.ask(op::READDIRPLUS, ROOT, body(directory, offset));
    }
    assert_eq!(read(&mut c, directory, 0, 4096, false).len(), 3);
    // Without room for an entry there is none.
    assert_eq!(read(&mut c, directory, 0, 20, false).len(), 0);
    assert_eq!(read(&mut c, directory, 0, 4096, true).len(), 3);
}
