//! What an older KVM lacks is done in other ways, with the same outcome.

mod common;

use accel::Accelerator;
use accel_kvm::KvmAccelerator;
use common::{has_kvm, model};
use conformance::Verdict;
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_EXIT_ON_EMULATION_FAILURE,
    KVM_CAP_HYPERV_CPUID, KVM_CAP_IOEVENTFD, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_SET_GUEST_DEBUG2, KVM_CAP_SREGS2, KVM_CAP_TSC_CONTROL, KVM_CAP_VCPU_ATTRIBUTES,
};

/// Runs the cases whose names contain `filter` on a KVM without these capabilities. Those that fail
/// with them, too, are what this host cannot do: the conformance suite is about these.
fn conforms_without(capabilities: &[u32], filter: &str) {
    if !has_kvm() {
        return;
    }
    let whole = KvmAccelerator::open().unwrap();
    let open = KvmAccelerator::open().unwrap();
    let older = capabilities.iter().fold(open, |kvm, &capability| kvm.without(capability));
    let cpuid = whole.offered(&model()).unwrap();
    let mut passed = 0;
    for case in conformance::all_cases().into_iter().filter(|case| case.name.contains(filter)) {
        match conformance::run_one(&older, &cpuid, &case) {
            Verdict::Passed => passed += 1,
            verdict => match conformance::run_one(&whole, &cpuid, &case) {
                Verdict::Passed => panic!("{}: {verdict:?}", case.name),
                same => eprintln!("SKIPPED {}: {same:?}", case.name),
            },
        }
    }
    assert!(passed > 0, "no case passed");
}

#[test]
fn stores_are_noted_in_bitmaps_in_parts() {
    conforms_without(&[KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL], "stores: ");
}

#[test]
fn stores_are_noted_in_bitmaps_at_once() {
    let capabilities =
        [KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2];
    conforms_without(&capabilities, "stores: ");
}

#[test]
fn stores_are_noted_in_rings_of_the_first_kind() {
    conforms_without(&[KVM_CAP_DIRTY_LOG_RING_ACQ_REL], "stores: ");
}

#[test]
fn time_stands_still_by_the_tscs_msr() {
    conforms_without(&[KVM_CAP_VCPU_ATTRIBUTES], "pause: ");
}

#[test]
fn processors_do_without_all_that_linux_5_10_lacks() {
    let capabilities = [
        KVM_CAP_DIRTY_LOG_RING,
        KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
        KVM_CAP_EXIT_ON_EMULATION_FAILURE,
        KVM_CAP_HYPERV_CPUID,
        KVM_CAP_IOEVENTFD,
        KVM_CAP_SET_GUEST_DEBUG2,
        KVM_CAP_SREGS2,
        KVM_CAP_TSC_CONTROL,
        KVM_CAP_VCPU_ATTRIBUTES,
    ];
    conforms_without(&capabilities, "contract: ");
}
