//! Locks that keep two programs from using one image at a time.
//!
//! They are the locks that QEMU takes (docs/interop and block/file-posix.c of QEMU describe them),
//! so that qemu-img, a running QEMU and Lodge respect each other. Each of QEMU's permissions has a
//! number. A user of the image holds a *shared* lock on byte `100 + n` for each permission that it
//! uses, and on byte `200 + n` for each that it does not let others use; it then looks whether
//! anyone else's locks contradict its own. Holding shared locks only, a read-only user needs no
//! write permission on the file.
//!
//! Open-file-description locks (fcntl(2), `F_OFD_SETLK`) belong to the open file, not to the
//! process: they vanish when it is closed or the process dies, and two opens in one process
//! conflict as they should.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Byte of permission 0 that a user of the image uses.
const USED_BASE: i64 = 100;
/// Byte of permission 0 that a user of the image denies to others.
const DENIED_BASE: i64 = 200;

/// QEMU's `BLK_PERM_CONSISTENT_READ`, `BLK_PERM_WRITE` and `BLK_PERM_RESIZE`.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Why a lock was not had.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Another user's lock stands against it.
    Busy,
    /// The host failed.
    Host(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Refused::Host(error)
    }
}

/// Locks `file` for writing, which excludes all other users, or for reading, which excludes
/// writers. The lock lasts until [`unlock`] or until `file` is closed; after an error nothing is locked.
pub(crate) fn lock(file: &File, writable: bool) -> Result<(), Refused> {
    let used: &[i64] = if writable { &[READ, WRITE, RESIZE] } else { &[READ] };
    let denied: &[i64] = &[WRITE, RESIZE];

    let taken = take(file, used, denied);
    if taken.is_err() {
        unlock(file);
    }
    taken
}

/// Gives up all locks. Closing the file alone does not if a process that was forked in this moment
/// still has it open.
pub(crate) fn unlock(file: &File) {
    // From byte 100 to beyond the last byte that anyone uses. It can't fail on a valid range, and
    // if it did, closing the file would do.
    let _ = set(file, libc::F_UNLCK, USED_BASE, 2 * (DENIED_BASE - USED_BASE));
}

fn take(file: &File, used: &[i64], denied: &[i64]) -> Result<(), Refused> {
    for permission in used {
        set(file, libc::F_RDLCK, USED_BASE + permission, 1)?;
    }
    for permission in denied {
        set(file, libc::F_RDLCK, DENIED_BASE + permission, 1)?;
    }
    // Only now look at the others: of two that come at once, at least one sees the other.
    let contradicting = used
        .iter()
        .map(|permission| DENIED_BASE + permission)
        .chain(denied.iter().map(|permission| USED_BASE + permission));
    for byte in contradicting {
        if held_by_another(file, byte)? {
            return Err(Refused::Busy);
        }
    }
    Ok(())
}

fn set(file: &File, kind: libc::c_int, start: i64, len: i64) -> Result<(), Refused> {
    let mut range = flock(kind, start, len);
    match fcntl(file, libc::F_OFD_SETLK, &mut range) {
        // Somebody holds an exclusive lock on the byte; QEMU never does, but it is a lock.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Err(Refused::Busy)
        }
        other => Ok(other?),
    }
}

fn held_by_another(file: &File, byte: i64) -> io::Result<bool> {
    let mut range = flock(libc::F_WRLCK, byte, 1);
    fcntl(file, libc::F_OFD_GETLK, &mut range)?;
    Ok(libc::c_int::from(range.l_type) != libc::F_UNLCK)
}

fn flock(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        // fcntl(2): must be 0 for the F_OFD commands.
        l_pid: 0,
    }
}

#[allow(unsafe_code)]
fn fcntl(file: &File, command: libc::c_int, range: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open as long as `file` is borrowed, and both commands read and
        // write one `struct flock`, which `range` is.
        if unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(range)) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::path::Path;

    fn reopen(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let (a, b, c) = (reopen(image.path()), reopen(image.path()), reopen(image.path()));

        lock(&a, false).unwrap();
        lock(&b, false).unwrap();
        assert!(matches!(lock(&c, true), Err(Refused::Busy)));
        drop((a, b));

        // The refused attempt left nothing behind that would refuse another.
        let d = reopen(image.path());
        lock(&d, true).unwrap();
        assert!(matches!(lock(&c, true), Err(Refused::Busy)));
        assert!(matches!(lock(&c, false), Err(Refused::Busy)));
        drop(d);
        lock(&c, false).unwrap();
    }
}
