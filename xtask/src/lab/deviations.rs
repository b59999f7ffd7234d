//! Where the lab's processor is none: emulators differ from the manuals. What a case of the conformance
//! suite fails for there, it does not fail for on a processor.

use std::collections::BTreeMap;

use super::machine::Machine;

/// What the emulators of Debian 12 were seen to do.
fn text(machine: Machine) -> &'static str {
    match machine {
        Machine::Qemu => include_str!("../../lab/qemu.txt"),
        Machine::Bochs | Machine::BochsScaling => include_str!("../../lab/bochs.txt"),
    }
}

/// What stands for a case that is not run: it ends the emulator, or has it go on wrongly.
const LEFT_OUT: &str = "left out";

/// How a case deviates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deviation {
    /// Why, for a whole group of cases.
    pub reason: &'static str,
    /// A part of what comes out.
    observed: &'static str,
}

impl Deviation {
    /// Whether this is what comes out.
    pub fn explains(&self, detail: &str) -> bool {
        detail.contains(self.observed)
    }
}

/// The list, by name of the case. Lines that begin with `#` give the reason for those that follow;
/// all others have what was observed, a tab, and the case.
pub fn list(machine: Machine) -> BTreeMap<&'static str, Deviation> {
    let mut list = BTreeMap::new();
    let mut reason = "";
    for line in text(machine).lines() {
        if let Some(text) = line.strip_prefix("# ") {
            reason = text;
        } else if let Some((observed, name)) = line.split_once('\t') {
            list.insert(name, Deviation { reason, observed });
        }
    }
    list
}

/// Cases that cannot be run.
pub fn left_out(machine: Machine) -> Vec<&'static str> {
    let list = list(machine).into_iter();
    list.filter(|(_, how)| how.observed == LEFT_OUT).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn each_deviation_has_a_reason() {
        for &machine in Machine::value_variants() {
            let list = list(machine);
            assert!(!list.is_empty() && !left_out(machine).is_empty());
            for (name, how) in list {
                assert!(!how.reason.is_empty() && how.observed.len() > 3, "{name}: {how:?}");
                assert!(name.contains(": "), "{name} is no case");
            }
        }
    }
}
