//! Ways out of the folder that lead nowhere.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::driver::*;

const SECRET: &str = "what nobody is to see";

/// A client, and beside its folder a secret.
fn client() -> Client {
    let c = Client::new();
    fs::create_dir(c.outside("other")).unwrap();
    fs::write(c.outside("other/secret"), SECRET).unwrap();
    c
}

#[test]
fn names_that_are_paths_are_none() {
    let mut c = client();
    for name in ["..", ".", "", "../other", "/etc/passwd", "a/../../other", "other/secret"] {
        assert_eq!(c.look_up(ROOT, name), Err(EINVAL), "{name}");
        assert_eq!(c.create(ROOT, name, O_RDWR, 0o600), Err(EINVAL), "{name}");
        assert_eq!(c.make_directory(ROOT, name, 0o700), Err(EINVAL), "{name}");
        assert_eq!(c.ask(op::UNLINK, ROOT, body().name(name)), Err(EINVAL), "{name}");
        assert_eq!(c.ask(op::SYMLINK, ROOT, body().name(name).name("x")), Err(EINVAL), "{name}");
        assert_eq!(c.rename((ROOT, name), (ROOT, "mine")), Err(EINVAL), "{name}");
        assert_eq!(c.rename((ROOT, "mine"), (ROOT, name)), Err(EINVAL), "{name}");
        assert_eq!(c.ask(op::LINK, ROOT, body().u64(ROOT).name(name)), Err(EINVAL), "{name}");
    }
}

#[test]
fn links_are_only_read() {
    let mut c = client();
    symlink("../other", c.host.join("way")).unwrap();
    symlink("../other/secret", c.host.join("direct")).unwrap();
    symlink("/proc/self/fd", c.host.join("proc")).unwrap();
    for name in ["way", "direct", "proc"] {
        let link = c.look_up(ROOT, name).unwrap();
        assert_eq!(u32_at(&c.attributes(link).unwrap(), 60) & 0o170_000, 0o120_000);
        assert_eq!(c.look_up(link, "secret"), Err(ENOTDIR));
        assert_eq!(c.open(link, O_RDONLY), Err(ELOOP));
        assert_eq!(c.open(link, O_WRONLY | O_TRUNC), Err(ELOOP));
        assert_eq!(c.create(link, "new", O_RDWR, 0o600), Err(ENOTDIR));
        assert_eq!(c.ask(op::OPENDIR, link, body().u64(0)), Err(ENOTDIR));
        assert_eq!(c.set(link, 1 << 3, 0, 0, (0, 0)), Err(ELOOP));
        // Made over a link, it is a file that is not made.
        assert_eq!(c.create(ROOT, name, O_RDWR, 0o600), Err(ELOOP));
        assert_eq!(c.create(ROOT, name, O_RDWR | O_EXCL, 0o600), Err(EEXIST));
    }
    assert_eq!(fs::read_to_string(c.outside("other/secret")).unwrap(), SECRET);
    assert_eq!(fs::read_dir(c.outside("other")).unwrap().count(), 1);
}

#[test]
fn devices_are_neither_made_nor_opened() {
    let mut c = client();
    for kind in [0o020_000, 0o060_000, 0o040_000, 0o120_000, 0o170_000] {
        let make = body().u32(kind | 0o666).u32(0x0103).u32(0).u32(0).name("device");
        assert_eq!(c.ask(op::MKNOD, ROOT, make), Err(EPERM));
    }
    assert!(!c.host.join("device").exists());
}

/// A directory becomes a link outwards, again and again, while the client goes through it.
#[test]
fn what_is_exchanged_meanwhile_leads_nowhere() {
    let mut c = client();
    let (dir, spare) = (c.host.join("d"), c.host.join("spare"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("secret"), "harmless").unwrap();
    symlink("../other", &spare).unwrap();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            while !ends.load(Ordering::Relaxed) {
                renameat_with(CWD, &dir, CWD, &spare, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let mut reads = 0;
        for _ in 0..3000 {
            let Ok(node) = c.look_up(ROOT, "d") else { continue };
            if let Ok(file) = c.look_up(node, "secret") {
                let handle = c.open(file, O_RDONLY).unwrap();
                assert_eq!(c.read(handle, 0, 100).unwrap(), b"harmless");
                c.release(handle).unwrap();
                reads += 1;
            }
            let made = c.create(node, "new", O_RDWR, 0o600);
            assert!(made.is_ok() || made == Err(ENOTDIR), "{made:?}");
            if let Ok((_, handle)) = made {
                c.release(handle).unwrap();
            }
        }
        ends.store(true, Ordering::Relaxed);
        assert!(reads > 0);
    });
    assert_eq!(fs::read_dir(c.outside("other")).unwrap().count(), 1);
}

#[test]
fn other_file_systems_are_not_entered() {
    // Every host has some mounted below the root; which is only looked at.
    let Ok(root) = folder::Root::open("/".as_ref()) else {
        return eprintln!("SKIPPED: the root directory cannot be read");
    };
    let mut c = Client::new();
    let options = folder::Options { readonly: true, ..Default::default() };
    c.folder = folder::Folder::new(root, options).unwrap();
    c.init();
    assert_eq!(c.look_up(ROOT, "proc"), Err(EXDEV));
}

#[test]
fn a_folder_for_reading_stays_as_it_is() {
    let mut c = Client::readonly();
    fs::write(c.host.join("f"), "as it was").unwrap();
    let f = c.look_up(ROOT, "f").unwrap();
    let reader = c.open(f, O_RDONLY).unwrap();
    assert_eq!(c.read(reader, 0, 100).unwrap(), b"as it was");
    for flags in [O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC] {
        assert_eq!(c.open(f, flags), Err(EROFS));
    }
    assert_eq!(c.write(reader, 0, b"x"), Err(EROFS));
    assert_eq!(c.create(ROOT, "g", O_RDWR, 0o600), Err(EROFS));
    assert_eq!(c.create(ROOT, "f", O_RDONLY, 0o600), Err(EROFS));
    assert_eq!(c.make_directory(ROOT, "d", 0o700), Err(EROFS));
    assert_eq!(c.rename((ROOT, "f"), (ROOT, "g")), Err(EROFS));
    let flags = body().u64(ROOT).u32(0).u32(0).name("f").name("g");
    assert_eq!(c.ask(op::RENAME2, ROOT, flags), Err(EROFS));
    assert_eq!(c.set(f, 1, 0, 0o777, (0, 0)), Err(EROFS));
    assert_eq!(c.set(f, 1 << 3, 0, 0, (0, 0)), Err(EROFS));
    assert_eq!(c.ask(op::UNLINK, ROOT, body().name("f")), Err(EROFS));
    assert_eq!(c.ask(op::RMDIR, ROOT, body().name("f")), Err(EROFS));
    assert_eq!(c.ask(op::SYMLINK, ROOT, body().name("l").name("f")), Err(EROFS));
    assert_eq!(c.ask(op::LINK, ROOT, body().u64(f).name("l")), Err(EROFS));
    let make = body().u32(0o100_600).u32(0).u32(0).u32(0).name("m");
    assert_eq!(c.ask(op::MKNOD, ROOT, make), Err(EROFS));
    let allocate = body().u64(reader).u64(0).u64(99).u32(0).u32(0);
    assert_eq!(c.ask(op::FALLOCATE, f, allocate), Err(EROFS));
    let copy = body().u64(reader).u64(0).u64(f).u64(reader).u64(9).u64(4).u64(0);
    assert_eq!(c.ask(op::COPY_FILE_RANGE, f, copy), Err(EROFS));
    let set = body().u32(1).u32(0).name("user.a").bytes(b"x");
    assert_eq!(c.ask(op::SETXATTR, f, set), Err(EROFS));
    assert_eq!(c.ask(op::REMOVEXATTR, f, body().name("user.a")), Err(EROFS));
    assert_eq!(fs::read_dir(&c.host).unwrap().count(), 1);
    assert_eq!(fs::read(c.host.join("f")).unwrap(), b"as it was");
}
