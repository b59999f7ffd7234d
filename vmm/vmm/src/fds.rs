//! File descriptors: those that this process inherits by number, and how many it may have.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The numbers that have been taken.
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// The numbers that were open when the program began.
static INHERITED: OnceLock<Vec<RawFd>> = OnceLock::new();

/// Takes note of which descriptors are inherited: before the program opens files of its own, whose
/// numbers must not be mistaken for them.
pub fn take_note() {
    let Ok(directory) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> =
        directory.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    // The directory's own is closed by now.
    let is_open = |fd: &RawFd| {
        // SAFETY: F_GETFD touches no memory of this process.
        unsafe { libc::fcntl(*fd, libc::F_GETFD) >= 0 }
    };
    let _ = INHERITED.set(open.into_iter().filter(is_open).collect());
}

/// Takes an inherited descriptor, once, and keeps it from processes that are started later.
///
/// Standard input, output and error are not given out: the rest of the program uses them.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if fd <= 2 || taken.contains(&fd) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {fd} is in use already"),
        ));
    }
    if INHERITED.get().is_some_and(|inherited| !inherited.contains(&fd)) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD touches no memory of this process.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    taken.push(fd);
    // SAFETY: the descriptor is open, and nobody else in this process owns it: it was inherited,
    // and `taken` sees to it that it is given out only once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets this process have as many descriptors as it may: a guest that shares folders has many files open.
/// Where that is refused, it does with fewer.
pub fn take_all() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn a_descriptor_is_given_out_once() {
        let fd = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let owned = inherited(fd).unwrap();
        assert!(inherited(fd).is_err());
        drop(owned);
        assert!(inherited(1).is_err());
        assert!(inherited(-1).is_err());
        assert!(inherited(1_000_000).is_err());
    }
}
