//! The directory that is shared.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, fstatfs, openat};
use rustix::io::{Errno, Result};
use rustix::process::{getegid, geteuid};

/// A directory of the host, open for as long as it is shared.
#[derive(Clone, Debug)]
pub struct Root(Arc<Descriptors>);

#[derive(Debug)]
struct Descriptors {
    directory: OwnedFd,
    /// `/proc/self/fd`, where a file that is known by a descriptor is opened for reading or writing.
    descriptors: OwnedFd,
    /// This process's user and group, as whom all is done.
    user: (u32, u32),
}

/// A directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("the folder {} cannot be shared: {source}{}", path.display(), advice(source))]
    Directory {
        /// Where it should be.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// It is the host's view of its processes, this one among them.
    #[error("the folder {} cannot be shared: a guest could reach into its own VMM there", path.display())]
    Processes {
        /// Where it is.
        path: PathBuf,
    },
    /// The host has no `/proc`.
    #[error("folders cannot be shared: cannot open /proc/self/fd: {0}; mount /proc")]
    NoProc(io::Error),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; make it with mkdir, or correct the path",
        io::ErrorKind::NotADirectory => "; share the directory that the file is in",
        _ => "",
    }
}

impl Root {
    /// Opens a directory.
    ///
    /// # Errors
    ///
    /// It is not there, none, or of a kind that must not be shared.
    pub fn open(path: &Path) -> std::result::Result<Self, OpenError> {
        let failed =
            |error: Errno| OpenError::Directory { path: path.into(), source: error.into() };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        // What cannot be listed is found out now.
        openat(CWD, path, flags | OFlags::RDONLY, Mode::empty()).map_err(failed)?;
        let directory = openat(CWD, path, flags | OFlags::PATH, Mode::empty()).map_err(failed)?;
        if fstatfs(&directory).map_err(failed)?.f_type == PROC_SUPER_MAGIC {
            return Err(OpenError::Processes { path: path.into() });
        }
        let descriptors = openat(CWD, "/proc/self/fd", flags | OFlags::PATH, Mode::empty())
            .map_err(|error| OpenError::NoProc(error.into()))?;
        let user = (geteuid().as_raw(), getegid().as_raw());
        Ok(Self(Arc::new(Descriptors { directory, descriptors, user })))
    }

    /// Opens the file that a descriptor stands for. The caller has seen to it that it is a regular file or
    /// a directory.
    pub(crate) fn reopen(&self, file: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        openat(&self.0.descriptors, number(file), flags, Mode::empty())
    }

    /// This process's user and group.
    pub(crate) fn user(&self) -> (u32, u32) {
        self.0.user
    }

    /// Where files are named by the [numbers](number) of their descriptors.
    pub(crate) fn descriptors(&self) -> BorrowedFd<'_> {
        self.0.descriptors.as_fd()
    }
}

/// What a descriptor is called in `/proc/self/fd`.
pub(crate) fn number(file: BorrowedFd<'_>) -> String {
    file.as_raw_fd().to_string()
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.directory.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_are_shared() {
        let place = tempfile::tempdir().unwrap();
        assert!(Root::open(place.path()).is_ok());
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        let said = |path: &Path| Root::open(path).unwrap_err().to_string();
        assert!(said(&file).contains("directory that the file is in"));
        assert!(said(&place.path().join("missing")).contains("make it with mkdir"));
        assert!(said(Path::new("/proc")).contains("its own VMM"));
        assert!(said(Path::new("/proc/self/task")).contains("its own VMM"));
    }
}
