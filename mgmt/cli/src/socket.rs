//! Unix sockets in directories.
//!
//! A socket's address has room for 107 bytes of path (unix(7)), and a directory's path may be
//! longer. So the socket is reached through an open descriptor of the directory.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// The name of the socket by which a guest's VMM is asked things.
pub const API: &str = "api.sock";

/// Listens in a directory that nobody else does so in. What a killed listener left is removed.
pub fn listen(directory: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(directory.join(API)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = reach(directory, UnixListener::bind)?;
    // The directory is the user's alone, so that nobody else could be quicker.
    fs::set_permissions(directory.join(API), fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to whoever listens in a directory.
pub fn connect(directory: &Path) -> io::Result<UnixStream> {
    reach(directory, UnixStream::connect)
}

fn reach<T>(directory: &Path, act: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    act(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(API))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_long_path_is_no_obstacle() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("x".repeat(200));
        fs::create_dir(&directory).unwrap();
        assert_eq!(connect(&directory).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(listen(&directory).unwrap());
        assert_eq!(connect(&directory).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let listener = listen(&directory).unwrap();
        connect(&directory).unwrap().write_all(b"hello").unwrap();
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}
