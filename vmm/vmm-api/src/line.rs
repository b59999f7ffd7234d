//! Messages as lines of JSON.

use std::io::{self, BufRead, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A longer line is no message: the longest are statistics of the most processors.
const MAX_LINE: u64 = 1 << 20;

/// Writes a message as one line and flushes it.
pub(crate) fn write(message: &impl Serialize, writer: &mut impl Write) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writer.write_all(&line)?;
    writer.flush()
}

/// Reads the next message; `None` at the end of the stream. What is no message is `InvalidData`, one
/// that the stream's end cuts off `UnexpectedEof`.
pub(crate) fn read<T: DeserializeOwned>(reader: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let is_whole = line.ends_with(b"\n") || line.len() as u64 == MAX_LINE;
    let kind = if is_whole { io::ErrorKind::InvalidData } else { io::ErrorKind::UnexpectedEof };
    serde_json::from_slice(&line).map(Some).map_err(|error| io::Error::new(kind, error))
}
