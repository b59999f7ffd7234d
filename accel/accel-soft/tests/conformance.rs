//! The conformance suite on the software engine.

use accel::Accelerator;
use accel_soft::{Execution, SoftAccelerator};
use x86::cpuid::{CpuidResult, CpuidTable, Model, build};

fn cpuid() -> CpuidTable {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    let model = build(Model::Host, host, runtime::tsc::frequency_hz());
    let model = model.expect("every host can be itself");
    SoftAccelerator::default().offered(&model).expect("the engine needs no host's word")
}

fn conforms(execution: Execution) {
    // CONFORMANCE=text runs the cases whose names contain it.
    let filter = std::env::var("CONFORMANCE").unwrap_or_default();
    let report = conformance::run_all(&SoftAccelerator { execution }, &cpuid(), &filter);
    assert!(report.failures.is_empty(), "{report}");
}

#[test]
fn the_interpreter_conforms() {
    conforms(Execution::Interpret);
}

#[test]
fn the_transcoder_conforms() {
    conforms(Execution::Transcode { after: 0, check: true });
    assert_eq!(accel_soft::refused_blocks(), 0, "the checker refused translated blocks");
}

#[test]
fn the_transcoder_keeps_step_with_the_interpreter() {
    conforms(Execution::Lockstep { after: 0, sample: 1 });
    let tally = accel_soft::lockstep_tally();
    println!("{tally:?}");
    assert!(tally.blocks > 0 && tally.instructions > tally.blocks, "{tally:?}");
    assert_eq!(tally.differences, 0, "{tally:?}");
}

#[test]
fn a_wrong_expectation_fails() {
    for case in conformance::impossible_cases() {
        let name = case.name.clone();
        let report = conformance::run(&SoftAccelerator::default(), &cpuid(), [case]);
        assert_eq!(report.failures.len(), 1, "{name} should fail: {report}");
    }
}
