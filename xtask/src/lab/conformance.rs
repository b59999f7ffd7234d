//! The conformance suite on the lab's KVM.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::deviations::{self, Deviation};
use super::emulator::{Emulator, Missing};
use super::machine::Machine;
use super::system::System;

/// The longest that a case may take.
const PATIENCE: Duration = Duration::from_secs(1800);
/// The emulator may end itself, or get stuck, so often.
const STARTS: u32 = 5;

/// What became of the suite.
#[derive(Debug, Default)]
pub struct Tally {
    known: BTreeMap<&'static str, Deviation>,
    passed: u32,
    skipped: u32,
    /// Failed as they are known to on this emulator, by reason.
    excused: BTreeMap<&'static str, u32>,
    /// Deviations that did not show: the list is out of date.
    stale: Vec<String>,
    failed: Vec<String>,
}

impl Tally {
    /// Nothing went wrong.
    pub fn is_good(&self) -> bool {
        self.failed.is_empty()
    }

    /// In a line.
    pub fn summary(&self) -> String {
        format!(
            "{} passed, {} failed, {} left out, {} failed for the emulator's sake",
            self.passed,
            self.failed.len(),
            self.skipped,
            self.excused.values().sum::<u32>()
        )
    }

    /// What a person should know besides, a line each.
    pub fn remarks(&self) -> Vec<String> {
        let excused =
            self.excused.iter().map(|(reason, count)| format!("excused {count}: {reason}"));
        let stale = self.stale.iter().map(|name| format!("passes by now: {name}"));
        let failed = self.failed.iter().map(|what| format!("FAILED {what}"));
        excused.chain(stale).chain(failed).collect()
    }

    /// Takes note of what became of a case: `passed`, `skipped` or `failed`.
    fn count(&mut self, name: &str, what: &str, detail: &str) {
        let known = self.known.get(name);
        match (what, known) {
            ("passed", known) => {
                self.passed += 1;
                self.stale.extend(known.map(|_| name.to_owned()));
            }
            ("skipped", _) => self.skipped += 1,
            (_, Some(known)) if known.explains(detail) => {
                *self.excused.entry(known.reason).or_default() += 1;
            }
            _ => self.failed.push(format!("{name}: {detail}")),
        }
    }
}

/// Runs the cases whose names contain `filter`.
pub fn run(machine: Machine, system: &System, dir: &Path, filter: &str) -> anyhow::Result<Tally> {
    let mut tally = Tally { known: deviations::list(machine), ..Tally::default() };
    let mut from = 0;
    for _ in 0..STARTS {
        let start = from.to_string();
        let settings = [
            ("LAB_FROM", start.as_str()),
            ("LAB_FILTER", filter),
            ("LAB_CONFORM", machine.conform_arguments()),
        ];
        let mut emulator = Emulator::start(machine, system, dir, "conformance", &settings)?;
        let Some((number, name, how)) = follow(&mut emulator, &mut tally) else { return Ok(tally) };
        tally.failed.push(format!("{name}: {how}"));
        from = number + 1;
    }
    tally.failed.push(format!("the lab's machine ended {STARTS} times: all after that is open"));
    Ok(tally)
}

/// Counts what becomes of the cases, until the end of the suite. If a case is the end of the
/// machine instead, that is what is returned, and how.
fn follow(emulator: &mut Emulator, tally: &mut Tally) -> Option<(u32, String, Missing)> {
    let mut current: Option<(u32, String)> = None;
    loop {
        let line = match emulator.line(PATIENCE) {
            Ok(line) => line,
            Err(missing) => {
                if current.is_none() {
                    tally.failed.push(format!("between two cases {missing}"));
                }
                return current.map(|(number, name)| (number, name, missing));
            }
        };
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "case" => {
                let (number, name) = rest.split_once(": ").unwrap_or((rest, ""));
                current = number.parse().ok().map(|number| (number, name.to_owned()));
            }
            "passed" | "skipped" | "failed" => {
                if let Some((_, name)) = current.take() {
                    tally.count(&name, word, rest.split_once(": ").map_or("", |(_, why)| why));
                }
            }
            _ if line == "end of the suite" => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_may_fail() {
        let mut tally = Tally { known: deviations::list(Machine::Qemu), ..Tally::default() };
        let (&name, _) = tally.known.iter().next().unwrap();
        tally.count("paging: a page", "passed", "");
        assert!(tally.is_good());
        tally.count(name, "passed", "");
        assert!(tally.is_good() && tally.stale == [name]);
        tally.count(name, "failed", "in another way than ever before");
        tally.count("paging: a page", "failed", "no page");
        assert_eq!(tally.failed.len(), 2);
        assert!(tally.remarks().contains(&"FAILED paging: a page: no page".to_owned()));
    }
}
