//! What runs the processors, chosen at run time.

use std::arch::x86_64::__cpuid_count;

use accel::{Accelerator, CpuidTable, Fault};
use accel_kvm::{KvmAccelerator, Obstacle, Speed, hardware};
use accel_soft::{Execution, Pace, SoftAccelerator};
use vmm_api::{CpuModel, EnginePace, Failure, HostReport, KvmSpeed, KvmState};
use x86::cpuid::{self, CpuidResult, Model};

use crate::running::fault;

/// If this is in the environment, translated code is checked before it runs (docs/checker.md).
const CHECK: &str = "LODGE_CHECK_CODE";
/// If this is in the environment, translated code is compared with the interpreter as it runs: each
/// block as often as this number says, and then once in so many times (docs/engine.md).
const LOCKSTEP: &str = "LODGE_LOCKSTEP";

/// What runs the processors, and why.
pub struct Choice {
    /// The accelerator.
    pub accelerator: Box<dyn Accelerator>,
    /// Half a sentence for people; empty if it was asked for.
    pub reason: String,
}

/// The accelerator that the configuration asks for, or the best that this host offers.
pub fn choose(wanted: vmm_api::Accelerator) -> Result<Choice, Failure> {
    let (accelerator, reason): (Box<dyn Accelerator>, _) = match wanted {
        vmm_api::Accelerator::Soft => (soft()?, String::new()),
        vmm_api::Accelerator::Kvm => {
            let kvm = KvmAccelerator::open().map_err(|obstacle| fault(obstacle.into()))?;
            (Box::new(kvm), String::new())
        }
        // Who wants the engine's code checked or compared wants the engine.
        vmm_api::Accelerator::Auto if std::env::var_os(CHECK).is_some() => (soft()?, CHECK.into()),
        vmm_api::Accelerator::Auto if std::env::var_os(LOCKSTEP).is_some() => {
            (soft()?, LOCKSTEP.into())
        }
        vmm_api::Accelerator::Auto => match look() {
            Finding { kvm: Some(kvm), reason, .. } => (Box::new(kvm), reason),
            Finding { reason, .. } => (soft()?, reason),
        },
    };
    Ok(Choice { accelerator, reason })
}

fn soft() -> Result<Box<dyn Accelerator>, Failure> {
    let mut accelerator = SoftAccelerator::default();
    if let Execution::Transcode { after, check } = &mut accelerator.execution {
        *check = std::env::var_os(CHECK).is_some();
        if let Ok(sample) = std::env::var(LOCKSTEP) {
            let sample = sample.parse().map_err(|_| {
                Failure::configuration(format!(
                    "{LOCKSTEP} is {sample:?}, which is no number: set it to 1 to have all \
                     code compared, or to a higher number for samples"
                ))
            })?;
            accelerator.execution = Execution::Lockstep { after: *after, sample };
        }
    }
    Ok(Box::new(accelerator))
}

/// What this host's KVM and Lodge's own engine are good for, for `--probe`.
pub fn report() -> HostReport {
    let Finding { kvm, state, speed, reason, hyperv } = look();
    let accelerator = match kvm {
        Some(_) => vmm_api::Accelerator::Kvm,
        None => vmm_api::Accelerator::Soft,
    };
    let speed = speed.map(|speed| KvmSpeed {
        ring0_mips: speed.ring0 / 1e6,
        native_mips: speed.native / 1e6,
        kernel_instruction_ns: speed.kernel_ns,
        is_hardware: speed.is_hardware(),
    });
    let engine = match SoftAccelerator::look_around() {
        Pace::Mirrored => EnginePace::Mirrored,
        Pace::Transcoded => EnginePace::Transcoded,
        Pace::Interpreted => EnginePace::Interpreted,
    };
    HostReport { kvm: state, speed, accelerator, reason, hyperv, engine }
}

/// What was found out about this host.
struct Finding {
    /// KVM, if guests shall run there.
    kvm: Option<KvmAccelerator>,
    state: KvmState,
    speed: Option<Speed>,
    /// Why they shall or not.
    reason: String,
    hyperv: bool,
}

/// Opens KVM, and measures whether it runs a guest's kernel as only hardware can.
fn look() -> Finding {
    let without = |state, reason| Finding { kvm: None, state, speed: None, reason, hyperv: false };
    let kvm = match KvmAccelerator::open() {
        Ok(kvm) => kvm,
        Err(obstacle) => return without(state_of(&obstacle), obstacle.to_string()),
    };
    match kvm.measure() {
        Ok(speed) => {
            let reason = judgement(hardware(), &speed);
            let hyperv = kvm.serves_hyperv();
            let kvm = speed.is_hardware().then_some(kvm);
            Finding { kvm, state: KvmState::Works, speed: Some(speed), reason, hyperv }
        }
        Err(fault) => {
            let why = match fault {
                Fault::Host { what, source, .. } => format!("{what}: {source}"),
                other => other.to_string(),
            };
            without(KvmState::NoMachines(why.clone()), why)
        }
    }
}

/// What a measurement means.
fn judgement(hardware: Option<&str>, speed: &Speed) -> String {
    let hardware = match hardware {
        Some(flag) => format!("the processor has {flag}"),
        None => "the processor shows neither vmx nor svm".to_owned(),
    };
    let (ring0, native) = (speed.ring0 / 1e6, speed.native / 1e6);
    if speed.is_hardware() {
        let share = (100.0 * ring0 / native).min(100.0);
        return format!("{hardware}, and /dev/kvm runs a kernel at {share:.0} % of its speed");
    }
    format!(
        "{hardware}, and /dev/kvm runs a kernel at {ring0:.1} million instructions a second, where \
         this processor does {native:.0}"
    )
}

fn state_of(obstacle: &Obstacle) -> KvmState {
    match obstacle {
        Obstacle::Missing(_) => KvmState::Missing,
        Obstacle::NotADevice(_) => KvmState::NotADevice,
        Obstacle::Unserved(_) => KvmState::Unserved,
        Obstacle::Forbidden(_) => KvmState::Forbidden,
        Obstacle::Denied(_) => KvmState::Denied,
        Obstacle::Unopenable(_, error) => KvmState::Unopenable(error.to_string()),
        Obstacle::Foreign(_) => KvmState::Foreign("it does not answer as KVM does".to_owned()),
        Obstacle::Version(_) | Obstacle::Lacks(_) => KvmState::Outdated(obstacle.to_string()),
    }
}

/// The same as the configuration names it.
pub fn kind(accelerator: &dyn Accelerator) -> vmm_api::Accelerator {
    match accelerator.name() {
        "kvm" => vmm_api::Accelerator::Kvm,
        _ => vmm_api::Accelerator::Soft,
    }
}

/// Whether an accelerator can do with memory that is made of huge pages.
pub fn check_hugepages(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    match kind(accelerator) {
        vmm_api::Accelerator::Soft => Err(Failure::configuration(
            "Lodge's own engine maps single pages of the guest's memory, for which huge pages are of \
             no use: leave out --hugepages, or choose --accel kvm where KVM runs guests",
        )),
        _ => Ok(()),
    }
}

/// What CPUID tells the guest: of the model what this host and the accelerator offer. Where KVM runs
/// it, KVM knows the rate of the TSC.
pub fn cpuid(model: CpuModel, accelerator: &dyn Accelerator) -> Result<CpuidTable, Failure> {
    let (model, name) = match model {
        CpuModel::Host => (Model::Host, "host"),
        CpuModel::X86_64 => (Model::V1, "x86-64"),
        CpuModel::X86_64V2 => (Model::V2, "x86-64-v2"),
        CpuModel::X86_64V3 => (Model::V3, "x86-64-v3"),
    };
    let is_kvm = kind(accelerator) == vmm_api::Accelerator::Kvm;
    let tsc_hz = if is_kvm { 0 } else { runtime::tsc::frequency_hz() };
    let mut table = cpuid::build(model, host_cpuid, tsc_hz).map_err(|missing| {
        Failure::host(format!(
            "this host's processor has not all features of the processor model {name} (bits \
             {:x?} of CPUID leaf {:#x} are missing): choose the model \"host\", or \"x86-64\" for a \
             guest that is to go on elsewhere",
            missing.bits, missing.leaf
        ))
    })?;
    // Guests that run on the processor itself need what protects from its flaws.
    if is_kvm && model == Model::Host {
        cpuid::add_speculation_controls(&mut table, host_cpuid);
    }
    accelerator.offered(&table).map_err(fault)
}

fn host_cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let r = __cpuid_count(leaf, subleaf);
    CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_told_with_its_reason() {
        let speed = |ring0, kernel_ns| Speed { ring0, native: 6e9, kernel_ns };
        let text = judgement(None, &speed(1.8e6, 900.0));
        assert!(text.contains("neither vmx nor svm") && text.contains(" 1.8 million"), "{text}");
        let text = judgement(Some("svm"), &speed(5.9e9, 50.0));
        assert!(text.contains("has svm") && text.contains("98 %"), "{text}");
        assert!(!text.contains('\n'));
    }

    #[test]
    fn huge_pages_are_for_kvm() {
        let failure = check_hugepages(soft().unwrap().as_ref()).unwrap_err();
        assert_eq!(failure.kind, vmm_api::FailureKind::Configuration);
        assert!(failure.message.contains("--hugepages"), "{failure}");
    }

    #[test]
    fn a_report_says_what_auto_does() {
        let report = report();
        let choice = choose(vmm_api::Accelerator::Auto).unwrap();
        assert_eq!(kind(choice.accelerator.as_ref()), report.accelerator);
        assert!(!choice.reason.is_empty() && !report.reason.is_empty());
        assert_eq!(
            report.accelerator == vmm_api::Accelerator::Kvm,
            report.speed.is_some_and(|s| s.is_hardware)
        );
        assert_eq!(report.speed.is_some(), report.kvm == KvmState::Works);
    }

    #[test]
    fn every_obstacle_is_told() {
        let path = std::path::PathBuf::from("/dev/kvm");
        assert_eq!(state_of(&Obstacle::Missing(path.clone())), KvmState::Missing);
        assert_eq!(state_of(&Obstacle::Unserved(path.clone())), KvmState::Unserved);
        assert_eq!(state_of(&Obstacle::Forbidden(path.clone())), KvmState::Forbidden);
        assert_eq!(state_of(&Obstacle::Denied(path)), KvmState::Denied);
        assert!(
            matches!(state_of(&Obstacle::Version(11)), KvmState::Outdated(why) if why.contains("11"))
        );
    }
}
