//! Why an image could not be opened or made, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// An image that could not be opened or made: what, why, and what to do next.
#[derive(Debug)]
pub struct Error {
    cause: Cause,
    path: PathBuf,
    problem: String,
    remedy: String,
    /// The overlay that names this image as its backing file.
    wanted_by: Option<PathBuf>,
    source: Option<io::Error>,
}

/// What kind of problem an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There is no such file.
    Missing,
    /// The host does not let this process read or write the file.
    Denied,
    /// Another process uses the image.
    Busy,
    /// Any other failure of the host: a disk error, no room.
    Io,
    /// The image contradicts itself.
    Damaged,
    /// The image is of a format, or uses a feature of it, that Lodge does not serve.
    Unsupported,
    /// What was asked for cannot be right: a directory, a size of zero, a file that exists.
    Misconfigured,
}

/// On whose side a problem lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The host: its permissions, room, other processes.
    Host,
    /// The image itself, or that there is none.
    Artifact,
    /// What the person or program asked for.
    Configuration,
}

impl Error {
    pub(crate) fn new(
        cause: Cause,
        path: &Path,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Error {
            cause,
            path: path.to_owned(),
            problem: problem.into(),
            remedy: remedy.into(),
            wanted_by: None,
            source: None,
        }
    }

    /// A damaged image.
    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        let remedy = format!(
            "look at it with `qemu-img check '{0}'`, and restore it from a copy or repair it with \
             `qemu-img check -r all '{0}'`",
            path.display()
        );
        Error::new(Cause::Damaged, path, problem, remedy)
    }

    /// The host refused to do `what` ("open", "read", "lock").
    pub(crate) fn host(path: &Path, what: &str, source: io::Error) -> Self {
        let (cause, remedy) = match source.kind() {
            io::ErrorKind::NotFound => (Cause::Missing, "check the path of the image"),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (
                Cause::Denied,
                "give this user access to the file and its directories, or open it read-only",
            ),
            io::ErrorKind::ResourceBusy | io::ErrorKind::ExecutableFileBusy => {
                (Cause::Busy, "unmount it or stop the program that uses it")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (Cause::Io, "free some room on the host's file system")
            }
            _ => (Cause::Io, "look for disk errors in the host's kernel log (dmesg)"),
        };
        Error {
            source: Some(source),
            ..Error::new(cause, path, format!("cannot {what} it"), remedy)
        }
    }

    /// The same error, told as one of the backing file of `overlay`.
    pub(crate) fn wanted_by(mut self, overlay: &Path) -> Self {
        self.wanted_by.get_or_insert_with(|| overlay.to_owned());
        self
    }

    /// What kind of problem this is.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// The image that has the problem: the one asked for, or a backing file of it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// On whose side the problem lies.
    pub fn origin(&self) -> Origin {
        match self.cause {
            Cause::Denied | Cause::Busy | Cause::Io => Origin::Host,
            Cause::Missing | Cause::Damaged | Cause::Unsupported => Origin::Artifact,
            Cause::Misconfigured => Origin::Configuration,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk image '{}'", self.path.display())?;
        if let Some(overlay) = &self.wanted_by {
            write!(f, " (the backing file of '{}')", overlay.display())?;
        }
        write!(f, ": {}", self.problem)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        write!(f, "; {}", self.remedy)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_why_and_what_next() {
        let error = Error::host(
            Path::new("/a/base.raw"),
            "open",
            io::Error::from_raw_os_error(libc::EACCES),
        )
        .wanted_by(Path::new("/b/over.qcow2"));
        let text = error.to_string();
        assert_eq!(error.cause(), Cause::Denied);
        assert_eq!(error.origin(), Origin::Host);
        for part in ["/a/base.raw", "/b/over.qcow2", "Permission denied", "give this user access"] {
            assert!(text.contains(part), "{part:?} not in {text:?}");
        }
    }
}
