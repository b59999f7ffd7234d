//! QEMU, which emulates a processor with AMD-V.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use super::machine::{Running, bound};
use super::system::System;

/// Starts it.
pub fn start(system: &System, dir: &Path, job: &str, cmdline: &str) -> anyhow::Result<Running> {
    let mut child = command(system, dir, job, cmdline)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(dir.join(format!("{job}.emulator")))?)
        .spawn()
        .context("cannot run setpriv (of util-linux)")?;
    let keyboard = child.stdin.take().context("QEMU has no input")?;
    let screen = child.stdout.take().context("QEMU has no output")?;
    Ok(Running { child, keyboard: Box::new(keyboard), screen: Box::new(screen) })
}

/// QEMU with the system in it. Its first serial port has the kernel's messages, its second is QEMU's
/// own input and output.
pub fn command(system: &System, dir: &Path, job: &str, cmdline: &str) -> anyhow::Result<Command> {
    let mut command = bound("qemu-system-x86_64")?;
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max,+svm,+npt", "-m", "2G"])
        .arg("-serial")
        .arg(format!("file:{}", dir.join(format!("{job}.kernel")).display()))
        .args(["-serial", "stdio"])
        .arg("-kernel")
        .arg(&system.kernel)
        .arg("-initrd")
        .arg(&system.initrd)
        .args(["-append", cmdline])
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,readonly=on", system.disk.display()));
    Ok(command)
}
