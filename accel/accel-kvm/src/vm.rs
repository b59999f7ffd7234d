//! A virtual machine of KVM's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use accel::{CpuidTable, Fault, PvEpoch, StoredPages, Vcpu, Vm, VmResources, VmState};
use irqchip::IrqSink;
use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_enable_cap, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use mem::GuestMemory;
use mem::vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use runtime::{Clock, Doorbells};

use crate::chips;
use crate::cpuid::{self, Supported};
use crate::doorbell::KvmDoorbells;
use crate::host::failed;
use crate::irq::{KvmIrqs, Routes};
use crate::state::{Abilities, KnownMsrs};
use crate::sys;
use crate::vcpu::KvmVcpu;

/// Four pages that KVM on Intel's processors needs for guests in real mode, and that no machine of
/// Lodge has RAM or devices at: between the I/O APIC and the local APICs.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;

/// A virtual machine.
pub struct KvmVm {
    shared: Arc<Shared>,
    /// Stores are noted.
    logs: Mutex<bool>,
    irqs: Arc<KvmIrqs>,
    doorbells: Option<Arc<KvmDoorbells>>,
    /// Those that were not yet taken.
    vcpus: Mutex<Vec<Option<KvmVcpu>>>,
}

/// What the machine's processors keep.
pub struct Shared {
    pub vm: Arc<VmFd>,
    /// KVM has its addresses.
    pub memory: GuestMemory,
    /// Guest time.
    pub clock: Arc<Clock>,
    /// What processor 0's TSC shows less the host's, as of when its state was last saved or restored.
    pub tsc_offset: AtomicU64,
}

impl KvmVm {
    /// Makes a machine of what `config` brings.
    pub fn create(kvm: &Kvm, config: &VmResources) -> Result<Self, Fault> {
        check_cpus(kvm, config.cpus)?;
        let vm = kvm.create_vm().map_err(|e| {
            let mut fault = failed("KVM makes no virtual machine", e);
            if let (Fault::Host { remedy, .. }, libc::EBUSY) = (&mut fault, e.errno()) {
                *remedy = "another hypervisor (VirtualBox, VMware) may hold the processor: stop \
                           it, or choose the accelerator \"soft\""
                    .to_owned();
            }
            fault
        })?;
        let vm = Arc::new(vm);
        vm.set_identity_map_address(IDENTITY_MAP)
            .and_then(|()| vm.set_tss_address(TSS))
            .map_err(|e| failed("KVM refuses the place of its own pages", e))?;
        if vm.check_extension_raw(sys::CAP_EXIT_ON_EMULATION_FAILURE.into()) > 0 {
            let mut cap =
                kvm_enable_cap { cap: sys::CAP_EXIT_ON_EMULATION_FAILURE, ..Default::default() };
            cap.args[0] = 1;
            vm.enable_cap(&cap).map_err(|e| failed("KVM refuses a capability that it has", e))?;
        }
        vm.create_irq_chip().map_err(|e| failed("KVM makes no interrupt controllers", e))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(|e| failed("KVM makes no timer (PIT)", e))?;
        let limit = usize::try_from(kvm.check_extension_int(Cap::IrqRouting)).unwrap_or(0);
        let routes = Routes::wire(vm.clone(), limit)?;
        let shared = Arc::new(Shared {
            vm: vm.clone(),
            memory: config.memory.clone(),
            clock: config.clock.clone(),
            tsc_offset: AtomicU64::new(0),
        });
        map_memory(&shared, 0)?;
        let doorbells =
            vm.check_extension(Cap::Ioeventfd).then(|| Arc::new(KvmDoorbells(vm.clone())));
        let vcpus = processors(kvm, &shared, config)?;
        Ok(Self {
            shared,
            logs: Mutex::new(false),
            irqs: Arc::new(KvmIrqs::new(routes)),
            doorbells,
            vcpus: Mutex::new(vcpus),
        })
    }
}

/// As many processors as xAPIC mode can name; see the software engine.
const MAX_CPUS: usize = 64;

fn check_cpus(kvm: &Kvm, cpus: u32) -> Result<(), Fault> {
    let most = kvm.get_max_vcpus().min(MAX_CPUS);
    if cpus == 0 || cpus as usize > most {
        return Err(Fault::Unsupported(format!(
            "{cpus} processors: this host's KVM runs 1 to {most} in one guest; choose another \
             --cpus"
        )));
    }
    Ok(())
}

/// Gives KVM the guest's memory, or changes the flags with which it has it.
fn map_memory(shared: &Shared, flags: u32) -> Result<(), Fault> {
    for (slot, region) in (0..).zip(shared.memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped as long as `shared`, which lives as long as the processors;
        // without one of them KVM uses no memory. Everything in this program treats it as memory
        // that others change at any time.
        unsafe { shared.vm.set_user_memory_region(slot) }
            .map_err(|e| failed("KVM refuses the guest's memory", e))?;
    }
    Ok(())
}

/// The processor that KVM offers to guests.
pub fn supported(kvm: &Kvm) -> Result<Supported, Fault> {
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| failed("KVM does not say which processor it offers", e))?;
    Ok(Supported::new(&supported, kvm.check_extension(Cap::TscDeadlineTimer)))
}

fn processors(
    kvm: &Kvm,
    shared: &Arc<Shared>,
    config: &VmResources,
) -> Result<Vec<Option<KvmVcpu>>, Fault> {
    let supported = supported(kvm)?;
    let scaling = kvm.check_extension(Cap::TscControl);
    let mut vcpus = Vec::new();
    let mut common: Option<(CpuidTable, Abilities)> = None;
    for index in 0..config.cpus {
        let fd = shared.vm.create_vcpu(index.into()).map_err(|e| {
            failed(format!("KVM makes no more than {index} processors for this guest"), e)
        })?;
        let tsc_khz = tune(&fd, &config.cpuid, scaling)?;
        let (table, abilities) = match &common {
            Some(known) => known,
            None => {
                let (table, refused) = supported.restrict(&config.cpuid, Some(tsc_khz));
                cpuid::say(&refused);
                let (components, xsave) = cpuid::components(&table);
                let abilities = Abilities {
                    sregs2: kvm.check_extension_raw(sys::CAP_SREGS2) > 0,
                    tsc_offset: kvm.check_extension_raw(sys::CAP_VCPU_ATTRIBUTES) > 0
                        && sys::tsc_offset(&fd).is_ok(),
                    blocks_interrupts: kvm.check_extension_raw(sys::CAP_SET_GUEST_DEBUG2) as u32
                        & kvm_bindings::KVM_GUESTDBG_BLOCKIRQ
                        != 0
                        && kvm.check_extension_raw(sys::CAP_SET_GUEST_DEBUG2) > 0,
                    components,
                    xsave,
                    msrs: KnownMsrs::of(&fd)?,
                };
                common.insert((table, abilities))
            }
        };
        let table = table.for_processor(index, config.cpus);
        vcpus.push(Some(KvmVcpu::new(fd, shared.clone(), index, table, abilities.clone())?));
    }
    Ok(vcpus)
}

/// Gives the guest's TSC the rate that CPUID tells, where KVM scales it; else CPUID will tell the
/// rate that it has, which is returned in kHz.
fn tune(vcpu: &kvm_ioctls::VcpuFd, model: &CpuidTable, scaling: bool) -> Result<u32, Fault> {
    let wanted = model.get(cpuid::KVM_TIMING, 0).unwrap_or_default().eax;
    let rate = || vcpu.get_tsc_khz().map_err(|e| failed("KVM does not say how fast the TSC is", e));
    let has = rate()?;
    // What was measured is never exact, and scaling by a hair makes every RDTSC dearer.
    let is_near = u64::from(has.abs_diff(wanted)) * 1_000_000 <= u64::from(has) * 250;
    if wanted == 0 || is_near || !scaling {
        return Ok(has);
    }
    if let Err(error) = vcpu.set_tsc_khz(wanted) {
        tracing::warn!("KVM does not scale the TSC from {has} to {wanted} kHz: {error}");
    }
    rate()
}

impl KvmVm {
    /// A moment in the paravirtual clock's time: now.
    fn pv_epoch(&self) -> Result<PvEpoch, Fault> {
        let clock = self.shared.vm.get_clock();
        let ns = clock.map_err(|e| failed("KVM does not say what its clock shows", e))?.clock;
        Ok(PvEpoch { tsc: self.guest_tsc(), ns })
    }

    /// Has the paravirtual clock go on from there.
    fn set_pv_epoch(&self, epoch: PvEpoch) -> Result<(), Fault> {
        // It may lie before or after.
        let ticks = i128::from(self.guest_tsc().wrapping_sub(epoch.tsc) as i64);
        let ns = ticks * 1_000_000_000 / i128::from(runtime::tsc::frequency_hz());
        let clock = epoch.ns.wrapping_add(ns as u64);
        let clock = kvm_clock_data { clock, ..Default::default() };
        self.shared.vm.set_clock(&clock).map_err(|e| failed("KVM does not set its clock", e))
    }

    /// Processor 0's.
    fn guest_tsc(&self) -> u64 {
        runtime::tsc::read().wrapping_add(self.shared.tsc_offset.load(Ordering::Relaxed))
    }
}

impl Vm for KvmVm {
    fn irq_sink(&self) -> Arc<dyn IrqSink> {
        self.irqs.clone()
    }

    fn doorbells(&self) -> Option<Arc<dyn Doorbells>> {
        self.doorbells.clone().map(|doorbells| doorbells as Arc<dyn Doorbells>)
    }

    fn save(&self) -> Result<VmState, Fault> {
        let now = self.shared.clock.now();
        Ok(VmState { chips: chips::save(&self.shared.vm, now)?, pv_epoch: self.pv_epoch()? })
    }

    fn restore(&self, state: &VmState) -> Result<(), Fault> {
        chips::restore(&self.shared.vm, &state.chips)?;
        self.set_pv_epoch(state.pv_epoch)
    }

    fn log_stores(&self, on: bool) -> Result<(), Fault> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        map_memory(&self.shared, if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })?;
        *logs = on;
        Ok(())
    }

    fn take_stores(&self) -> Result<Vec<StoredPages>, Fault> {
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if !*logs {
            return Err(Fault::Unsupported("it is not noted which pages are stored to".to_owned()));
        }
        let regions = (0..).zip(self.shared.memory.iter());
        regions
            .map(|(slot, region)| {
                let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
                let pages = self.shared.vm.get_dirty_log(slot, len);
                let pages = pages.map_err(|e| failed("KVM does not say what was stored to", e))?;
                Ok(StoredPages { start: region.start_addr().raw_value(), pages })
            })
            .collect()
    }

    fn take_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, Fault> {
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        match vcpus.get_mut(index as usize).and_then(Option::take) {
            Some(vcpu) => Ok(Box::new(vcpu)),
            None => Err(Fault::Unsupported(format!("there is no processor {index} to take"))),
        }
    }
}
