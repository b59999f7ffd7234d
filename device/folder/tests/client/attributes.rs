//! Owners, modes, times, and attributes of users' own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use folder::Options;

use crate::driver::*;

const MODE: u32 = 1;
const UID: u32 = 2;
const GID: u32 = 4;
const TIMES: u32 = 1 << 4 | 1 << 5;

#[test]
fn what_is_ours_is_the_guests() {
    let mut c = Client::with(Options { uid: 1000, gid: 100, ..Options::default() });
    fs::write(c.host.join("f"), "").unwrap();
    let f = c.look_up(ROOT, "f").unwrap();
    let attributes = c.attributes(f).unwrap();
    assert_eq!((u32_at(&attributes, 68), u32_at(&attributes, 72)), (1000, 100));
    // To whom it belongs already, it can be given.
    assert!(c.set(f, UID | GID, 0, 0, (1000, 100)).is_ok());
    assert_eq!(c.set(f, UID, 0, 0, (0, 0)), Err(EPERM));
    assert_eq!(c.set(f, GID, 0, 0, (1000, 1000)), Err(EPERM));
    // Nothing is done by halves.
    assert_eq!(c.set(f, MODE | UID, 0, 0o777, (0, 0)), Err(EPERM));
    assert_ne!(fs::metadata(c.host.join("f")).unwrap().mode() & 0o777, 0o777);
}

#[test]
fn modes_and_times() {
    let mut c = Client::new();
    let (node, _) = c.create(ROOT, "f", O_RDWR, 0o666).unwrap();
    let mode = |c: &Client, name: &str| {
        fs::metadata(c.host.join(name)).unwrap().permissions().mode() & 0o7777
    };
    // The host's umask takes nothing away.
    assert_eq!(mode(&c, "f"), 0o666);
    for bits in [0, 0o400, 0o1751] {
        assert!(c.set(node, MODE, 0, bits, (0, 0)).is_ok());
        assert_eq!(mode(&c, "f"), bits);
    }
    // Nobody on the host is to run it as this user.
    for bits in [0o4755, 0o2755, 0o6777] {
        assert_eq!(c.set(node, MODE, 0, bits, (0, 0)), Err(EPERM));
        assert_eq!(c.create(ROOT, "g", O_RDWR, bits), Err(EPERM));
        let make = body().u32(0o100_000 | bits).u32(0).u32(0).u32(0).name("g");
        assert_eq!(c.ask(op::MKNOD, ROOT, make), Err(EPERM));
    }
    assert!(!c.host.join("g").exists());
    // A directory may hand its group on.
    let d = c.make_directory(ROOT, "d", 0o2775).unwrap();
    assert_eq!(mode(&c, "d"), 0o2775);
    c.make_directory(d, "e", 0o777).unwrap();
    assert_eq!(mode(&c, "d/e"), 0o2777);
    assert_eq!(c.make_directory(ROOT, "s", 0o4777), Err(EPERM));

    assert!(c.set(node, TIMES, 0, 0, (0, 0)).is_ok());
    let file = fs::metadata(c.host.join("f")).unwrap();
    assert_eq!((file.atime(), file.mtime(), file.mtime_nsec()), (1_000, 2_000, 6));
    let link = c.ask(op::SYMLINK, ROOT, body().name("l").name("f")).unwrap();
    let link = u64_at(&link, 0);
    assert_eq!(c.set(link, MODE, 0, 0o600, (0, 0)), Err(EOPNOTSUPP));
    assert!(c.set(link, TIMES, 0, 0, (0, 0)).is_ok());
    assert_eq!(fs::symlink_metadata(c.host.join("l")).unwrap().mtime(), 2_000);
    assert_eq!(mode(&c, "f"), 0o1751);
}

#[test]
fn attributes_of_users_only() {
    let mut c = Client::new();
    let (node, _) = c.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    let set =
        |name: &str, value: &[u8]| body().u32(value.len() as u32).u32(0).name(name).bytes(value);
    match c.ask(op::SETXATTR, node, set("user.a", b"one")) {
        Err(EOPNOTSUPP) => {
            return eprintln!("SKIPPED: this file system has no attributes of users");
        }
        result => assert_eq!(result, Ok(vec![])),
    }
    let get = |name: &str, size: u32| body().u32(size).u32(0).name(name);
    assert_eq!(c.ask(op::GETXATTR, node, get("user.a", 100)).unwrap(), b"one");
    assert_eq!(c.ask(op::GETXATTR, node, get("user.a", 0)).map(|out| u32_at(&out, 0)), Ok(3));
    assert_eq!(c.ask(op::GETXATTR, node, get("user.a", 2)), Err(34));
    assert_eq!(c.ask(op::GETXATTR, node, get("user.b", 100)), Err(61));
    assert_eq!(c.ask(op::LISTXATTR, node, body().u32(100).u32(0)).unwrap(), b"user.a\0");
    for other in ["security.capability", "system.posix_acl_access", "trusted.x", "x"] {
        assert_eq!(c.ask(op::SETXATTR, node, set(other, b"x")), Err(EOPNOTSUPP), "{other}");
        assert_eq!(c.ask(op::GETXATTR, node, get(other, 100)), Err(EOPNOTSUPP), "{other}");
        assert_eq!(c.ask(op::REMOVEXATTR, node, body().name(other)), Err(EOPNOTSUPP), "{other}");
    }
    assert_eq!(
        c.ask(op::SETXATTR, node, body().u32(9).u32(0).name("user.c").bytes(b"x")),
        Err(EINVAL)
    );
    assert_eq!(c.ask(op::REMOVEXATTR, node, body().name("user.a")), Ok(vec![]));
    assert_eq!(c.ask(op::LISTXATTR, node, body().u32(0).u32(0)).map(|out| u32_at(&out, 0)), Ok(0));
}

#[test]
fn the_file_system_is_described() {
    let mut c = Client::new();
    let all = c.ask(op::STATFS, ROOT, body()).unwrap();
    assert_eq!(all.len(), 80);
    assert!(u64_at(&all, 0) > 0 && u32_at(&all, 40) >= 512 && u32_at(&all, 44) == 255);
}
