//! The Unix sockets in the guest's directory.
//!
//! A socket's address has room for 107 bytes of path (unix(7)), and a directory's path may be
//! longer. So sockets are reached through an open descriptor of the directory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::SOCKET;

/// The directory, and the socket in it that listens. Dropped, that is removed.
#[derive(Debug)]
pub struct Sockets {
    directory: OwnedFd,
    listener: UnixListener,
}

impl Sockets {
    /// Listens. Nobody else does so in this directory.
    pub fn open(directory: OwnedFd) -> io::Result<Self> {
        match rustix::fs::unlinkat(&directory, SOCKET, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let listener = UnixListener::bind(path(&directory, SOCKET))?;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::chmodat(&directory, SOCKET, mode, AtFlags::empty())?;
        listener.set_nonblocking(true)?;
        Ok(Self { directory, listener })
    }

    /// The next program that wants to connect; [`io::ErrorKind::WouldBlock`] if there is none.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(socket, _)| socket)
    }

    /// Connects to the program that listens for the guest's connections to a port.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let address = SocketAddrUnix::new(path(&self.directory, &format!("{SOCKET}_{port}")))?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // At once, or not at all: who listens has no room for more, then (unix(7)).
        rustix::net::connect(&socket, &address)?;
        Ok(socket.into())
    }
}

/// Readable when somebody wants to connect.
impl AsFd for Sockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&self.directory, SOCKET, AtFlags::empty());
    }
}

fn path(directory: &OwnedFd, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()).into()
}
