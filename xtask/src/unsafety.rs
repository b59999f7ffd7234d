//! Which crates may contain unsafe code. All others forbid it.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::imports::House;

/// Crates that need unsafe code, and what for.
const MAY_BE_UNSAFE: &[(&str, &str)] = &[
    ("x86", "arithmetic by the host's instructions"),
    ("accel-soft", "guest memory by pointers; generated code"),
    ("accel-kvm", "KVM's system calls, its shared pages, signals"),
    ("oracle", "runs random instructions natively"),
    ("mem", "memfd"),
    ("runtime", "clocks, the TSC"),
    ("sandbox", "the handler of SIGSYS"),
    ("links", "network interfaces by ioctls"),
    ("block", "locks and holes in files"),
    ("vmm", "inherited descriptors, signals"),
    ("cli", "terminals, signals"),
    ("agent", "what a child does before it becomes another program; interfaces, the exit port"),
    ("guest-tests", "signals to processes"),
];

/// Crates that neither forbid unsafe code nor are listed above.
pub fn check(house: &House) -> anyhow::Result<Vec<String>> {
    let mut faults = Vec::new();
    for (name, member) in &house.crates {
        if MAY_BE_UNSAFE.iter().any(|(crate_name, _)| crate_name == name) {
            continue;
        }
        for root in ["src/lib.rs", "src/main.rs"] {
            let path = member.dir.join(root);
            if path.exists() && !forbids_unsafe(&path)? {
                faults.push(format!(
                    "{}: #![forbid(unsafe_code)] is missing, and {name} is not among the crates \
                     that need unsafe code (xtask/src/unsafety.rs)",
                    path.display()
                ));
            }
        }
    }
    Ok(faults)
}

fn forbids_unsafe(path: &Path) -> anyhow::Result<bool> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]"))
}
