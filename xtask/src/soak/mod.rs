//! Keeps a guest busy for a while and compares all that it computes with what this machine
//! computes: `cargo xtask soak`.

mod guest;
mod jobs;
mod record;
mod server;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;

use crate::bench::bed::Bed;
use crate::bench::{self, contestant, usage};
use guest::Guest;
use record::Record;
use server::Server;

/// Keep a guest busy and verify all that it computes
///
/// A Debian guest under Lodge compiles, hashes, encrypts, forks, queries, compresses and talks to
/// this machine, all at once. Every result has to be that of the same program on this machine; no
/// job may come to a halt, the guest's kernel may not complain, and the VMM may not grow. Ctrl-C
/// ends it early and in good order; once more, at once.
#[derive(Parser, Debug)]
#[command(
    bin_name = "cargo xtask soak",
    after_help = "\
Examples:
  cargo xtask soak                            five minutes
  cargo xtask soak --minutes 600 --cpus 4     a night"
)]
pub struct Arguments {
    /// How long
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    minutes: u32,
    /// Number of virtual processors
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// The guest's memory, in MiB
    #[arg(long, value_name = "MIB", default_value = "1024", value_parser = clap::value_parser!(u32).range(512..=65536))]
    memory: u32,
    /// A job that has no result for so long hangs
    #[arg(long, value_name = "SECONDS", default_value = "240", value_parser = clap::value_parser!(u32).range(10..=86400))]
    patience: u32,
    /// Have each translated block checked before it runs
    #[arg(long)]
    check: bool,
}

/// How long the guest may take to start, and to switch itself off.
const START_PATIENCE: Duration = Duration::from_secs(600);
/// How often the VMM's memory is looked at, and progress is shown.
const LOOK: Duration = Duration::from_secs(2);
const SHOW: Duration = Duration::from_secs(10);
/// A guest that has used all its memory, and code caches that have what they will have.
const LONGEST_WARM_UP: Duration = Duration::from_secs(600);

/// Runs; whether all was right.
pub fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let interruptions = Arc::new(AtomicU32::new(0));
    let counter = interruptions.clone();
    ctrlc::set_handler(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    })
    .context("cannot catch Ctrl-C")?;
    let (bed, _lock) = bench::prepare()?;
    eprintln!("Computing on this machine");
    let answers = jobs::answers(&bed)?;
    let server = Server::start().context("cannot listen on 127.0.0.1")?;
    let log_path = bed.path("soak.log");
    let log =
        File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let interrupted = || interruptions.load(Ordering::SeqCst);

    eprintln!("Starting the guest; its console goes to {}", log_path.display());
    let mut guest = Guest::start(command(&bed, arguments, server.port)?, log)?;
    let go_on = || interrupted() == 0;
    for (prompt, answer) in [
        ("login: ", "root\n"),
        ("Password: ", "lodge\n"),
        ("# ", "sh /dev/disk/by-id/virtio-soak\n"),
    ] {
        guest.wait_for(prompt, START_PATIENCE, go_on)?;
        guest.type_text(answer)?;
    }
    guest.wait_for("@soak ready", START_PATIENCE, go_on)?;

    let whole = Duration::from_secs(60 * u64::from(arguments.minutes));
    let mut record = Record::new(answers, arguments.cpus, (whole / 3).min(LONGEST_WARM_UP));
    let patience = Duration::from_secs(arguments.patience.into());
    if let Err(error) = soak(&mut guest, &mut record, whole, patience, go_on) {
        record.faults.push(format!("{error:#}"));
    } else if let Err(error) = end(&mut guest, &mut record, patience, || interrupted() < 2) {
        record.faults.push(format!("at the end: {error:#}"));
    }
    drop(guest);
    record.close();
    if server.damaged() > 0 {
        record.faults.push(format!("{} times damaged data came by TCP", server.damaged()));
    }
    print!("{}", record.summary());
    println!("network: {:.1} MB", server.bytes() as f64 / 1e6);
    println!("{}", if record.faults.is_empty() { "all was right" } else { "NOT all was right" });
    Ok(record.faults.is_empty())
}

/// The command that starts the guest.
fn command(bed: &Bed, arguments: &Arguments, port: u16) -> anyhow::Result<Command> {
    let mut script = jobs::script(port);
    // A disk has whole sectors; a shell reads over empty lines.
    let padding = script.len().next_multiple_of(512) - script.len();
    script.extend(std::iter::repeat_n('\n', padding));
    let path = bed.path("soak.sh");
    fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    let disk = |path: &Path, serial: &str| {
        format!("{},format=raw,readonly,serial={serial}", contestant::escape(path))
    };
    let mut command = contestant::dies_with_us("TERM", &bed.lodge.display().to_string());
    command.env("LODGE_HOME", &bed.dir);
    if arguments.check {
        command.env("LODGE_CHECK_CODE", "1");
    }
    command.args(["run", bench::bed::IMAGE, "--accel", "soft"]);
    command.args(["--cpus", &arguments.cpus.to_string()]);
    command.args(["--memory", &arguments.memory.to_string()]);
    command.arg("--disk").arg(disk(&bed.path("files.raw"), "files"));
    command.arg("--disk").arg(disk(&path, "soak"));
    Ok(command)
}

/// Watches until the time is over, somebody interrupts, or nothing more is to be expected.
fn soak(
    guest: &mut Guest,
    record: &mut Record,
    whole: Duration,
    patience: Duration,
    go_on: impl Fn() -> bool,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let (mut looked, mut shown) = (begun, begun);
    while begun.elapsed() < whole && go_on() {
        if let Some(line) = guest.line(Duration::from_millis(500))?
            && let Some(round) = line.strip_prefix("@soak round ")
        {
            record.round(round);
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            record.memory(usage::memory_of(guest.process()) / f64::from(1 << 20));
        }
        if shown.elapsed() >= SHOW {
            shown = Instant::now();
            eprintln!("{}", record.progress());
        }
        if record.hangs(patience) {
            anyhow::bail!("the guest hangs");
        }
    }
    Ok(())
}

/// Has each job end its round, and the guest switch itself off.
fn end(
    guest: &mut Guest,
    record: &mut Record,
    patience: Duration,
    go_on: impl Fn() -> bool,
) -> anyhow::Result<()> {
    eprintln!("Ending");
    guest.type_text("stop\n")?;
    let deadline = Instant::now() + patience;
    loop {
        anyhow::ensure!(go_on(), "interrupted");
        anyhow::ensure!(Instant::now() < deadline, "the jobs do not end");
        match guest.line(Duration::from_millis(500))? {
            Some(line) if line == "@soak over" => break,
            Some(line) => {
                if let Some(round) = line.strip_prefix("@soak round ") {
                    record.round(round);
                }
            }
            None => {}
        }
    }
    let status = guest.end(START_PATIENCE)?;
    anyhow::ensure!(status.success(), "lodge: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        assert_eq!(Arguments::try_parse_from(["soak"]).unwrap().minutes, 5);
    }
}
