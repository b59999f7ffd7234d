//! The guest, and its console.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A running guest.
pub struct Guest {
    child: Child,
    keyboard: ChildStdin,
    screen: Receiver<Vec<u8>>,
    /// What appeared and was not looked at.
    seen: Vec<u8>,
}

impl Guest {
    /// Starts it. What appears on its console, and what `lodge` says, is also written to `log`.
    pub fn start(mut command: Command, mut log: File) -> anyhow::Result<Guest> {
        // Of a group of its own: a terminal's Ctrl-C is for us alone.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .stderr(log.try_clone()?)
            .spawn()
            .context("cannot run setpriv (of util-linux)")?;
        let keyboard = child.stdin.take().context("no way to its console")?;
        let mut output = child.stdout.take().context("no way from its console")?;
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                let _ = log.write_all(&bytes[..count]);
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Guest { child, keyboard, screen, seen: Vec::new() })
    }

    /// The process that has all others of the guest below it.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Types.
    pub fn type_text(&mut self, text: &str) -> anyhow::Result<()> {
        self.keyboard.write_all(text.as_bytes()).context("its console is closed")
    }

    /// Waits for a text; asks `go_on` now and then whether to.
    pub fn wait_for(
        &mut self,
        text: &str,
        patience: Duration,
        go_on: impl Fn() -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let at = self.seen.windows(text.len()).position(|window| window == text.as_bytes());
            if let Some(at) = at {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            if !go_on() {
                bail!("interrupted while waiting for {text:?}");
            }
            if Instant::now() > deadline {
                bail!("{text:?} did not appear within {} s", patience.as_secs());
            }
            self.look(Duration::from_millis(200))?;
        }
    }

    /// The next whole line; `None` if there is none in time.
    pub fn line(&mut self, patience: Duration) -> anyhow::Result<Option<String>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(end) = self.seen.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.seen.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim().to_owned()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.look(left)?;
        }
    }

    fn look(&mut self, patience: Duration) -> anyhow::Result<()> {
        match self.screen.recv_timeout(patience) {
            Ok(bytes) => self.seen.extend(bytes),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("lodge ended"),
        }
        Ok(())
    }

    /// Waits until it has switched itself off.
    pub fn end(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("it did not switch itself off within {} s", patience.as_secs())
    }
}

impl Drop for Guest {
    /// Leaves no process behind. Lodge ends its guest at the second signal.
    fn drop(&mut self) {
        for _ in 0..2 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            thread::sleep(Duration::from_millis(300));
        }
        if self.end(Duration::from_secs(10)).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
