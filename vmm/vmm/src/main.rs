//! The VMM process: one per guest.
//!
//! It builds the machine that its configuration describes, runs one thread for each of the
//! guest's processors, and ends when the guest does. Whoever started it hears about it by
//! [`vmm_api::Event`]s.

mod accelerators;
mod affinity;
mod api;
mod assembly;
mod bounded_file;
mod confinement;
mod consoles;
mod control;
mod debugging;
mod directory;
mod fds;
mod gate;
mod hotplug;
mod hub;
mod journal;
mod launcher;
mod meter;
mod room;
mod running;
mod session;
mod signals;
mod snapshot;
mod taps;

use std::fs;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use vmm_api::{Event, Failure, StopReason, VmConfig};

use api::Api;
use directory::Directory;
use launcher::Launcher;

/// Runs one guest in this process. Usually started by `lodge run`.
#[derive(Debug, Parser)]
#[command(name = "lodge-vmm", version)]
struct Args {
    /// Read the guest's configuration, as JSON, from this inherited file descriptor.
    #[arg(long, value_name = "N", required_unless_present_any = ["config", "probe"], conflicts_with = "config")]
    config_fd: Option<RawFd>,
    /// Read the guest's configuration from this TOML or JSON file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Report events, as JSON lines, to this inherited file descriptor; stop when its other end
    /// is closed.
    #[arg(long, value_name = "M")]
    status_fd: Option<RawFd>,
    /// Start no guest: say as JSON on standard output what this host's KVM is good for, and what the
    /// accelerator "auto" stands for here.
    #[arg(long, conflicts_with_all = ["config_fd", "config", "status_fd", "api_fd", "directory_fd", "lock_fd", "restore_fd", "detached"])]
    probe: bool,
    /// Serve the API, JSON by HTTP/1.1, at this inherited file descriptor, a Unix stream socket that
    /// listens.
    #[arg(long, value_name = "L")]
    api_fd: Option<RawFd>,
    /// Keep the console's log and the events in the directory that this inherited file descriptor
    /// is open for.
    #[arg(long, value_name = "D")]
    directory_fd: Option<RawFd>,
    /// Keep this inherited file descriptor open, and with it the lock that it holds.
    #[arg(long, value_name = "K")]
    lock_fd: Option<RawFd>,
    /// Go on from the snapshot in the directory that this inherited file descriptor is open for, instead
    /// of starting the guest's kernel.
    #[arg(long, value_name = "S")]
    restore_fd: Option<RawFd>,
    /// Go on when the other end of --status-fd is closed.
    #[arg(long)]
    detached: bool,
}

/// A configuration larger than this is none.
const MAX_CONFIG: u64 = 4 << 20;

fn main() -> ExitCode {
    fds::take_note();
    runtime::heap::refuse_huge_pages();
    runtime::tsc::begin_measurement();
    let args = Args::parse();
    start_logging();
    if args.probe {
        return match probe() {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                launcher::say(&failure);
                ExitCode::from(failure.kind.exit_status())
            }
        };
    }
    let mut launcher = match Launcher::new(args.status_fd, args.detached) {
        Ok(launcher) => launcher,
        Err(failure) => {
            launcher::say(&failure);
            return ExitCode::from(failure.kind.exit_status());
        }
    };
    let mut api = None;
    let result = run(&args, &mut launcher, &mut api);
    let (event, status) = match result {
        Ok(reason) => (Event::Stopped { reason }, reason.exit_status()),
        Err(failure) => {
            let status = failure.kind.exit_status();
            (Event::Error(failure), status)
        }
    };
    launcher.tell(&event);
    if let Some(api) = api {
        api.finish();
    }
    ExitCode::from(status)
}

/// `--probe`.
fn probe() -> Result<(), Failure> {
    let text = serde_json::to_string(&accelerators::report()).map_err(Failure::internal)?;
    writeln!(std::io::stdout(), "{text}")
        .map_err(|e| Failure::host(format!("cannot write the report: {e}")))
}

/// Runs the guest to its end. The API is left for the caller to finish.
fn run(args: &Args, launcher: &mut Launcher, api: &mut Option<Api>) -> Result<StopReason, Failure> {
    let cannot_hold = |e| Failure::host(format!("cannot use the lock's descriptor: {e}"));
    // Held until the process ends.
    std::mem::forget(args.lock_fd.map(fds::inherited).transpose().map_err(cannot_hold)?);
    let directory = Directory::new(args.directory_fd)?;
    let events = directory.events()?;
    let api = api.insert(Api::new(args.api_fd, directory, launcher.journal())?);
    let config = read_config(args)?;
    let snapshot = args.restore_fd.map(snapshot_directory).transpose()?;
    if let Some(events) = events {
        launcher.journal().keep_in(events);
    }
    session::run(config, snapshot, launcher, api)
}

fn snapshot_directory(fd: RawFd) -> Result<OwnedFd, Failure> {
    fds::inherited(fd).map_err(|e| {
        Failure::host(format!("cannot use the snapshot's directory, descriptor {fd}: {e}"))
    })
}

/// Logs go to standard error. `LODGE_LOG` says how much: `debug`, or `info,virtio=trace`.
fn start_logging() {
    let filter = std::env::var("LODGE_LOG").unwrap_or_default();
    let targets = filter.parse::<Targets>();
    let bad = targets.is_err();
    let targets = match targets {
        Ok(targets) if !filter.is_empty() => targets,
        _ => Targets::new().with_default(LevelFilter::WARN),
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time();
    tracing_subscriber::registry().with(layer).with(targets).init();
    if bad {
        tracing::warn!("LODGE_LOG={filter:?} is not understood; write for example LODGE_LOG=debug");
    }
}

fn read_config(args: &Args) -> Result<VmConfig, Failure> {
    let config = match (&args.config, args.config_fd) {
        (Some(path), _) => config_from_file(path)?,
        (None, Some(fd)) => config_from_fd(fd)?,
        // clap has seen to it that one of them is there.
        (None, None) => return Err(Failure::configuration("no configuration was given")),
    };
    config.validate().map_err(Failure::configuration)?;
    Ok(config)
}

fn config_from_fd(fd: RawFd) -> Result<VmConfig, Failure> {
    let cannot_read =
        |e| Failure::host(format!("cannot read the configuration from descriptor {fd}: {e}"));
    let mut file = fs::File::from(fds::inherited(fd).map_err(cannot_read)?);
    let text = read_bounded(&mut file).map_err(cannot_read)?;
    serde_json::from_str(&text)
        .map_err(|e| Failure::configuration(format!("the configuration is not understood: {e}")))
}

fn config_from_file(path: &Path) -> Result<VmConfig, Failure> {
    let name = path.display();
    let text = fs::File::open(path).and_then(|mut file| read_bounded(&mut file)).map_err(|e| {
        Failure::configuration(format!("cannot read the configuration {name}: {e}"))
    })?;
    let not_understood = |e: &dyn std::fmt::Display| {
        Failure::configuration(format!("the configuration {name} is not understood: {e}"))
    };
    if text.trim_start().starts_with('{') {
        serde_json::from_str(&text).map_err(|e| not_understood(&e))
    } else {
        toml::from_str(&text).map_err(|e| not_understood(&e))
    }
}

fn read_bounded(reader: &mut impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    reader.take(MAX_CONFIG + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(std::io::Error::other(format!("it is larger than {MAX_CONFIG} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
        assert!(Args::try_parse_from(["lodge-vmm"]).is_err());
        assert!(Args::try_parse_from(["lodge-vmm", "--config-fd", "3", "--config", "x"]).is_err());
        assert!(
            Args::try_parse_from(["lodge-vmm", "--config-fd", "3", "--status-fd", "4"]).is_ok()
        );
    }

    #[test]
    fn people_write_toml_or_json() {
        let dir = tempfile::tempdir().unwrap();
        let toml = dir.path().join("a.toml");
        fs::write(&toml, "name='a'\ncpus=1\nmemory_mib=64\n[boot]\nkernel='/k'\n").unwrap();
        let json = dir.path().join("a.json");
        let text = r#"{"name":"a","cpus":1,"memory_mib":64,"boot":{"kernel":"/k"}}"#;
        fs::write(&json, text).unwrap();
        assert_eq!(config_from_file(&toml).unwrap(), config_from_file(&json).unwrap());
        fs::write(&toml, "name=").unwrap();
        let failure = config_from_file(&toml).unwrap_err();
        assert_eq!(failure.kind, vmm_api::FailureKind::Configuration);
        assert!(failure.message.contains("a.toml"));
    }
}
