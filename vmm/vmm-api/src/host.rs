//! What a host's KVM is good for, as `lodge-vmm --probe` says it in one JSON document.

use serde::{Deserialize, Serialize};

use crate::Accelerator;

/// What was found, and what `auto` makes of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// How far one comes with /dev/kvm.
    pub kvm: KvmState,
    /// How fast a guest's kernel runs there, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<KvmSpeed>,
    /// What [`Accelerator::Auto`] stands for here: never itself.
    pub accelerator: Accelerator,
    /// Why, in half a sentence for people.
    pub reason: String,
    /// Whether KVM serves Hyper-V's enlightenments.
    #[serde(default)]
    pub hyperv: bool,
    /// What Lodge's own engine can do on this processor.
    pub engine: EnginePace,
}

/// How Lodge's own engine runs code that runs often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnginePace {
    /// As code of the host, and the busiest program on its own memory, guarded by protection keys.
    Mirrored,
    /// As code of the host that looks at each access to memory first.
    Transcoded,
    /// By an interpreter.
    Interpreted,
}

/// How far one comes with /dev/kvm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmState {
    /// There is no such file.
    Missing,
    /// The file is something else.
    NotADevice,
    /// The file is there, but no module serves it.
    Unserved,
    /// This user may not open it.
    Forbidden,
    /// Rules about devices keep this container or service from it.
    Denied,
    /// Opening fails for another reason.
    Unopenable(String),
    /// It answers wrongly or not at all.
    Foreign(String),
    /// It is too old: what it lacks.
    Outdated(String),
    /// It makes no virtual machines, or cannot run one of a few instructions.
    NoMachines(String),
    /// It makes virtual machines and runs them.
    Works,
}

/// How fast a guest's kernel runs, measured by a guest of a few instructions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvmSpeed {
    /// Million plain instructions a second in the guest's ring 0.
    pub ring0_mips: f64,
    /// The same on the host's processor.
    pub native_mips: f64,
    /// Nanoseconds for an instruction that only a kernel may execute, on average.
    pub kernel_instruction_ns: f64,
    /// Whether that is the speed of hardware virtualization.
    pub is_hardware: bool,
}
