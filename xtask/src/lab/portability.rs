//! A Linux guest that goes from Lodge's own engine to the lab's KVM and back, by snapshots.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;

use super::emulator::Emulator;
use super::machine::Machine;
use super::system::System;

/// The longest wait for a line: Lodge's engine in an emulated machine on a busy one.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Moves it; what can be told of that.
pub fn run(system: &System, dir: &Path) -> anyhow::Result<String> {
    let mut emulator = Emulator::start(Machine::Qemu, system, dir, "move", &[])?;
    let (mut moves, mut refusal) = (0, None);
    loop {
        let line = emulator.line(PATIENCE)?;
        if line.starts_with("move move ") {
            moves += 1;
        } else if line.contains("CPUID leaf") {
            refusal = Some(line);
        } else if let Some(why) = line.strip_prefix("failed: ") {
            bail!("{why}; {} has what was said before", dir.join("move.log").display());
        } else if let Some(status) = line.strip_prefix("lab: status ") {
            return match (status, refusal) {
                ("0", Some(_)) => Ok(format!(
                    "a Linux guest went on {moves} times, and was refused with another processor"
                )),
                _ => bail!("the job ended with status {status}"),
            };
        }
    }
}
