//! Hyper-V's enlightenments, which Windows makes use of: declared through CPUID as far as KVM serves
//! them (Microsoft, Hypervisor Top Level Functional Specification, 2.4).
//!
//! Hyper-V's leaves take the place of KVM's, which move up. Guests that know both, as Linux does,
//! look for the higher ones.

use accel::{CpuidTable, Fault};
use kvm_bindings::{
    CpuId, KVM_CAP_HYPERV_CPUID, KVM_CAP_HYPERV_ENFORCE_CPUID, KVM_CAP_HYPERV_SYNIC2,
    kvm_enable_cap,
};
use kvm_ioctls::VcpuFd;
use x86::cpuid::CpuidResult;

use crate::cpuid::Supported;
use crate::host::{Host, failed};
use crate::sys;

/// Hypervisors' leaves begin here, and further sets of them at multiples of `NEXT`.
const FIRST: u32 = 0x4000_0000;
const NEXT: u32 = 0x100;
const FEATURES: u32 = FIRST + 3;
const RECOMMENDATIONS: u32 = FIRST + 4;
/// The last leaf: limits.
const LIMITS: u32 = FIRST + 5;

/// Leaf 4000_0003H, EAX: VP runtime, reference counter, synthetic interrupt controller, synthetic
/// timers, APIC MSRs, hypercalls, VP index, reference TSC, frequencies. Not: reset (a PC has
/// another way), statistics, re-enlightenment (guests do not migrate while they run).
const PRIVILEGES: u32 = 0b1010_0111_1111;
/// The bits among them that need the synthetic interrupt controller.
const SYNTHETIC: u32 = 0b1100;
/// The same leaf, EDX: fast hypercalls by XMM registers, frequencies, ranges in flushes, timers without
/// messages. Not: crash MSRs, debugging.
const FURTHER: u32 = 1 << 4 | 1 << 8 | 1 << 14 | 1 << 19;
/// Leaf 4000_0004H, EAX: remote flushes, APIC MSRs, relaxed timing, no automatic EOI, IPIs by
/// hypercall, wide processor sets, no siblings that are not really such. Not: nested virtualization.
const ADVICE: u32 = 1 << 2 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 18;

/// Has a processor serve the enlightenments; what CPUID tells of them, by leaf.
pub fn enlighten(host: &Host, vcpu: &VcpuFd) -> Result<CpuidTable, Fault> {
    if !host.has(KVM_CAP_HYPERV_CPUID) {
        return Err(Fault::Unsupported(
            "this host's KVM does not serve Hyper-V's enlightenments (it lacks \
             KVM_CAP_HYPERV_CPUID): leave out --hyperv, or use a kernel with CONFIG_KVM_HYPERV"
                .to_owned(),
        ));
    }
    let enable = |cap, value| {
        let mut enable = kvm_enable_cap { cap, ..Default::default() };
        enable.args[0] = value;
        host.has(cap) && vcpu.enable_cap(&enable).is_ok()
    };
    let is_synthetic = enable(KVM_CAP_HYPERV_SYNIC2, 0);
    // What is not declared is not served, either. Older kernels (before 5.14) do not look.
    enable(KVM_CAP_HYPERV_ENFORCE_CPUID, 1);
    let served = sys::supported_hv_cpuid(vcpu)
        .map_err(|e| failed("KVM does not say which enlightenments it serves", e))?;
    Ok(declare(&served, is_synthetic))
}

/// What is declared of `served`.
fn declare(served: &CpuId, is_synthetic: bool) -> CpuidTable {
    let served = Supported::new(served, false);
    let mut table = CpuidTable::new();
    let signature = CpuidResult {
        eax: LIMITS,
        ebx: u32::from_le_bytes(*b"Micr"),
        ecx: u32::from_le_bytes(*b"osof"),
        edx: u32::from_le_bytes(*b"t Hv"),
    };
    table.set(FIRST, None, signature);
    for leaf in FIRST + 1..=LIMITS {
        let mut answer = served.get(leaf, 0);
        match leaf {
            FEATURES => {
                answer.eax &= if is_synthetic { PRIVILEGES } else { PRIVILEGES & !SYNTHETIC };
                answer.ebx = 0;
                answer.ecx = 0;
                answer.edx &= FURTHER;
            }
            RECOMMENDATIONS => answer.eax &= ADVICE,
            _ => {}
        }
        table.set(leaf, None, answer);
    }
    table
}

/// Puts Hyper-V's leaves into a guest's table, and moves KVM's up.
pub fn add(table: &mut CpuidTable, hyperv: &CpuidTable) {
    let mut moved = CpuidTable::new();
    for (leaf, subleaf, mut answer) in table.iter() {
        if !(FIRST..FIRST + NEXT).contains(&leaf) {
            moved.set(leaf, subleaf, answer);
            continue;
        }
        if leaf == FIRST {
            answer.eax += NEXT;
        }
        moved.set(leaf + NEXT, subleaf, answer);
    }
    for (leaf, subleaf, answer) in hyperv.iter() {
        moved.set(leaf, subleaf, answer);
    }
    *table = moved;
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    fn leaf(function: u32, all: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax: all, ebx: all, ecx: all, edx: all, ..Default::default() }
    }

    #[test]
    fn only_what_is_served_and_known_is_declared() {
        let all: Vec<_> = (FIRST..=FIRST + 10).map(|f| leaf(f, u32::MAX)).collect();
        let table = declare(&CpuId::from_entries(&all).unwrap(), true);
        let features = table.get(FEATURES, 0).unwrap();
        assert_eq!((features.eax, features.ebx, features.edx), (PRIVILEGES, 0, FURTHER));
        assert_eq!(table.get(RECOMMENDATIONS, 0).unwrap().eax, ADVICE);
        assert_eq!(table.get(LIMITS + 1, 0), None);
        let without = declare(&CpuId::from_entries(&all).unwrap(), false);
        assert_eq!(without.get(FEATURES, 0).unwrap().eax, PRIVILEGES & !SYNTHETIC);
        let none = declare(&CpuId::from_entries(&[]).unwrap(), true);
        assert_eq!(none.get(FEATURES, 0).unwrap(), CpuidResult::default());
    }

    #[test]
    fn kvms_leaves_move_up() {
        let answer = |eax| CpuidResult { eax, ..Default::default() };
        let mut table = CpuidTable::new();
        table.set(1, None, answer(1));
        table.set(FIRST, None, answer(FIRST + 0x10));
        table.set(FIRST + 1, None, answer(7));
        table.set(0x8000_0000, None, answer(9));
        let hyperv = declare(&CpuId::from_entries(&[]).unwrap(), true);
        add(&mut table, &hyperv);
        assert_eq!(table.get(FIRST, 0).unwrap().ebx.to_le_bytes(), *b"Micr");
        assert_eq!(table.get(FIRST + NEXT, 0).unwrap().eax, FIRST + NEXT + 0x10);
        assert_eq!(table.get(FIRST + NEXT + 1, 0).unwrap().eax, 7);
        assert_eq!(table.get(1, 0).unwrap().eax, 1);
        assert_eq!(table.get(0x8000_0000, 0).unwrap().eax, 9);
    }
}
