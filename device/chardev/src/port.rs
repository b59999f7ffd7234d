//! The file descriptors of a back end and what becomes of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::socket::Server;

/// Whether output has anybody to go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// It is taken, sooner or later.
    Present,
    /// Somebody may come.
    Awaited,
    /// Nobody will come any more.
    Gone,
}

/// A back end's file descriptors.
#[derive(Debug)]
pub(crate) enum Port {
    /// Given streams, which end once.
    Streams { input: Option<OwnedFd>, output: Option<OwnedFd> },
    /// The master of a pseudo terminal. `open`: somebody has the terminal open.
    Pty { master: OwnedFd, open: bool },
    /// A listening socket.
    Socket(Server),
}

impl Port {
    pub(crate) fn stdio() -> io::Result<Self> {
        // Duplicates, so that closing the port does not close the process's own.
        Ok(Self::Streams {
            input: Some(io::stdin().as_fd().try_clone_to_owned()?),
            output: Some(io::stdout().as_fd().try_clone_to_owned()?),
        })
    }

    pub(crate) fn stream(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self::Streams { input: Some(fd.try_clone()?), output: Some(fd) })
    }

    pub(crate) fn log(path: &Path) -> io::Result<Self> {
        let file: File = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self::Streams { input: None, output: Some(file.into()) })
    }

    pub(crate) fn pty() -> io::Result<(Self, PathBuf)> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name =
            PathBuf::from(std::ffi::OsString::from_vec(ptsname(&master, Vec::new())?.into_bytes()));
        // Guests echo and edit lines themselves.
        let mut mode = tcgetattr(&master)?;
        mode.make_raw();
        tcsetattr(&master, OptionalActions::Now, &mode)?;
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        // The kernel reports that nobody has the terminal open only after somebody had.
        drop(
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlags::NOCTTY.bits() as i32)
                .open(&name)?,
        );
        Ok((Self::Pty { master, open: false }, name))
    }

    /// What to read input from.
    pub(crate) fn input(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Streams { input, .. } => input.as_ref().map(AsFd::as_fd),
            Self::Pty { master, open } => open.then(|| master.as_fd()),
            Self::Socket(server) => server.client(),
        }
    }

    /// What to write output to.
    pub(crate) fn output(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Streams { output, .. } => output.as_ref().map(AsFd::as_fd),
            Self::Pty { .. } | Self::Socket(_) => self.input(),
        }
    }

    /// What becomes readable when a client comes.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Socket(server) => Some(server.listener()),
            Self::Streams { .. } | Self::Pty { .. } => None,
        }
    }

    pub(crate) fn reader(&self) -> Reader {
        match self {
            _ if self.output().is_some() => Reader::Present,
            Self::Streams { .. } => Reader::Gone,
            Self::Pty { .. } | Self::Socket(_) => Reader::Awaited,
        }
    }

    /// Takes the client that has come.
    pub(crate) fn accept(&mut self) {
        if let Self::Socket(server) = self {
            server.accept();
        }
    }

    /// Whether only a look now and then ([`Port::probe`]) tells that somebody came.
    pub(crate) fn needs_probe(&self) -> bool {
        matches!(self, Self::Pty { open: false, .. })
    }

    /// Looks whether somebody came.
    pub(crate) fn probe(&mut self) {
        if let Self::Pty { master, open } = self {
            let mut fd = [PollFd::new(master, PollFlags::OUT)];
            let polled = poll(&mut fd, Some(&rustix::event::Timespec::default())).is_ok();
            *open = polled && !fd[0].revents().contains(PollFlags::HUP);
        }
    }

    /// The far end sends no more.
    pub(crate) fn input_ended(&mut self) {
        match self {
            Self::Streams { input, .. } => *input = None,
            Self::Pty { .. } | Self::Socket(_) => self.output_ended(),
        }
    }

    /// The far end takes no more.
    pub(crate) fn output_ended(&mut self) {
        match self {
            Self::Streams { output, .. } => *output = None,
            Self::Pty { open, .. } => *open = false,
            Self::Socket(server) => server.disconnect(),
        }
    }
}
