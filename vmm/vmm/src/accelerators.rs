//! What runs the processors, chosen at run time.

use std::arch::x86_64::__cpuid_count;

use accel::{Accelerator, CpuidTable};
use accel_kvm::KvmAccelerator;
use accel_soft::{Execution, SoftAccelerator};
use vmm_api::{CpuModel, Failure};
use x86::cpuid::{self, CpuidResult, Model};

/// If this is in the environment, translated code is checked before it runs (docs/checker.md).
const CHECK: &str = "LODGE_CHECK_CODE";
/// If this is in the environment, translated code is compared with the interpreter as it runs: each
/// block as often as this number says, and then once in so many times (docs/engine.md).
const LOCKSTEP: &str = "LODGE_LOCKSTEP";

/// The accelerator that the configuration asks for.
pub fn choose(wanted: vmm_api::Accelerator) -> Result<Box<dyn Accelerator>, Failure> {
    match wanted {
        vmm_api::Accelerator::Auto | vmm_api::Accelerator::Soft => {
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
        vmm_api::Accelerator::Kvm => {
            Ok(Box::new(KvmAccelerator::open().map_err(crate::running::fault)?))
        }
    }
}

/// The same as the configuration names it.
pub fn kind(accelerator: &dyn Accelerator) -> vmm_api::Accelerator {
    match accelerator.name() {
        "kvm" => vmm_api::Accelerator::Kvm,
        _ => vmm_api::Accelerator::Soft,
    }
}

/// What CPUID tells the guest.
pub fn cpuid(model: CpuModel) -> Result<CpuidTable, Failure> {
    let (model, name) = match model {
        CpuModel::Host => (Model::Host, "host"),
        CpuModel::X86_64V2 => (Model::V2, "x86-64-v2"),
        CpuModel::X86_64V3 => (Model::V3, "x86-64-v3"),
    };
    cpuid::build(model, host_cpuid, runtime::tsc::frequency_hz()).map_err(|missing| {
        Failure::host(format!(
            "this host's processor has not all features of the processor model {name} (bits \
             {:x?} of CPUID leaf {:#x} are missing): choose the model \"host\"",
            missing.bits, missing.leaf
        ))
    })
}

fn host_cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let r = __cpuid_count(leaf, subleaf);
    CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}
