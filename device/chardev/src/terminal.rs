//! A terminal that hands over each key.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Keeps a terminal in raw mode (no echo, no line editing, no signals from keys, output as it
/// is) and puts it back when dropped, in a panic as well. A process that may be ended by a
/// signal has to catch it and drop this.
#[derive(Debug)]
pub struct RawTerminal {
    fd: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Puts `fd` in raw mode. `None` if it is not a terminal.
    pub fn enter(fd: impl AsFd) -> io::Result<Option<Self>> {
        if !isatty(&fd) {
            return Ok(None);
        }
        let fd = fd.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&fd)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&fd, OptionalActions::Flush, &raw)?;
        Ok(Some(Self { fd, before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Drain: what was written in raw mode should still appear so.
        let _ = tcsetattr(&self.fd, OptionalActions::Drain, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, unlockpt};
    use rustix::termios::LocalModes;

    #[test]
    fn the_mode_comes_back() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let local = || tcgetattr(&master).unwrap().local_modes;
        let before = local();
        assert!(before.contains(LocalModes::ECHO | LocalModes::ICANON));
        let raw = RawTerminal::enter(&master).unwrap().unwrap();
        assert!(!local().intersects(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG));
        drop(raw);
        assert_eq!(local(), before);
        let panicked = std::panic::catch_unwind(|| {
            let _raw = RawTerminal::enter(&master).unwrap();
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.is_err());
        assert_eq!(local(), before);
    }

    #[test]
    fn what_is_no_terminal_is_left_alone() {
        let file = tempfile::tempfile().unwrap();
        assert!(RawTerminal::enter(&file).unwrap().is_none());
    }
}
