//! The `lodge` command.

mod args;
mod check;
mod failure;
mod guests;
mod image;
mod manual;
mod output;
mod progress;
mod run;
mod size;
mod socket;
mod stats;
mod sys;

use std::process::ExitCode;

use clap::Parser;
use vmm_api::Failure;

use args::{Cli, Command};

fn main() -> ExitCode {
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
        Command::Stats(args) => stats::run(&args),
        Command::Ls => guests::print_list(),
        Command::Rm { name } => guests::remove(&name),
        Command::Check(args) => check::run(&args),
        Command::Completion { shell } => manual::print_completion(shell),
        Command::Man { directory } => manual::write_man(directory.as_deref()),
    }
}
