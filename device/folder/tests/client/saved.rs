//! A folder goes on elsewhere from what was saved.

use std::fs;

use folder::{Folder, Options, Root, State};

use crate::driver::*;

/// Another folder for the same directory, with the state of the first as it is written down.
fn restored(c: &mut Client, options: Options) -> Result<(), folder::BadState> {
    let text = serde_json::to_string(&c.folder.save().unwrap()).unwrap();
    c.folder = Folder::new(Root::open(&c.host).unwrap(), options).unwrap();
    c.folder.restore(serde_json::from_str(&text).unwrap())
}

#[test]
fn files_and_directories_stay_known_and_open() {
    let mut c = Client::new();
    let name = "caf\u{e9} \u{1f375}";
    let dir = c.make_directory(ROOT, name, 0o700).unwrap();
    let (file, handle) = c.create(dir, "f", O_RDWR, 0o600).unwrap();
    c.write(handle, 0, b"before").unwrap();
    let (gone, lost) = c.create(ROOT, "gone", O_RDWR, 0o600).unwrap();
    let directory = c.ask(op::OPENDIR, dir, body().u64(0)).map(|out| u64_at(&out, 0)).unwrap();
    restored(&mut c, Options::default()).unwrap();
    fs::remove_file(c.host.join("gone")).unwrap();

    assert_eq!(c.read(handle, 0, 10).unwrap(), b"before");
    assert_eq!(c.write(handle, 6, b" and after"), Ok(10));
    assert_eq!(fs::read(c.host.join(name).join("f")).unwrap(), b"before and after");
    assert_eq!(c.look_up(dir, "f"), Ok(file));
    let read = body().u64(directory).u64(0).u32(4096).bytes(&[0; 20]);
    assert!(!c.ask(op::READDIR, dir, read).unwrap().is_empty());
    // What is not there any more is not something else.
    assert_eq!(c.read(lost, 0, 1), Err(ESTALE));
    assert_eq!(c.attributes(gone), Err(ESTALE));
    // New numbers are new.
    let (new, _) = c.create(ROOT, "new", O_RDWR, 0o600).unwrap();
    assert!(![dir, file, gone].contains(&new));
    // What was looked up twice by now is forgotten by twos.
    c.forget(file, 1);
    assert!(c.attributes(file).is_ok());
    c.forget(file, 1);
    assert_eq!(c.attributes(file), Err(ESTALE));
}

#[test]
fn states_that_cannot_be_are_refused() {
    let mut c = Client::new();
    let (_, _) = c.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    let good = serde_json::to_value(c.folder.save().unwrap()).unwrap();
    let mut bad = Vec::new();
    for (pointer, value) in [
        ("/nodes/0/name", serde_json::json!("../x")),
        ("/nodes/0/name", serde_json::json!("a\u{0}b")),
        ("/nodes/0/name", serde_json::json!("\u{1f375}")),
        ("/nodes/0/id", serde_json::json!(1)),
        ("/nodes/0/id", serde_json::json!(u64::MAX)),
        ("/handles/0/node", serde_json::json!(99)),
        ("/handles/0/flags", serde_json::json!(0o1002)),
        ("/handles/0/flags", serde_json::json!(3)),
        ("/handles/0/number", serde_json::json!(u64::MAX)),
    ] {
        let mut state = good.clone();
        *state.pointer_mut(pointer).unwrap() = value;
        bad.push(state);
    }
    let mut twice = good.clone();
    let node = twice["nodes"][0].clone();
    twice["nodes"].as_array_mut().unwrap().push(node);
    bad.push(twice);
    for state in bad {
        let state: State = serde_json::from_value(state.clone()).unwrap();
        assert!(c.folder.restore(state.clone()).is_err(), "{state:?}");
    }
    let state: State = serde_json::from_value(good).unwrap();
    assert!(c.folder.restore(state).is_ok());
    // A folder that has become one for reading has no files open for writing.
    assert!(restored(&mut c, Options { readonly: true, ..Options::default() }).is_err());
}

/// Parents in a circle are never come to an end of, and are not gone around for ever.
#[test]
fn a_circle_of_directories_is_left() {
    let mut c = Client::new();
    let a = c.make_directory(ROOT, "a", 0o700).unwrap();
    let b = c.make_directory(a, "b", 0o700).unwrap();
    let mut state = serde_json::to_value(c.folder.save().unwrap()).unwrap();
    for node in state["nodes"].as_array_mut().unwrap() {
        node["parent"] = if node["id"] == a { b.into() } else { a.into() };
    }
    c.folder.restore(serde_json::from_value(state).unwrap()).unwrap();
    assert_eq!(c.attributes(a), Err(ESTALE));
}
