//! Answers that go on for as long as the guest runs.

use bytes::Bytes;
use hyper::StatusCode;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use vmm_api::EventRecord;

use super::body::{Answer, Content, content};
use crate::hub::Hub;
use crate::journal::Journal;

/// So many pieces wait for a client at most.
const WAITING: usize = 4;
/// What a reader is told that has missed output.
pub const MISSED: &[u8] = b"\r\n[lodge: some output is left out, which was not read in time]\r\n";

/// Events as lines of JSON: the past and, to `follow`, what comes.
pub fn events(journal: &Journal, follow: bool) -> Answer {
    let (past, future) = journal.follow();
    let mut text = Vec::new();
    for record in &past {
        text.extend(line(record));
    }
    let media_type = "application/jsonl";
    match future.filter(|_| follow) {
        Some(future) => {
            let newest = past.last().map_or(0, |record| record.number);
            let piece = move |record: EventRecord| (record.number > newest).then(|| line(&record));
            stream(media_type, text, future, piece, b"")
        }
        None => content(StatusCode::OK, media_type, Content::Whole(Some(text.into()))),
    }
}

/// What the guest wrote to its console: the last `tail` lines and, to `follow`, what comes.
pub fn log(hub: &Hub, tail: u64, follow: bool) -> std::io::Result<Answer> {
    let (past, future) = hub.follow(tail)?;
    let media_type = "application/octet-stream";
    Ok(match future.filter(|_| follow) {
        Some(future) => {
            stream(media_type, past, future, |piece: Bytes| Some(piece.to_vec()), MISSED)
        }
        None => content(StatusCode::OK, media_type, Content::Whole(Some(past.into()))),
    })
}

fn line(record: &EventRecord) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Answers with `past` and then with what `future` brings, until it ends or the client is gone.
fn stream<T: Clone + Send + 'static>(
    media_type: &'static str,
    past: Vec<u8>,
    mut future: broadcast::Receiver<T>,
    piece: impl Fn(T) -> Option<Vec<u8>> + Send + 'static,
    missed: &'static [u8],
) -> Answer {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let mut next = Some(past);
        loop {
            if let Some(bytes) = next.filter(|bytes| !bytes.is_empty())
                && sender.send(Bytes::from(bytes)).await.is_err()
            {
                return;
            }
            next = tokio::select! {
                () = sender.closed() => return,
                news = future.recv() => match news {
                    Ok(news) => piece(news),
                    Err(RecvError::Lagged(_)) => Some(missed.to_vec()),
                    Err(RecvError::Closed) => return,
                },
            };
        }
    });
    content(StatusCode::OK, media_type, Content::Stream(receiver))
}
