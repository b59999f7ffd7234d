//! The lab's machine: QEMU, which emulates a processor with AMD-V, and the line to the system in it.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::system::{System, which};

/// How long the system may take until its job begins. The machine may be busy.
const START_PATIENCE: Duration = Duration::from_secs(600);

/// A running machine. Dropped, it is ended.
pub struct Emulator {
    child: Child,
    keyboard: ChildStdin,
    screen: Receiver<Vec<u8>>,
    /// What came and was not asked for yet.
    text: String,
    log: PathBuf,
}

impl Emulator {
    /// Starts the system with a job, and waits until that begins. `settings` are variables of its
    /// script; what is said is also written to `dir`.
    pub fn start(
        system: &System,
        dir: &Path,
        job: &str,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Emulator> {
        let log = dir.join(format!("{job}.log"));
        let mut child = command(system, dir, job, settings)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.join(format!("{job}.qemu")))?)
            .spawn()
            .context("cannot run setpriv (of util-linux)")?;
        let keyboard = child.stdin.take().context("QEMU has no input")?;
        let mut output = child.stdout.take().context("QEMU has no output")?;
        // A job may take several starts.
        let mut transcript = File::options().create(true).append(true).open(&log)?;
        let (sender, screen) = mpsc::channel();
        // Ends with QEMU.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                let _ = transcript.write_all(&bytes[..count]);
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut emulator = Emulator { child, keyboard, screen, text: String::new(), log };
        emulator.wait_for("lab: begin\n", START_PATIENCE)?;
        Ok(emulator)
    }

    /// Types.
    pub fn type_text(&mut self, text: &str) -> anyhow::Result<()> {
        self.keyboard.write_all(text.as_bytes()).context("QEMU takes no input")
    }

    /// The next line; `None` after the last.
    pub fn line(&mut self, patience: Duration) -> anyhow::Result<Option<String>> {
        match self.take_until("\n", patience) {
            Ok(line) => Ok(Some(line.trim_end_matches('\r').to_owned())),
            Err(Missing::Ended) => Ok(None),
            Err(Missing::Late) => {
                bail!("nothing came for {} s; {}", patience.as_secs(), self.see())
            }
        }
    }

    /// Waits for a text; returns what came before it.
    pub fn wait_for(&mut self, what: &str, patience: Duration) -> anyhow::Result<String> {
        self.take_until(what, patience).map_err(|missing| {
            let how = match missing {
                Missing::Late => format!("did not come within {} s", patience.as_secs()),
                Missing::Ended => "did not come before QEMU ended".to_owned(),
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

enum Missing {
    Late,
    Ended,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// QEMU with the system in it. Its first serial port has the kernel's messages, its second is QEMU's
/// own input and output.
pub fn command(
    system: &System,
    dir: &Path,
    job: &str,
    settings: &[(&str, &str)],
) -> anyhow::Result<Command> {
    // Where the host has no time for it, the kernel would find that its timer does not work.
    let mut cmdline =
        format!("console=ttyS0 panic=-1 mitigations=off no_timer_check LAB_JOB={job}");
    for (name, value) in settings {
        // Quotes keep blanks together (Documentation/admin-guide/kernel-parameters.rst).
        cmdline.push_str(&format!(" {name}=\"{value}\""));
    }
    // It ends with this program, in whatever way that ends.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(which("qemu-system-x86_64")?)
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max,+svm,+npt", "-m", "2G"])
        .arg("-serial")
        .arg(format!("file:{}", dir.join(format!("{job}.kernel")).display()))
        .args(["-serial", "stdio"])
        .arg("-kernel")
        .arg(&system.kernel)
        .arg("-initrd")
        .arg(&system.initrd)
        .args(["-append", &cmdline])
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,readonly=on", system.disk.display()));
    Ok(command)
}
