//! What happened so far, and what is wrong with it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::jobs::{Answers, JOBS};

/// What the VMM may come to hold for each processor after the warm-up, in MiB: its code caches fill
/// at last (docs/engine.md, "Memory").
const GROWTH_PER_PROCESSOR: f64 = 64.0;
/// And for all else.
const GROWTH: f64 = 32.0;

/// One job's rounds.
#[derive(Clone, Debug)]
struct Rounds {
    right: u64,
    wrong: u64,
    last: Instant,
    longest: Duration,
}

/// A run.
pub struct Record {
    begun: Instant,
    warm_up: Duration,
    answers: Answers,
    rounds: BTreeMap<&'static str, Rounds>,
    /// Resident MiB: when the warm-up was over, now, and at most.
    memory: Option<(f64, f64, f64)>,
    now: f64,
    growth: f64,
    /// Everything that went wrong.
    pub faults: Vec<String>,
}

impl Record {
    /// Of a run that begins now, on so many processors.
    pub fn new(answers: Answers, cpus: u32, warm_up: Duration) -> Record {
        let begun = Instant::now();
        let fresh = Rounds { right: 0, wrong: 0, last: begun, longest: Duration::ZERO };
        Record {
            begun,
            warm_up,
            answers,
            rounds: JOBS.iter().map(|job| (job.name, fresh.clone())).collect(),
            memory: None,
            now: 0.0,
            growth: GROWTH + GROWTH_PER_PROCESSOR * f64::from(cpus),
            faults: Vec::new(),
        }
    }

    /// What the guest said after `@soak round`: name, status, answer.
    pub fn round(&mut self, text: &str) {
        let mut words = text.splitn(3, ' ');
        let (name, status) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let answer = words.next().unwrap_or_default().trim();
        let Some((name, rounds)) = self.rounds.iter_mut().find(|(known, _)| **known == name) else {
            self.faults.push(format!("the guest speaks of {text:?}"));
            return;
        };
        let now = Instant::now();
        rounds.longest = rounds.longest.max(now - rounds.last);
        rounds.last = now;
        let wanted = self.answers.get(name).map_or("", String::as_str);
        if status == "0" && answer == wanted {
            rounds.right += 1;
        } else {
            rounds.wrong += 1;
            self.faults.push(format!("{name}: status {status}, {answer:?} instead of {wanted:?}"));
        }
    }

    /// The VMM holds so many MiB now.
    pub fn memory(&mut self, mib: f64) {
        self.now = mib;
        if self.begun.elapsed() < self.warm_up {
            return;
        }
        let (first, _, most) = self.memory.unwrap_or((mib, mib, mib));
        let was_fine = most - first <= self.growth;
        let most = most.max(mib);
        self.memory = Some((first, mib, most));
        if was_fine && most - first > self.growth {
            self.faults.push(format!(
                "the VMM grew from {first:.0} to {most:.0} MiB, by more than {:.0} MiB",
                self.growth
            ));
        }
    }

    /// Whether a job that has just now no end in sight hangs; said once.
    pub fn hangs(&mut self, patience: Duration) -> bool {
        let hanging: Vec<&str> = self
            .rounds
            .iter()
            .filter(|(_, rounds)| rounds.last.elapsed() > patience)
            .map(|(name, _)| *name)
            .collect();
        if !hanging.is_empty() {
            let seconds = patience.as_secs();
            self.faults.push(format!("no round within {seconds} s of: {}", hanging.join(", ")));
        }
        !hanging.is_empty()
    }

    /// A line for whoever watches.
    pub fn progress(&self) -> String {
        let rounds: Vec<String> =
            self.rounds.iter().map(|(name, rounds)| format!("{name} {}", rounds.right)).collect();
        format!(
            "{:>5.0} s  {:.0} MiB  {} faults  {}",
            self.begun.elapsed().as_secs_f64(),
            self.now,
            self.faults.len(),
            rounds.join("  ")
        )
    }

    /// All of it.
    pub fn summary(&self) -> String {
        let mut text = format!("{:<12} {:>8} {:>8}  longest\n", "job", "right", "wrong");
        for (name, rounds) in &self.rounds {
            let longest = rounds.longest.as_secs_f64();
            text +=
                &format!("{name:<12} {:>8} {:>8}  {longest:.1} s\n", rounds.right, rounds.wrong);
        }
        text += &match self.memory {
            None => format!("memory: {:.0} MiB; the warm-up was not over\n", self.now),
            Some((first, now, most)) => format!(
                "memory: {first:.0} MiB after {:.0} s, {now:.0} MiB at last, {most:.0} MiB at \
                 most; {:.0} MiB more were allowed\n",
                self.warm_up.as_secs_f64(),
                self.growth
            ),
        };
        for fault in &self.faults {
            text += &format!("FAULT: {fault}\n");
        }
        text
    }

    /// At the end: what should have happened and did not.
    pub fn close(&mut self) {
        for (name, rounds) in &self.rounds {
            if rounds.right + rounds.wrong == 0 {
                self.faults.push(format!("{name} never came to an end"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let answers = JOBS.iter().map(|job| (job.name, "0123  -".to_owned())).collect();
        Record::new(answers, 2, Duration::ZERO)
    }

    #[test]
    fn answers_are_compared() {
        let mut record = record();
        record.round("hash 0 0123  -");
        assert!(record.faults.is_empty());
        record.round("hash 0 0124  -");
        record.round("hash 1 0123  -");
        record.round("nothing 0 0123  -");
        record.round("hash");
        assert_eq!(record.faults.len(), 4);
        assert_eq!(record.rounds["hash"].right, 1);
        assert_eq!(record.rounds["hash"].wrong, 3);
        record.close();
        assert_eq!(record.faults.len(), 4 + JOBS.len() - 1);
    }

    #[test]
    fn growth_has_a_bound_and_is_told_once() {
        let mut record = record();
        for mib in [1000.0, 1160.0, 900.0] {
            record.memory(mib);
        }
        assert!(record.faults.is_empty());
        record.memory(1161.0);
        record.memory(1162.0);
        assert_eq!(record.faults.len(), 1);
    }

    #[test]
    fn silence_is_a_hang() {
        let mut record = record();
        assert!(!record.hangs(Duration::from_secs(3600)));
        assert!(record.hangs(Duration::ZERO));
        assert!(record.faults[0].contains("compile"));
    }
}
