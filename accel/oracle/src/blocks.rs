//! Sequences on the host and on the transcoder.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use accel_soft::Execution;
use iced_x86::Code;

use crate::case::{Case, Outcome};
use crate::compare::{Difference, Verdict, compare_but, trap_name};
use crate::engine::Engine;
use crate::excuse;
use crate::generate::{Sample, images};
use crate::host::{BATCH, Host};
use crate::layout::DATA_SIZE;
use crate::repertoire::Sequences;
use crate::run::{Pair, describe};
use crate::sequence::{truncated, vague_flags, without};
use crate::transcoder::Transcoder;

/// Kinds of mismatches beyond these are only named.
const MOST_SHOWN: usize = 40;
/// So many mismatches are made small.
const MOST_SHRUNK: u64 = 2_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All cases follow from it.
    pub seed: u64,
    /// The first case.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Instructions to leave out.
    pub without: Vec<Code>,
    /// Changes the transcoder's outcome before it is compared: to test the test.
    pub corrupt: Option<fn(u64, &mut Outcome)>,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Report {
    /// Cases that were run.
    pub cases: u64,
    /// Instructions in them.
    pub insns: u64,
    /// Blocks that were translated for them.
    pub translations: u64,
    /// How long that took.
    pub elapsed: Duration,
    /// Cases whose outcomes differ.
    pub mismatches: u64,
    /// Cases in which the interpreter differs from the host as well, and comes to what the
    /// transcoder came to. They are not among the mismatches: how the interpreter compares with this
    /// host is seen one instruction at a time ([`crate::run`]).
    pub shared: u64,
    /// By exception, how many cases ended in it.
    pub ends: BTreeMap<u32, u64>,
    /// Cases whose outcomes differ for a reason, by reason.
    pub excused: BTreeMap<&'static str, u64>,
    /// What mismatches look like, by the last instruction that is left when nothing more can be
    /// taken away: how many there are, and the shortest example with its length.
    pub examples: BTreeMap<String, (u64, usize, String)>,
}

/// Host and transcoder, with the same images.
pub struct Blocks {
    bits: u32,
    host: Host,
    engine: Transcoder,
    interpreter: Engine,
    images: Vec<[u8; DATA_SIZE]>,
    available: HashSet<u32>,
    execution: Execution,
}

impl Blocks {
    /// Starts both, for 64-bit or 32-bit code.
    pub fn new(bits: u32, seed: u64, execution: Execution) -> io::Result<Self> {
        let mut pair = Pair::new(seed)?;
        let mut available = pair.probe(bits)?;
        pair.take_withheld(&mut available);
        let images = images(seed);
        Ok(Self {
            bits,
            host: Host::new(&images)?,
            engine: Transcoder::new(execution)?,
            interpreter: Engine::new()?,
            images,
            available,
            execution,
        })
    }

    /// Runs a case on the transcoder.
    fn run_engine(&mut self, case: &Case, passes: u32, outcome: &mut Outcome) -> io::Result<()> {
        let image = &self.images[case.image as usize];
        let engine = &mut self.engine;
        match catch_unwind(AssertUnwindSafe(|| engine.run(case, image, passes, outcome))) {
            Ok(result) => result,
            Err(_) => {
                outcome.trap = Outcome::PANIC;
                self.engine = Transcoder::new(self.execution)?;
                Ok(())
            }
        }
    }

    /// Runs a plan.
    pub fn run(&mut self, plan: &Plan) -> io::Result<Report> {
        let available = &self.available;
        let sequences =
            Sequences::new(self.bits, |code| available.contains(&(code as u32)), &plan.without);
        let mut report = Report::default();
        let start = Instant::now();
        let mut outcomes = (0..BATCH).map(|_| Outcome::empty()).collect::<Vec<_>>();
        let mut next = plan.first;
        let end = plan.first.saturating_add(plan.count);
        while next < end {
            let count = (end - next).min(BATCH as u64);
            let samples =
                (next..next + count).map(|i| sequences.generate(plan.seed, i)).collect::<Vec<_>>();
            let cases = samples.iter().map(|s| s.case.clone()).collect::<Vec<_>>();
            let mut from = 0;
            self.host.start(&cases)?;
            for ((case, outcome), number) in cases.iter().zip(&mut outcomes).zip(next..) {
                self.run_engine(case, passes(number), outcome)?;
            }
            if let Some(corrupt) = plan.corrupt {
                outcomes.iter_mut().zip(next..).for_each(|(o, i)| corrupt(i, o));
            }
            let mut different = Vec::new();
            loop {
                let (results, wreck) = self.host.finish();
                for (i, host) in results.iter().enumerate() {
                    let (sample, engine) = (&samples[from + i], &outcomes[from + i]);
                    report.insns += sample.insns.len() as u64;
                    *report.ends.entry(host.trap).or_default() += 1;
                    match judge(sample, host, engine) {
                        Verdict::Same => {}
                        Verdict::Excused(reason) => *report.excused.entry(reason).or_default() += 1,
                        Verdict::Different(found) => {
                            let traps = (host.trap, engine.trap);
                            different.push((from + i, found, traps));
                        }
                    }
                }
                let Some(wreck) = wreck else { break };
                let at = from + wreck.index;
                different.push((at, vec![wreck.what], (Outcome::ENDLESS, Outcome::ENDLESS)));
                from = at + 1;
                if from >= cases.len() {
                    break;
                }
                self.host.start(&cases[from..])?;
            }
            for (i, found, traps) in different {
                let number = next + i as u64;
                if self.is_shared(&samples[i], &outcomes[i]) {
                    report.shared += 1;
                    continue;
                }
                report.mismatches += 1;
                let shrinks = plan.corrupt.is_none() && report.mismatches < MOST_SHRUNK;
                let small = match shrinks {
                    true => self.shrink(&samples[i], passes(number), found, traps)?,
                    false => (samples[i].clone(), found, traps),
                };
                report.add(plan.seed, number, &small);
            }
            next += count;
            report.cases += count;
        }
        report.elapsed = start.elapsed();
        report.translations = self.engine.translations();
        Ok(report)
    }

    /// Whether the interpreter comes to the same as the transcoder did.
    fn is_shared(&mut self, sample: &Sample, transcoded: &Outcome) -> bool {
        let case = &sample.case;
        let mut outcome = Outcome::empty();
        self.interpreter.run(case, &self.images[case.image as usize], &mut outcome);
        // The host's units leave undefined flags as they do, but in other surroundings.
        let vague =
            sample.insns.iter().fold(vague_flags(&sample.insns, outcome.rip), |mask, insn| {
                mask | excuse::architectural(insn.rflags_undefined())
            });
        let verdict = compare_but(case, &sample.insns, &outcome, transcoded, vague);
        !matches!(verdict, Verdict::Different(_))
    }

    /// Runs one case on both. `None` if there is no mismatch that is the transcoder's own.
    fn try_one(&mut self, sample: &Sample, passes: u32) -> io::Result<Option<Mismatch>> {
        let mut outcome = Outcome::empty();
        self.host.start(std::slice::from_ref(&sample.case))?;
        self.run_engine(&sample.case, passes, &mut outcome)?;
        let (results, _) = self.host.finish();
        let Some(host) = results.first() else { return Ok(None) };
        let (verdict, traps) = (judge(sample, host, &outcome), (host.trap, outcome.trap));
        Ok(match verdict {
            Verdict::Different(found) if !self.is_shared(sample, &outcome) => {
                Some((sample.clone(), found, traps))
            }
            _ => None,
        })
    }

    /// Takes away instructions as long as the outcomes still differ.
    fn shrink(
        &mut self,
        sample: &Sample,
        passes: u32,
        found: Vec<Difference>,
        traps: (u32, u32),
    ) -> io::Result<Mismatch> {
        let mut small = (sample.clone(), found, traps);
        for length in 1..small.0.insns.len() {
            if let Some(mismatch) = self.try_one(&truncated(&small.0, length), passes)? {
                small = mismatch;
                break;
            }
        }
        let mut i = 0;
        while i < small.0.insns.len() && small.0.insns.len() > 1 {
            match self.try_one(&without(&small.0, i), passes)? {
                Some(mismatch) => small = mismatch,
                None => i += 1,
            }
        }
        Ok(small)
    }
}

/// How often the transcoder runs a case: every other one once, as it comes.
fn passes(number: u64) -> u32 {
    1 + (number % 2) as u32
}

fn judge(sample: &Sample, host: &Outcome, engine: &Outcome) -> Verdict {
    let vague = vague_flags(&sample.insns, host.rip);
    compare_but(&sample.case, &sample.insns, host, engine, vague)
}

/// A case, how its outcomes differ, and the exceptions on host and transcoder.
type Mismatch = (Sample, Vec<Difference>, (u32, u32));

impl Report {
    fn add(&mut self, seed: u64, number: u64, (sample, found, traps): &Mismatch) {
        let last = sample.insns.last().map(|insn| insn.mnemonic()).unwrap_or_default();
        let kind = match traps.0 == traps.1 {
            true => found[0].split(':').next().unwrap_or_default().to_owned(),
            false => format!("{} for {}", trap_name(traps.1), trap_name(traps.0)),
        };
        let key = format!("{last:?}, {kind}");
        let length = sample.insns.len();
        let example = self.examples.entry(key).or_insert((0, usize::MAX, String::new()));
        example.0 += 1;
        if length < example.1 {
            example.1 = length;
            example.2 = describe(seed, number, sample, found, "blocks");
        }
    }

    /// All of it in words.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let _ = writeln!(
            text,
            "{} cases of {} instructions in {} blocks in {seconds:.1} s ({:.0} a second), {} \
             mismatches of {} kinds",
            self.cases,
            self.insns,
            self.translations,
            self.cases as f64 / seconds,
            self.mismatches,
            self.examples.len()
        );
        let ends = self.ends.iter().map(|(trap, n)| format!("{} {n}", trap_name(*trap)));
        let _ = writeln!(text, "{} more that the interpreter has as well", self.shared);
        let _ = writeln!(text, "ended in: {}", ends.collect::<Vec<_>>().join(", "));
        for (reason, count) in &self.excused {
            let _ = writeln!(text, "excused {count} times: {reason}");
        }
        let mut kinds = self.examples.iter().collect::<Vec<_>>();
        kinds.sort_by_key(|(_, (count, ..))| std::cmp::Reverse(*count));
        for (i, (key, (count, _, example))) in kinds.into_iter().enumerate() {
            let _ = writeln!(text, "mismatch: {key}: {count} times");
            if i < MOST_SHOWN {
                let _ = writeln!(text, "{example}");
            }
        }
        text
    }
}
