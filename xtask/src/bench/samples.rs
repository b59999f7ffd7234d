//! What was measured, kept in a file so that an interrupted run can go on, and so that a run of one
//! contestant alone can be held against earlier ones of the others.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::contestant::Contestant;

/// All that is known.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Samples {
    /// What they are of. Samples of other programs, inputs or images are no use.
    of: String,
    /// The run that was last begun.
    pub run: u64,
    /// By workload and contestant.
    cells: BTreeMap<String, BTreeMap<Contestant, Cell>>,
    #[serde(skip)]
    path: PathBuf,
}

/// What one contestant did with one workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The run that this is of.
    pub run: u64,
    /// Seconds or rates, as the workload has it.
    pub values: Vec<f64>,
    /// Why it has fewer values than runs.
    pub failures: Vec<String>,
    /// What it computed, which has to be the same everywhere.
    pub checks: Vec<String>,
}

impl Cell {
    /// How many runs there were.
    pub fn runs(&self) -> usize {
        self.values.len() + self.failures.len()
    }

    /// The median, if there are values.
    pub fn median(&self) -> Option<f64> {
        median(&self.values)
    }

    /// How far the values are apart, as a part of their median.
    pub fn spread(&self) -> Option<f64> {
        let most = self.values.iter().copied().reduce(f64::max)?;
        let least = self.values.iter().copied().reduce(f64::min)?;
        Some((most - least) / self.median()?)
    }
}

/// The middle one, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

impl Samples {
    /// What the file has; nothing if it is not there or of something else.
    pub fn load(path: &Path, of: &str) -> Samples {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut samples: Samples = serde_json::from_str(&text).unwrap_or_default();
        if samples.of != of {
            samples = Samples { of: of.to_owned(), ..Samples::default() };
        }
        Samples { path: path.to_owned(), ..samples }
    }

    /// Begins a run; its number stands for it.
    pub fn begin_run(&mut self, run: u64) {
        self.run = run;
    }

    /// What one contestant did with one workload, as far as it is known.
    pub fn cell(&self, workload: &str, contestant: Contestant) -> Option<&Cell> {
        self.cells.get(workload)?.get(&contestant).filter(|cell| cell.runs() > 0)
    }

    /// Begins a cell of the present run, unless it is begun already.
    pub fn begin(&mut self, workload: &str, contestant: Contestant) -> &mut Cell {
        let run = self.run;
        let cells = self.cells.entry(workload.to_owned()).or_default();
        let cell = cells.entry(contestant).or_default();
        if cell.run != run {
            *cell = Cell { run, ..Cell::default() };
        }
        cell
    }

    /// Writes the file, whole or not at all.
    pub fn save(&self) -> anyhow::Result<()> {
        let new = self.path.with_extension("new");
        let text = serde_json::to_string_pretty(self)?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.path))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
        let cell = Cell { values: vec![1.0, 2.0, 3.0], ..Cell::default() };
        assert_eq!(cell.spread(), Some(1.0));
    }

    #[test]
    fn samples_of_something_else_are_forgotten() {
        let dir = std::env::temp_dir().join(format!("xtask-samples-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("samples.json");
        let mut samples = Samples::load(&path, "a");
        samples.run = 7;
        samples.begin("gcc", Contestant::Tcg).values.push(1.5);
        samples.save().unwrap();
        let again = Samples::load(&path, "a");
        assert_eq!((again.run, &again.cells), (7, &samples.cells));
        assert_eq!(Samples::load(&path, "b").cell("gcc", Contestant::Tcg), None);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_new_run_replaces_what_it_measures_and_nothing_else() {
        let mut samples = Samples { run: 1, ..Samples::default() };
        samples.begin("a", Contestant::Tcg).values.push(1.0);
        samples.begin("a", Contestant::Lodge).values.push(2.0);
        samples.run = 2;
        samples.begin("a", Contestant::Lodge).values.push(3.0);
        samples.begin("a", Contestant::Lodge).values.push(4.0);
        samples.begin("b", Contestant::Lodge);
        assert_eq!(samples.cell("a", Contestant::Tcg).unwrap().values, [1.0]);
        assert_eq!(samples.cell("a", Contestant::Lodge).unwrap().values, [3.0, 4.0]);
        assert_eq!(samples.cell("b", Contestant::Lodge), None);
        assert_eq!(samples.cell("a", Contestant::Native), None);
    }
}
