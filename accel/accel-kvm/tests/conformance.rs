//! The conformance suite on this host's KVM.

use std::path::Path;

use accel_kvm::KvmAccelerator;
use x86::cpuid::{CpuidResult, CpuidTable, Model, build};

fn cpuid() -> CpuidTable {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    build(Model::Host, host, runtime::tsc::frequency_hz()).expect("every host can be itself")
}

#[test]
fn kvm_conforms() {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm here");
        return;
    }
    let filter = std::env::var("CONFORMANCE").unwrap_or_default();
    let kvm = KvmAccelerator::open().unwrap();
    let report = conformance::run_all(&kvm, &cpuid(), &filter);
    assert!(report.failures.is_empty(), "{report}");
}
