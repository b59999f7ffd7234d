//! `lodge logs`.

use std::fs;
use std::io::ErrorKind;

use vmm_api::Failure;

use crate::args::lifecycle::LogsArgs;
use crate::guests::{self, CONSOLE_LOG, lock};
use crate::{failure, output};

/// Prints what a guest wrote; the value is the exit status.
pub fn run(args: &LogsArgs) -> Result<u8, Failure> {
    let name = &args.name;
    let directory = guests::existing(name)?;
    let lines = args.tail.unwrap_or(u64::MAX);
    if lock::is_held(&directory) {
        match guests::client(name) {
            Ok(client) => {
                let log = client.log(lines, args.follow).map_err(|error| error.about(name))?;
                for piece in log {
                    output::print(piece.map_err(|error| error.about(name))?)?;
                }
                return Ok(0);
            }
            // It has just ended.
            Err(_) if !lock::is_held(&directory) => {}
            Err(failure) => return Err(failure),
        }
    }
    let path = directory.join(CONSOLE_LOG);
    let log = match fs::read(&path) {
        Ok(log) => log,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failure::io("read", &path)(error)),
    };
    output::print(last_lines(&log, lines))?;
    Ok(0)
}

/// The last lines; what follows the last end of a line counts as one.
fn last_lines(text: &[u8], lines: u64) -> &[u8] {
    let Some(before) = lines.checked_sub(1) else { return &[] };
    let whole = text.strip_suffix(b"\n").unwrap_or(text);
    let mut ends = whole.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'\n');
    let start = usize::try_from(before).ok().and_then(|before| ends.nth(before));
    text.get(start.map_or(0, |(end, _)| end + 1)..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_from_the_end() {
        let text = b"one\n\nthree\nlog";
        for (lines, wanted) in [
            (0, ""),
            (1, "log"),
            (2, "three\nlog"),
            (3, "\nthree\nlog"),
            (u64::MAX, "one\n\nthree\nlog"),
        ] {
            assert_eq!(last_lines(text, lines), wanted.as_bytes(), "{lines}");
        }
        assert_eq!(last_lines(b"one\ntwo\n", 1), b"two\n");
        assert_eq!(last_lines(b"", 1), b"");
    }
}
