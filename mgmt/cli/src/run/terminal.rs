//! This terminal while it is a guest's console.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal in raw mode: every key goes to the guest as it is. Dropped, also by a panic, it
/// makes the terminal what it was.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches standard input to raw mode; `None` if it is no terminal.
    pub fn enter() -> io::Result<Option<RawTerminal>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(RawTerminal { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
        let mut stdout = io::stdout();
        if stdout.is_terminal() {
            // What a guest that ended in mid-screen leaves: colours, a hidden cursor, marked
            // pastes, an application keypad (ECMA-48 SGR 0; xterm's DECTCEM, 2004 and DECKPNM).
            let _ = stdout.write_all(b"\x1b[0m\x1b[?25h\x1b[?2004l\x1b>");
            let _ = stdout.flush();
        }
    }
}

/// Tells a person something, in whichever mode the terminal is. In raw mode the terminal does not
/// return to the line's beginning by itself; elsewhere the carriage return would be in the way.
pub fn notice(raw: bool, text: &str) {
    let end = if raw { "\r\n" } else { "\n" };
    let text = text.replace('\n', end);
    let _ = write!(io::stderr(), "{}lodge: {text}{end}", if raw { "\r" } else { "" });
}

/// Writes all bytes to standard output, also where that is set not to block.
pub fn write_stdout(mut bytes: &[u8]) -> io::Result<()> {
    let stdout = io::stdout();
    while !bytes.is_empty() {
        match rustix::io::write(&stdout, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => wait_for_room(stdout.as_fd())?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn wait_for_room(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
