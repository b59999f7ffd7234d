//! Statistics as a table for people.

use std::collections::BTreeSet;
use std::fmt::Write;

use vmm_api::{
    Accelerator, DiskStatistics, FolderStatistics, NetStatistics, PROCESSOR_TIME_NS,
    ProcessorStatistics, Statistics,
};

use super::figures::GROUPS;
use crate::size;

/// The level that says how much of another there may be has its name with this behind it.
const CAPACITY: &str = "_capacity";

/// What two looks at a guest, one after the other, say about it.
pub fn of(first: &Statistics, second: &Statistics) -> String {
    let looks = Looks::new(first, second);
    let mut text = headline(second);
    if looks.seconds.is_none() {
        text.push_str("The guest was reset just now: there are no rates yet; try again.\n");
    }
    text.push('\n');
    looks.write_processors(&mut text);
    looks.write_disks(&mut text);
    looks.write_nets(&mut text);
    looks.write_folders(&mut text);
    looks.write_counts(&mut text);
    looks.write_levels(&mut text);
    if second.processors.iter().any(|processor| !processor.current) {
        text.push_str(
            "\nA processor that is marked with * did not answer: it waits for a device, or for \
             this host to\nhave time for it. Its numbers are from an earlier look.\n",
        );
    }
    text
}

fn headline(statistics: &Statistics) -> String {
    let runner = match statistics.accelerator {
        Accelerator::Kvm => "KVM",
        Accelerator::Soft | Accelerator::Auto => "Lodge's own engine",
    };
    let many = |count: u64, what: &str, end: &str| match count {
        1 => format!("1 {what}"),
        count => format!("{} {what}{end}", grouped(count)),
    };
    let processors = many(statistics.processors.len() as u64, "processor", "s");
    let age = duration(statistics.running_ns / 1_000_000_000);
    let since = match statistics.resets {
        0 => format!("started {age} ago"),
        resets => format!("reset {} and last {age} ago", many(resets, "time", "s")),
    };
    format!("{} runs on {runner}: {processors}, {since}\n", statistics.name)
}

/// What a column of a table of devices shows.
enum Figure<T> {
    /// How often a second.
    Rate(fn(&T) -> u64),
    /// How many bytes a second.
    Bytes(fn(&T) -> u64),
    /// How often altogether.
    Total(fn(&T) -> u64),
}

type Column<T> = (&'static str, Figure<T>);

/// Two looks at a guest.
struct Looks<'a> {
    first: &'a Statistics,
    second: &'a Statistics,
    /// The time in between; `None` if the counts began anew.
    seconds: Option<f64>,
}

impl<'a> Looks<'a> {
    fn new(first: &'a Statistics, second: &'a Statistics) -> Self {
        let passed = second.running_ns.checked_sub(first.running_ns).filter(|&ns| {
            ns > 0
                && first.resets == second.resets
                && first.processors.len() == second.processors.len()
        });
        Self { first, second, seconds: passed.map(|ns| ns as f64 / 1e9) }
    }

    /// How often a second something happened, from how often it had happened.
    fn rate(&self, before: u64, now: u64) -> Option<f64> {
        self.seconds.map(|seconds| now.saturating_sub(before) as f64 / seconds)
    }

    fn processor_rate(&self, index: usize, name: &str) -> Option<f64> {
        let count =
            |statistics: &Statistics| statistics.processors.get(index)?.counts.get(name).copied();
        self.rate(count(self.first).unwrap_or(0), count(self.second)?)
    }

    fn write_processors(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "{:<10} {:>6} {:>14} {:>14} {:>22}",
            "PROCESSOR", "BUSY", "ENTRIES/S", "INTERPRETED/S", "TRANSLATED CODE"
        );
        for (index, processor) in self.second.processors.iter().enumerate() {
            let busy = self.processor_rate(index, PROCESSOR_TIME_NS);
            // The two clocks are not read at the same moment.
            let busy = busy.map_or("-".to_owned(), |ns| percent(ns.min(1e9)));
            let rate = |name| per_second(self.processor_rate(index, name));
            let mark = if processor.current { "" } else { " *" };
            let code = match processor.levels.get("code_bytes") {
                Some(&bytes) => used(processor, "code_bytes", bytes),
                None => "-".to_owned(),
            };
            let _ = writeln!(
                text,
                "{:<10} {busy:>6} {:>14} {:>14} {code:>22}",
                format!("{index}{mark}"),
                rate("entries"),
                rate("interpreted_instructions"),
            );
        }
    }

    fn write_disks(&self, text: &mut String) {
        let columns: [Column<DiskStatistics>; 6] = [
            ("READS/S", Figure::Rate(|it| it.reads)),
            ("READ/S", Figure::Bytes(|it| it.read_bytes)),
            ("WRITES/S", Figure::Rate(|it| it.writes)),
            ("WRITTEN/S", Figure::Bytes(|it| it.written_bytes)),
            ("FLUSHES/S", Figure::Rate(|it| it.flushes)),
            ("FAILED", Figure::Total(|it| it.failed)),
        ];
        self.write_devices(text, "DISK", &self.first.disks, &self.second.disks, columns);
    }

    fn write_nets(&self, text: &mut String) {
        let columns: [Column<NetStatistics>; 6] = [
            ("IN/S", Figure::Rate(|it| it.received_packets)),
            ("BYTES IN/S", Figure::Bytes(|it| it.received_bytes)),
            ("OUT/S", Figure::Rate(|it| it.sent_packets)),
            ("BYTES OUT/S", Figure::Bytes(|it| it.sent_bytes)),
            ("LOST IN", Figure::Total(|it| it.received_dropped)),
            ("LOST OUT", Figure::Total(|it| it.sent_dropped)),
        ];
        self.write_devices(text, "CARD", &self.first.nets, &self.second.nets, columns);
    }

    fn write_folders(&self, text: &mut String) {
        let columns: [Column<FolderStatistics>; 6] = [
            ("READS/S", Figure::Rate(|it| it.reads)),
            ("READ/S", Figure::Bytes(|it| it.read_bytes)),
            ("WRITES/S", Figure::Rate(|it| it.writes)),
            ("WRITTEN/S", Figure::Bytes(|it| it.written_bytes)),
            ("REQUESTS/S", Figure::Rate(|it| it.requests)),
            ("FAILED", Figure::Total(|it| it.failed)),
        ];
        self.write_devices(text, "FOLDER", &self.first.folders, &self.second.folders, columns);
    }

    /// A table with a line for each device of a kind, if there is one.
    fn write_devices<T: Copy + Default>(
        &self,
        text: &mut String,
        kind: &str,
        first: &[T],
        second: &[T],
        columns: [Column<T>; 6],
    ) {
        let mut line = |name: &str, cells: [&str; 6]| {
            let [a, b, c, d, e, f] = cells;
            let _ = writeln!(text, "{name:<10} {a:>10} {b:>12} {c:>10} {d:>12} {e:>10} {f:>9}");
        };
        if !second.is_empty() {
            line(&format!("\n{kind:<10}"), columns.each_ref().map(|(title, _)| *title));
        }
        for (index, now) in second.iter().enumerate() {
            let before = first.get(index).copied().unwrap_or_default();
            let cells = columns.each_ref().map(|(_, figure)| match figure {
                Figure::Rate(count) => per_second(self.rate(count(&before), count(now))),
                Figure::Bytes(count) => bytes_per_second(self.rate(count(&before), count(now))),
                Figure::Total(count) => grouped(count(now)),
            });
            line(&index.to_string(), cells.each_ref().map(String::as_str));
        }
    }

    fn write_counts(&self, text: &mut String) {
        let sum = |statistics: &Statistics, name: &str| {
            let counts = statistics.processors.iter().filter_map(|p| p.counts.get(name));
            counts.fold(0u64, |sum, &count| sum.saturating_add(count))
        };
        let names: BTreeSet<&str> = self
            .second
            .processors
            .iter()
            .flat_map(|p| p.counts.keys())
            .map(String::as_str)
            .collect();
        for (title, names) in in_groups(&names) {
            let _ = writeln!(text, "\n{title:<38} {:>20} {:>14}", "TOTAL", "PER SECOND");
            for name in names {
                let now = sum(self.second, name);
                let rate = self.rate(sum(self.first, name), now);
                let (now, rate) = if name == PROCESSOR_TIME_NS {
                    (duration(now / 1_000_000_000), rate.map_or("-".to_owned(), percent))
                } else {
                    (grouped(now), per_second(rate))
                };
                let _ = writeln!(text, "  {name:<36} {now:>20} {rate:>14}");
            }
        }
    }

    fn write_levels(&self, text: &mut String) {
        let names: BTreeSet<&str> = self
            .second
            .processors
            .iter()
            .flat_map(|p| p.levels.keys())
            .map(String::as_str)
            .filter(|name| !name.ends_with(CAPACITY))
            .collect();
        for (title, names) in in_groups(&names) {
            let _ = writeln!(text, "\n{title:<38} {:>35}", "OF EACH PROCESSOR");
            for name in names {
                let levels = self.second.processors.iter().map(|processor| {
                    processor.levels.get(name).map_or("-".to_owned(), |&v| used(processor, name, v))
                });
                let levels = levels.collect::<Vec<_>>().join("; ");
                let _ = writeln!(text, "  {name:<36} {levels:>35}");
            }
        }
    }
}

/// Those of the names that are there, by group; unknown ones come last.
fn in_groups<'a>(names: &BTreeSet<&'a str>) -> Vec<(&'static str, Vec<&'a str>)> {
    let mut left = names.clone();
    let mut groups: Vec<(&'static str, Vec<&'a str>)> = Vec::new();
    for group in GROUPS {
        let here: Vec<&str> =
            group.figures.iter().filter_map(|(name, _)| left.take(name)).collect();
        if !here.is_empty() {
            groups.push((group.title, here));
        }
    }
    if !left.is_empty() {
        groups.push(("Others, which this lodge does not know", left.into_iter().collect()));
    }
    groups
}

/// A level, and how much of it there may be.
fn used(processor: &ProcessorStatistics, name: &str, value: u64) -> String {
    let write = |number| {
        if name.ends_with("_bytes") { size::format_bytes(number) } else { grouped(number) }
    };
    match processor.levels.get(&format!("{name}{CAPACITY}")) {
        // 0: the processor has no transcoder.
        None | Some(0) => write(value),
        Some(&capacity) => format!("{} of {}", write(value), write(capacity)),
    }
}

fn per_second(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate > 0.0 && rate < 10.0 => format!("{rate:.1}"),
        Some(rate) => grouped(rate as u64),
    }
}

fn bytes_per_second(rate: Option<f64>) -> String {
    rate.map_or("-".to_owned(), |rate| size::format_bytes(rate as u64))
}

/// Nanoseconds in each second.
fn percent(ns: f64) -> String {
    format!("{:.0} %", ns / 1e7)
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{} h {minutes} min", grouped(hours)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(running_ns: u64, entries: u64) -> Statistics {
        let counts = [
            (PROCESSOR_TIME_NS.to_owned(), running_ns / 4),
            ("entries".to_owned(), entries),
            ("interpreted_instructions".to_owned(), 3 * entries),
        ];
        let levels =
            [("code_bytes", 13 << 20), ("code_bytes_capacity", 40 << 20), ("code_blocks", 4711)];
        let processor = ProcessorStatistics {
            current: true,
            counts: counts.into(),
            levels: levels.map(|(name, value)| (name.to_owned(), value)).into(),
        };
        Statistics {
            name: "web".into(),
            accelerator: Accelerator::Soft,
            resets: 0,
            memory: Default::default(),
            running_ns,
            processors: vec![processor.clone(), processor],
            disks: vec![DiskStatistics {
                reads: entries,
                read_bytes: entries << 12,
                ..DiskStatistics::default()
            }],
            nets: vec![NetStatistics {
                sent_packets: entries,
                sent_bytes: entries << 10,
                sent_dropped: 3,
                ..NetStatistics::default()
            }],
            folders: vec![FolderStatistics {
                requests: 3 * entries,
                written_bytes: entries << 10,
                ..FolderStatistics::default()
            }],
        }
    }

    /// The words of the line that begins with this one.
    fn line<'a>(table: &'a str, first: &str) -> Vec<&'a str> {
        let words = |line: &'a str| line.split_whitespace().collect::<Vec<_>>();
        table.lines().map(words).find(|words| words.first() == Some(&first)).expect(first)
    }

    #[test]
    fn rates_are_made_from_two_looks() {
        let table = of(&look(2_000_000_000, 1000), &look(4_000_000_000, 1_001_000));
        assert!(table.starts_with("web runs on Lodge's own engine: 2 processors, started 4 s ago"));
        assert_eq!(
            line(&table, "1"),
            ["1", "25", "%", "500,000", "1,500,000", "13", "MiB", "of", "40", "MiB"]
        );
        assert_eq!(line(&table, "entries"), ["entries", "2,002,000", "1,000,000"]);
        let time = line(&table, PROCESSOR_TIME_NS);
        assert_eq!(time, [PROCESSOR_TIME_NS, "2", "s", "50", "%"]);
        let (_, devices) = table.split_once("DISK").unwrap();
        let disk = ["0", "500,000", "1.9", "GiB", "0", "0", "B", "0", "0"];
        assert_eq!(line(devices, "0"), disk, "{table}");
        let (_, cards) = table.split_once("CARD").unwrap();
        let card = ["0", "0", "0", "B", "500,000", "488", "MiB", "0", "3"];
        assert_eq!(line(cards, "0"), card, "{table}");
        let (_, folders) = table.split_once("FOLDER").unwrap();
        let folder = ["0", "0", "0", "B", "0", "488", "MiB", "1,500,000", "0"];
        assert_eq!(line(folders, "0"), folder, "{table}");
        let blocks = line(&table, "code_blocks");
        assert_eq!(blocks, ["code_blocks", "4,711;", "4,711"]);
        assert!(!table.contains("capacity") && !table.contains("Others"), "{table}");
    }

    #[test]
    fn a_reset_in_between_leaves_no_rates() {
        let mut second = look(1_000_000_000, 10);
        second.resets = 1;
        let table = of(&look(2_000_000_000, 1000), &second);
        assert!(table.contains("reset just now") && table.contains("reset 1 time and last 1 s"));
        assert_eq!(line(&table, "entries"), ["entries", "20", "-"]);
    }

    #[test]
    fn what_is_not_known_is_shown_as_it_is() {
        let first = look(1_000_000_000, 10);
        let mut second = look(2_000_000_000, 10);
        second.processors[0].current = false;
        second.processors[0].counts.insert("halts".into(), u64::MAX);
        second.processors[1].counts.insert("halts".into(), 1);
        let table = of(&first, &second);
        assert!(table.contains("Others") && table.contains("* did not answer"), "{table}");
        assert_eq!(line(&table, "halts")[1], "18,446,744,073,709,551,615");
        assert_eq!(line(&table, "0")[1], "*");
        // Fewer processors than before, as no guest has them.
        second.processors.clear();
        assert!(of(&first, &second).contains("0 processors"));
    }

    #[test]
    fn durations_are_written() {
        for (seconds, text) in [(5, "5 s"), (65, "1 min 5 s"), (7325, "2 h 2 min")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
