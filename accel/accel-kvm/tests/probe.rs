//! The probe on this host.

use std::path::Path;
use std::time::Instant;

use accel_kvm::KvmAccelerator;

#[test]
fn the_speed_of_ring_0_is_told() {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm here");
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let begun = Instant::now();
    let speed = kvm.measure().unwrap();
    println!("{speed:?} in {:?}; hardware: {:?}", begun.elapsed(), accel_kvm::hardware());
    assert!(speed.ring0 > 1e3 && speed.native > 1e6 && speed.kernel_ns > 0.0, "{speed:?}");
    // Where the processor has the extension, KVM uses it; where it has not, it cannot be fast.
    if accel_kvm::hardware().is_none() {
        assert!(!speed.is_hardware(), "{speed:?}");
    }
}
