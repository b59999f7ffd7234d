//! Whether the processor runs, and what holds interrupts back.

use accel::{CpuState, Fault};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_mp_state,
};
use kvm_ioctls::VcpuFd;
use x86::state::Activity;
use x86::vector;

use super::refused;
use crate::host::failed;

pub fn load(vcpu: &VcpuFd, state: &mut CpuState) -> Result<(), Fault> {
    state.activity = activity(vcpu)?;
    let events =
        vcpu.get_vcpu_events().map_err(|e| failed("cannot read a processor's events", e))?;
    let shadow = u32::from(events.interrupt.shadow);
    state.interrupt_shadow = shadow & (KVM_X86_SHADOW_INT_MOV_SS | KVM_X86_SHADOW_INT_STI) != 0;
    state.nmi_blocked = events.nmi.masked != 0;
    Ok(())
}

fn activity(vcpu: &VcpuFd) -> Result<Activity, Fault> {
    let state =
        vcpu.get_mp_state().map_err(|e| failed("cannot read what a processor is doing", e))?;
    Ok(match state.mp_state {
        KVM_MP_STATE_HALTED => Activity::Halted,
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => {
            Activity::WaitForSipi
        }
        _ => Activity::Active,
    })
}

pub fn store(vcpu: &VcpuFd, state: &CpuState) -> Result<(), Fault> {
    if activity(vcpu)? != state.activity {
        let mp_state = match state.activity {
            // KVM knows no processor that has shut down: the accelerator does.
            Activity::Active | Activity::Shutdown => KVM_MP_STATE_RUNNABLE,
            Activity::Halted => KVM_MP_STATE_HALTED,
            Activity::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
        };
        set_activity(vcpu, mp_state)?;
    }
    let mut events =
        vcpu.get_vcpu_events().map_err(|e| failed("cannot read a processor's events", e))?;
    // STI's shadow stands for both: it ends after the same instruction.
    events.interrupt.shadow = if state.interrupt_shadow { KVM_X86_SHADOW_INT_STI as u8 } else { 0 };
    events.nmi.masked = state.nmi_blocked.into();
    events.flags = KVM_VCPUEVENT_VALID_SHADOW;
    vcpu.set_vcpu_events(&events).map_err(|e| refused("events", e))
}

/// Sets what the processor is doing to one of `KVM_MP_STATE_*`.
pub fn set_activity(vcpu: &VcpuFd, mp_state: u32) -> Result<(), Fault> {
    vcpu.set_mp_state(kvm_mp_state { mp_state }).map_err(|e| refused("activity", e))
}

/// What KVM was about to deliver when the processor left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// An interrupt that the local APIC has handed over.
    Interrupt(u8),
    /// An NMI.
    Nmi,
    /// A debug trap: the instruction that it follows is done.
    DebugTrap,
    /// A page fault with this error code. It may be one of KVM's own, by which it tells a guest that a
    /// page takes long to come (MSR_KVM_ASYNC_PF_EN): that it tells once.
    PageFault(u32),
}

/// Takes what KVM was about to deliver away from it. What comes again when the instruction is
/// executed anew, other faults and software interrupts, is forgotten.
pub fn take_in_flight(vcpu: &VcpuFd) -> Result<Option<InFlight>, Fault> {
    let mut events =
        vcpu.get_vcpu_events().map_err(|e| failed("cannot read a processor's events", e))?;
    let (exception, interrupt, nmi) = (events.exception, events.interrupt, events.nmi);
    let raised = exception.injected != 0 || exception.pending != 0;
    if !raised && interrupt.injected == 0 && nmi.injected == 0 {
        return Ok(None);
    }
    let taken = if interrupt.injected != 0 && interrupt.soft == 0 {
        Some(InFlight::Interrupt(interrupt.nr))
    } else if nmi.injected != 0 {
        Some(InFlight::Nmi)
    } else if raised && exception.nr == vector::DB {
        Some(InFlight::DebugTrap)
    } else if raised && exception.nr == vector::PF {
        Some(InFlight::PageFault(exception.error_code))
    } else {
        None
    };
    events.exception = Default::default();
    events.exception_has_payload = 0;
    events.interrupt.injected = 0;
    events.nmi.injected = 0;
    events.flags = 0;
    vcpu.set_vcpu_events(&events).map_err(|e| refused("events", e))?;
    Ok(taken)
}
