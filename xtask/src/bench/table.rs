//! Ratios, and whether they are what they have to be.

use serde::Serialize;

use super::contestant::{ALL, Contestant};
use super::samples::{Cell, Samples};
use super::workload::{Kind, MEAN_TARGET, Unit, Workload};

/// A row: one workload.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its name in the table.
    pub title: &'static str,
    /// Whether it counts in the geometric mean.
    pub in_mean: bool,
    /// What each contestant did, in the order of [`ALL`].
    pub entries: [Entry; 3],
    /// The ratios.
    #[serde(flatten)]
    pub ratios: Ratios,
    /// What the last ratio has to be, at least.
    pub target: f64,
    /// Whether it is; `None` if it is not known.
    pub met: Option<bool>,
}

/// What one contestant did with one workload.
#[derive(Debug, Default, Serialize)]
pub struct Entry {
    /// The median.
    pub median: Option<f64>,
    /// In what; what is per second is named without that.
    pub unit: &'static str,
    /// All values.
    pub values: Vec<f64>,
    /// How far they are apart, as a part of the median.
    pub spread: Option<f64>,
    /// What went wrong. A workload that fails once under Lodge does not meet its target.
    pub failures: Vec<String>,
    /// Measured in an earlier run.
    pub earlier: bool,
}

/// How the contestants compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Ratios {
    /// So many times as slow as native is TCG.
    pub tcg_slower_than_native: Option<f64>,
    /// And Lodge.
    pub lodge_slower_than_native: Option<f64>,
    /// So many times as fast as TCG is Lodge.
    pub lodge_faster_than_tcg: Option<f64>,
}

/// The last row.
#[derive(Debug, Serialize)]
pub struct Mean {
    /// Geometric means of the ratios of those workloads that have them.
    #[serde(flatten)]
    pub ratios: Ratios,
    /// How many workloads count for each of the ratios.
    pub counts: [usize; 3],
    /// How many there are.
    pub of: usize,
    /// What the last has to be, at least.
    pub target: f64,
    /// Whether it is; `None` if it is not known.
    pub met: Option<bool>,
}

/// Which samples count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those of the last run.
    LastRun,
    /// Earlier ones as well, where the last run has none.
    All,
}

/// Makes rows of samples.
pub fn rows(workloads: &[Workload], samples: &Samples, which: Which) -> Vec<Row> {
    workloads.iter().map(|workload| row(workload, samples, which)).collect()
}

fn row(workload: &Workload, samples: &Samples, which: Which) -> Row {
    let cells = ALL.map(|contestant| {
        samples
            .cell(workload.name, contestant)
            .filter(|cell| which == Which::All || cell.run == samples.run)
    });
    let expected = expected(&cells);
    let entries = cells.map(|cell| entry(cell, workload.unit(), expected, samples.run));
    // A rate is the inverse of a time.
    let time = |index: usize| {
        let median = entries[index].median?;
        match workload.unit() {
            Unit::Seconds | Unit::Mib => Some(median),
            Unit::PerSecond(_) => Some(1.0 / median),
            Unit::Times => None,
        }
    };
    let [native, tcg, lodge] = [time(0), time(1), time(2)];
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let ratios = Ratios {
        tcg_slower_than_native: ratio(tcg, native),
        lodge_slower_than_native: ratio(lodge, native),
        lodge_faster_than_tcg: ratio(tcg, lodge),
    };
    // What fails elsewhere only is told, but not held against Lodge.
    let failed = !entries[2].failures.is_empty();
    let reached = match workload.unit() {
        Unit::Times => entries[2].median,
        _ => ratios.lodge_faster_than_tcg,
    };
    let met = reached.map(|ratio| ratio >= workload.target && !failed);
    Row {
        name: workload.name,
        title: workload.title,
        in_mean: matches!(workload.kind, Kind::Commands(_)),
        met: met.or(failed.then_some(false)),
        entries,
        ratios,
        target: workload.target,
    }
}

/// What the workload computes: what this machine itself computed, else what the first guest did.
fn expected<'a>(cells: &[Option<&'a Cell>; 3]) -> Option<&'a str> {
    cells.iter().flatten().flat_map(|cell| &cell.checks).next().map(String::as_str)
}

fn entry(cell: Option<&Cell>, unit: Unit, expected: Option<&str>, run: u64) -> Entry {
    let Some(cell) = cell else { return Entry::default() };
    let mut failures = cell.failures.clone();
    for check in &cell.checks {
        if let Some(expected) = expected
            && check != expected
        {
            failures.push(format!("a wrong result: {check:?}, not {expected:?}"));
        }
    }
    Entry {
        median: cell.median(),
        unit: match unit {
            Unit::Seconds => "s",
            Unit::PerSecond(unit) => unit,
            Unit::Times => "×",
            Unit::Mib => "MiB",
        },
        values: cell.values.clone(),
        spread: cell.spread(),
        failures,
        earlier: cell.run != run,
    }
}

/// The geometric means of the rows' ratios.
pub fn mean(rows: &[Row]) -> Mean {
    let counted: Vec<&Row> = rows.iter().filter(|row| row.in_mean).collect();
    let of = counted.len();
    let ratio = |pick: fn(&Ratios) -> Option<f64>| {
        let logs: Vec<f64> =
            counted.iter().filter_map(|row| pick(&row.ratios)).map(f64::ln).collect();
        let mean = (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp());
        (mean, logs.len())
    };
    let (tcg, tcg_count) = ratio(|ratios| ratios.tcg_slower_than_native);
    let (lodge, lodge_count) = ratio(|ratios| ratios.lodge_slower_than_native);
    let (faster, faster_count) = ratio(|ratios| ratios.lodge_faster_than_tcg);
    let lodge_failed = counted.iter().any(|row| !row.entries[2].failures.is_empty());
    Mean {
        ratios: Ratios {
            tcg_slower_than_native: tcg,
            lodge_slower_than_native: lodge,
            lodge_faster_than_tcg: faster,
        },
        counts: [tcg_count, lodge_count, faster_count],
        of,
        target: MEAN_TARGET,
        // A mean that leaves out what failed says nothing.
        met: faster
            .filter(|_| faster_count == of || lodge_failed)
            .map(|faster| faster >= MEAN_TARGET && faster_count == of && !lodge_failed),
    }
}

/// How much the runs of a contestant differ: the median and the largest of the spreads.
pub fn noise(rows: &[Row], contestant: Contestant) -> Option<(f64, f64)> {
    let index = ALL.iter().position(|known| *known == contestant)?;
    let spreads: Vec<f64> = rows
        .iter()
        .map(|row| &row.entries[index])
        .filter(|entry| entry.values.len() > 1)
        .filter_map(|entry| entry.spread)
        .collect();
    let largest = spreads.iter().copied().reduce(f64::max)?;
    Some((super::samples::median(&spreads)?, largest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::workload::WORKLOADS;

    fn named(name: &str) -> Workload {
        *WORKLOADS.iter().find(|workload| workload.name == name).unwrap()
    }

    fn samples(workload: &str, values: [f64; 3], checks: [&str; 3]) -> Samples {
        let mut samples = Samples::default();
        samples.begin_run(1);
        for ((contestant, value), check) in ALL.into_iter().zip(values).zip(checks) {
            let cell = samples.begin(workload, contestant);
            cell.values.push(value);
            cell.checks.push(check.to_owned());
        }
        samples
    }

    #[test]
    fn times_and_rates_give_the_same_ratios() {
        let expected = Ratios {
            tcg_slower_than_native: Some(8.0),
            lodge_slower_than_native: Some(2.0),
            lodge_faster_than_tcg: Some(4.0),
        };
        let times = samples("gcc", [0.5, 4.0, 1.0], ["a"; 3]);
        let row = &rows(&[named("gcc")], &times, Which::LastRun)[0];
        assert_eq!((row.ratios, row.met), (expected, Some(true)));
        let rates = samples("sha256", [8.0, 1.0, 4.0], [""; 3]);
        let row = &rows(&[named("sha256")], &rates, Which::LastRun)[0];
        assert_eq!((row.ratios, row.met), (expected, Some(false)));
    }

    #[test]
    fn a_wrong_result_or_a_failure_meets_no_target() {
        let wrong = samples("gcc", [0.5, 4.0, 1.0], ["a", "a", "b"]);
        let rows_of = |samples: &Samples| rows(&[named("gcc")], samples, Which::LastRun);
        let row = &rows_of(&wrong)[0];
        assert_eq!(row.met, Some(false));
        assert!(row.entries[2].failures[0].contains("wrong result"));
        assert!(row.entries[1].failures.is_empty());

        let mut failed = samples("gcc", [0.5, 4.0, 1.0], ["a"; 3]);
        *failed.begin("gcc", Contestant::Lodge) =
            Cell { run: 1, failures: vec!["exit status 1".into()], ..Cell::default() };
        let rows = rows_of(&failed);
        assert_eq!((rows[0].met, rows[0].ratios.lodge_faster_than_tcg), (Some(false), None));
    }

    #[test]
    fn only_a_whole_mean_meets_its_target() {
        let workloads = [named("gcc"), named("integers"), named("start-vmlinux")];
        let mut samples = samples("gcc", [0.5, 8.0, 1.0], ["a"; 3]);
        let part = mean(&rows(&workloads, &samples, Which::LastRun));
        let near = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-9;
        assert!(near(part.ratios.lodge_faster_than_tcg, 8.0) && part.met.is_none(), "{part:?}");
        assert_eq!((part.counts, part.of), ([1, 1, 1], 2));
        for (contestant, value) in ALL.into_iter().zip([1.0, 4.0, 2.0]) {
            samples.begin("integers", contestant).values.push(value);
        }
        let whole = mean(&rows(&workloads, &samples, Which::LastRun));
        assert!(near(whole.ratios.lodge_faster_than_tcg, 4.0), "{whole:?}");
        assert!(near(whole.ratios.tcg_slower_than_native, 8.0), "{whole:?}");
        assert_eq!(whole.counts, [2; 3]);
    }

    #[test]
    fn earlier_runs_count_only_where_asked_for() {
        let mut samples = samples("gcc", [0.5, 4.0, 1.0], ["a"; 3]);
        samples.begin_run(2);
        samples.begin("gcc", Contestant::Lodge).values.push(0.8);
        let all = &rows(&[named("gcc")], &samples, Which::All)[0];
        assert_eq!(all.ratios.lodge_faster_than_tcg, Some(5.0));
        assert!(all.entries[1].earlier && !all.entries[2].earlier);
        let last = &rows(&[named("gcc")], &samples, Which::LastRun)[0];
        assert_eq!((last.ratios, last.met), (Ratios::default(), None));
    }
}
