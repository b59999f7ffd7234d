//! A Unix socket that serves one client at a time.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use crate::Error;

/// A listening socket and its client, if there is one. Removes the socket file when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    listener: UnixListener,
    client: Option<UnixStream>,
}

impl Server {
    pub(crate) fn listen(path: PathBuf) -> Result<Self, Error> {
        clear_stale(&path)?;
        match bind(&path) {
            Ok(listener) => Ok(Self { path, listener, client: None }),
            Err(source) => Err(Error::Socket { path, source }),
        }
    }

    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub(crate) fn client(&self) -> Option<BorrowedFd<'_>> {
        self.client.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn disconnect(&mut self) {
        self.client = None;
    }

    /// Takes the next client, or turns it away if there is one already.
    pub(crate) fn accept(&mut self) {
        let mut client = match self.listener.accept() {
            Ok((client, _)) => client,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(e) => {
                // Mostly a lack of file descriptors. poll(2) would report the client at once
                // again.
                tracing::warn!("a client of {} is kept waiting: {e}", self.path.display());
                std::thread::sleep(std::time::Duration::from_millis(50));
                return;
            }
        };
        if client.set_nonblocking(true).is_err() {
            return;
        }
        if self.client.as_ref().is_some_and(|old| !hung_up(old)) {
            // A fresh socket has room for this, and if not the client is gone.
            let _ = client.write_all(b"This console is in use by another client.\r\n");
        } else {
            self.client = Some(client);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether the client has closed its end.
fn hung_up(client: &UnixStream) -> bool {
    let mut fd = [PollFd::new(client, PollFlags::RDHUP)];
    poll(&mut fd, Some(&Timespec::default())).is_ok() && !fd[0].revents().is_empty()
}

/// Removes the socket file of a process that is gone.
fn clear_stale(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(Error::NotASocket(path.to_owned())),
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)
                .map_err(|source| Error::Socket { path: path.to_owned(), source }),
            _ => Err(Error::SocketInUse(path.to_owned())),
        },
        Err(_) => Ok(()), // not there, or binding will say why it cannot be
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The socket's mode becomes the file's (unix(7)), so nobody else ever sees it open.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    if let Err(e) = rustix::net::listen(&socket, 8) {
        let _ = fs::remove_file(path);
        return Err(e.into());
    }
    Ok(socket.into())
}
