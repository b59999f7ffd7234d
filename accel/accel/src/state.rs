//! What processors and interrupt controllers are saved as: plain data that any accelerator makes of
//! its own and takes over again, so that a guest may go on under another one.

use std::collections::BTreeMap;

use irqchip::{ChipsState, LapicState};
use serde::{Deserialize, Serialize};
use x86::CpuState;

/// Everything of one processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// What instructions see. `tsc_offset` counts from the host's TSC at the time of the
    /// [pause](PvEpoch).
    pub cpu: CpuState,
    /// Its local APIC.
    pub lapic: LapicState,
    /// Its paravirtual clock.
    pub pv_clock: PvClockState,
    /// Other registers that hypervisors made up, KVM's and Hyper-V's: by number, those that have
    /// another value than those of a new processor. Processor 0 has those that the machine has once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hypervisor_msrs: BTreeMap<u32, u64>,
}

/// KVM's paravirtual clock (Linux, Documentation/virt/kvm/x86/msr.rst): what the guest wrote to its
/// MSRs. What is published there lies in the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PvClockState {
    /// MSR_KVM_SYSTEM_TIME_NEW.
    pub system_time: u64,
    /// MSR_KVM_WALL_CLOCK_NEW.
    pub wall_clock: u64,
}

/// What all of a machine's processors share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// Interrupt controllers and the PIT.
    pub chips: ChipsState,
    /// From where the paravirtual clock counts.
    pub pv_epoch: PvEpoch,
}

/// A moment in the paravirtual clock's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PvEpoch {
    /// What processor 0's TSC shows then.
    pub tsc: u64,
    /// What the clock shows, in nanoseconds.
    pub ns: u64,
}
