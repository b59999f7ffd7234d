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

/// Reads the next message; `None` at the end of the stream.
pub(crate) fn read<T: DeserializeOwned>(reader: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.len() as u64 == MAX_LINE && !line.ends_with(b"\n") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without an end"));
    }
    Ok(Some(serde_json::from_slice(&line)?))
}
