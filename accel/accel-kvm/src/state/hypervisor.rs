//! Registers that hypervisors made up: KVM's own (Linux, Documentation/virt/kvm/x86/msr.rst) and
//! Hyper-V's (Microsoft, Hypervisor Top Level Functional Specification), but for the clock's.

use std::collections::BTreeMap;

use accel::Fault;
use kvm_ioctls::VcpuFd;

use super::msrs;

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register {
    index: u32,
    /// What it is about.
    name: &'static str,
    /// Its value in a new processor.
    new: u64,
    /// The machine has it once.
    is_shared: bool,
}

const fn own(index: u32, name: &'static str) -> Register {
    Register { index, name, new: 0, is_shared: false }
}

const fn shared(index: u32, name: &'static str) -> Register {
    Register { is_shared: true, ..own(index, name) }
}

/// KVM's, in the order in which they are set: the vector before what it is for. There is nothing to
/// keep of MSR_KVM_ASYNC_PF_ACK, which is only written, and MSR_KVM_MIGRATION_CONTROL is not KVM's
/// to serve. POLL_CONTROL is not declared, but there all the same.
const KVM: [Register; 5] = [
    own(0x4b56_4d06, "KVM's asynchronous page faults"),
    own(0x4b56_4d02, "KVM's asynchronous page faults"),
    own(0x4b56_4d03, "KVM's steal time"),
    own(0x4b56_4d04, "KVM's end of interrupts"),
    Register { new: 1, ..own(0x4b56_4d05, "KVM's polling") },
];

const SINTS: u32 = 16;
const TIMERS: u32 = 4;

/// Hyper-V's, as far as they are declared (`hyperv`), in the order in which they are set: the guest's
/// identity before its page for hypercalls, the synthetic interrupt controller before its timers.
/// The others are read-only, or another view of the local APIC.
fn hyperv() -> impl Iterator<Item = Register> {
    let first = [
        shared(0x4000_0000, "Hyper-V's guest identity"),
        shared(0x4000_0001, "Hyper-V's hypercalls"),
        shared(0x4000_0021, "Hyper-V's reference TSC"),
        own(0x4000_0010, "Hyper-V's run time"),
        own(0x4000_0073, "Hyper-V's assist page"),
        own(0x4000_0080, "Hyper-V's synthetic interrupts"),
        own(0x4000_0082, "Hyper-V's page of events"),
        own(0x4000_0083, "Hyper-V's page of messages"),
    ];
    const MASKED: u64 = 1 << 16;
    let sint =
        |n| Register { new: MASKED, ..own(0x4000_0090 + n, "Hyper-V's synthetic interrupts") };
    // For each, its configuration, then its count.
    let timer = |n| own(0x4000_00b0 + n, "Hyper-V's synthetic timers");
    first.into_iter().chain((0..SINTS).map(sint)).chain((0..TIMERS * 2).map(timer))
}

/// What there is to a processor: Hyper-V's only if that is served, and the shared ones only if `first`.
fn registers(has_hyperv: bool, first: bool) -> impl Iterator<Item = Register> {
    let hyperv = hyperv().filter(move |_| has_hyperv);
    KVM.into_iter().chain(hyperv).filter(move |register| first || !register.is_shared)
}

/// Those that are not as in a new processor. `first`: it is processor 0.
pub fn load(vcpu: &VcpuFd, has_hyperv: bool, first: bool) -> Result<BTreeMap<u32, u64>, Fault> {
    let mut changed = BTreeMap::new();
    for register in registers(has_hyperv, first) {
        // What this KVM does not have, no guest has changed.
        let value = msrs::read(vcpu, register.index)?.filter(|value| *value != register.new);
        changed.extend(value.map(|value| (register.index, value)));
    }
    Ok(changed)
}

/// Has a new processor, whose local APIC is as it is to be, take them over.
pub fn store(
    vcpu: &VcpuFd,
    has_hyperv: bool,
    first: bool,
    saved: &BTreeMap<u32, u64>,
) -> Result<(), Fault> {
    let has = |hyperv, index| registers(hyperv, first).any(|register| register.index == index);
    for &index in saved.keys() {
        if !has(true, index) {
            return Err(Fault::BadState(format!(
                "a processor has a register {index:#x} of no hypervisor's"
            )));
        }
        if !has(has_hyperv, index) {
            return Err(Fault::Unsupported(
                "the guest makes use of Hyper-V's enlightenments: let it go on with --hyperv"
                    .to_owned(),
            ));
        }
    }
    for Register { index, name, .. } in registers(has_hyperv, first) {
        let Some(&value) = saved.get(&index) else { continue };
        if !msrs::write(vcpu, index, value)? {
            return Err(Fault::Unsupported(format!(
                "the guest makes use of {name} (MSR {index:#x}), which this host's KVM refuses: let it \
                 go on under a kernel like the one it comes from, or make guests that move with \
                 --cpu x86-64"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_register_is_there_once() {
        let numbers: Vec<u32> = registers(true, true).map(|register| register.index).collect();
        let different: BTreeSet<&u32> = numbers.iter().collect();
        assert_eq!(different.len(), numbers.len());
        assert_eq!(numbers.len(), 5 + 8 + 16 + 8);
        assert_eq!(registers(true, false).count(), numbers.len() - 3);
        assert_eq!(registers(false, true).count(), 5);
    }
}
