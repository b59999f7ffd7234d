//! A local APIC between KVM's page of registers and [`LapicState`].

use accel::Fault;
use irqchip::{LapicState, LvtState, TimerState};
use kvm_bindings::{
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_SIPI_RECEIVED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR,
};
use kvm_ioctls::VcpuFd;

use super::{msrs, refused, registers, set_activity};
use crate::apic_page::{get, set};
use crate::host::failed;

/// Offsets of registers in the page (SDM Vol. 3, table 11-1).
mod at {
    pub const TPR: usize = 0x80;
    pub const LDR: usize = 0xd0;
    pub const DFR: usize = 0xe0;
    pub const SVR: usize = 0xf0;
    pub const ISR: usize = 0x100;
    pub const TMR: usize = 0x180;
    pub const IRR: usize = 0x200;
    pub const ESR: usize = 0x280;
    pub const ICR: usize = 0x300;
    pub const LVT: [usize; 6] = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370];
    pub const INITIAL: usize = 0x380;
    pub const CURRENT: usize = 0x390;
    pub const DIVIDE: usize = 0x3e0;
}

const MSR_TSC_DEADLINE: u32 = 0x6e0;
const X2APIC: u64 = 1 << 10;

/// Nanoseconds per count: KVM's timer runs at 1 GHz, as the model's does (SDM Vol. 3, figure 11-10).
fn divisor(divide: u32) -> u64 {
    let code = (divide & 3) | ((divide >> 1) & 4);
    1 << ((code + 1) & 7)
}

/// Its state, at the guest time `now` in ns, which stands still.
pub fn load(vcpu: &VcpuFd, now: u64) -> Result<LapicState, Fault> {
    let page = vcpu.get_lapic().map_err(|e| failed("cannot read a local APIC", e))?;
    let events =
        vcpu.get_vcpu_events().map_err(|e| failed("cannot read a processor's events", e))?;
    let mp_state =
        vcpu.get_mp_state().map_err(|e| failed("cannot read what a processor is doing", e))?;
    let set = |at: usize| std::array::from_fn(|n| get(&page, at + 0x10 * n));
    let [timer, thermal, performance, lint0, lint1, error] = at::LVT.map(|at| get(&page, at));
    let (divide, count) = (get(&page, at::DIVIDE), u64::from(get(&page, at::CURRENT)));
    Ok(LapicState {
        base: registers::apic_base(vcpu)?,
        tpr: get(&page, at::TPR) as u8,
        logical_id: (get(&page, at::LDR) >> 24) as u8,
        dfr: get(&page, at::DFR),
        svr: get(&page, at::SVR),
        isr: set(at::ISR),
        tmr: set(at::TMR),
        irr: set(at::IRR),
        esr: get(&page, at::ESR),
        errors: 0,
        icr: u64::from(get(&page, at::ICR)) | u64::from(get(&page, at::ICR + 0x10)) << 32,
        lvt: LvtState { timer, thermal, performance, lint0, lint1, error },
        timer: TimerState {
            divide,
            initial: get(&page, at::INITIAL),
            due: (count != 0).then(|| now.saturating_add(count * divisor(divide))),
            tsc_deadline: msrs::read(vcpu, MSR_TSC_DEADLINE)?.unwrap_or_default(),
        },
        // The 8259 pair's output is inside of KVM, and nothing drives LINT1.
        lint: [false; 2],
        nmi: events.nmi.pending != 0,
        init: false,
        startup: (mp_state.mp_state == KVM_MP_STATE_SIPI_RECEIVED)
            .then_some(events.sipi_vector as u8),
        ext_int: false,
        waiting: [KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_SIPI_RECEIVED]
            .contains(&mp_state.mp_state),
    })
}

/// Takes over a state, at the guest time `now` in ns.
pub fn store(vcpu: &VcpuFd, state: &LapicState, now: u64) -> Result<(), Fault> {
    registers::set_apic_base(vcpu, state.base)?;
    let mut page = vcpu.get_lapic().map_err(|e| failed("cannot read a local APIC", e))?;
    let LvtState { timer, thermal, performance, lint0, lint1, error } = state.lvt;
    let lvt = [timer, thermal, performance, lint0, lint1, error];
    let due = state.timer.due.map_or(0, |due| due.saturating_sub(now).max(1));
    let count = due.div_ceil(divisor(state.timer.divide)).min(state.timer.initial.into());
    let mut put = |at, value| set(&mut page, at, value);
    put(at::TPR, state.tpr.into());
    if state.base & X2APIC == 0 {
        put(at::LDR, u32::from(state.logical_id) << 24);
        put(at::DFR, state.dfr);
    }
    put(at::SVR, state.svr);
    for (first, words) in [(at::ISR, state.isr), (at::TMR, state.tmr), (at::IRR, state.irr)] {
        for (n, word) in words.into_iter().enumerate() {
            put(first + 0x10 * n, word);
        }
    }
    put(at::ESR, state.esr);
    put(at::ICR, state.icr as u32);
    put(at::ICR + 0x10, (state.icr >> 32) as u32);
    for (at, value) in at::LVT.into_iter().zip(lvt) {
        put(at, value);
    }
    put(at::INITIAL, state.timer.initial);
    put(at::CURRENT, count as u32);
    put(at::DIVIDE, state.timer.divide);
    vcpu.set_lapic(&page).map_err(|e| refused("local APIC", e))?;
    if state.timer.tsc_deadline != 0 {
        msrs::write(vcpu, MSR_TSC_DEADLINE, state.timer.tsc_deadline)?;
    }
    let mut events =
        vcpu.get_vcpu_events().map_err(|e| failed("cannot read a processor's events", e))?;
    events.nmi.pending = state.nmi.into();
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
    if let Some(vector) = state.startup {
        events.sipi_vector = vector.into();
        events.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
    }
    vcpu.set_vcpu_events(&events).map_err(|e| refused("events", e))?;
    match state.startup {
        Some(_) => set_activity(vcpu, KVM_MP_STATE_SIPI_RECEIVED),
        None => Ok(()),
    }
}
