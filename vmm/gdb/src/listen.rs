//! Where GDB connects to.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// A socket that listens.
pub struct Listener {
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens at a TCP address. With port 0, the host chooses one.
    ///
    /// # Errors
    ///
    /// The host's: the port is in use, say.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { socket: Socket::Tcp(listener, address) })
    }

    /// Listens at a Unix socket, which must not exist and is removed at the end.
    ///
    /// # Errors
    ///
    /// The host's: there is such a file, say.
    pub fn unix(path: PathBuf) -> io::Result<Self> {
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { socket: Socket::Unix(listener, path) })
    }

    /// Takes a connection that is there; `WouldBlock` if there is none.
    pub(crate) fn accept(&self) -> io::Result<OwnedFd> {
        match &self.socket {
            Socket::Tcp(listener, _) => {
                let (stream, _) = listener.accept()?;
                prepare(&stream);
                Ok(stream.into())
            }
            Socket::Unix(listener, _) => Ok(listener.accept()?.0.into()),
        }
    }
}

/// Packets are small and each waits for the answer to the one before.
fn prepare(stream: &TcpStream) {
    // Without it, all is slower.
    let _ = stream.set_nodelay(true);
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(listener, _) => listener.as_fd(),
            Socket::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// As GDB's `target remote` takes it.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.socket {
            Socket::Tcp(_, address) => address.fmt(f),
            Socket::Unix(_, path) => path.display().fmt(f),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            // Somebody else may have removed it.
            let _ = fs::remove_file(path);
        }
    }
}
