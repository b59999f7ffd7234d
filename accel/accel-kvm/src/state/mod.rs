//! A processor's state between KVM's structures and [`CpuState`].

mod arch_capabilities;
mod events;
pub mod hypervisor;
pub mod lapic;
mod msrs;
mod registers;
mod vector;

use accel::{CpuState, Fault, Sections};
use kvm_ioctls::VcpuFd;

use crate::host::failed;
use crate::scaling::Scaling;
pub use events::{InFlight, set_activity, take_in_flight};
pub use msrs::{KnownMsrs, read as read_msr, set_tsc_offset, tsc_offset, write as write_msr};

/// What the host's KVM can hand out and take, and the guest can have.
#[derive(Clone, Debug)]
pub struct Abilities {
    /// KVM_GET_SREGS2.
    pub sregs2: bool,
    /// The TSC's offset can be read and set.
    pub tsc_offset: bool,
    /// The guest's TSC runs at another rate than the host's.
    pub scaling: Option<Scaling>,
    /// A debugger's steps can hold interrupts back.
    pub blocks_interrupts: bool,
    /// State components that the guest can have (bits of XCR0); 3 if it has no XSAVE.
    pub components: u64,
    /// The guest has XSAVE, and with it XCR0.
    pub xsave: bool,
    /// MSRs of [`CpuState`] that KVM has.
    pub msrs: KnownMsrs,
    /// The guest has IA32_ARCH_CAPABILITIES.
    pub arch_capabilities: bool,
    /// Hyper-V's interface is served.
    pub hyperv: bool,
}

/// Brings `want` in `state` up to date.
pub fn load(
    vcpu: &VcpuFd,
    abilities: &Abilities,
    want: Sections,
    state: &mut CpuState,
) -> Result<(), Fault> {
    if want.contains(Sections::GENERAL) {
        registers::load_general(vcpu, state)?;
    }
    if want.contains(Sections::SYSTEM) {
        registers::load_system(vcpu, abilities, state)?;
    }
    if want.contains(Sections::DEBUG) {
        registers::load_debug(vcpu, state)?;
    }
    if want.contains(Sections::MSRS) {
        msrs::load(vcpu, abilities, state)?;
    }
    if want.contains(Sections::VECTOR) {
        vector::load(vcpu, abilities, state)?;
    }
    if want.contains(Sections::EVENTS) {
        events::load(vcpu, state)?;
    }
    Ok(())
}

/// Makes `changed` of `state` take effect.
pub fn store(
    vcpu: &VcpuFd,
    abilities: &Abilities,
    changed: Sections,
    state: &CpuState,
) -> Result<(), Fault> {
    // XCR0 and the MSRs are judged by CR4 and EFER, so these come first.
    if changed.contains(Sections::SYSTEM) {
        registers::store_system(vcpu, abilities, state)?;
    }
    if changed.contains(Sections::GENERAL) {
        registers::store_general(vcpu, state)?;
    }
    if changed.contains(Sections::DEBUG) {
        registers::store_debug(vcpu, state)?;
    }
    if changed.contains(Sections::MSRS) {
        msrs::store(vcpu, abilities, state)?;
    }
    if changed.contains(Sections::VECTOR) {
        vector::store(vcpu, abilities, state)?;
    }
    if changed.contains(Sections::EVENTS) {
        events::store(vcpu, state)?;
    }
    Ok(())
}

/// The sections in which two states differ.
pub fn changed(old: &CpuState, new: &CpuState) -> Sections {
    let general = |s: &CpuState| (s.gpr, s.rip, s.rflags);
    let system = |s: &CpuState| {
        let tables = (s.seg, s.ldtr, s.tr, s.gdtr, s.idtr);
        (tables, s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.pdpte)
    };
    let debug = |s: &CpuState| (s.dr, s.dr6, s.dr7);
    let events = |s: &CpuState| (s.activity, s.interrupt_shadow, s.nmi_blocked);
    let mut changed = Sections::empty();
    changed.set(Sections::GENERAL, general(old) != general(new));
    changed.set(Sections::SYSTEM, system(old) != system(new));
    changed.set(Sections::DEBUG, debug(old) != debug(new));
    changed.set(Sections::MSRS, old.msrs != new.msrs);
    changed.set(Sections::VECTOR, old.vector != new.vector || old.xcr0 != new.xcr0);
    changed.set(Sections::EVENTS, events(old) != events(new));
    changed
}

/// KVM refused a part of the state: that state can't be, or not here.
fn refused(what: &str, error: kvm_ioctls::Error) -> Fault {
    if error.errno() == libc::EINVAL {
        return Fault::Unsupported(format!(
            "this host's KVM refuses the {what} that a processor was given: the state is damaged, \
             or of a processor that this host does not have"
        ));
    }
    failed(format!("cannot set a processor's {what}"), error)
}
