use accel_kvm::KvmAccelerator;
use std::time::Duration;
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
    let filter = std::env::var("CONFORMANCE").unwrap_or_default();
    let kvm = KvmAccelerator::open().unwrap();
    let table = kvm.offered(&cpuid()).unwrap();
    for mut case in conformance::all_cases().into_iter().filter(|c| c.name.contains(&filter)) {
        case.patience = Some(Duration::from_secs(2));
        println!("{:?} {}", conformance::run_one(&kvm, &table, &case), case.name);
    }
}
