//! Lodge's own engine: runs guest processors without hardware virtualization.
//!
//! The interpreter of [`x86`] executes the guest's instructions one after the other; vector and
//! x87 arithmetic runs on the host's processor in small stubs ([`native`]). Each processor runs
//! on the thread that calls its `run`; [`chips`] holds the interrupt controllers that they share.

mod chips;
mod clock;
mod code_memory;
mod env;
mod host_pages;
pub mod native;
pub mod ram;
mod statistics;
mod transcode;
mod vcpu;
mod zeroed;

use std::collections::HashSet;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use accel::{Accelerator, CpuidTable, Fault, Vcpu, Vm, VmResources, VmState};
use irqchip::IrqSink;
use mem::vm_memory::GuestMemoryBackend;
use x86::cpuid::{KVM_FEATURES, KVM_TIMING, PARAVIRTUAL_CLOCK};
use x86::state::Activity;
use x86::{Cpu, CpuState};

use chips::Chips;
use clock::Epoch;
use env::{Shared, SoftEnv};
use native::NativeUnit;
use ram::Ram;
use transcode::context::ContextCell;
use transcode::engine::{Transcoder, host_width};
use transcode::entry;
use transcode::lockstep::Lockstep;
pub use transcode::lockstep::{Tally, lockstep_tally};
use transcode::mirror::{self, Mirror};
pub use transcode::proof::refused_blocks;
use transcode::watch::Watch;
use vcpu::SoftVcpu;

/// How guest code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// One instruction after the other.
    Interpret,
    /// Code is translated once it was entered `after` times, where the host allows it.
    Transcode {
        /// 0 translates everything at once, which is for tests.
        after: u8,
        /// Each translation is checked before it runs; what the checker cannot follow is
        /// interpreted.
        check: bool,
    },
    /// For tests: as with [`Transcode`](Self::Transcode), but each block is executed by the interpreter,
    /// too, and what they do is compared. A difference ends the machine with an error. Machines of
    /// more than one processor, which see each other's stores at any time, are not compared.
    Lockstep {
        /// As above.
        after: u8,
        /// Each block is compared so many times at first, then once in so many times. 1 compares
        /// everything.
        sample: u32,
    },
}

impl Default for Execution {
    /// Most code of a booting system runs a few times only.
    fn default() -> Self {
        Self::Transcode { after: 16, check: false }
    }
}

/// The engine. It runs on every x86-64 host.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftAccelerator {
    /// How guest code is executed.
    pub execution: Execution,
}

/// What this host lets the engine do with code that runs often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Transcode it, and mirror the memory of the program that runs most.
    Mirrored,
    /// Transcode it, with a check for each access to memory.
    Transcoded,
    /// Interpret it like all other.
    Interpreted,
}

impl SoftAccelerator {
    /// Finds out what it has to know of this host. A process that confines itself does so before: later it
    /// may be refused.
    pub fn look_around() -> Pace {
        match (entry::is_possible(), mirror::is_possible()) {
            (true, true) => Pace::Mirrored,
            (true, false) => Pace::Transcoded,
            (false, _) => Pace::Interpreted,
        }
    }
}

/// How many processors a machine may have: xAPIC mode must be able to name them all.
pub const MAX_CPUS: u32 = 64;

impl Accelerator for SoftAccelerator {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn offered(&self, model: &CpuidTable) -> Result<CpuidTable, Fault> {
        let mut table = model.clone();
        if let Some(mut features) = table.get(KVM_FEATURES, 0) {
            features.eax &= PARAVIRTUAL_CLOCK;
            table.set(KVM_FEATURES, None, features);
        }
        // The TSC is the host's; what was measured of it earlier may stay.
        if let Some(mut timing) = table.get(KVM_TIMING, 0) {
            let khz = u32::try_from(runtime::tsc::frequency_hz() / 1000).unwrap_or(u32::MAX);
            if timing.eax.abs_diff(khz) > khz / 1000 {
                timing.eax = khz;
                table.set(KVM_TIMING, None, timing);
            }
        }
        Ok(table)
    }

    fn create_vm(&self, config: VmResources) -> Result<Arc<dyn Vm>, Fault> {
        if config.cpus == 0 || config.cpus > MAX_CPUS {
            return Err(Fault::Unsupported(format!(
                "{} processors: the software engine runs 1 to {MAX_CPUS}; choose another --cpus",
                config.cpus
            )));
        }
        if config.hyperv {
            return Err(Fault::Unsupported(
                "Lodge's own engine does not serve Hyper-V's enlightenments: leave out --hyperv \
                 (Windows does without), or choose --accel kvm where KVM runs guests"
                    .to_owned(),
            ));
        }
        let offered = self.offered(&config.cpuid)?;
        let host_tsc = runtime::tsc::read();
        let epoch =
            Epoch { host_tsc, ns: config.clock.now(), tsc_hz: runtime::tsc::frequency_hz() };
        // The guest's TSC starts near zero, as after RESET.
        let tsc_offset = host_tsc.wrapping_neg();
        let contexts = (0..config.cpus)
            .map(|_| ContextCell::new(host_width()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| Fault::Host {
                what: "cannot map memory for a processor's registers and tables".to_owned(),
                source,
                remedy: "free memory on the host, or raise its limit of descriptors".to_owned(),
            })?;
        let chips = Chips::wire(&contexts, config.clock.clone(), &config.timers, tsc_offset);
        let shared = Arc::new(Shared {
            ram: Ram::new(&config.memory),
            chips,
            epoch: Mutex::new(epoch),
            skipped: AtomicU64::new(0),
            watch: Watch::new(contexts.iter().cloned()),
            unknown_msrs: Mutex::new(HashSet::new()),
            _timers: config.timers,
        });
        let weak = Arc::downgrade(&shared);
        shared.ram.listen(move |gpa| {
            if let Some(shared) = weak.upgrade()
                && let Some(page) = shared.ram.page(gpa)
            {
                shared.watch.changed(page);
            }
        });
        // What is stored to a private mapping shows in no other, so that there can be no mirror.
        let is_shared = config.memory.iter().all(mem::is_shared);
        let vcpus = (0..config.cpus)
            .zip(contexts)
            .map(|(index, context)| {
                let cpuid = offered.for_processor(index, config.cpus);
                let processor_signature = cpuid.get(1, 0).unwrap_or_default().eax;
                let mut state = CpuState::reset(processor_signature);
                state.msrs.tsc_offset = tsc_offset;
                if index != 0 {
                    state.activity = Activity::WaitForSipi;
                }
                let no_code = |source| Fault::Host {
                    what: "cannot map memory for generated code".to_owned(),
                    source,
                    remedy: "allow the VMM to map executable memory".to_owned(),
                };
                let native = NativeUnit::new().map_err(no_code)?;
                let transcoder = match self.execution {
                    Execution::Interpret => None,
                    Execution::Transcode { after, check } => {
                        let mirror = match Mirroring::wanted(after) {
                            Mirroring::Never => None,
                            _ if index != 0 || !is_shared => None,
                            wanted => Mirror::new(context.clone(), wanted == Mirroring::Always),
                        };
                        Transcoder::new(context, after, check, None, mirror).map_err(no_code)?
                    }
                    Execution::Lockstep { after, sample } => {
                        let native = NativeUnit::new().map_err(no_code)?;
                        let lockstep = Lockstep::new(shared.clone(), cpuid.clone(), native, sample);
                        let lockstep = (config.cpus == 1).then_some(lockstep);
                        Transcoder::new(context, after, false, lockstep, None).map_err(no_code)?
                    }
                };
                let env = SoftEnv::new(shared.clone(), index as usize, cpuid, native, tsc_offset);
                let mut cpu = Cpu::new(state, env);
                if transcoder.is_some() {
                    cpu.keep_little_code();
                }
                Ok(Some(SoftVcpu { cpu, transcoder, processor_signature, skipped: 0 }))
            })
            .collect::<Result<Vec<_>, Fault>>()?;
        Ok(Arc::new(SoftVm { shared, vcpus: Mutex::new(vcpus), stopped: Mutex::default() }))
    }
}

/// Which guest programs' memory is mirrored (docs/engine.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mirroring {
    Never,
    /// Those that run much.
    Busy,
    /// Whatever runs: for tests.
    Always,
}

impl Mirroring {
    /// What the environment wants, or who translates code that was entered `after` times, as far as
    /// the host can do it.
    fn wanted(after: u8) -> Self {
        if !mirror::is_possible() {
            return Self::Never;
        }
        match std::env::var("LODGE_MIRROR").as_deref() {
            Ok("never") => Self::Never,
            Ok("always") => Self::Always,
            _ if after == 0 => Self::Always,
            _ => Self::Busy,
        }
    }
}

/// A virtual machine of this engine.
struct SoftVm {
    shared: Arc<Shared>,
    /// Those that were not yet taken.
    vcpus: Mutex<Vec<Option<SoftVcpu>>>,
    /// The host's TSC when time was stopped, while it is.
    stopped: Mutex<Option<u64>>,
}

impl Vm for SoftVm {
    fn irq_sink(&self) -> Arc<dyn IrqSink> {
        (*self.shared.chips).clone()
    }

    fn take_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, Fault> {
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        match vcpus.get_mut(index as usize).and_then(Option::take) {
            Some(vcpu) => Ok(Box::new(vcpu)),
            None => Err(Fault::Unsupported(format!("there is no processor {index} to take"))),
        }
    }

    fn save(&self) -> Result<VmState, Fault> {
        Ok(VmState { chips: self.shared.chips.save(), pv_epoch: self.shared.pv_epoch() })
    }

    fn restore(&self, state: &VmState) -> Result<(), Fault> {
        self.shared.chips.restore(&state.chips).map_err(|e| Fault::BadState(e.to_string()))?;
        self.shared.set_pv_epoch(state.pv_epoch);
        Ok(())
    }

    fn stop_time(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime::tsc::read());
    }

    fn resume_time(&self) {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(since) = stopped {
            self.shared.skip_time(runtime::tsc::read().wrapping_sub(since));
        }
    }
}
