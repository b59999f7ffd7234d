//! The guest's directory, in which its VMM keeps what is to outlive it.

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use hybrid_vsock::Vsock;
use rustix::fs::{Mode, OFlags, openat};
use vmm_api::Failure;

use crate::bounded_file::BoundedFile;
use crate::fds;

/// What the guest wrote to its first serial port.
const CONSOLE_LOG: &str = "console.log";
const MAX_CONSOLE_LOG: u64 = 2 << 20;
/// What happened to the guest, as lines of JSON.
const EVENTS: &str = "events.jsonl";
const MAX_EVENTS: u64 = 256 << 10;

/// The guest's directory, if it has one.
#[derive(Debug, Default)]
pub struct Directory(Option<OwnedFd>);

impl Directory {
    /// Takes the inherited descriptor of the directory, if there is one.
    pub fn new(fd: Option<RawFd>) -> Result<Self, Failure> {
        let open = |fd| {
            fds::inherited(fd).map_err(|e| {
                Failure::host(format!("cannot use the guest's directory, descriptor {fd}: {e}"))
            })
        };
        fd.map(open).transpose().map(Self)
    }

    /// One that is open.
    #[cfg(test)]
    pub fn over(directory: OwnedFd) -> Self {
        Self(Some(directory))
    }

    /// Where the console is logged: in memory, if there is no directory.
    pub fn console_log(&self) -> Result<BoundedFile, Failure> {
        let file = self.open(CONSOLE_LOG, MAX_CONSOLE_LOG).and_then(|file| match file {
            Some(file) => Ok(file),
            None => BoundedFile::in_memory(MAX_CONSOLE_LOG),
        });
        file.map_err(cannot_keep(CONSOLE_LOG))
    }

    /// Where events are kept, if there is a directory.
    pub fn events(&self) -> Result<Option<BoundedFile>, Failure> {
        self.open(EVENTS, MAX_EVENTS).map_err(cannot_keep(EVENTS))
    }

    /// Another descriptor of it, if there is one.
    pub fn handle(&self) -> Result<Option<OwnedFd>, Failure> {
        let again = |fd: &OwnedFd| fd.try_clone().map_err(cannot_keep("snapshots"));
        self.0.as_ref().map(again).transpose()
    }

    /// The host's end of the guest's socket device, whose Unix sockets are in the directory.
    pub fn vsock(&self) -> Result<Vsock, Failure> {
        let directory = self.0.as_ref().map(OwnedFd::try_clone).transpose();
        directory.and_then(Vsock::new).map_err(cannot_keep(hybrid_vsock::SOCKET))
    }

    fn open(&self, name: &str, limit: u64) -> io::Result<Option<BoundedFile>> {
        let Some(directory) = &self.0 else { return Ok(None) };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?);
        BoundedFile::new(file, limit).map(Some)
    }
}

fn cannot_keep(name: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |e| Failure::host(format!("cannot keep {name} in the guest's directory: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_and_continued() {
        let dir = tempfile::tempdir().unwrap();
        for length in [4, 8] {
            let directory = Directory(Some(File::open(dir.path()).unwrap().into()));
            directory.console_log().unwrap().append(b"one\n").unwrap();
            directory.events().unwrap().unwrap().append(b"{}\n").unwrap();
            assert_eq!(std::fs::metadata(dir.path().join(CONSOLE_LOG)).unwrap().len(), length);
        }
        assert!(Directory::default().events().unwrap().is_none());
        Directory::default().console_log().unwrap().append(b"one\n").unwrap();
    }
}
