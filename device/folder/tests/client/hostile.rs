//! Requests that no kernel sends.

use folder::Outcome;

use crate::driver::*;

#[test]
fn it_has_to_be_introduced() {
    let mut c = Client::new();
    assert!(c.ask(op::DESTROY, 0, body()).is_ok());
    assert_eq!(c.look_up(ROOT, "x"), Err(EIO));
    let hello = |major: u32, minor: u32| body().u32(major).u32(minor).u32(0).u32(u32::MAX);
    assert_eq!(c.ask(op::INIT, 0, hello(7, 30)), Err(EPROTO));
    assert_eq!(c.ask(op::INIT, 0, hello(6, 40)), Err(EPROTO));
    assert_eq!(c.ask(op::INIT, 0, body().u32(7)), Err(EINVAL));
    // A newer one is told what is spoken here.
    let out = c.ask(op::INIT, 0, hello(8, 0)).unwrap();
    assert_eq!((u32_at(&out, 0), out.len()), (7, 64));
    assert_eq!(c.look_up(ROOT, "x"), Err(EIO));
    let out = c.ask(op::INIT, 0, hello(7, 31)).unwrap();
    assert_eq!(out.len(), 64);
    // No locks, no cache that writes late, nothing that is not asked for.
    let flags = u32_at(&out, 12);
    assert_eq!(flags & (1 << 1 | 1 << 10 | 1 << 16), 0);
    let out = c.ask(op::INIT, 0, body().u32(7).u32(38).u32(0).u32(1 << 5)).unwrap();
    assert_eq!(u32_at(&out, 12), 1 << 5);
    assert_eq!(c.look_up(ROOT, "x"), Err(ENOENT));
}

#[test]
fn requests_that_are_cut_or_lie_about_their_length() {
    let mut c = Client::new();
    let mut reply = vec![1];
    for len in 0..40 {
        assert_eq!(c.folder.serve(&vec![0; len], 4096, &mut reply), Outcome::Failed);
        assert!(reply.is_empty());
    }
    let whole = request(op::LOOKUP, ROOT, b"x\0");
    for length in [0, 1, 40, 41, 43, 4096, u32::MAX] {
        let mut bytes = whole.clone();
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        c.folder.serve(&bytes, 4096, &mut reply);
        assert_eq!(u32_at(&reply, 4) as i32, -EINVAL);
    }
    // All operations, with bodies of all lengths that matter, of zeroes and of ones.
    for opcode in 0..60 {
        for fill in [0, 0xff, b'a'] {
            for len in [0, 1, 4, 8, 15, 16, 24, 39, 40, 41, 56, 64, 88, 89, 200] {
                for node in [0, ROOT, 2, u64::MAX] {
                    let bytes = request(opcode, node, &vec![fill; len]);
                    for room in [0, 15, 16, 17, 100, 4096] {
                        c.folder.serve(&bytes, room, &mut reply);
                        assert!(reply.len() <= room);
                    }
                }
            }
        }
        c.init();
    }
    assert_eq!(std::fs::read_dir(c.host.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn nodes_and_handles_that_are_none() {
    let mut c = Client::new();
    let (file, handle) = c.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    for node in [0, 77, u64::MAX] {
        assert_eq!(c.look_up(node, "f"), Err(ESTALE));
        assert_eq!(c.open(node, O_RDONLY), Err(ESTALE));
        assert_eq!(c.attributes(node), Err(ESTALE));
        assert_eq!(c.rename((ROOT, "f"), (node, "g")), Err(ESTALE));
        assert_eq!(c.read(node, 0, 1), Err(EBADF));
        assert_eq!(c.write(node, 0, b"x"), Err(EBADF));
        assert_eq!(c.release(node), Err(EBADF));
        c.forget(node, u64::MAX);
    }
    // A file is no directory, nor the other way around.
    assert_eq!(c.look_up(file, "x"), Err(ENOTDIR));
    assert_eq!(c.open(ROOT, O_RDONLY), Err(EISDIR));
    // Nothing that must stay is forgotten.
    c.forget(ROOT, u64::MAX);
    assert_eq!(c.look_up(ROOT, "f"), Ok(file));
    // Forgotten more often than told; its handle is there yet.
    c.forget(file, u64::MAX);
    assert_eq!(c.attributes(file), Err(ESTALE));
    assert_eq!(c.write(handle, 0, b"x"), Ok(1));
    assert!(c.release(handle).is_ok());
    // Handles of others do nothing for a node.
    let (_, handle) = c.create(ROOT, "g", O_RDWR, 0o600).unwrap();
    let node = c.look_up(ROOT, "f").unwrap();
    let set = body().u32(1 << 3 | 1 << 6).u32(0).u64(handle).u64(0).bytes(&[0; 64]);
    assert!(c.ask(op::SETATTR, node, set).is_ok());
    assert_eq!(u64_at(&c.attributes(node).unwrap(), 8), 0);
}

#[test]
fn offsets_and_sizes_beyond_all_bounds() {
    let mut c = Client::new();
    let (_, handle) = c.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    c.write(handle, 0, b"data").unwrap();
    assert_eq!(c.read(handle, 0, u32::MAX).unwrap(), b"data");
    for offset in [u64::MAX, u64::MAX - 2, 1 << 63] {
        assert!(c.read(handle, offset, 4096).is_err());
        assert!(c.write(handle, offset, b"data").is_err());
        let far = body().u64(handle).u64(offset).u64(u64::MAX).u32(0).u32(0);
        assert!(c.ask(op::FALLOCATE, 0, far).is_err());
        let far =
            body().u64(handle).u64(offset).u64(0).u64(handle).u64(offset).u64(u64::MAX).u64(0);
        assert!(c.ask(op::COPY_FILE_RANGE, 0, far).is_err());
    }
    let lies = body().u64(handle).u64(0).u32(100).u32(0).u64(0).u32(0).u32(0).bytes(b"few");
    assert_eq!(c.ask(op::WRITE, 0, lies), Err(EINVAL));
    let times = body().u32(1 << 4).u32(0).bytes(&[0; 48]).u32(1_000_000_000).bytes(&[0; 28]);
    assert_eq!(c.ask(op::SETATTR, ROOT, times), Err(EINVAL));
    // What has no room is not half told.
    assert_eq!(c.ask_with_room(op::LOOKUP, ROOT, b"f\0", 100), Err(EINVAL));
    assert_eq!(c.ask(99, ROOT, body()), Err(ENOSYS));
}
