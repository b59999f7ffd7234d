//! Debian under Lodge, on the lab's KVM, to a shell that answers.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::emulator::Emulator;
use super::machine::Machine;
use super::system::System;

/// The longest wait for Debian's login prompt: two emulated systems on a busy machine.
const BOOT_PATIENCE: Duration = Duration::from_secs(3600);
/// The longest wait for an answer, and for the guest to switch itself off.
const PATIENCE: Duration = Duration::from_secs(900);

/// Boots it; what can be told of that.
pub fn run(system: &System, dir: &Path) -> anyhow::Result<String> {
    let begun = Instant::now();
    let mut emulator = Emulator::start(Machine::Qemu, system, dir, "boot", &[])?;
    emulator.wait_for("runs on KVM", PATIENCE)?;
    emulator.wait_for("login: ", BOOT_PATIENCE)?;
    let prompt = begun.elapsed();
    emulator.type_text("root\n")?;
    emulator.wait_for("Password: ", PATIENCE)?;
    emulator.type_text(&format!("{}\n", system.root_password))?;
    emulator.wait_for("# ", PATIENCE)?;
    // What is typed comes back as it was typed; only a shell makes 42 of it.
    emulator
        .type_text("echo answer $((6 * 7)) virt=$(systemd-detect-virt)= kernel=$(uname -r)=\n")?;
    emulator.wait_for("answer 42 virt=", PATIENCE)?;
    let hypervisor = emulator.wait_for("= kernel=", PATIENCE)?;
    let kernel = emulator.wait_for("=", PATIENCE)?;
    if hypervisor != "kvm" {
        bail!("the guest sees {hypervisor:?} instead of KVM");
    }
    emulator.type_text("poweroff\n")?;
    match emulator.finish(PATIENCE)? {
        0 => Ok(format!(
            "Debian ({kernel}) asked for a login after {} s, answered, and switched itself off",
            prompt.as_secs()
        )),
        status => bail!("lodge ended with status {status}"),
    }
}
