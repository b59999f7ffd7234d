//! What `lodge-vmm` finds out about this host's KVM.

use std::process::{Command, Stdio};

use vmm_api::{Failure, HostReport};

use crate::run::find_program;

/// Has `lodge-vmm` try /dev/kvm, up to running a guest of a few instructions.
pub fn probe() -> Result<HostReport, Failure> {
    let program = find_program()?;
    let failed = |why: String| {
        Failure::host(format!("{} does not say what KVM is good for: {why}", program.display()))
    };
    let output = Command::new(&program)
        .arg("--probe")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("it ended with {}", output.status)));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(format!("it speaks another language than this lodge ({error})")))
}
