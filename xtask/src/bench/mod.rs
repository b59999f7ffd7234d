//! Measures Lodge side by side with QEMU's TCG and with this machine itself: `cargo xtask bench`.

pub mod bed;
pub mod contestant;
pub mod facts;
mod middle;
mod report;
mod samples;
mod server;
mod session;
mod table;
pub mod usage;
mod vmlinux;
mod workload;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Parser;
use serde_json::json;

use bed::Bed;
use contestant::{ALL, Contestant};
use facts::{Conditions, Facts};
use samples::Samples;
use session::{Measured, Moment, Own, Session};
use table::Which;
use workload::{Guest, KernelForm, Kind, Unit, WORKLOADS, Workload};

/// Measure Lodge side by side with QEMU's TCG and with this machine itself
///
/// Without names all workloads are measured. If that is done natively and under TCG at least, and
/// not quickly, docs/performance.md is written.
#[derive(Parser, Debug)]
#[command(
    bin_name = "cargo xtask bench",
    after_help = "\
Examples:
  cargo xtask bench --quick                      the whole table, roughly, in a few minutes
  cargo xtask bench --quick --on lodge recursion one workload under Lodge, held against earlier runs
  cargo xtask bench --resume                     go on with a run that was interrupted"
)]
pub struct Arguments {
    /// Measure these workloads only
    #[arg(value_name = "WORKLOAD")]
    workloads: Vec<String>,
    /// Measure there only; the table shows earlier runs of the others
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "WHERE",
        default_value = "native,tcg,lodge"
    )]
    on: Vec<Contestant>,
    /// How often to run each workload; medians count [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: Option<u32>,
    /// Do a fifth of the work
    #[arg(long)]
    quick: bool,
    /// Count the processor time that was used, not the time that passed: for machines that are busy
    /// with other things. Not for fio, which waits for the disk
    #[arg(long)]
    processor_time: bool,
    /// Go on with the run that was last begun: measure only what it lacks
    #[arg(long)]
    resume: bool,
    /// Give a workload up after so many seconds [default: 300, with --quick 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    limit: Option<u32>,
    /// Write all numbers and circumstances to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// List the workloads and measure nothing
    #[arg(long)]
    list: bool,
}

/// How often a kernel is started at most, until it comes to the first program once.
const STARTS: u32 = 3;
/// How long that may take.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Measures; whether all went well.
pub fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if arguments.list {
        for workload in WORKLOADS {
            println!("{:<16} {}", workload.name, workload.title);
        }
        return Ok(true);
    }
    let workloads = select(&arguments.workloads, arguments.quick)?;
    let root = root()?;
    let (bed, _lock) = prepare()?;
    let dir = &bed.dir;
    let facts = Facts::collect(&bed);
    if facts.load_before > report::BUSY {
        eprintln!(
            "This machine is busy (load {:.1}): take the numbers for what they are",
            facts.load_before
        );
    }

    let quick = if arguments.quick { "-quick" } else { "" };
    let clock = if arguments.processor_time { "-processor" } else { "" };
    let name = format!("samples{quick}{clock}.json");
    let mut samples = Samples::load(&dir.join(name), &bed.stamp);
    if !arguments.resume {
        samples.begin_run(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    }
    let runs = arguments.runs.unwrap_or(if arguments.quick { 1 } else { 3 });
    let mut bench = Bench {
        bed: &bed,
        quick: arguments.quick,
        processor_time: arguments.processor_time,
        limit: arguments.limit.unwrap_or(if arguments.quick { 60 } else { 300 }),
        server: server::start()?,
        samples: &mut samples,
    };
    for round in 1..=runs {
        for contestant in ALL.into_iter().filter(|known| arguments.on.contains(known)) {
            bench.round(&workloads, contestant, round, runs)?;
        }
    }

    let rows = table::rows(&workloads, &samples, Which::All);
    print!("\n{}", report::terminal(&rows, &table::mean(&rows)));
    let rows = table::rows(&workloads, &samples, Which::LastRun);
    let mean = table::mean(&rows);
    if let Some(path) = &arguments.json {
        let text = json!({ "facts": facts, "runs": runs, "quick": arguments.quick, "rows": rows, "mean": mean });
        fs::write(path, format!("{text:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let is_whole = workloads.len() == WORKLOADS.len()
        && arguments.on.contains(&Contestant::Native)
        && arguments.on.contains(&Contestant::Tcg);
    if is_whole && !arguments.quick {
        let path = root.join("docs/performance.md");
        let conditions = Conditions { runs, processor_time: arguments.processor_time };
        fs::write(&path, report::page(&rows, &mean, &facts, &conditions))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{} is written", path.display());
    }
    Ok(rows.iter().flat_map(|row| &row.entries).all(|entry| entry.failures.is_empty()))
}

fn root() -> anyhow::Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies nowhere")
}

/// What is needed to run the image's programs, and a lock on it.
pub fn prepare() -> anyhow::Result<(Bed, File)> {
    let root = root()?;
    let dir = std::env::var_os("LODGE_BENCH_DIR")
        .map_or_else(|| root.join("target/bench"), PathBuf::from);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let lock = File::create(dir.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!("another benchmark is at work in {}", dir.display());
    }
    Ok((Bed::make(&dir, &lodge(root)?)?, lock))
}

/// The workloads of these names, in the order of the table; without names, all that there is time
/// for.
fn select(names: &[String], quick: bool) -> anyhow::Result<Vec<Workload>> {
    for name in names {
        if !WORKLOADS.iter().any(|workload| workload.name == name) {
            bail!("there is no workload {name:?}: `cargo xtask bench --list` lists them");
        }
    }
    let picked = |workload: &&Workload| {
        let all = names.is_empty() && !(quick && workload.is_slow());
        all || names.iter().any(|name| workload.name == name)
    };
    Ok(WORKLOADS.iter().filter(picked).copied().collect())
}

/// The `lodge` to measure: `$LODGE_BIN`, else this workspace's release build.
fn lodge(root: &Path) -> anyhow::Result<PathBuf> {
    let built = || {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        root.join(target.unwrap_or_else(|| "target".into())).join("release/lodge")
    };
    let lodge = std::env::var_os("LODGE_BIN").map_or_else(built, PathBuf::from);
    for program in [&lodge, &lodge.with_file_name("lodge-vmm")] {
        if !program.is_file() {
            bail!(
                "{} is missing: build it with `cargo build --release -p cli -p vmm`, or name \
                 another lodge in LODGE_BIN",
                program.display()
            );
        }
    }
    Ok(lodge)
}

/// A run that is under way.
struct Bench<'a> {
    bed: &'a Bed,
    quick: bool,
    processor_time: bool,
    limit: u32,
    /// The port of the server that network workloads talk to.
    server: u16,
    samples: &'a mut Samples,
}

impl Bench<'_> {
    /// Runs each workload once, unless that was done before.
    fn round(
        &mut self,
        workloads: &[Workload],
        contestant: Contestant,
        round: u32,
        rounds: u32,
    ) -> anyhow::Result<()> {
        let pending: Vec<&Workload> = workloads
            .iter()
            .filter(|workload| {
                let cell = self.samples.begin(workload.name, contestant);
                match workload.kind {
                    // It takes a while and is always the same.
                    Kind::Memory => cell.runs() == 0,
                    Kind::Start(_) => cell.values.len() < round as usize,
                    Kind::Commands(_) | Kind::OnTwo(_) | Kind::OnDevices(_) => {
                        cell.runs() < round as usize
                    }
                }
            })
            .collect();
        let say = |name: &str, text: &str| {
            eprintln!("{round}/{rounds} {:<6} {name:<16} {text}", contestant.name());
        };
        let log = self.bed.path(&format!("{}.log", contestant.name()));
        for workload in &pending {
            match workload.kind {
                Kind::Start(form) => self.start_kernel(workload, contestant, form, &log, &say)?,
                Kind::Memory => self.measure_memory(workload, contestant, &log, &say)?,
                Kind::Commands(_) | Kind::OnTwo(_) | Kind::OnDevices(_) => {}
            }
        }
        for guest in Guest::ALL {
            let mut plan = pending.clone();
            plan.retain(|workload| workload.commands().is_some() && workload.guest() == guest);
            self.run_plan(plan, contestant, guest, &log, &say)?;
        }
        Ok(())
    }

    /// Runs workloads in one guest, or in another where one breaks down.
    fn run_plan(
        &mut self,
        mut pending: Vec<&Workload>,
        contestant: Contestant,
        guest: Guest,
        log: &Path,
        say: &impl Fn(&str, &str),
    ) -> anyhow::Result<()> {
        while !pending.is_empty() {
            let before = pending.len();
            let command = self.prepare(&pending, contestant, guest)?;
            let session = Session::start(command, log)?;
            let end = session.follow(Duration::from_secs(self.limit.into()), |outcome| {
                let place = pending.iter().position(|workload| workload.name == outcome.name);
                let workload = pending.remove(place.context("the driver made a workload up")?);
                let (value, check) = match outcome.result {
                    Ok(measured) => {
                        let share = self.counted(workload, measured.share);
                        (value(workload, &measured, share), measured.check)
                    }
                    Err(why) => (Err(why), String::new()),
                };
                self.record(workload, contestant, value, &check, say)
            })?;
            drop(session);
            // A guest that breaks down between two workloads is started once more, but one that
            // does not even come to the first would not either the next time.
            if pending.len() == before {
                let why = end.err().unwrap_or_else(|| "the driver left it out".to_owned());
                for workload in std::mem::take(&mut pending) {
                    self.record(workload, contestant, Err(why.clone()), "", say)?;
                }
            }
        }
        Ok(())
    }

    /// Times the start of a kernel.
    fn start_kernel(
        &mut self,
        workload: &Workload,
        contestant: Contestant,
        form: KernelForm,
        log: &Path,
        say: &impl Fn(&str, &str),
    ) -> anyhow::Result<()> {
        // QEMU's microvm hangs now and then, while its kernel looks for a clock: that is told as a
        // failure, and the next one may do better.
        for _ in 0..STARTS {
            let Some(command) = contestant.start_kernel(self.bed, form) else { break };
            let session = Session::start(command, log)?;
            let result = session
                .wait_for("@bench up", START_LIMIT)
                .map(|up| up.passed * self.counted(workload, up.share_since(Moment::default())));
            drop(session);
            let is_done = result.is_ok();
            self.record(workload, contestant, result, "", say)?;
            if is_done {
                break;
            }
        }
        Ok(())
    }

    /// Starts all of Debian and looks how much memory that takes.
    fn measure_memory(
        &mut self,
        workload: &Workload,
        contestant: Contestant,
        log: &Path,
        say: &impl Fn(&str, &str),
    ) -> anyhow::Result<()> {
        let Some(command) = contestant.start_debian(self.bed) else { return Ok(()) };
        let session = Session::start(command, log)?;
        // The image has this line above the prompt, which itself is no whole line.
        let result = session
            .wait_for("Log in as root", Duration::from_secs(self.limit.into()))
            .map(|_| session.memory_mib());
        session.kill();
        self.record(workload, contestant, result, "", say)
    }

    /// Which part of the time that passed counts.
    fn counted(&self, workload: &Workload, share: f64) -> f64 {
        if self.processor_time && !workload.needs_real_time() { share } else { 1.0 }
    }

    /// The command that runs these workloads.
    fn prepare(
        &self,
        workloads: &[&Workload],
        contestant: Contestant,
        guest: Guest,
    ) -> anyhow::Result<std::process::Command> {
        let mut plan = String::new();
        for workload in workloads {
            let Some(commands) = workload.commands() else { continue };
            let texts = [commands.prepare, commands.work, commands.check]
                .map(|text| contestant.fill(&commands.fill(text, self.quick), self.server));
            plan += &format!("{}\t{}\t{}\n", workload.name, self.limit, texts.join("\t"));
        }
        let path = self.bed.path("plan");
        let initrd = self.bed.path("plan.cpio");
        fs::write(&path, &plan).with_context(|| format!("cannot write {}", path.display()))?;
        self.bed.plan_archive(&plan, &initrd)?;
        Ok(contestant.run_plan(self.bed, &path, &initrd, guest))
    }

    fn record(
        &mut self,
        workload: &Workload,
        contestant: Contestant,
        result: Result<f64, String>,
        check: &str,
        say: &impl Fn(&str, &str),
    ) -> anyhow::Result<()> {
        let cell = self.samples.begin(workload.name, contestant);
        match result {
            Ok(value) => {
                cell.values.push(value);
                if !check.is_empty() {
                    cell.checks.push(check.to_owned());
                }
                match workload.unit() {
                    Unit::Seconds => say(workload.name, &format!("{value:.3} s")),
                    Unit::PerSecond(unit) => say(workload.name, &format!("{value:.1} {unit}/s")),
                    Unit::Times => say(workload.name, &format!("{value:.2} times")),
                    Unit::Mib => say(workload.name, &format!("{value:.0} MiB")),
                }
            }
            Err(why) => {
                say(workload.name, &format!("FAILED: {why}"));
                cell.failures.push(why);
            }
        }
        self.samples.save()
    }
}

/// The number that counts: what the workload measured itself, else how long all of it took. Of the
/// time only a part may count.
fn value(workload: &Workload, measured: &Measured, part: f64) -> Result<f64, String> {
    if part <= 0.0 {
        return Err("it used too little processor time to be measured".to_owned());
    }
    match (workload.unit(), measured.own) {
        (Unit::Seconds, Some((Own::Seconds, seconds))) => Ok(seconds * part),
        (Unit::Seconds, None) => Ok(measured.whole * part),
        (Unit::PerSecond(_) | Unit::Times, Some((Own::Rate, rate))) => Ok(rate / part),
        (unit, own) => Err(format!("it measured {own:?}, not {unit:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        let parsed = Arguments::try_parse_from(["bench", "--on", "native,tcg", "gcc"]).unwrap();
        assert_eq!(parsed.on, [Contestant::Native, Contestant::Tcg]);
        assert_eq!(Arguments::try_parse_from(["bench"]).unwrap().on, ALL);
    }

    #[test]
    fn workloads_are_selected_by_name() {
        let names = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            select(&names, false).map(|found| found.iter().map(|w| w.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["gcc", "sha256"]).unwrap(), ["sha256", "gcc"]);
        assert_eq!(names(&[]).unwrap().len(), WORKLOADS.len());
        assert!(select(&[], true).unwrap().iter().all(|workload| workload.name != "memory"));
        assert!(names(&["gc"]).unwrap_err().to_string().contains("--list"));
    }

    #[test]
    fn only_the_number_that_was_asked_for_counts() {
        let named = |name| WORKLOADS.iter().find(|w: &&Workload| w.name == name).unwrap();
        let measured = |own| Measured { whole: 2.0, share: 0.5, own, check: String::new() };
        let (time, rate) = (Some((Own::Seconds, 1.5)), Some((Own::Rate, 9.0)));
        assert_eq!(value(named("gcc"), &measured(None), 1.0), Ok(2.0));
        assert_eq!(value(named("copy"), &measured(time), 1.0), Ok(1.5));
        assert_eq!(value(named("fio"), &measured(rate), 1.0), Ok(9.0));
        assert!(value(named("fio"), &measured(None), 1.0).is_err());
        assert!(value(named("gcc"), &measured(rate), 1.0).is_err());
        // Half of the time the processor was elsewhere.
        assert_eq!(value(named("copy"), &measured(time), 0.5), Ok(0.75));
        assert_eq!(value(named("fio"), &measured(rate), 0.5), Ok(18.0));
        assert!(value(named("gcc"), &measured(None), 0.0).is_err());
    }
}
