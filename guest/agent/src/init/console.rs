//! The console: the first serial port, on which the image's program runs.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;

use agent_protocol::program::{BEGIN, END, LITERAL, Start};
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Winsize,
    tcdrain, tcgetattr, tcsetattr, tcsetwinsize,
};

use crate::users::User;

/// _POSIX_VDISABLE (termios(3)).
const DISABLED: u8 = 0;

const DEVICE: &str = "/dev/ttyS0";

/// The console.
pub struct Console {
    device: File,
    plain: bool,
}

impl Console {
    /// Opens it. Where the program is to have no terminal, bytes go through as they are; only the end of input is a
    /// character still, since a serial line has no end, and what makes that one a byte like others.
    pub fn open(start: &Start) -> io::Result<Console> {
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(DEVICE)
            .map_err(super::files::about(DEVICE))?;
        if start.plain {
            let mut modes = tcgetattr(&device)?;
            modes.input_modes = InputModes::empty();
            // A program that reads slowly has the host wait, which the port lets it see.
            modes.control_modes |= ControlModes::CRTSCTS;
            modes.output_modes &= !OutputModes::OPOST;
            modes.local_modes = LocalModes::ICANON | LocalModes::IEXTEN;
            for key in [
                SpecialCodeIndex::VERASE,
                SpecialCodeIndex::VKILL,
                SpecialCodeIndex::VWERASE,
                SpecialCodeIndex::VREPRINT,
                SpecialCodeIndex::VEOL,
                SpecialCodeIndex::VEOL2,
            ] {
                modes.special_codes[key] = DISABLED;
            }
            modes.special_codes[SpecialCodeIndex::VEOF] = END;
            modes.special_codes[SpecialCodeIndex::VLNEXT] = LITERAL;
            tcsetattr(&device, OptionalActions::Now, &modes)?;
        } else {
            // A serial line does not say how large the terminal at its other end is.
            let (ws_row, ws_col) = start.size.unwrap_or((24, 80));
            let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
            let _ = tcsetwinsize(&device, size);
        }
        Ok(Console { device, plain: start.plain })
    }

    /// The program's input, output and errors. The device becomes the user's, who can open it anew.
    pub fn for_program(&self, user: &User) -> io::Result<[Stdio; 3]> {
        let _ = rustix::fs::fchown(&self.device, Some(rustix::fs::Uid::from_raw(user.uid)), None);
        let copy = || self.device.try_clone().map(Stdio::from);
        Ok([copy()?, copy()?, copy()?])
    }

    /// Says that from now on all bytes are the program's.
    pub fn begin(&self) {
        if self.plain {
            let _ = (&self.device).write_all(BEGIN);
        }
    }

    /// Waits until what the program has written is out.
    pub fn drain(&self) {
        let _ = tcdrain(&self.device);
    }
}

/// Tells whoever looks at the console why there is no program.
pub fn complain(message: &str) {
    if let Ok(mut device) = File::options().write(true).custom_flags(libc::O_NOCTTY).open(DEVICE) {
        let _ = device.write_all(format!("lodge: {message}\n").as_bytes());
        let _ = tcdrain(&device);
    }
}
