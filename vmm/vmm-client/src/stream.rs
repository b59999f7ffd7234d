//! Answers that go on for as long as the guest runs.

use std::collections::VecDeque;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Runtime;
use vmm_api::EventRecord;

use crate::Error;

/// A longer line is no event.
const MAX_LINE: usize = 1 << 20;

/// What a guest wrote to its console, in pieces.
pub struct Log {
    runtime: Runtime,
    body: Incoming,
}

impl Log {
    pub(crate) fn new(runtime: Runtime, body: Incoming) -> Log {
        Log { runtime, body }
    }
}

impl Iterator for Log {
    type Item = Result<Bytes, Error>;

    /// Waits for the next piece.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let frame = self.runtime.block_on(self.body.frame())?;
            match frame.map(|frame| frame.into_data()) {
                Ok(Ok(data)) => return Some(Ok(data)),
                // Trailers are none of ours.
                Ok(Err(_)) => {}
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

/// What happened to a guest, and what happens.
pub struct Events {
    pieces: Log,
    /// The beginning of the next line.
    line: Vec<u8>,
    come: VecDeque<EventRecord>,
}

impl Events {
    pub(crate) fn new(pieces: Log) -> Events {
        Events { pieces, line: Vec::new(), come: VecDeque::new() }
    }

    fn take(&mut self, piece: &[u8]) -> Result<(), Error> {
        for &byte in piece {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let record = serde_json::from_slice(&self.line)
                .map_err(|error| Error::Language(error.to_string()))?;
            self.come.push_back(record);
            self.line.clear();
        }
        if self.line.len() > MAX_LINE {
            return Err(Error::Language("an endless line".to_owned()));
        }
        Ok(())
    }
}

impl Iterator for Events {
    type Item = Result<EventRecord, Error>;

    /// Waits for the next event.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.come.pop_front() {
                return Some(Ok(record));
            }
            match self.pieces.next()? {
                Ok(piece) => {
                    if let Err(error) = self.take(&piece) {
                        return Some(Err(error));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
