//! The table, on the terminal and in docs/.

use std::fmt::Write;

use super::contestant::{ALL, MEMORY_MIB};
use super::facts::{Conditions, Facts};
use super::table::{Entry, Mean, Row, noise};

const HEAD: [&str; 9] = [
    "workload",
    "native",
    "TCG",
    "Lodge",
    "TCG vs native",
    "Lodge vs native",
    "Lodge vs TCG",
    "at least",
    "met",
];

/// The table for people at a terminal.
pub fn terminal(rows: &[Row], mean: &Mean) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let mut line = cells(row);
        row.name.clone_into(&mut line[0]);
        line
    }));
    lines.push(mean_cells(mean));
    let mut widths = [0; 9];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in &lines {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let _ = match column {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    if rows.iter().flat_map(|row| &row.entries).any(|entry| entry.earlier) {
        text.push_str("* of an earlier run\n");
    }
    for failure in failures(rows) {
        let _ = writeln!(text, "FAILED {failure}");
    }
    text
}

/// The page in docs/.
pub fn page(rows: &[Row], mean: &Mean, facts: &Facts, conditions: &Conditions) -> String {
    let runs = conditions.runs;
    let mut text = String::from(
        "# Performance\n\nWritten by `make bench`; do not edit. [How Lodge is measured](testing.md#benchmarks) \
         says what each row means.\n\n",
    );
    let guest = if facts.is_guest { " (itself a virtual machine)" } else { "" };
    let _ = write!(
        text,
        "- {}: medians of {runs} runs, each of all workloads {}\n\
         - {} × {}, {} GiB of memory{guest}, Linux {}\n\
         - guests: 1 processor, {MEMORY_MIB} MiB, {}, Linux {}\n",
        facts.date,
        whereabouts(rows),
        facts.processors,
        facts.processor,
        facts.memory_gib,
        facts.kernel,
        facts.image,
        facts.guest_kernel,
    );
    for version in &facts.versions {
        let _ = writeln!(text, "- {version}");
    }
    let noises: Vec<String> = ALL
        .iter()
        .filter_map(|contestant| {
            let (middle, most) = noise(rows, *contestant)?;
            Some(format!(
                "{} {:.0} %, at most {:.0} %",
                contestant.name(),
                middle * 100.0,
                most * 100.0
            ))
        })
        .collect();
    if !noises.is_empty() {
        let _ = writeln!(
            text,
            "- slowest and fastest run of a workload differ by, in the median: {}",
            noises.join("; ")
        );
    }
    if conditions.processor_time {
        text.push_str(
            "- times are processor time (except for fio's), since this machine was busy with other \
             things: the numbers are provisional\n",
        );
    } else if facts.load_before > BUSY {
        let _ = writeln!(
            text,
            "- this machine was busy with other things (load {:.1}): the numbers are provisional",
            facts.load_before
        );
    }
    text.push('\n');
    let line = |cells: &[String; 9]| format!("| {} |\n", cells.join(" | "));
    text.push_str(&line(&HEAD.map(str::to_owned)));
    text.push_str("|---|--:|--:|--:|--:|--:|--:|--:|---|\n");
    for row in rows {
        text.push_str(&line(&cells(row)));
    }
    text.push_str(&line(&mean_cells(mean).map(|cell| match cell.as_str() {
        "" => cell,
        _ => format!("**{cell}**"),
    })));
    let failures = failures(rows);
    if !failures.is_empty() {
        text.push_str("\nWhat failed:\n\n");
        for failure in failures {
            let _ = writeln!(text, "- {}", failure.replace(['|', '<', '`'], " "));
        }
    }
    text
}

/// Where was measured: "natively, then under TCG, then under Lodge".
fn whereabouts(rows: &[Row]) -> String {
    let is_measured = |index: usize| {
        let entries = rows.iter().map(|row| &row.entries[index]);
        entries.into_iter().any(|entry| entry.median.is_some() || !entry.failures.is_empty())
    };
    let names = ["natively", "under TCG", "under Lodge"];
    let (measured, left_out): (Vec<usize>, Vec<usize>) = (0..3).partition(|i| is_measured(*i));
    let mut text = measured.iter().map(|i| names[*i]).collect::<Vec<_>>().join(", then ");
    for index in left_out {
        let _ = write!(text, "; not measured {}", names[index]);
    }
    text
}

/// A machine is busy above this load average.
pub const BUSY: f64 = 0.5;

fn cells(row: &Row) -> [String; 9] {
    let [native, tcg, lodge] = &row.entries;
    let ratios = &row.ratios;
    let better = if lodge.unit == "MiB" { "less" } else { "faster" };
    [
        row.title.to_owned(),
        value(native),
        value(tcg),
        value(lodge),
        ratio(ratios.tcg_slower_than_native, "slower"),
        ratio(ratios.lodge_slower_than_native, "slower"),
        ratio(ratios.lodge_faster_than_tcg, better),
        format!("{}×", row.target),
        met(row.met),
    ]
}

fn mean_cells(mean: &Mean) -> [String; 9] {
    let [tcg, lodge, faster] = mean.counts;
    let part = |text: String, count: usize| {
        if text.is_empty() || count == mean.of { text } else { format!("{text} ({count} rows)") }
    };
    [
        "geometric mean".to_owned(),
        String::new(),
        String::new(),
        String::new(),
        part(ratio(mean.ratios.tcg_slower_than_native, "slower"), tcg),
        part(ratio(mean.ratios.lodge_slower_than_native, "slower"), lodge),
        part(ratio(mean.ratios.lodge_faster_than_tcg, "faster"), faster),
        format!("{}×", mean.target),
        met(mean.met),
    ]
}

fn met(met: Option<bool>) -> String {
    match met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "–",
    }
    .to_owned()
}

/// "3.5× slower"; for a ratio below one the other word, so that nobody has to think.
fn ratio(ratio: Option<f64>, word: &str) -> String {
    let Some(ratio) = ratio else { return String::new() };
    let other = match word {
        "slower" => "faster",
        "less" => "more",
        _ => "slower",
    };
    // What prints as 1.0 is neither.
    if (0.95..1.05).contains(&ratio) {
        "1.0×".to_owned()
    } else if ratio < 1.0 {
        format!("{}× {other}", significant(1.0 / ratio))
    } else {
        format!("{}× {word}", significant(ratio))
    }
}

fn value(entry: &Entry) -> String {
    let mark = if entry.earlier { "*" } else { "" };
    let text = match entry.median {
        Some(median) if entry.unit == "s" => format!("{median:.3} s"),
        Some(median) if entry.unit == "×" => format!("{median:.2}×"),
        Some(median) if entry.unit == "MiB" => format!("{median:.0} MiB"),
        Some(median) => format!("{} {}/s", significant(median), entry.unit),
        None if entry.failures.is_empty() => return "–".to_owned(),
        None => return format!("failed{mark}"),
    };
    match entry.failures.len() {
        0 => text + mark,
        count => format!("{text}{mark} (failed {count}×)"),
    }
}

/// Two digits, or all that stand before the point.
fn significant(number: f64) -> String {
    if number < 9.95 { format!("{number:.1}") } else { format!("{number:.0}") }
}

fn failures(rows: &[Row]) -> Vec<String> {
    let mut all = Vec::new();
    for row in rows {
        for (entry, contestant) in row.entries.iter().zip(ALL) {
            // The same once more says nothing new.
            let mut texts = entry.failures.clone();
            texts.dedup();
            all.extend(
                texts.iter().map(|text| format!("{}, {}: {text}", row.name, contestant.name())),
            );
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::samples::Samples;
    use crate::bench::table::{self, Which};
    use crate::bench::workload::WORKLOADS;

    fn example() -> Vec<Row> {
        let mut samples = Samples::default();
        samples.begin_run(1);
        for (contestant, value) in ALL.into_iter().zip([0.5, 4.0, 1.0]) {
            samples.begin("gcc", contestant).values.push(value);
            samples.begin("integers", contestant).values.push(value);
        }
        samples.begin("getppid", ALL[2]).failures.push("exit status 1: no".into());
        let picked: Vec<_> = WORKLOADS
            .iter()
            .filter(|workload| ["gcc", "integers", "getppid"].contains(&workload.name))
            .copied()
            .collect();
        table::rows(&picked, &samples, Which::LastRun)
    }

    #[test]
    fn the_terminal_shows_all_rows_and_failures() {
        let rows = example();
        let text = terminal(&rows, &table::mean(&rows));
        assert!(text.contains("8.0× slower  "), "{text}");
        assert!(text.contains("FAILED getppid, lodge: exit status 1: no"), "{text}");
        assert!(!text.contains("earlier"), "{text}");
        let line = text.lines().find(|line| line.starts_with("gcc")).unwrap();
        assert!(line.ends_with("4.0× faster        4×  yes"), "{line}");
    }

    #[test]
    fn ratios_name_their_direction() {
        assert_eq!(ratio(Some(11.2), "slower"), "11× slower");
        assert_eq!(ratio(Some(0.5), "faster"), "2.0× slower");
        assert_eq!(ratio(Some(0.99), "faster"), "1.0×");
        assert_eq!(ratio(None, "faster"), "");
    }

    #[test]
    fn the_page_has_a_table_with_the_mean_last() {
        let rows = example();
        let facts = Facts {
            date: "2026-01-02".into(),
            processor: "P".into(),
            processors: 2,
            memory_gib: 4,
            is_guest: true,
            kernel: "6".into(),
            guest_kernel: "5".into(),
            image: "Debian".into(),
            versions: vec!["lodge 0".into()],
            load_before: 3.0,
        };
        let conditions = Conditions { runs: 3, processor_time: false };
        let text = page(&rows, &table::mean(&rows), &facts, &conditions);
        assert!(
            text.contains("all workloads natively, then under TCG, then under Lodge\n"),
            "{text}"
        );
        assert!(text.contains("medians of 3 runs") && text.contains("provisional"), "{text}");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(lines.len(), 2 + 3 + 1);
        assert!(lines.iter().all(|line| line.matches('|').count() == 10), "{text}");
        assert!(lines[5].starts_with("| **geometric mean** |"), "{text}");
        assert!(text.ends_with("- getppid, lodge: exit status 1: no\n"), "{text}");
    }
}
