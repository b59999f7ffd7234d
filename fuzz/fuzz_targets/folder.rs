//! Requests to a shared folder, of which nothing may reach what lies beside it.
#![no_main]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use folder::{Folder, Limits, Options, Root};
use libfuzzer_sys::fuzz_target;

const FSYNC: u32 = 20;
const FSYNCDIR: u32 = 30;
const FALLOCATE: u32 = 43;
const SYNCFS: u32 = 50;
const INIT: u32 = 26;
const SECRET: &[u8] = b"what nobody is to see";
const NAMES: [&str; 12] =
    ["a", "f", "link", "up", "new", "..", ".", "/", "../outside", "user.x", "a/f", ""];

/// A part of a request's body.
#[derive(Arbitrary, Debug)]
enum Part<'a> {
    Word(u32),
    Small(u8),
    Long(u64),
    Name(u8),
    Bytes(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
struct Request<'a> {
    opcode: u8,
    node: u8,
    body: Vec<Part<'a>>,
    room: u16,
    /// Not its own length.
    length: Option<u32>,
    /// The folder is saved before it, and goes on from that.
    is_saved: bool,
}

impl Request<'_> {
    /// `None`: the host would be busy with it for too long.
    fn bytes(&self) -> Option<Vec<u8>> {
        let opcode = u32::from(self.opcode % 53);
        let mut body = Vec::new();
        for part in &self.body {
            match part {
                Part::Word(word) => body.extend(word.to_le_bytes()),
                Part::Small(number) => body.extend(u64::from(*number).to_le_bytes()),
                Part::Long(number) => body.extend(number.to_le_bytes()),
                Part::Name(name) => {
                    body.extend(NAMES[usize::from(*name) % NAMES.len()].as_bytes());
                    body.push(0);
                }
                Part::Bytes(bytes) => body.extend(*bytes),
            }
        }
        match opcode {
            FSYNC | FSYNCDIR | SYNCFS => return None,
            // No more of the host's memory than 64 KiB.
            FALLOCATE => body.iter_mut().skip(2).take(22).for_each(|byte| *byte = 0),
            _ => {}
        }
        let length = self.length.unwrap_or(40 + body.len() as u32);
        let mut bytes = [length, opcode].map(u32::to_le_bytes).concat();
        bytes.extend([1, u64::from(self.node % 16)].map(u64::to_le_bytes).concat());
        bytes.extend([0; 16]);
        bytes.extend(body);
        Some(bytes)
    }
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    readonly: bool,
    is_short_of_descriptors: bool,
    requests: Vec<Request<'a>>,
}

/// Where the folder is, in memory if there is such a place.
static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
    let shm = PathBuf::from("/dev/shm");
    let parent = if shm.is_dir() { shm } else { std::env::temp_dir() };
    let place = parent.join(format!("lodge-fuzz-folder-{}", std::process::id()));
    fs::create_dir_all(place.join("outside")).unwrap();
    fs::write(place.join("outside/f"), SECRET).unwrap();
    place
});

fn contents(name: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(PLACE.join(name)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_encoded_bytes()).collect()
}

fuzz_target!(|input: Input<'_>| {
    let shared = PLACE.join("shared");
    let _ = fs::remove_dir_all(&shared);
    fs::create_dir_all(shared.join("a")).unwrap();
    fs::write(shared.join("a/f"), "harmless").unwrap();
    symlink("../outside/f", shared.join("link")).unwrap();
    symlink("../outside", shared.join("up")).unwrap();

    let few = Limits { nodes: 8, node_descriptors: 1, handles: 4 };
    let limits = if input.is_short_of_descriptors { few } else { Limits::default() };
    let options = Options { readonly: input.readonly, limits, ..Options::default() };
    let root = Root::open(&shared).unwrap();
    let mut folder = Folder::new(root.clone(), options).unwrap();
    let mut reply = Vec::new();
    let hello = [56, INIT, 0, 0, 0, 0, 0, 0, 0, 0, 7, 36, 0, u32::MAX].map(u32::to_le_bytes);
    folder.serve(&hello.concat(), 4096, &mut reply);
    assert_eq!(reply.len(), 80);
    for request in &input.requests {
        if request.is_saved {
            let state = folder.save().unwrap();
            folder = Folder::new(root.clone(), options).unwrap();
            folder.restore(state).unwrap();
        }
        let Some(bytes) = request.bytes() else { continue };
        folder.serve(&bytes, request.room.into(), &mut reply);
        assert!(reply.len() <= usize::from(request.room));
    }
    assert_eq!(fs::read(PLACE.join("outside/f")).unwrap(), SECRET);
    assert_eq!(contents("outside"), [b"f"]);
    if input.readonly {
        assert_eq!(fs::read(shared.join("a/f")).unwrap(), b"harmless");
        assert_eq!((contents("shared").len(), contents("shared/a").len()), (3, 1));
    }
});
