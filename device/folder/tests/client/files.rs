//! Files: made, read, written, moved and removed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::driver::*;

#[test]
fn a_file_from_beginning_to_end() {
    let mut c = Client::new();
    let (node, handle) = c.create(ROOT, "file", O_RDWR, 0o640).unwrap();
    let data: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    assert_eq!(c.write(handle, 0, &data), Ok(300_000));
    assert_eq!(fs::read(c.host.join("file")).unwrap(), data);
    assert_eq!(fs::metadata(c.host.join("file")).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(c.read(handle, 299_000, 4096).unwrap(), data[299_000..]);
    assert_eq!(c.read(handle, 300_000, 4096).unwrap(), b"");
    assert_eq!(c.ask(op::FSYNC, node, body().u64(handle).u32(1).u32(0)), Ok(vec![]));
    assert_eq!(c.ask(op::SYNCFS, ROOT, body().u64(0)), Ok(vec![]));
    assert_eq!(u64_at(&c.attributes(node).unwrap(), 8), 300_000);

    assert!(c.rename((ROOT, "file"), (ROOT, "other")).is_ok());
    assert_eq!(c.look_up(ROOT, "file"), Err(ENOENT));
    assert_eq!(c.look_up(ROOT, "other"), Ok(node));
    assert!(c.ask(op::UNLINK, ROOT, body().name("other")).is_ok());
    // It is there as long as it is open.
    assert_eq!(c.read(handle, 1, 2).unwrap(), [1, 2]);
    assert_eq!(u32_at(&c.attributes(node).unwrap(), 64), 0);
    assert!(c.release(handle).is_ok());
    assert_eq!(c.release(handle), Err(EBADF));
    assert_eq!(c.read(handle, 0, 1), Err(EBADF));
}

#[test]
fn what_is_appended_goes_to_the_end_that_there_is() {
    let mut c = Client::new();
    let (_, handle) = c.create(ROOT, "log", O_RDWR | O_APPEND, 0o644).unwrap();
    assert_eq!(c.write_as(handle, 0, b"one\n", 0, O_RDWR | O_APPEND), Ok(4));
    // The host is a line ahead of what the guest knows.
    fs::OpenOptions::new()
        .append(true)
        .open(c.host.join("log"))
        .unwrap()
        .write_all(b"two\n")
        .unwrap();
    assert_eq!(c.write_as(handle, 4, b"three\n", 0, O_RDWR | O_APPEND), Ok(6));
    // But a page of a mapping goes where it belongs.
    assert_eq!(c.write_as(handle, 0, b"ONE", 1, O_RDWR | O_APPEND), Ok(3));
    assert_eq!(fs::read(c.host.join("log")).unwrap(), b"ONE\ntwo\nthree\n");
}

#[test]
fn opened_as_asked_for() {
    let mut c = Client::new();
    fs::write(c.host.join("f"), "12345").unwrap();
    let f = c.look_up(ROOT, "f").unwrap();
    let reader = c.open(f, O_RDONLY).unwrap();
    assert_eq!(c.write(reader, 0, b"x"), Err(EBADF));
    let writer = c.open(f, O_WRONLY).unwrap();
    assert_eq!(c.read(writer, 0, 1), Err(EBADF));
    assert_eq!(c.open(f, 3), Err(EINVAL));
    c.open(f, O_WRONLY | O_TRUNC).unwrap();
    assert_eq!(c.read(reader, 0, 10).unwrap(), b"");

    // One that is there already is not made.
    assert_eq!(c.create(ROOT, "f", O_RDWR | O_EXCL, 0o600), Err(EEXIST));
    let (again, handle) = c.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    assert_eq!(again, f);
    assert_eq!(c.write(handle, 0, b"new"), Ok(3));
    assert_eq!(c.read(reader, 0, 10).unwrap(), b"new");
}

#[test]
fn sizes_holes_and_copies() {
    let mut c = Client::new();
    let (node, handle) = c.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    c.write(handle, 0, b"begin").unwrap();
    assert!(c.set(node, 1 << 3, 1 << 20, 0, (0, 0)).is_ok());
    assert_eq!(fs::metadata(c.host.join("f")).unwrap().len(), 1 << 20);
    let allocate = |mode: u32| body().u64(handle).u64(0).u64(4 << 20).u32(mode).u32(0);
    assert_eq!(c.ask(op::FALLOCATE, node, allocate(0)), Ok(vec![]));
    assert_eq!(fs::metadata(c.host.join("f")).unwrap().len(), 4 << 20);
    assert_eq!(c.ask(op::FALLOCATE, node, allocate(0x08)), Err(EOPNOTSUPP));
    let seek = |whence: u32| body().u64(handle).u64(0).u32(whence).u32(0);
    assert_eq!(c.ask(op::LSEEK, node, seek(3)).map(|out| u64_at(&out, 0)), Ok(0));
    assert_eq!(c.ask(op::LSEEK, node, seek(0)), Err(EINVAL));

    let (other, to) = c.create(ROOT, "g", O_RDWR, 0o600).unwrap();
    let copy = body().u64(handle).u64(1).u64(other).u64(to).u64(0).u64(4).u64(0);
    assert_eq!(c.ask(op::COPY_FILE_RANGE, node, copy).map(|out| u32_at(&out, 0)), Ok(4));
    assert_eq!(fs::read(c.host.join("g")).unwrap(), b"egin");
}

#[test]
fn links_pipes_and_sockets() {
    let mut c = Client::new();
    let link = c.ask(op::SYMLINK, ROOT, body().name("link").name("/etc/passwd")).unwrap();
    assert_eq!(c.ask(op::READLINK, u64_at(&link, 0), body()).unwrap(), b"/etc/passwd");
    assert_eq!(c.ask(op::READLINK, ROOT, body()), Err(EINVAL));
    let make = |name: &str, mode: u32| body().u32(mode).u32(0).u32(0o22).u32(0).name(name);
    for (name, mode) in [("pipe", 0o010_644), ("socket", 0o140_755), ("file", 0o100_600)] {
        let entry = c.ask(op::MKNOD, ROOT, make(name, mode)).unwrap();
        assert_eq!(u32_at(&entry, 40 + 60), mode, "{name}");
    }
    assert!(c.host.join("pipe").metadata().unwrap().file_type().is_fifo());
    // Neither waits for anybody.
    for name in ["pipe", "socket"] {
        let node = c.look_up(ROOT, name).unwrap();
        assert_eq!(c.open(node, O_RDONLY), Err(EACCES));
        assert!(c.set(node, 1, 0, 0o600, (0, 0)).is_ok());
    }
    // Two names of one file are one node.
    let file = c.look_up(ROOT, "file").unwrap();
    let second = c.ask(op::LINK, ROOT, body().u64(file).name("second")).unwrap();
    assert_eq!((u64_at(&second, 0), u32_at(&second, 40 + 64)), (file, 2));
    // Also a link can have two, and stays one.
    c.ask(op::LINK, ROOT, body().u64(u64_at(&link, 0)).name("link2")).unwrap();
    assert!(c.host.join("link2").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn directories_are_moved_with_all_that_is_in_them() {
    let mut c = Client::new();
    let a = c.make_directory(ROOT, "a", 0o755).unwrap();
    let b = c.make_directory(ROOT, "b", 0o777).unwrap();
    let (_, handle) = c.create(a, "f", O_RDWR, 0o600).unwrap();
    c.write(handle, 0, b"here").unwrap();
    assert!(c.rename((ROOT, "a"), (b, "c")).is_ok());
    assert_eq!(fs::read(c.host.join("b/c/f")).unwrap(), b"here");
    assert_eq!(fs::metadata(c.host.join("b")).unwrap().mode() & 0o777, 0o777);
    assert!(c.look_up(a, "f").is_ok());
    // Into itself it is not.
    assert_eq!(c.rename((ROOT, "b"), (a, "d")), Err(EINVAL));
    assert_eq!(c.ask(op::RMDIR, b, body().name("c")), Err(39));
    // Exchanged, and not over another.
    c.make_directory(ROOT, "x", 0o700).unwrap();
    let with = |flags: u32| body().u64(ROOT).u32(flags).u32(0).name("b").name("x");
    assert_eq!(c.ask(op::RENAME2, ROOT, with(1)), Err(EEXIST));
    assert!(c.ask(op::RENAME2, ROOT, with(2)).is_ok());
    assert!(c.host.join("x/c/f").exists());
    // No device nodes by the back door.
    assert_eq!(c.ask(op::RENAME2, ROOT, with(4)), Err(EINVAL));
}
