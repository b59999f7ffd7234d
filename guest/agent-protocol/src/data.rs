//! Bytes in frames, as a stream.

use std::io::{self, ErrorKind, Read, Write};

use crate::frame::{FrameReader, FrameWriter, MAX_PAYLOAD, Type};
use crate::message::Reply;

/// Reads what frames of one type carry, until an empty frame, or a last reply.
#[derive(Debug)]
pub struct DataReader<'a, S> {
    stream: S,
    frames: &'a mut FrameReader,
    kind: Type,
    piece: Vec<u8>,
    /// How much of the piece was read.
    read: usize,
    /// What came behind the last of them; [`Reply::Done`] for an empty frame.
    end: Option<Reply>,
}

impl<'a, S: Read> DataReader<'a, S> {
    /// Reads frames of this type.
    pub fn new(stream: S, frames: &'a mut FrameReader, kind: Type) -> Self {
        Self { stream, frames, kind, piece: Vec::new(), read: 0, end: None }
    }

    /// Passes over the rest. What came behind it.
    ///
    /// # Errors
    ///
    /// The stream's, also that it ended too early.
    pub fn finish(mut self) -> io::Result<Reply> {
        while self.end.is_none() {
            self.next_piece()?;
        }
        self.end.ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    /// What came behind the last of them. `None`: nothing yet.
    pub fn finish_if_at_end(mut self) -> Option<Reply> {
        // An archive has its own end, and then some zeros to fill a block.
        while self.end.is_none() && self.next_piece().is_ok() {}
        self.end
    }

    fn next_piece(&mut self) -> io::Result<()> {
        let frame = self.frames.wait(&mut self.stream)?.ok_or(ErrorKind::UnexpectedEof)?;
        (self.piece, self.read) = (Vec::new(), 0);
        match frame.kind {
            Type::Reply => self.end = Some(frame.json()?),
            kind if kind == self.kind && frame.payload.is_empty() => self.end = Some(Reply::Done),
            kind if kind == self.kind => self.piece = frame.payload,
            _ => return Err(ErrorKind::InvalidData.into()),
        }
        Ok(())
    }
}

impl<S: Read> Read for DataReader<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.end.is_none() && self.read == self.piece.len() {
            self.next_piece()?;
        }
        let rest = self.piece.get(self.read..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        self.read += count;
        Ok(count)
    }
}

/// Writes bytes as frames of one type.
#[derive(Debug)]
pub struct DataWriter<S> {
    stream: S,
    kind: Type,
    bytes: Vec<u8>,
}

impl<S: Write> DataWriter<S> {
    /// Writes frames of this type.
    pub fn new(stream: S, kind: Type) -> Self {
        Self { stream, kind, bytes: Vec::new() }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let mut frames = FrameWriter::default();
        frames.push(self.kind, &self.bytes);
        self.bytes.clear();
        frames.flush(&mut self.stream)
    }
}

impl<S: Write> Write for DataWriter<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let room = MAX_PAYLOAD - self.bytes.len();
        let piece = buffer.get(..room.min(buffer.len())).unwrap_or_default();
        self.bytes.extend(piece);
        if self.bytes.len() == MAX_PAYLOAD {
            self.send()?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
