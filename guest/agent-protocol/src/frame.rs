//! Frames: a byte for the type, four for the length (little endian), and as many bytes.

use std::io::{self, ErrorKind, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes that a frame can carry.
pub const MAX_PAYLOAD: usize = 64 << 10;
const HEADER: usize = 5;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    /// A [`Request`](crate::Request), as JSON.
    Request = 1,
    /// A [`Reply`](crate::Reply), as JSON.
    Reply = 2,
    /// Input of a command, or of an archive that is unpacked. Empty: its end.
    Input = 3,
    /// Output of a command, or of an archive.
    Output = 4,
    /// What a command writes to standard error.
    Errors = 5,
    /// A [`Control`](crate::Control), as JSON.
    Control = 6,
    /// How many bytes of input a command has taken, in four bytes, little endian.
    Credit = 7,
}

impl Type {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Reply,
        Self::Input,
        Self::Output,
        Self::Errors,
        Self::Control,
        Self::Credit,
    ];
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Type,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// What the payload says.
    ///
    /// # Errors
    ///
    /// It makes no sense.
    pub fn json<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(&self.payload).map_err(|e| senseless(&e.to_string()))
    }

    /// How many bytes were taken.
    ///
    /// # Errors
    ///
    /// It makes no sense.
    pub fn credit(&self) -> io::Result<usize> {
        let bytes = self.payload.as_slice().try_into().map_err(|_| senseless("a short frame"))?;
        Ok(u32::from_le_bytes(bytes) as usize)
    }
}

fn senseless(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("what came makes no sense: {what}"))
}

/// Makes frames of bytes, as they come.
#[derive(Debug, Default)]
pub struct FrameReader {
    bytes: Vec<u8>,
}

impl FrameReader {
    /// Takes bytes that came before.
    #[must_use]
    pub fn starting_with(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// What has come and is no frame yet.
    #[must_use]
    pub fn into_rest(self) -> Vec<u8> {
        self.bytes
    }

    /// Reads once. `false`: the end of the stream.
    ///
    /// # Errors
    ///
    /// The stream's, [`ErrorKind::WouldBlock`] among them.
    pub fn fill(&mut self, stream: &mut impl Read) -> io::Result<bool> {
        let before = self.bytes.len();
        self.bytes.resize(before + HEADER + MAX_PAYLOAD, 0);
        let result = loop {
            match stream.read(self.bytes.get_mut(before..).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.bytes.truncate(before + *result.as_ref().unwrap_or(&0));
        result.map(|count| count > 0)
    }

    /// The next frame that is complete.
    ///
    /// # Errors
    ///
    /// What came is no frame.
    pub fn take_frame(&mut self) -> io::Result<Option<Frame>> {
        let Some((&[kind, a, b, c, d], rest)) = self.bytes.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > MAX_PAYLOAD {
            return Err(senseless("a frame that is too long"));
        }
        let kind = Type::ALL.into_iter().find(|&known| known as u8 == kind);
        let kind = kind.ok_or_else(|| senseless("a frame of unknown type"))?;
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = Frame { kind, payload: payload.to_vec() };
        self.bytes.drain(..HEADER + length);
        Ok(Some(frame))
    }

    /// Waits for the next frame of a stream that blocks. `None`: the stream's end.
    ///
    /// # Errors
    ///
    /// The stream's, or what came is no frame.
    pub fn wait(&mut self, stream: &mut impl Read) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            if !self.fill(stream)? {
                return Ok(None);
            }
        }
    }
}

/// Frames on their way out.
#[derive(Debug, Default)]
pub struct FrameWriter {
    bytes: Vec<u8>,
}

impl FrameWriter {
    /// How many bytes wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.bytes.len()
    }

    /// Adds bytes, in as many frames as it takes; one, if there are none.
    pub fn push(&mut self, kind: Type, mut payload: &[u8]) {
        loop {
            let (piece, rest) = payload.split_at(payload.len().min(MAX_PAYLOAD));
            self.bytes.push(kind as u8);
            self.bytes.extend((piece.len() as u32).to_le_bytes()); // at most MAX_PAYLOAD
            self.bytes.extend(piece);
            payload = rest;
            if payload.is_empty() {
                return;
            }
        }
    }

    /// Adds a message.
    ///
    /// # Errors
    ///
    /// It is longer than a frame can be.
    pub fn push_json(&mut self, kind: Type, message: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > MAX_PAYLOAD {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "the command, its arguments and its environment are longer than 64 KiB",
            ));
        }
        self.push(kind, &text);
        Ok(())
    }

    /// Says that the command has taken so many bytes of input.
    pub fn push_credit(&mut self, taken: usize) {
        self.push(Type::Credit, &(taken as u32).to_le_bytes()); // at most INPUT_WINDOW
    }

    /// Writes as much as the stream takes.
    ///
    /// # Errors
    ///
    /// The stream's, but for [`ErrorKind::WouldBlock`].
    pub fn flush(&mut self, stream: &mut impl Write) -> io::Result<()> {
        let mut written = 0;
        let result = loop {
            let rest = self.bytes.get(written..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            match stream.write(rest) {
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.bytes.drain(..written);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_come_as_they_were_sent_in_whatever_pieces() {
        let mut writer = FrameWriter::default();
        writer.push(Type::Input, b"");
        writer.push(Type::Output, &[7; MAX_PAYLOAD + 1]);
        writer.push_credit(1000);
        let mut bytes = Vec::new();
        writer.flush(&mut bytes).unwrap();
        assert_eq!(writer.waiting(), 0);
        for size in [1, 3, 4096, bytes.len()] {
            let mut reader = FrameReader::default();
            let mut frames = Vec::new();
            for mut piece in bytes.chunks(size) {
                while reader.fill(&mut piece).unwrap() {}
                frames.extend(std::iter::from_fn(|| reader.take_frame().unwrap()));
            }
            let kinds: Vec<_> = frames.iter().map(|f| (f.kind, f.payload.len())).collect();
            let wanted = [
                (Type::Input, 0),
                (Type::Output, MAX_PAYLOAD),
                (Type::Output, 1),
                (Type::Credit, 4),
            ];
            assert_eq!(kinds, wanted);
            assert_eq!(frames.last().unwrap().credit().unwrap(), 1000);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [[0, 0, 0, 0, 0], [8, 0, 0, 0, 0], [3, 1, 0, 1, 0], [3, 255, 255, 255, 255]] {
            let mut reader = FrameReader::starting_with(bytes.to_vec());
            assert_eq!(
                reader.take_frame().unwrap_err().kind(),
                ErrorKind::InvalidData,
                "{bytes:?}"
            );
        }
        let mut writer = FrameWriter::default();
        assert!(writer.push_json(Type::Request, &"x".repeat(MAX_PAYLOAD)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = FrameReader::starting_with(bytes);
            while let Ok(Some(frame)) = reader.take_frame() {
                prop_assert!(frame.payload.len() < 300);
            }
        }
    }
}
