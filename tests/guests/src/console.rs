//! A guest's console, as someone who reads and types sees it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How much of the end of what was seen is worth showing when something goes wrong.
const TAIL: usize = 3000;

/// The two ends of a console.
pub struct Console {
    keyboard: ChildStdin,
    screen: Receiver<Vec<u8>>,
    /// Everything that appeared.
    seen: Vec<u8>,
    /// How far it was waited for.
    read: usize,
}

/// Why a text did not appear.
#[derive(Debug)]
pub enum Missing {
    /// In time.
    Late,
    /// Before the console was closed.
    Closed,
    /// This appeared, after which there is nothing to wait for.
    Hopeless(&'static str),
}

/// After these, no login prompt comes.
const HOPELESS: &[&str] = &[
    "Kernel panic - not syncing",
    "(initramfs) ",
    "You are in emergency mode",
    "You are in rescue mode",
];

impl Console {
    /// Takes the ends of `lodge`'s input and output. What appears also goes to `transcript`.
    pub fn new(keyboard: ChildStdin, mut output: ChildStdout, mut transcript: File) -> Console {
        let (sender, screen) = channel();
        // Ends with the output, which ends with the process. It reads on when nobody waits, or
        // else a full pipe would stop the guest's console.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                let _ = transcript.write_all(&bytes[..count]);
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Console { keyboard, screen, seen: Vec::new(), read: 0 }
    }

    /// Types. What a guest that has ended does not take is lost; waiting for an answer tells.
    pub fn type_text(&mut self, text: &str) {
        let _ = self.keyboard.write_all(text.as_bytes());
    }

    /// Waits until `text` appears; returns what appeared before it.
    pub fn wait_for(&mut self, text: &str, patience: Duration) -> Result<String, Missing> {
        let deadline = Instant::now() + patience;
        let mut searched = self.read;
        loop {
            if let Some(at) = find(&self.seen[searched..], text.as_bytes()) {
                let before = &self.seen[self.read..searched + at];
                let before = String::from_utf8_lossy(before).into_owned();
                self.read = searched + at + text.len();
                return Ok(before);
            }
            let unread = &self.seen[self.read..];
            if let Some(end) = HOPELESS.iter().find(|end| find(unread, end.as_bytes()).is_some()) {
                return Err(Missing::Hopeless(end));
            }
            // The text may have begun already.
            searched = self.seen.len().saturating_sub(text.len()).max(self.read);
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(RecvTimeoutError::Timeout) => return Err(Missing::Late),
                Err(RecvTimeoutError::Disconnected) => return Err(Missing::Closed),
            }
        }
    }

    /// The end of what appeared.
    pub fn tail(&mut self) -> String {
        while let Ok(bytes) = self.screen.try_recv() {
            self.seen.extend(bytes);
        }
        let start = self.seen.len().saturating_sub(TAIL);
        String::from_utf8_lossy(&self.seen[start..]).replace('\r', "")
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
