//! How often a guest under Lodge leaves it on the lab's KVM: for each request to its disk, and when
//! it does nothing; and how much memory its VMM takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::emulator::Emulator;
use super::machine::Machine;
use super::system::System;

const PATIENCE: Duration = Duration::from_secs(1800);
/// An idle guest may leave the guest this often each second beyond its own timer.
const IDLE_EXITS: f64 = 10.0;

/// What a VMM may have resident beyond the guest's memory, with a disk and a card, in KiB.
const MEMORY: u64 = 8 << 10;

/// A wake-up by the guest's own timer takes so many exits: HLT, the end of the interrupt, and the timer
/// set anew.
const WAKE_UP: f64 = 3.0;

/// What was counted until a moment: exits by cause, and the seconds since the start.
type Sample = BTreeMap<String, f64>;

/// What was found, a line each, and whether it is as it should be.
pub fn run(system: &System, dir: &Path) -> anyhow::Result<(Vec<String>, bool)> {
    let mut emulator = Emulator::start(Machine::Qemu, system, dir, "measure", &[])?;
    let mut samples: BTreeMap<String, Sample> = BTreeMap::new();
    let mut requests = None;
    let mut memory = None;
    loop {
        let line = emulator.line(PATIENCE)?;
        if let Some(rest) = line.strip_prefix("sample ") {
            take(&mut samples, rest).with_context(|| format!("{line:?} is no sample"))?;
        } else if let Some(count) = line.strip_prefix("requests ") {
            requests = count.trim().parse::<f64>().ok();
        } else if let Some(rest) = line.strip_prefix("memory ") {
            memory = numbers(rest);
        } else if let Some(status) = line.strip_prefix("lab: status ") {
            match status {
                "0" => break,
                _ => bail!("the guest could not be measured; {} says more", dir.display()),
            }
        }
    }
    let requests = requests.filter(|&count| count > 0.0).context("the guest read nothing")?;
    let disk = difference(&samples, "disk")?;
    let idle = difference(&samples, "idle")?;
    let seconds = idle.get("uptime").copied().filter(|&s| s > 0.0).context("no time passed")?;
    let mut lines = vec![format!("{requests:.0} requests of 4 KiB to a virtio disk, per request:")];
    lines.extend(table(&disk, requests));
    lines.push(format!("{seconds:.0} s of doing nothing, per second:"));
    lines.extend(table(&idle, seconds));
    let count = |name: &str| idle.get(name).copied().unwrap_or(0.0);
    let beyond = (count("kvm:exits") - WAKE_UP * count("kvm:halt_exits")) / seconds;
    lines.push(format!(
        "an idle guest: {:.1} wake-ups a second, {beyond:.1} exits beyond those, {:.2} of them to Lodge",
        count("kvm:halt_exits") / seconds,
        to_vmm(&idle) / seconds
    ));
    let (resident, private) = memory.context("the memory of lodge-vmm is not known")?;
    lines.push(format!(
        "lodge-vmm beyond the guest's memory: {resident} KiB resident, {private} KiB of them for this guest \
         alone"
    ));
    // Without these, it was not KVM that was looked at.
    let is_good = count("kvm:exits") > 0.0 && beyond <= IDLE_EXITS && resident <= MEMORY;
    Ok((lines, is_good))
}

/// Exits to Lodge.
fn to_vmm(sample: &Sample) -> f64 {
    let exits = sample.iter().filter(|(name, _)| name.starts_with("lodge:exits_"));
    exits.map(|(_, count)| count).sum()
}

/// All that was counted, divided by something.
fn table(sample: &Sample, by: f64) -> Vec<String> {
    let shown = sample.iter().filter(|(name, count)| *name != "uptime" && **count != 0.0);
    let line = |name: &str, count: f64| format!("  {name:<32} {:>10.3}", count / by);
    let mut lines: Vec<String> = shown.map(|(name, &count)| line(name, count)).collect();
    lines.push(line("to Lodge altogether", to_vmm(sample)));
    lines
}

/// What was counted between the begin and the end of a phase.
fn difference(samples: &BTreeMap<String, Sample>, phase: &str) -> anyhow::Result<Sample> {
    let get = |when: &str| {
        samples.get(&format!("{phase}-{when}")).with_context(|| format!("no {phase}-{when}"))
    };
    let (begin, end) = (get("begin")?, get("end")?);
    Ok(end
        .iter()
        .map(|(name, count)| (name.clone(), count - begin.get(name).copied().unwrap_or(0.0)))
        .collect())
}

/// Two numbers.
fn numbers(line: &str) -> Option<(u64, u64)> {
    let (one, other) = line.trim().split_once(' ')?;
    Some((one.parse().ok()?, other.parse().ok()?))
}

/// Takes note of `MOMENT NAME VALUE`.
fn take(samples: &mut BTreeMap<String, Sample>, line: &str) -> Option<()> {
    let mut words = line.splitn(3, ' ');
    let (moment, name, value) = (words.next()?, words.next()?, words.next()?);
    let sample = samples.entry(moment.to_owned()).or_default();
    if name != "lodge" {
        sample.insert(name.to_owned(), value.trim().parse().ok()?);
        return Some(());
    }
    let statistics: Value = serde_json::from_str(value).ok()?;
    for processor in statistics["processors"].as_array()? {
        for (name, count) in processor["counts"].as_object()? {
            if name.starts_with("exits_") {
                *sample.entry(format!("lodge:{name}")).or_default() += count.as_f64()?;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_subtracted() {
        let mut samples = BTreeMap::new();
        for line in [
            "disk-begin uptime 3.5",
            r#"disk-begin lodge {"processors":[{"counts":{"exits_mmio_read":3,"entries":9}}]}"#,
            "disk-end uptime 5.5",
            r#"disk-end lodge {"processors":[{"counts":{"exits_mmio_read":5}},{"counts":{"exits_mmio_read":1}}]}"#,
            "disk-end kvm:exits 40",
        ] {
            take(&mut samples, line).unwrap();
        }
        let disk = difference(&samples, "disk").unwrap();
        assert_eq!(disk["uptime"], 2.0);
        assert_eq!(to_vmm(&disk), 3.0);
        assert_eq!(disk["kvm:exits"], 40.0);
        assert!(difference(&samples, "idle").is_err());
        assert!(take(&mut samples, "x").is_none());
        assert_eq!(numbers("9040 2092\r"), Some((9040, 2092)));
        assert_eq!(numbers("9040"), None);
    }
}
