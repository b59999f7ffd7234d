//! Archives that a guest makes up to reach files outside of where it was asked for.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use agent_protocol::archive::{pack, unpack};
use tar::{Builder, EntryType, Header};

fn entry(builder: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, link: &str, data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o777);
    header.set_size(data.len() as u64);
    // Past the checks of the library that writes.
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, link) in entries {
        let data: &[u8] = if *kind == EntryType::Regular { b"evil" } else { b"" };
        entry(&mut builder, *kind, path, link, data);
    }
    builder.into_inner().unwrap()
}

#[test]
fn nothing_leaves_the_directory() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let (out, file) = (outside.path().to_str().unwrap(), secret.to_str().unwrap());
    let evil = format!("{out}/evil");
    for entries in [
        vec![(Regular, "../evil", "")],
        vec![(Regular, "x/../../evil", "")],
        vec![(Regular, evil.as_str(), "")],
        vec![(Symlink, "x", out), (Regular, "x/evil", "")],
        vec![(Symlink, "x", out), (Directory, "x/evil", "")],
        vec![(Directory, "x", ""), (Symlink, "x/y", out), (Regular, "x/y/evil", "")],
        vec![(Symlink, "x", file), (Regular, "x", "")],
        vec![(Link, "x", file), (Regular, "x", "")],
        vec![(Link, "x", "../secret"), (Regular, "x", "")],
        vec![(Symlink, "x", out), (Link, "y", "x/secret"), (Regular, "y", "")],
    ] {
        let target = outside.path().join("target");
        fs::create_dir(&target).unwrap();
        let result = unpack(archive(&entries).as_slice(), &target, None);
        assert!(!outside.path().join("evil").exists(), "{entries:?}");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret", "{entries:?}: {result:?}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2, "{entries:?}");
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn only_what_was_asked_for_comes() {
    use EntryType::{Directory, Regular};
    let target = tempfile::tempdir().unwrap();
    for entries in [
        vec![(Regular, ".bashrc", "")],
        vec![(Directory, "wanted", ""), (Regular, "other", "")],
        vec![(Regular, "./other", "")],
        vec![(Directory, ".", "")],
    ] {
        let result = unpack(archive(&entries).as_slice(), target.path(), Some("wanted"));
        assert!(result.is_err(), "{entries:?}");
        assert!(!target.path().join("other").exists());
    }
    let good = archive(&[(Directory, "wanted", ""), (Regular, "./wanted/file", "")]);
    unpack(good.as_slice(), target.path(), Some("wanted")).unwrap();
    assert_eq!(fs::read(target.path().join("wanted/file")).unwrap(), b"evil");
}

#[test]
fn nodes_are_left_out_and_damage_is_told() {
    let target = tempfile::tempdir().unwrap();
    let entries = [
        (EntryType::Char, "null", ""),
        (EntryType::Fifo, "pipe", ""),
        (EntryType::Regular, "file", ""),
    ];
    let whole = archive(&entries);
    unpack(whole.as_slice(), target.path(), None).unwrap();
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 1);
    let mut damaged = whole.clone();
    damaged[1100] ^= 1;
    assert!(unpack(damaged.as_slice(), target.path(), None).is_err());
    assert!(unpack(&whole[..1600], target.path(), None).is_err());
    unpack(&b""[..], target.path(), None).unwrap();
}

#[test]
fn a_failure_says_what_and_why() {
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join("x"), "a file").unwrap();
    let inside = archive(&[(EntryType::Regular, "x/y", "")]);
    let error = unpack(inside.as_slice(), target.path(), None).unwrap_err().to_string();
    assert!(error.starts_with("x/y: ") && error.contains("os error"), "{error}");
}

#[test]
fn what_may_not_be_written_is_packed_and_unpacked() {
    use std::os::unix::fs::PermissionsExt;
    let here = tempfile::tempdir().unwrap();
    let tree = here.path().join("tree");
    fs::create_dir_all(tree.join("locked")).unwrap();
    fs::write(tree.join("locked/file"), "x").unwrap();
    symlink("/nowhere", tree.join("dangling")).unwrap();
    fs::set_permissions(tree.join("locked"), PermissionsExt::from_mode(0o555)).unwrap();
    let mut bytes = Vec::new();
    assert_eq!(pack(&tree, "", &mut bytes).unwrap(), 0);
    let target = here.path().join("target");
    fs::create_dir(&target).unwrap();
    unpack(bytes.as_slice(), &target, None).unwrap();
    assert_eq!(fs::read_to_string(target.join("locked/file")).unwrap(), "x");
    assert_eq!(fs::read_link(target.join("dangling")).unwrap(), Path::new("/nowhere"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&target.join("locked")), 0o555);
    for path in [tree.join("locked"), target.join("locked")] {
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
}
