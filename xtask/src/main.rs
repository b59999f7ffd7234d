//! What developers of Lodge run: checks of the house rules (`cargo xtask check`), benchmarks (`cargo
//! xtask bench`), the lab (`cargo xtask lab`), endurance tests (`cargo xtask soak`) and what starts and
//! clones cost (`cargo xtask restore`).

#![forbid(unsafe_code)]

mod bench;
mod imports;
mod lab;
mod restore;
mod soak;
mod unsafety;

use std::process::ExitCode;

use clap::Parser;

/// What developers of Lodge run
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Task {
    /// Check the rules of the house
    ///
    /// Which crate may import which (docs/architecture.md), and which crates may contain unsafe
    /// code.
    Check,
    Bench(bench::Arguments),
    Lab(lab::Arguments),
    Soak(soak::Arguments),
    Restore(restore::Arguments),
}

fn main() -> ExitCode {
    match Task::parse() {
        Task::Check => match check() {
            Ok(faults) if faults.is_empty() => {
                println!("the house is in order");
                ExitCode::SUCCESS
            }
            Ok(faults) => {
                for fault in &faults {
                    eprintln!("{fault}");
                }
                eprintln!("{} faults", faults.len());
                ExitCode::FAILURE
            }
            Err(error) => {
                eprintln!("cannot check: {error:#}");
                ExitCode::from(2)
            }
        },
        Task::Bench(arguments) => match bench::run(&arguments) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("cannot measure: {error:#}");
                ExitCode::from(2)
            }
        },
        Task::Lab(arguments) => lab::run(&arguments).unwrap_or_else(|error| {
            eprintln!("the lab cannot work: {error:#}");
            ExitCode::from(2)
        }),
        Task::Soak(arguments) => match soak::run(&arguments) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("cannot soak: {error:#}");
                ExitCode::from(2)
            }
        },
        Task::Restore(arguments) => match restore::run(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("cannot measure: {error:#}");
                ExitCode::from(2)
            }
        },
    }
}

/// Everything that breaks a rule, a line each.
fn check() -> anyhow::Result<Vec<String>> {
    let house = imports::House::load()?;
    let mut faults = imports::check(&house);
    faults.extend(unsafety::check(&house)?);
    Ok(faults)
}
