//! Runs the conformance suite on this machine's KVM, case by case, for the lab (docs/lab.md):
//!
//!     conform [--emulated] [--from CASE] [--filter TEXT] [--skip FILE]
//!             [--patience SECONDS] [--without CAPABILITY,...]
//!
//! Each case's name is printed before it begins, so that it can be told which of them was the end of
//! the machine below; --from goes on with the case of that number. --emulated says that QEMU emulates
//! the processor. FILE has names of cases, a line each, that are left out;
//! others are given up after SECONDS instead of two minutes. CAPABILITYs are numbers of
//! `KVM_CAP_*` that KVM is said not to have.

mod emulated;

use std::process::ExitCode;
use std::time::Duration;

use accel::{Accelerator, CpuidTable};
use accel_kvm::KvmAccelerator;
use accel_soft::SoftAccelerator;
use emulated::Emulated;
use x86::cpuid::{CpuidResult, Model, build};

fn cpuid() -> Option<CpuidTable> {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    build(Model::Host, host, runtime::tsc::frequency_hz()).ok()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let from = value("--from").and_then(|text| text.parse().ok()).unwrap_or(0);
    let filter = value("--filter").map_or("", String::as_str);
    let kvm = match KvmAccelerator::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("no KVM: {error}");
            return ExitCode::from(2);
        }
    };
    let cpuid = match cpuid() {
        Some(cpuid) => kvm.offered(&cpuid).map_err(|error| error.to_string()),
        None => Err("it is not even like itself".to_owned()),
    };
    let cpuid = match cpuid {
        Ok(cpuid) => cpuid,
        Err(error) => {
            println!("this processor cannot be described: {error}");
            return ExitCode::from(2);
        }
    };
    let without = value("--without").map_or("", String::as_str);
    let kvm =
        without.split(',').filter_map(|cap| cap.parse().ok()).fold(kvm, KvmAccelerator::without);
    let kvm: Box<dyn Accelerator> = match arguments.iter().any(|a| a == "--emulated") {
        true => Box::new(Emulated(kvm)),
        false => Box::new(kvm),
    };
    let cases = conformance::all_cases().into_iter().filter(|case| case.name.contains(filter));
    let skip = match value("--skip").map(std::fs::read_to_string) {
        None => String::new(),
        Some(Ok(skip)) => skip,
        Some(Err(error)) => {
            println!("the list of what to skip cannot be read: {error}");
            return ExitCode::from(2);
        }
    };
    let mut failed = 0;
    let patience = value("--patience").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    for (number, mut case) in cases.enumerate().skip(from) {
        println!("case {number}: {}", case.name);
        if skip.lines().any(|name| case.name == name) {
            println!("skipped {number}: not here");
            continue;
        }
        case.patience = patience;
        match conformance::compare(kvm.as_ref(), &SoftAccelerator::default(), &cpuid, &case) {
            conformance::Verdict::Passed => println!("passed {number}"),
            conformance::Verdict::Skipped(why) => println!("skipped {number}: {why}"),
            conformance::Verdict::Failed(detail) => {
                failed += 1;
                // Whoever reads this takes a line for each case.
                println!("failed {number}: {}", detail.replace("\n   ", ";"));
            }
        }
    }
    println!("end of the suite");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
