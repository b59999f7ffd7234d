//! Checks of the house rules: `cargo xtask check`.

#![forbid(unsafe_code)]

mod imports;
mod unsafety;

use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask check

Checks the rules of the house:
  - which crate may import which (docs/architecture.md)
  - which crates may contain unsafe code
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["check"] => match check() {
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
        ["--help" | "-h" | "help"] => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Everything that breaks a rule, a line each.
fn check() -> anyhow::Result<Vec<String>> {
    let house = imports::House::load()?;
    let mut faults = imports::check(&house);
    faults.extend(unsafety::check(&house)?);
    Ok(faults)
}
