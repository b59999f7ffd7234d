//! Whether the processor runs, and what holds interrupts back.

use accel::{CpuState, Fault};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_mp_state,
};
use kvm_ioctls::VcpuFd;
use x86::state::Activity;

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

/// Forgets an exception that waits to be delivered.
pub fn forget_exception(vcpu: &VcpuFd) -> Result<(), Fault> {
    let mut events =
        vcpu.get_vcpu_events().map_err(|e| failed("cannot read a processor's events", e))?;
    if events.exception.injected == 0 && events.exception.pending == 0 {
        return Ok(());
    }
    events.exception = Default::default();
    events.flags = 0;
    vcpu.set_vcpu_events(&events).map_err(|e| refused("events", e))
}
