//! Lodge on a stock KVM, on any machine: `cargo xtask lab`.
//!
//! An emulator has a processor with AMD-V or Intel VT-x. On that runs Debian's kernel with its own
//! KVM, and on that Lodge. See docs/lab.md.

mod bochs;
mod boot;
mod boot_disk;
mod conformance;
mod deviations;
mod emulator;
mod machine;
mod measure;
mod portability;
mod qemu;
mod start;
mod system;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use serde_json::Value;

use machine::Machine;
use system::System;

/// Run Lodge on a stock KVM in an emulated machine with AMD-V or Intel VT-x
///
/// QEMU or Bochs emulates the processor; Debian's kernel with its own KVM runs in it, and Lodge on
/// that. It needs no /dev/kvm. What is said there is in target/lab.
#[derive(Parser, Debug)]
#[command(
    bin_name = "cargo xtask lab",
    after_help = "\
Examples:
  cargo build --release -p cli -p vmm && cargo xtask lab      everything
  cargo xtask lab --short                                     what `make test` does
  cargo xtask lab conformance --filter paging                 these cases only
  cargo xtask lab --machine bochs --filter debug              on Intel VT-x
  cargo xtask lab shell                                       look around

Exit status: 0 if all is as it should be, 1 if not, 2 if it cannot be told, 77 if something is
missing here (scripts/install-lab-deps installs it)."
)]
pub struct Arguments {
    /// Who emulates the processor
    #[arg(long, value_enum, default_value_t)]
    machine: Machine,
    /// What to do [default: all that the machine can: with QEMU conformance boot move measure start, with
    /// Bochs conformance]
    #[arg(value_enum)]
    jobs: Vec<Job>,
    /// Only what takes a few minutes: the cases about the accelerator's traits, and the boot
    #[arg(long, conflicts_with = "jobs")]
    short: bool,
    /// Run only the conformance cases whose names contain this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Job {
    /// The conformance suite on the lab's KVM
    Conformance,
    /// Debian under `lodge run --accel kvm`, to a shell that answers
    Boot,
    /// A guest that goes on under the other accelerator
    Move,
    /// How often guests leave KVM: for each request to a disk, and when idle
    Measure,
    /// Not in the lab: how long it is from exec to a guest's first instruction, next to QEMU
    Start,
    /// A shell in the lab, with lodge in /lab
    Shell,
}

/// The exit status of a test that cannot run where it stands, as Automake has it.
const SKIPPED: u8 = 77;

/// Does what was asked for.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let machine = arguments.machine;
    let (jobs, filter) = plan(arguments)?;
    let tools =
        ["busybox", "debugfs", "setpriv", "strip"].map(|name| system::which(name).map(drop));
    if let Err(why) = tools.into_iter().chain([machine.find()]).collect::<anyhow::Result<()>>() {
        eprintln!("SKIPPED: the lab: {why}");
        return Ok(ExitCode::from(SKIPPED));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("a workspace")?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let dir = target.join("lab");
    let lodge =
        std::env::var_os("LODGE_BIN").map_or_else(|| target.join("release/lodge"), PathBuf::from);
    for program in [&lodge, &lodge.with_file_name("lodge-vmm")] {
        if !program.is_file() {
            bail!("{} is missing: cargo build --release -p cli -p vmm", program.display());
        }
    }
    let _lock = lock(&dir)?;
    let system = System::make(machine, &dir, &lodge, &build_conform()?)?;

    let mut good = true;
    for job in jobs {
        let begun = Instant::now();
        let _ = std::fs::remove_file(dir.join(format!("{}.log", name_of(job))));
        let (what, is_good) = match job {
            Job::Conformance => {
                let tally = conformance::run(machine, &system, &dir, filter)?;
                tally.remarks().iter().for_each(|remark| println!("    {remark}"));
                (tally.summary(), tally.is_good())
            }
            Job::Boot => match boot::run(&system, &dir) {
                Ok(what) => (what, true),
                Err(error) => (format!("{error:#}"), false),
            },
            Job::Move => match portability::run(&system, &dir) {
                Ok(what) => (what, true),
                Err(error) => (format!("{error:#}"), false),
            },
            Job::Measure => {
                let (lines, is_good) = measure::run(&system, &dir)?;
                lines.iter().for_each(|line| println!("    {line}"));
                ("exits were counted".to_owned(), is_good)
            }
            Job::Start => {
                start::run(&dir, &lodge)?.iter().for_each(|line| println!("    {line}"));
                ("from exec to the first instruction".to_owned(), true)
            }
            Job::Shell => {
                let cmdline = machine::cmdline("shell", &[]);
                let status = qemu::command(&system, &dir, "shell", &cmdline)?.status()?;
                ("the shell ended".to_owned(), status.success())
            }
        };
        good &= is_good;
        let verdict = if is_good { "ok" } else { "FAILED" };
        let seconds = begun.elapsed().as_secs();
        println!("lab {:<12} ... {verdict}: {what} ({seconds} s)", name_of(job));
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes sure that no other lab uses the same files, as long as what is returned is there.
fn lock(dir: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let lock = File::create(dir.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!("a lab is at work in {}: wait for it", dir.display())
        }
        Err(TryLockError::Error(error)) => Err(error).context("cannot lock the lab's files"),
    }
}

/// The jobs that are meant, and the conformance cases.
fn plan(arguments: &Arguments) -> anyhow::Result<(Vec<Job>, &str)> {
    let can: &[Job] = match arguments.machine {
        Machine::Qemu => {
            &[Job::Conformance, Job::Boot, Job::Move, Job::Measure, Job::Start, Job::Shell]
        }
        Machine::Bochs | Machine::BochsScaling => &[Job::Conformance],
    };
    let (jobs, filter) = match arguments {
        Arguments { short: true, .. } => (vec![Job::Conformance, Job::Boot], "contract"),
        Arguments { jobs, .. } if jobs.is_empty() => {
            (vec![Job::Conformance, Job::Boot, Job::Move, Job::Measure, Job::Start], "")
        }
        Arguments { jobs, .. } => {
            if let Some(job) = jobs.iter().find(|job| !can.contains(job)) {
                bail!("the job {} is to be had with --machine qemu only", name_of(*job));
            }
            (jobs.clone(), "")
        }
    };
    let jobs = jobs.into_iter().filter(|job| can.contains(job)).collect();
    Ok((jobs, arguments.filter.as_deref().unwrap_or(filter)))
}

fn name_of(job: Job) -> &'static str {
    match job {
        Job::Conformance => "conformance",
        Job::Boot => "boot",
        Job::Move => "move",
        Job::Measure => "measure",
        Job::Start => "start",
        Job::Shell => "shell",
    }
}

/// Builds the runner of the conformance suite; where it is.
fn build_conform() -> anyhow::Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked", "-p", "accel-kvm", "--example", "conform"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the runner of the conformance suite cannot be built");
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let program = messages.lines().rev().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    });
    program.context("cargo does not say where the runner of the conformance suite is")
}
