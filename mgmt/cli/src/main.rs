//! The `lodge` command.

mod agent;
mod args;
mod check;
mod completion;
mod disk;
mod failure;
mod guests;
mod hotplug;
mod image;
mod lifecycle;
mod long_work;
mod manual;
mod network;
mod output;
mod progress;
mod run;
mod size;
mod snapshot;
mod socket;
mod stats;
mod sys;

use std::process::ExitCode;

use clap::Parser;
use vmm_api::Failure;

use args::lifecycle::ListArgs;
use args::{Cli, Command};

fn main() -> ExitCode {
    completion::answer_shell();
    let cli = Cli::parse();
    match dispatch(cli.command) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            eprintln!("lodge: {failure}");
            ExitCode::from(failure.kind.exit_status())
        }
    }
}

/// Does what was asked for; the value is the exit status.
fn dispatch(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Image { command } => image::run(&command),
        Command::Disk { command } => disk::run(&command),
        Command::Network { command } => network::run(&command),
        Command::Stats(args) => stats::run(&args),
        Command::Create(args) => run::create(&args.guest),
        Command::Start(args) => lifecycle::start(&args),
        Command::Ps(args) => lifecycle::list::run(&args),
        Command::Ls(args) => lifecycle::list::run(&ListArgs { all: true, ..args }),
        Command::Stop(args) => lifecycle::stop::stop(&args),
        Command::Kill(args) => lifecycle::stop::kill(&args),
        Command::Restart(args) => lifecycle::stop::restart(&args),
        Command::Pause(args) => lifecycle::pause(&args),
        Command::Resume(args) => lifecycle::resume(&args),
        Command::Rm(args) => lifecycle::remove::remove(&args),
        Command::Rename(args) => lifecycle::remove::rename(&args),
        Command::Logs(args) => lifecycle::logs::run(&args),
        Command::Console(args) => lifecycle::console::run(&args),
        Command::Exec(args) => agent::exec::run(&args),
        Command::Cp(args) => agent::copy::run(&args),
        Command::Ssh(args) => agent::ssh::run(&args),
        Command::Balloon(args) => lifecycle::balloon::run(&args),
        Command::Inspect(args) => lifecycle::inspect::run(&args),
        Command::Events(args) => lifecycle::events::run(&args),
        Command::Snapshot { command } => snapshot::run(&command),
        Command::Clone(args) => snapshot::clone::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Completion { shell } => completion::print_script(shell),
        Command::Man { directory } => manual::write_man(directory.as_deref()),
    }
}
