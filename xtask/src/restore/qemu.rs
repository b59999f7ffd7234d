//! QEMU's side: the same guest, saved by a migration to a file and restored by one from it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::Lab;
use guest_tests::small::{CMDLINE, Small};

use crate::bench::contestant::{self, QEMU};

/// How long QEMU may take to get somewhere.
const PATIENCE: Duration = Duration::from_secs(300);
/// How soon to say something again that nobody was there to hear.
const AGAIN: Duration = Duration::from_millis(1);

/// A guest in a file.
pub struct Qemu {
    small: Small,
    memory_mib: u32,
    serial: PathBuf,
    monitor: PathBuf,
    saved: PathBuf,
}

/// A process that ends with what has to do with it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        for file in [&self.serial, &self.monitor, &self.saved] {
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Qemu {
    /// Starts the guest and saves it. `None`, said loudly, if there is no QEMU.
    pub fn prepare(lab: &Lab, small: &Small, memory_mib: u32) -> anyhow::Result<Option<Qemu>> {
        if !guest_tests::has_tool(QEMU) {
            guest_tests::skipped("QEMU's side", "it is not installed");
            return Ok(None);
        }
        let path = |name| lab.path("tmp").join(name);
        let (serial, monitor) = (path("serial"), path("monitor"));
        let qemu = Qemu { small: small.clone(), memory_mib, serial, monitor, saved: path("saved") };
        let _process = qemu.start(None)?;
        qemu.wait_for_answer(Instant::now() + PATIENCE)?;
        let mut monitor = connect(&qemu.monitor, Instant::now() + PATIENCE)?;
        // It begins when the guest's memory is saved, and goes on with the answer when it is over.
        writeln!(monitor, "migrate \"exec:cat > {}\"\ninfo migrate", qemu.saved.display())?;
        wait_for(&mut monitor, "completed", Instant::now() + PATIENCE)?;
        Ok(Some(qemu))
    }

    /// Restores the guest; how long it takes until its first answer.
    pub fn restore(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let _process = self.start(Some(&self.saved))?;
        self.wait_for_answer(begun + PATIENCE)?;
        Ok(begun.elapsed())
    }

    fn start(&self, from: Option<&Path>) -> anyhow::Result<Process> {
        for socket in [&self.serial, &self.monitor] {
            let _ = std::fs::remove_file(socket);
        }
        let listen = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        let mut command: Command = contestant::dies_with_us("KILL", QEMU);
        command.args(["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-smp", "1"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-m", &self.memory_mib.to_string()]);
        command.arg("-kernel").arg(&self.small.kernel).arg("-initrd").arg(&self.small.initrd);
        command.args(["-append", CMDLINE, "-serial", &listen(&self.serial)]);
        command.args(["-monitor", &listen(&self.monitor)]);
        if let Some(from) = from {
            command.args(["-incoming", &format!("exec:cat {}", from.display())]);
        }
        Ok(Process(command.spawn().context("cannot run setpriv (of util-linux)")?))
    }

    /// Asks at the serial port until somebody answers.
    fn wait_for_answer(&self, deadline: Instant) -> anyhow::Result<()> {
        let mut serial = connect(&self.serial, deadline)?;
        let mut bytes = [0; 256];
        loop {
            // What comes before the guest is there is lost.
            serial.write_all(b"count\n")?;
            match serial.read(&mut bytes) {
                Ok(0) => anyhow::bail!("QEMU ended"),
                Ok(count) if bytes[..count].iter().any(u8::is_ascii_digit) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            ensure!(Instant::now() < deadline, "the guest under QEMU does not answer");
        }
    }
}

fn connect(socket: &Path, deadline: Instant) -> anyhow::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(AGAIN))?;
                return Ok(stream);
            }
            Err(error) => ensure!(Instant::now() < deadline, "{}: {error}", socket.display()),
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Asks the monitor how the migration goes until it says `text`.
fn wait_for(monitor: &mut UnixStream, text: &str, deadline: Instant) -> anyhow::Result<()> {
    let (mut said, mut bytes) = (String::new(), [0; 4096]);
    while !said.contains(text) {
        match monitor.read(&mut bytes) {
            Ok(0) => anyhow::bail!("QEMU ended: {said}"),
            Ok(count) => said += &String::from_utf8_lossy(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(20));
                writeln!(monitor, "info migrate")?;
            }
            Err(error) => return Err(error.into()),
        }
        ensure!(Instant::now() < deadline, "QEMU does not save the guest: {said}");
    }
    Ok(())
}
