//! The line to the system in the lab's machine.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::machine::Machine;
use super::system::System;

/// How long the system may take until its job begins. The machine may be busy.
const START_PATIENCE: Duration = Duration::from_secs(1200);

/// A running machine. Dropped, it is ended.
pub struct Emulator {
    child: Child,
    keyboard: Box<dyn Write + Send>,
    screen: Receiver<Vec<u8>>,
    /// What came and was not asked for yet.
    text: String,
    log: PathBuf,
}

impl Emulator {
    /// Starts the system with a job, and waits until that begins. `settings` are variables of its
    /// script; what is said is also written to `dir`.
    pub fn start(
        machine: Machine,
        system: &System,
        dir: &Path,
        job: &str,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Emulator> {
        let log = dir.join(format!("{job}.log"));
        let running = machine.start(system, dir, job, settings)?;
        let mut output = running.screen;
        // A job may take several starts.
        let mut transcript = File::options().create(true).append(true).open(&log)?;
        let (sender, screen) = mpsc::channel();
        // Ends with the emulator.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                let _ = transcript.write_all(&bytes[..count]);
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut emulator = Emulator {
            child: running.child,
            keyboard: running.keyboard,
            screen,
            text: String::new(),
            log,
        };
        emulator.wait_for("lab: begin\n", START_PATIENCE)?;
        Ok(emulator)
    }

    /// Types.
    pub fn type_text(&mut self, text: &str) -> anyhow::Result<()> {
        self.keyboard.write_all(text.as_bytes()).context("the emulator takes no input")
    }

    /// The next line.
    pub fn line(&mut self, patience: Duration) -> Result<String, Missing> {
        let line = self.take_until("\n", patience)?;
        Ok(line.trim_end_matches('\r').to_owned())
    }

    /// Waits for a text; returns what came before it.
    pub fn wait_for(&mut self, what: &str, patience: Duration) -> anyhow::Result<String> {
        self.take_until(what, patience).map_err(|missing| {
            let how = match missing {
                Missing::Late => format!("did not come within {} s", patience.as_secs()),
                Missing::Ended => "did not come before the emulator ended".to_owned(),
            };
            anyhow::anyhow!("{:?} {how}; {}", what.trim(), self.see())
        })
    }

    /// Waits for the end of the job; its status.
    pub fn finish(&mut self, patience: Duration) -> anyhow::Result<i32> {
        self.wait_for("lab: status ", patience)?;
        let status = self.wait_for("\n", patience)?;
        status.trim().parse().with_context(|| format!("{status:?} is no status"))
    }

    fn take_until(&mut self, what: &str, patience: Duration) -> Result<String, Missing> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(at) = self.text.find(what) {
                let rest = self.text.split_off(at + what.len());
                let mut before = std::mem::replace(&mut self.text, rest);
                before.truncate(at);
                return Ok(before);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => return Err(Missing::Late),
                Err(RecvTimeoutError::Disconnected) => return Err(Missing::Ended),
            }
        }
    }

    fn see(&self) -> String {
        format!("{} and what is beside it may say more", self.log.display())
    }
}

/// Why something does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There was nothing for too long.
    Late,
    /// The emulator has ended.
    Ended,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Late => "the lab's machine got stuck",
            Self::Ended => "the lab's machine ended",
        })
    }
}

impl std::error::Error for Missing {}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
