//! Reading from a server that may stop to send anything.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// How long nothing may come.
const IDLE: Duration = Duration::from_secs(60);
/// How many pieces are fetched ahead.
const AHEAD: usize = 8;
const PIECE: usize = 64 << 10;

/// A reader whose source is read by a thread of its own, and given up if nothing comes.
pub(super) struct Patient {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Patient {
    pub(super) fn new(source: impl Read + Send + 'static) -> Patient {
        let (sender, pieces) = sync_channel(AHEAD);
        // It ends when its source does, or when nobody reads any more.
        thread::spawn(move || fetch(source, &sender));
        Patient { pieces, piece: io::Cursor::default() }
    }
}

fn fetch(mut source: impl Read, pieces: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut piece = vec![0; PIECE];
        let read = source.read(&mut piece).map(|count| {
            piece.truncate(count);
            piece
        });
        let is_last = read.as_ref().map_or(true, Vec::is_empty);
        if pieces.send(read).is_err() || is_last {
            return;
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.piece.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.pieces.recv_timeout(IDLE) {
                Ok(piece) => self.piece = io::Cursor::new(piece?),
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(io::Error::other("the registry sends nothing any more"));
                }
            }
        }
    }
}
