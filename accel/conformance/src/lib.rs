//! Small guest programs with known outcomes that every accelerator must run right.
//!
//! A case builds a machine's memory (descriptor tables, page tables, code), says what the guest
//! shall do (values it writes to a debug port, exceptions that generic handlers record, final
//! registers and memory), and the runner compares. Cases are written against the manuals (Intel
//! SDM, AMD APM), never against one accelerator; where vendors differ, a case asks for one of them.

#![forbid(unsafe_code)]

mod apic;
mod bus;
pub mod case;
mod cases;
mod code;
mod expect;
mod guest;
mod handlers;
pub mod hostile;
mod layout;
mod runner;
mod start;
mod tables;

use accel::{Accelerator, CpuidTable};

pub use case::Case;
pub use runner::{Failure, Report, Verdict};

/// Every case, by subject.
pub fn all_cases() -> Vec<Case> {
    cases::all()
}

/// Runs every case whose name contains `filter` on `accelerator`, whose processors are told
/// `cpuid`. Prints one line for each failure, and a total.
pub fn run_all(accelerator: &dyn Accelerator, cpuid: &CpuidTable, filter: &str) -> Report {
    let cases = all_cases().into_iter().filter(|case| case.name.contains(filter));
    run(accelerator, cpuid, cases)
}

/// Runs some cases; see [`run_all`].
pub fn run(
    accelerator: &dyn Accelerator,
    cpuid: &CpuidTable,
    cases: impl IntoIterator<Item = Case>,
) -> Report {
    let mut report = Report::default();
    for case in cases {
        match run_one(accelerator, cpuid, &case) {
            Verdict::Passed => report.passed += 1,
            Verdict::Skipped(reason) => report.skipped.push((case.name, reason)),
            Verdict::Failed(detail) => {
                let failure = Failure { name: case.name, detail };
                println!("FAILED {failure}");
                report.failures.push(failure);
            }
        }
    }
    println!("{}: {report}", accelerator.name());
    report
}

/// Runs one case.
pub fn run_one(accelerator: &dyn Accelerator, cpuid: &CpuidTable, case: &Case) -> Verdict {
    runner::run_case(accelerator, cpuid, case).verdict
}

/// Runs one case on `subject`; if that fails, on `reference` as well, so that the failure has what
/// came out on both, with the states in which their processors ended.
pub fn compare(
    subject: &dyn Accelerator,
    reference: &dyn Accelerator,
    cpuid: &CpuidTable,
    case: &Case,
) -> Verdict {
    let detail = match run_one(subject, cpuid, case) {
        Verdict::Failed(detail) => detail,
        verdict => return verdict,
    };
    let ran = runner::run_case(reference, cpuid, case);
    let other = match (ran.verdict, ran.what) {
        (Verdict::Passed, what) => {
            what.map_or("as expected".to_owned(), |what| format!("as expected, {what}"))
        }
        (Verdict::Skipped(feature), _) => format!("not run, for want of {feature}"),
        (Verdict::Failed(detail), _) => detail,
    };
    Verdict::Failed(format!("{}: {detail}\n    {}: {other}", subject.name(), reference.name()))
}

/// Cases that expect what does not happen: every one of them must fail, on every accelerator.
pub fn impossible_cases() -> Vec<Case> {
    cases::impossible()
}
