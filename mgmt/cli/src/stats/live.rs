//! `lodge stats` without a name: what all running guests use.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use vmm_api::{DiskStatistics, Failure, NetStatistics, PROCESSOR_TIME_NS, Statistics};
use vmm_client::Client;

use crate::args::StatsArgs;
use crate::{guests, output, size};

/// How long a guest may take to answer; one that does not is left out.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one guest used between two looks.
#[derive(Debug, PartialEq, Serialize)]
struct Usage {
    name: String,
    /// Of one processor of this host, in percent; more than 100 for guests with several.
    cpu_percent: Option<f64>,
    /// The host's memory that its VMM has.
    resident_bytes: u64,
    /// The guest's RAM.
    guest_bytes: u64,
    /// How often its processors were interrupted in running guest code, per second.
    exits_per_second: Option<f64>,
    /// What it read from its disks, and wrote to them, per second.
    disk_bytes_per_second: Option<f64>,
    /// What its network cards received and sent, per second.
    net_bytes_per_second: Option<f64>,
}

/// Prints a table again and again, or once; the value is the exit status.
pub fn run(args: &StatsArgs) -> Result<u8, Failure> {
    let is_terminal = io::stdout().is_terminal();
    let mut guests = Guests::default();
    let mut before = guests.look()?;
    loop {
        thread::sleep(args.interval);
        let now = guests.look()?;
        let usages: Vec<Usage> = now.iter().map(|it| usage(find(&before, &it.name), it)).collect();
        let text = if args.json {
            serde_json::to_string(&usages).map_err(Failure::internal)? + "\n"
        } else {
            // To the corner, and everything below is cleared (ECMA-48 CUP, ED).
            let clear = if is_terminal && !args.once { "\x1b[H\x1b[J" } else { "" };
            format!("{clear}{}", table(&usages))
        };
        output::print(text)?;
        if args.once {
            return Ok(0);
        }
        before = now;
    }
}

/// Connections to guests, for as long as they run.
#[derive(Default)]
struct Guests(HashMap<String, Client>);

impl Guests {
    fn look(&mut self) -> Result<Vec<Statistics>, Failure> {
        let mut all = Vec::new();
        for name in guests::names()? {
            let client = match self.0.remove(&name) {
                Some(client) => Ok(client),
                None => guests::client(&name).map(|client| client.with_patience(PATIENCE)),
            };
            // One that does not run, or just ends, is not shown.
            if let Ok(mut client) = client
                && let Ok(statistics) = client.statistics()
            {
                all.push(Statistics { name: name.clone(), ..statistics });
                self.0.insert(name, client);
            }
        }
        Ok(all)
    }
}

fn find<'a>(all: &'a [Statistics], name: &str) -> Option<&'a Statistics> {
    all.iter().find(|statistics| statistics.name == name)
}

/// What a guest used since an earlier look, if there was one and no reset since.
fn usage(before: Option<&Statistics>, now: &Statistics) -> Usage {
    let before = before.filter(|before| before.resets == now.resets);
    let passed =
        before.and_then(|it| now.running_ns.checked_sub(it.running_ns)).filter(|&it| it > 0);
    let rate = |sum: fn(&Statistics) -> u64| {
        let grown = sum(now).saturating_sub(sum(before?));
        Some(grown as f64 / passed? as f64)
    };
    Usage {
        name: now.name.clone(),
        cpu_percent: rate(processor_time).map(|it| it * 100.0),
        resident_bytes: now.memory.resident_bytes,
        guest_bytes: now.memory.guest_bytes,
        exits_per_second: rate(exits).map(|it| it * 1e9),
        disk_bytes_per_second: rate(disk_bytes).map(|it| it * 1e9),
        net_bytes_per_second: rate(net_bytes).map(|it| it * 1e9),
    }
}

fn processor_time(statistics: &Statistics) -> u64 {
    sum(statistics, |name| name == PROCESSOR_TIME_NS)
}

/// Every accelerator has numbers that begin so, one for each reason to leave guest code.
fn exits(statistics: &Statistics) -> u64 {
    sum(statistics, |name| name.starts_with("exits"))
}

fn disk_bytes(statistics: &Statistics) -> u64 {
    let both = |it: &DiskStatistics| it.read_bytes.saturating_add(it.written_bytes);
    statistics.disks.iter().map(both).fold(0, u64::saturating_add)
}

fn net_bytes(statistics: &Statistics) -> u64 {
    let both = |it: &NetStatistics| it.received_bytes.saturating_add(it.sent_bytes);
    statistics.nets.iter().map(both).fold(0, u64::saturating_add)
}

fn sum(statistics: &Statistics, wanted: impl Fn(&str) -> bool) -> u64 {
    let counts = statistics.processors.iter().flat_map(|processor| &processor.counts);
    counts.filter(|(name, _)| wanted(name)).fold(0, |sum, (_, n)| sum.saturating_add(*n))
}

fn table(usages: &[Usage]) -> String {
    let mut table = format!(
        "{:<24} {:>8} {:>9} {:>9} {:>11} {:>11} {:>11}\n",
        "GUEST", "CPU", "MEMORY", "OF", "DISK/S", "NET/S", "EXITS/S"
    );
    let bytes = |rate: Option<f64>| rate.map_or("-".to_owned(), |it| size::format_bytes(it as u64));
    for usage in usages {
        let _ = writeln!(
            table,
            "{:<24} {:>8} {:>9} {:>9} {:>11} {:>11} {:>11}",
            usage.name,
            usage.cpu_percent.map_or("-".to_owned(), |it| format!("{it:.1} %")),
            size::format_bytes(usage.resident_bytes),
            size::format_bytes(usage.guest_bytes),
            bytes(usage.disk_bytes_per_second),
            bytes(usage.net_bytes_per_second),
            usage.exits_per_second.map_or("-".to_owned(), |it| format!("{it:.0}")),
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_api::{Accelerator, MemoryStatistics, ProcessorStatistics};

    fn look(resets: u64, running_ns: u64, time_ns: u64) -> Statistics {
        let counts = [(PROCESSOR_TIME_NS, time_ns), ("exits_miss", 10), ("entries", 7)];
        let counts = counts.map(|(name, number)| (name.to_owned(), number)).into();
        let processor = ProcessorStatistics { current: true, counts, levels: Default::default() };
        Statistics {
            name: "web".into(),
            accelerator: Accelerator::Soft,
            resets,
            running_ns,
            memory: MemoryStatistics { guest_bytes: 1 << 30, resident_bytes: 1 << 20 },
            processors: vec![processor.clone(), processor],
            disks: vec![DiskStatistics { read_bytes: time_ns, ..DiskStatistics::default() }],
            nets: vec![NetStatistics { sent_bytes: 2 * time_ns, ..NetStatistics::default() }],
            folders: Vec::new(),
        }
    }

    #[test]
    fn usage_is_what_happened_between_two_looks() {
        let (first, second) = (look(0, 1_000, 100), look(0, 3_000, 600));
        let it = usage(Some(&first), &second);
        assert_eq!(it.cpu_percent, Some(50.0));
        assert_eq!(it.exits_per_second, Some(0.0));
        assert_eq!(it.disk_bytes_per_second, Some(0.25e9));
        assert_eq!(it.net_bytes_per_second, Some(0.5e9));
        for before in [None, Some(&look(1, 1_000, 100)), Some(&look(0, 3_000, 0))] {
            assert_eq!(usage(before, &second).cpu_percent, None);
        }
        let text = table(&[it]);
        assert!(text.contains("50.0 %"), "{text}");
    }
}
