//! The conformance suite on the software engine.

use accel_soft::SoftAccelerator;
use x86::cpuid::{CpuidResult, CpuidTable, Model, build};

fn cpuid() -> CpuidTable {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    build(Model::Host, host, runtime::tsc::frequency_hz()).expect("every host can be itself")
}

#[test]
fn the_software_engine_conforms() {
    // CONFORMANCE=text runs the cases whose names contain it.
    let filter = std::env::var("CONFORMANCE").unwrap_or_default();
    let report = conformance::run_all(&SoftAccelerator, &cpuid(), &filter);
    assert!(report.failures.is_empty(), "{report}");
}

#[test]
fn a_wrong_expectation_fails() {
    for case in conformance::impossible_cases() {
        let name = case.name.clone();
        let report = conformance::run(&SoftAccelerator, &cpuid(), [case]);
        assert_eq!(report.failures.len(), 1, "{name} should fail: {report}");
    }
}
