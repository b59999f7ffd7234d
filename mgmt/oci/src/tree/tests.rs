use std::io::Read;

use proptest::prelude::*;
use tar::{Archive, Builder, EntryType, Header};

use super::*;
use crate::Error;

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 1000 };

/// An entry of a layer: its type, name, link or contents.
type Line<'a> = (EntryType, &'a str, &'a str);

const FILE: EntryType = EntryType::Regular;
const DIRECTORY: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

/// An archive of these entries, whatever their names.
fn layer(lines: &[Line<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, text) in lines {
        let is_file = *kind == FILE;
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(9);
        header.set_size(if is_file { text.len() as u64 } else { 0 });
        // The library's own ways refuse what is to be refused here.
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        if !is_file {
            fields.linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, if is_file { text.as_bytes() } else { b"" }).unwrap();
    }
    builder.into_inner().unwrap()
}

fn tree() -> Tree {
    Tree::new(&std::env::temp_dir(), LIMITS).unwrap()
}

fn add(tree: &mut Tree, archive: &[u8]) -> Result<(), Error> {
    tree.add_layer(archive, "the layer", &|| false)
}

/// What the layers come to, one line for each entry.
fn apply(layers: &[&[Line<'_>]]) -> Result<Vec<String>, Error> {
    let mut tree = tree();
    for lines in layers {
        add(&mut tree, &layer(lines))?;
    }
    Ok(list(&tree))
}

fn list(tree: &Tree) -> Vec<String> {
    let mut archive = Vec::new();
    tree.write(&mut archive, true).unwrap();
    let mut archive = Archive::new(&archive[..]);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut line = entry.path().unwrap().display().to_string();
        let link = entry.link_name().unwrap().map(|link| link.display().to_string());
        match entry.header().entry_type() {
            DIRECTORY => line += "/",
            LINK => line += &format!(" -> {}", link.unwrap()),
            HARD => line += &format!(" = {}", link.unwrap()),
            _ => {
                line += " ";
                entry.read_to_string(&mut line).unwrap();
            }
        }
        line
    });
    entries.collect()
}

#[test]
fn later_layers_are_on_top() {
    let tree = apply(&[
        &[(DIRECTORY, "etc", ""), (FILE, "etc/a", "1"), (FILE, "./etc/b", "1"), (FILE, "c", "1")],
        &[(FILE, "etc/a", "2"), (FILE, "c/", ""), (FILE, "c/d", "2")],
    ]);
    assert_eq!(tree.unwrap(), ["c/", "c/d 2", "etc/", "etc/a 2", "etc/b 1"]);
}

#[test]
fn whiteouts_remove_what_was_there_before() {
    let base: &[Line<'_>] =
        &[(FILE, "d/a", "1"), (FILE, "d/b", "1"), (FILE, "d/e/f", "1"), (FILE, "g", "1")];
    let on = |lines: &[Line<'_>]| apply(&[base, lines]).unwrap();
    assert_eq!(
        on(&[(FILE, "d/.wh.a", ""), (FILE, ".wh.g", "")]),
        ["d/", "d/b 1", "d/e/", "d/e/f 1"]
    );
    assert_eq!(on(&[(FILE, ".wh.d", "")]), ["g 1"]);
    // In whichever order, what the layer has itself stays.
    let opaque = (FILE, "d/.wh..wh..opq", "");
    let own = (FILE, "d/n", "2");
    for lines in [[opaque, own], [own, opaque]] {
        assert_eq!(on(&lines), ["d/", "d/n 2", "g 1"]);
    }
    assert_eq!(on(&[(FILE, "d/e/n", "2"), opaque]), ["d/", "d/e/", "d/e/n 2", "g 1"]);
    assert_eq!(
        on(&[(FILE, "d/e/n", "2"), (FILE, "d/.wh.e", "")]),
        ["d/", "d/a 1", "d/b 1", "d/e/", "d/e/n 2", "g 1"]
    );
    // What is not there, and what AUFS left.
    assert_eq!(on(&[(FILE, "x/.wh.y", ""), (FILE, ".wh..wh.plnk", "")]).len(), 6);
    assert!(apply(&[base, &[(FILE, "d/.wh...", "")]]).is_err());
    assert!(apply(&[base, &[(FILE, "d/.wh.", "")]]).is_err());
}

#[test]
fn hard_links_are_one_file() {
    let tree = apply(&[&[(FILE, "a", "1"), (HARD, "d/b", "./a"), (HARD, "c", "d/b")]]).unwrap();
    assert_eq!(tree, ["a 1", "c = a", "d/", "d/b = a"]);
    // What takes the place of one name leaves the others as they are.
    let tree = apply(&[
        &[(FILE, "a", "1"), (HARD, "b", "a"), (HARD, "c", "a")],
        &[(FILE, "a", "2"), (FILE, ".wh.c", "")],
    ]);
    assert_eq!(tree.unwrap(), ["a 2", "b 1"]);
}

#[test]
fn links_are_followed_within_the_tree() {
    let tree = apply(&[
        &[(DIRECTORY, "usr/lib", ""), (LINK, "lib", "usr/lib"), (LINK, "up", "../../../usr")],
        &[(FILE, "lib/a", "1"), (FILE, "up/b", "1"), (LINK, "abs", "/usr/lib")],
        &[(FILE, "abs/c", "1"), (FILE, "up/lib/d", "1")],
    ]);
    let files = ["usr/b 1", "usr/lib/", "usr/lib/a 1", "usr/lib/c 1", "usr/lib/d 1"];
    let links = ["abs -> /usr/lib", "lib -> usr/lib", "up -> ../../../usr", "usr/"];
    assert_eq!(tree.unwrap(), [&links[..], &files].concat());
    // What a layer has in the place of a link is not put where the link leads.
    let tree = apply(&[&[(LINK, "a", "/etc/passwd")], &[(FILE, "a", "1")]]);
    assert_eq!(tree.unwrap(), ["a 1"]);
    let tree = apply(&[&[(LINK, "a", "/etc")], &[(DIRECTORY, "a", ""), (FILE, "a/b", "1")]]);
    assert_eq!(tree.unwrap(), ["a/", "a/b 1"]);
}

#[test]
fn what_is_hostile_is_refused_and_named() {
    for (lines, word) in [
        (&[(FILE, "../x", "1")][..], "out of its directory"),
        (&[(FILE, "a/../../x", "1")], "out of its directory"),
        (&[(HARD, "a", "../../etc/passwd")], "out of its directory"),
        (&[(HARD, "a", "/etc/passwd")], "not there"),
        (&[(DIRECTORY, "d", ""), (HARD, "a", "d")], "hard link to a directory"),
        (&[(LINK, "a", "b"), (LINK, "b", "a"), (FILE, "a/x", "1")], "more links"),
        (&[(FILE, "a", "1"), (FILE, "a/b", "1")], "no directory"),
        (&[(FILE, ".", "1")], "place of the root"),
        (&[(LINK, "a", "")], "to nowhere"),
        (&[(EntryType::GNUSparse, "a", "")], "of type 'S'"),
    ] {
        let error = apply(&[lines]).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
        assert!(error.to_string().contains(lines.last().unwrap().1), "{error}");
    }
}

#[test]
fn truncated_layers_are_damaged() {
    let whole = layer(&[(FILE, "a", &"x".repeat(2000)), (FILE, "b", "2")]);
    for length in [100, 512, 1000, 2500, 3000, 3100, 3600] {
        let error = add(&mut tree(), &whole[..length]).err();
        // Between entries, an archive may end: its digest tells.
        let may_end = length % 512 == 0 && length != 512;
        assert!(matches!(error, Some(Error::Damaged { .. })) || may_end, "{length}");
    }
}

#[test]
fn bounds_hold() {
    let many: Vec<Line<'_>> = (0..1001).map(|_| (FILE, "a", "")).collect();
    assert!(matches!(apply(&[&many]), Err(Error::TooLarge { .. })));
    let long = "x".repeat((1 << 19) + 1);
    assert!(matches!(
        apply(&[&[(FILE, "a", &long)], &[(FILE, "a", &long)]]),
        Err(Error::TooLarge { .. })
    ));
    // Directories that are only implied are as many as others.
    let deep = "d/".repeat(45);
    let names: Vec<String> = (0..30).map(|n| format!("{n}/{deep}")).collect();
    let lines: Vec<Line<'_>> = names.iter().map(|name| (DIRECTORY, name.as_str(), "")).collect();
    assert!(apply(&[&lines]).is_err());
    let mut tree = tree();
    let result = tree.add_layer(&layer(&many)[..], "x", &|| true);
    assert!(matches!(result, Err(Error::Cancelled)));
}

#[test]
fn owners_modes_devices_and_attributes_stay() {
    let mut builder = Builder::new(Vec::new());
    let long = "n".repeat(150);
    let extended = [("SCHILY.xattr.user.a", &b"x\ny"[..]), ("uid", b"70000")];
    builder.append_pax_extensions(extended).unwrap();
    let mut header = Header::new_gnu();
    header.set_mode(0o4755);
    header.set_uid(1);
    header.set_gid(3_000_000);
    header.set_mtime(5);
    header.set_size(1);
    builder.append_data(&mut header, &long, &b"1"[..]).unwrap();
    header.set_size(0);
    header.set_entry_type(EntryType::Char);
    header.set_device_major(5).unwrap();
    header.set_device_minor(1).unwrap();
    builder.append_data(&mut header, "console", &b""[..]).unwrap();
    header.set_entry_type(DIRECTORY);
    header.set_mode(0o1777);
    header.set_path("./").unwrap();
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    let mut tree = tree();
    add(&mut tree, &builder.into_inner().unwrap()).unwrap();
    assert_eq!(tree.root_mode(), (0o1777, 1, 3_000_000));
    assert_eq!(tree.usage(), Usage { bytes: 1, names: 3, devices: 1 });

    let mut archive = Vec::new();
    tree.write(&mut archive, false).unwrap();
    assert_eq!(Archive::new(&archive[..]).entries().unwrap().count(), 1);
    let mut archive = Vec::new();
    tree.write(&mut archive, true).unwrap();
    let mut archive = Archive::new(&archive[..]);
    let mut entries = archive.entries().unwrap().map(Result::unwrap);
    let device = entries.next().unwrap();
    assert_eq!(device.header().device_major().unwrap(), Some(5));
    let file = entries.next().unwrap();
    assert_eq!(file.path_bytes().len(), 150);
    let header = file.header();
    let owner = (header.uid().unwrap(), header.gid().unwrap());
    assert_eq!(
        (header.mode().unwrap(), owner, header.mtime().unwrap()),
        (0o4755, (70000, 3_000_000), 5)
    );
    let node = tree.children(ROOT).unwrap()[long.as_bytes()];
    assert_eq!(tree.nodes[node].attributes.extended, [("user.a".into(), b"x\ny".to_vec())]);
}

proptest! {
    /// Whatever the layers, what comes out can be unpacked blindly: each name once, behind a
    /// directory that is one.
    #[test]
    fn what_comes_out_is_harmless(
        layers in proptest::collection::vec(
            proptest::collection::vec(
                (0..5usize, "(\\.wh\\.)?[ab.]{1,2}(/[ab]){0,2}", "[ab./]{1,5}"), 0..8,
            ), 1..4,
        ),
    ) {
        let kinds = [FILE, DIRECTORY, LINK, HARD, EntryType::Fifo];
        let mut tree = tree();
        for lines in &layers {
            let lines: Vec<Line<'_>> =
                lines.iter().map(|(kind, a, b)| (kinds[*kind], a.as_str(), b.as_str())).collect();
            if add(&mut tree, &layer(&lines)).is_err() {
                return Ok(());
            }
        }
        let mut directories = vec![String::new()];
        let mut names = std::collections::BTreeSet::new();
        for line in list(&tree) {
            let name = line.split(' ').next().unwrap().trim_end_matches('/').to_owned();
            let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
            prop_assert!(directories.iter().any(|known| known == parent), "{line}");
            prop_assert!(!name.split('/').any(|part| part == ".." || part == "."), "{line}");
            if let Some((_, first)) = line.split_once(" = ") {
                prop_assert!(names.contains(first), "{line}");
            }
            if line.ends_with('/') {
                directories.push(name.clone());
            }
            prop_assert!(names.insert(name), "{line}");
        }
    }
}
