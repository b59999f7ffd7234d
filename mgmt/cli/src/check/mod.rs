//! `lodge check`: what this machine can do for guests, what Lodge will use, and why.

mod device_file;
mod facts;
mod kvm;
mod options;
mod report;

use std::path::Path;

use vmm_api::{Failure, FailureKind};

use crate::args::{CheckArgs, RequireArg};
use crate::output;

use facts::Facts;
use report::Report;

/// Prints the report; the value is the exit status.
pub fn run(args: &CheckArgs) -> Result<u8, Failure> {
    let facts = Facts::gather(Path::new("/"), kvm::probe()?);
    let report = Report::of(&facts);
    if args.json {
        let text = serde_json::to_string_pretty(&report).map_err(Failure::internal)?;
        output::print(text + "\n")?;
    } else {
        output::print(report.to_string())?;
    }
    let good = match args.require {
        None => report.guests_can_run,
        Some(RequireArg::Kvm) => report.kvm_works,
    };
    Ok(if good { 0 } else { FailureKind::Host.exit_status() })
}
