//! Many cases, and a report about them.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use iced_x86::{Code, Formatter, GasFormatter, Instruction};

use crate::case::{Case, Outcome};
use crate::compare::{Verdict, compare, trap_name};
use crate::engine::Engine;
use crate::generate::{Generator, Sample, candidates, images, sample};
use crate::host::{BATCH, Host};
use crate::layout::DATA_SIZE;
use crate::random::Rng;

/// How many times an instruction is tried before the host is said not to have it.
const PROBES: u64 = 12;
/// Kinds of mismatches beyond these are only named.
const MOST_SHOWN: usize = 40;
/// The test that runs plans.
const TEST: &str = "oracle";

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// All cases follow from it.
    pub seed: u64,
    /// The first case.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Changes the engine's outcome before it is compared: to test the test.
    pub corrupt: Option<fn(u64, &mut Outcome)>,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Report {
    /// Cases that were run.
    pub cases: u64,
    /// How long that took, probing not included.
    pub elapsed: Duration,
    /// Cases whose outcomes differ.
    pub mismatches: u64,
    /// Cases whose outcomes differ for a reason, by reason.
    pub excused: BTreeMap<&'static str, u64>,
    /// What they look like, by instruction: one each, and how many there are.
    pub examples: BTreeMap<String, (u64, String)>,
    /// Codes that ran to their end on the host, by mode (64 and 32).
    pub completed: [HashSet<u32>; 2],
    /// Codes that the host has.
    pub available: [HashSet<u32>; 2],
    /// Codes that the host has and guests are not offered.
    pub withheld: [HashSet<u32>; 2],
    /// Codes that are run at all.
    pub candidates: [usize; 2],
}

/// Host and engine, with the same images.
pub struct Pair {
    host: Host,
    engine: Engine,
    images: Vec<[u8; DATA_SIZE]>,
}

fn raw(code: Code) -> u32 {
    code as u32
}

impl Pair {
    /// Starts both.
    pub fn new(seed: u64) -> io::Result<Self> {
        let images = images(seed);
        Ok(Self { host: Host::new(&images)?, engine: Engine::new()?, images })
    }

    /// Which codes of a mode the host has: those that end in something else than #UD.
    pub(crate) fn probe(&mut self, bits: u32) -> io::Result<HashSet<u32>> {
        let mut found = HashSet::new();
        let mut batch: Vec<(Code, Case)> = Vec::new();
        let codes = candidates(bits).collect::<Vec<_>>();
        for round in 0..PROBES {
            for &code in &codes {
                if found.contains(&raw(code)) {
                    continue;
                }
                // Not the seed's business: what the host has is the same for all seeds.
                let mut rng = Rng::new(u64::from(raw(code)), round);
                if let Some(sample) = sample(&mut rng, code, bits, None) {
                    batch.push((code, sample.case));
                }
                if batch.len() == BATCH {
                    self.probe_batch(&mut batch, &mut found)?;
                }
            }
            self.probe_batch(&mut batch, &mut found)?;
        }
        Ok(found)
    }

    /// Moves what guests are told not to have out of what the host has: there is nothing to compare
    /// it with.
    pub(crate) fn take_withheld(&self, available: &mut HashSet<u32>) -> HashSet<u32> {
        let denied =
            |&code: &u32| Code::try_from(code as usize).is_ok_and(|code| self.engine.denies(code));
        available.extract_if(denied).collect()
    }

    fn probe_batch(
        &mut self,
        batch: &mut Vec<(Code, Case)>,
        found: &mut HashSet<u32>,
    ) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let cases = batch.iter().map(|(_, case)| case.clone()).collect::<Vec<_>>();
        self.host.start(&cases)?;
        let (outcomes, wreck) = self.host.finish();
        for ((code, _), outcome) in batch.iter().zip(outcomes) {
            let fetch_fault = outcome.trap == 14 && outcome.error & 0x10 != 0;
            if outcome.trap != 6 && !fetch_fault {
                found.insert(raw(*code));
            }
        }
        if let Some(wreck) = wreck {
            return Err(io::Error::other(format!(
                "{} while probing {:?}",
                wreck.what,
                batch.get(wreck.index).map(|(code, _)| *code)
            )));
        }
        batch.clear();
        Ok(())
    }

    /// Runs a plan.
    pub fn run(&mut self, plan: &Plan) -> io::Result<Report> {
        let mut report = Report::default();
        for (i, bits) in [64, 32].into_iter().enumerate() {
            report.available[i] = self.probe(bits)?;
            report.withheld[i] = self.take_withheld(&mut report.available[i]);
            report.candidates[i] = candidates(bits).count();
        }
        let available = report.available.clone();
        let withheld = report.withheld.clone();
        let generator = Generator::new(|code, bits| {
            let mode = usize::from(bits == 32);
            match withheld[mode].contains(&raw(code)) {
                true => None,
                false => Some(available[mode].contains(&raw(code))),
            }
        });

        let start = Instant::now();
        let mut outcomes = (0..BATCH).map(|_| Outcome::empty()).collect::<Vec<_>>();
        let mut next = plan.first;
        let end = plan.first.saturating_add(plan.count);
        while next < end {
            let count = (end - next).min(BATCH as u64);
            let samples =
                (next..next + count).map(|i| generator.generate(plan.seed, i)).collect::<Vec<_>>();
            let cases = samples.iter().map(|s| s.case.clone()).collect::<Vec<_>>();
            let mut from = 0;
            self.host.start(&cases)?;
            for (case, outcome) in cases.iter().zip(&mut outcomes) {
                let image = &self.images[case.image as usize];
                let engine = &mut self.engine;
                let run = AssertUnwindSafe(|| engine.run(case, image, outcome));
                if catch_unwind(run).is_err() {
                    outcome.trap = Outcome::PANIC;
                    self.engine = Engine::new()?;
                }
            }
            if let Some(corrupt) = plan.corrupt {
                outcomes.iter_mut().zip(next..).for_each(|(o, i)| corrupt(i, o));
            }
            loop {
                let (results, wreck) = self.host.finish();
                for (i, host) in results.iter().enumerate() {
                    let at = from + i;
                    let number = next + at as u64;
                    report.note(plan.seed, number, &samples[at], host, &outcomes[at]);
                }
                let Some(wreck) = wreck else { break };
                let at = from + wreck.index;
                report.add(
                    &samples[at],
                    "wreck",
                    &describe(plan.seed, next + at as u64, &samples[at], &[wreck.what], TEST),
                );
                from = at + 1;
                if from >= cases.len() {
                    break;
                }
                self.host.start(&cases[from..])?;
            }
            next += count;
            report.cases += count;
        }
        report.elapsed = start.elapsed();
        Ok(report)
    }
}

impl Report {
    fn note(&mut self, seed: u64, number: u64, sample: &Sample, host: &Outcome, engine: &Outcome) {
        let has_completed = |insn: &&Instruction| match host.trap {
            1 | 3 => true,
            _ => insn.next_ip() <= host.rip,
        };
        let completed = sample.insns.iter().filter(has_completed).map(|insn| raw(insn.code()));
        self.completed[sample.case.is_32bit as usize].extend(completed);
        let found = match compare(&sample.case, &sample.insns, host, engine) {
            Verdict::Same => return,
            Verdict::Excused(reason) => return *self.excused.entry(reason).or_default() += 1,
            Verdict::Different(found) => found,
        };
        let kind = if host.trap == engine.trap {
            found[0].split(':').next().unwrap_or_default().to_owned()
        } else {
            format!("{} for {}", trap_name(engine.trap), trap_name(host.trap))
        };
        let mut text = describe(seed, number, sample, &found, TEST);
        let _ = writeln!(
            text,
            "  ended: host {} at {:#x}, engine {} at {:#x}",
            trap_name(host.trap),
            host.rip,
            trap_name(engine.trap),
            engine.rip
        );
        self.add(sample, &kind, &text);
    }

    fn add(&mut self, sample: &Sample, kind: &str, text: &str) {
        self.mismatches += 1;
        let codes = sample.insns.iter().map(|i| format!("{:?}", i.code())).collect::<Vec<_>>();
        let key = match &codes[..] {
            [code] => format!("{code}, {kind}"),
            _ => format!("sequence, {kind}"),
        };
        self.examples.entry(key).or_insert_with(|| (0, text.to_owned())).0 += 1;
    }

    /// All of it in words.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let _ = writeln!(
            text,
            "{} cases in {seconds:.1} s ({:.0} a second), {} mismatches of {} kinds",
            self.cases,
            self.cases as f64 / seconds,
            self.mismatches,
            self.examples.len()
        );
        for (i, bits) in [64, 32].into_iter().enumerate() {
            let _ = writeln!(
                text,
                "{bits}-bit mode: {} user-mode codes, the host has {}, and {} not offered to guests, \
                 {} ran to their end",
                self.candidates[i],
                self.available[i].len(),
                self.withheld[i].len(),
                self.completed[i].len()
            );
            let never = candidates(bits)
                .filter(|&c| self.available[i].contains(&raw(c)))
                .filter(|&c| !self.completed[i].contains(&raw(c)) && c.op_code().cpl3())
                .map(|c| format!("{c:?}"))
                .collect::<Vec<_>>();
            if self.cases > 100_000 && !never.is_empty() {
                let _ = writeln!(text, "  never to their end: {}", never.join(" "));
            }
        }
        for (reason, count) in &self.excused {
            let _ = writeln!(text, "excused {count} times: {reason}");
        }
        let mut kinds = self.examples.iter().collect::<Vec<_>>();
        kinds.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (i, (key, (count, example))) in kinds.into_iter().enumerate() {
            let _ = writeln!(text, "mismatch: {key}: {count} times");
            if i < MOST_SHOWN {
                let _ = writeln!(text, "{example}");
            }
        }
        text
    }
}

fn disassemble(insn: &Instruction) -> String {
    let mut formatter = GasFormatter::new();
    let mut text = String::new();
    formatter.format(insn, &mut text);
    text
}

/// A case in words, with how to run it again.
pub(crate) fn describe(
    seed: u64,
    number: u64,
    sample: &Sample,
    found: &[String],
    test: &str,
) -> String {
    let case = &sample.case;
    let mut text = String::new();
    let bits = if case.is_32bit != 0 { 32 } else { 64 };
    let _ =
        writeln!(text, "  seed {seed:#x}, case {number}, {bits}-bit, rflags {:#x}", case.rflags);
    for insn in &sample.insns {
        let at = (insn.ip() - case.start) as usize;
        let bytes = &case.code[at..at + insn.len()];
        let _ = writeln!(
            text,
            "  {:#x}: {bytes:02x?} {} ({:?})",
            insn.ip(),
            disassemble(insn),
            insn.code()
        );
    }
    let gpr = |from: usize| {
        (from..from + 4)
            .map(|i| format!("{} {:x}", crate::compare::GPR[i], case.gpr[i]))
            .collect::<Vec<_>>()
            .join(", ")
    };
    for from in [0, 4, 8, 12] {
        let _ = writeln!(text, "    {}", gpr(from));
    }
    let x87 = &case.vector.x87;
    let _ = writeln!(
        text,
        "    fs {:x}, gs {:x}, mxcsr {:x}, fcw {:x}, fsw {:x}, ftw {:x}",
        case.fs_base, case.gs_base, x87.mxcsr, x87.fcw, x87.fsw, x87.ftw
    );
    for line in found.iter().take(12) {
        let _ = writeln!(text, "  {line}");
    }
    if found.len() > 12 {
        let _ = writeln!(text, "  ... and {} differences more", found.len() - 12);
    }
    let _ = writeln!(
        text,
        "  again: LODGE_ORACLE_SEED={seed:#x} LODGE_ORACLE_FIRST={number} LODGE_ORACLE_CASES=1 \
         cargo test -p oracle --test {test} agree -- --nocapture"
    );
    text
}
