//! A virtual machine of KVM's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use accel::{CpuidTable, Fault, PvEpoch, StoredPages, Vcpu, Vm, VmResources, VmState};
use irqchip::IrqSink;
use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_IOEVENTFD, KVM_CAP_IRQ_ROUTING, KVM_CAP_MCE,
    KVM_CAP_SET_GUEST_DEBUG2, KVM_CAP_SREGS2, KVM_CAP_TSC_CONTROL, KVM_CAP_VCPU_ATTRIBUTES,
    KVM_GUESTDBG_BLOCKIRQ, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::VmFd;
use runtime::{Clock, Doorbells};
use x86::cpuid::{KVM_TIMING, MACHINE_CHECK_BANKS};

use crate::chips;
use crate::cpuid;
use crate::doorbell::KvmDoorbells;
use crate::host::{Host, failed};
use crate::hyperv;
use crate::irq::{KvmIrqs, Routes};
use crate::scaling::Scaling;
use crate::state::{Abilities, KnownMsrs};
use crate::stores::StoreLog;
use crate::sys;
use crate::time::{self, GuestTime};
use crate::vcpu::KvmVcpu;

/// Four pages that KVM on Intel's processors needs for guests in real mode, and that no machine of
/// Lodge has RAM or devices at: between the I/O APIC and the local APICs.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;

/// A virtual machine.
pub struct KvmVm {
    shared: Arc<Shared>,
    irqs: Arc<KvmIrqs>,
    doorbells: Option<Arc<KvmDoorbells>>,
    time: GuestTime,
    /// The rate of the guest's TSC.
    tsc_khz: u32,
    scaling: Option<Scaling>,
    /// Those that were not yet taken.
    vcpus: Mutex<Vec<Option<KvmVcpu>>>,
}

/// What the machine's processors keep.
pub struct Shared {
    pub vm: Arc<VmFd>,
    /// The RAM, and what is noted of stores to it.
    pub stores: StoreLog,
    /// Guest time.
    pub clock: Arc<Clock>,
    /// What is added to the host's TSC to give processor 0's, as of when its state was last saved or
    /// restored.
    pub tsc_offset: AtomicU64,
    /// What the host's TSC showed when time was last stopped.
    pub stopped_at: AtomicU64,
}

impl KvmVm {
    /// Makes a machine of what `config` brings.
    pub fn create(host: &Host, config: &VmResources) -> Result<Self, Fault> {
        check_cpus(host, config.cpus)?;
        let vm = host.kvm.create_vm().map_err(|e| {
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
        if host.has(KVM_CAP_EXIT_ON_EMULATION_FAILURE) {
            let mut cap =
                kvm_enable_cap { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, ..Default::default() };
            cap.args[0] = 1;
            vm.enable_cap(&cap).map_err(|e| failed("KVM refuses a capability that it has", e))?;
        }
        vm.create_irq_chip().map_err(|e| failed("KVM makes no interrupt controllers", e))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(|e| failed("KVM makes no timer (PIT)", e))?;
        let routes = Routes::wire(vm.clone(), host.capability(KVM_CAP_IRQ_ROUTING))?;
        let stores = StoreLog::new(host, vm.clone(), config.memory.clone())?;
        let shared = Arc::new(Shared {
            vm: vm.clone(),
            stores,
            clock: config.clock.clone(),
            tsc_offset: AtomicU64::new(0),
            stopped_at: AtomicU64::new(0),
        });
        let doorbells = host.has(KVM_CAP_IOEVENTFD).then(|| Arc::new(KvmDoorbells(vm.clone())));
        let Processors { vcpus, time, tsc_khz, scaling } = processors(host, &shared, config)?;
        Ok(Self {
            shared,
            irqs: Arc::new(KvmIrqs::new(routes)),
            doorbells,
            time,
            tsc_khz,
            scaling,
            vcpus: Mutex::new(vcpus),
        })
    }
}

impl KvmVm {
    /// Takes a processor, if it is still there.
    pub fn take(&self, index: u32) -> Option<KvmVcpu> {
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.get_mut(index as usize).and_then(Option::take)
    }

    /// The RAM.
    #[cfg(test)]
    pub fn memory(&self) -> &mem::GuestMemory {
        self.shared.stores.memory()
    }
}

/// As many processors as xAPIC mode can name; see the software engine.
const MAX_CPUS: usize = 64;

fn check_cpus(host: &Host, cpus: u32) -> Result<(), Fault> {
    let most = host.kvm.get_max_vcpus().min(MAX_CPUS);
    if cpus == 0 || cpus as usize > most {
        return Err(Fault::Unsupported(format!(
            "{cpus} processors: this host's KVM runs 1 to {most} in one guest; choose another \
             --cpus"
        )));
    }
    Ok(())
}

/// A machine's processors.
struct Processors {
    vcpus: Vec<Option<KvmVcpu>>,
    time: GuestTime,
    /// The rate of their TSCs.
    tsc_khz: u32,
    /// It is not the host's.
    scaling: Option<Scaling>,
}

fn processors(
    host: &Host,
    shared: &Arc<Shared>,
    config: &VmResources,
) -> Result<Processors, Fault> {
    let supported = host.supported()?;
    let scaling = host.has(KVM_CAP_TSC_CONTROL);
    let mut vcpus = Vec::new();
    let mut handles = Vec::new();
    let mut common: Option<(CpuidTable, Abilities)> = None;
    let mut rate = Rate { khz: 0, scaling: None };
    for index in 0..config.cpus {
        let fd = shared.vm.create_vcpu(index.into()).map_err(|e| {
            failed(format!("KVM makes no more than {index} processors for this guest"), e)
        })?;
        let enlightenments = config.hyperv.then(|| hyperv::enlighten(host, &fd)).transpose()?;
        if host.has(KVM_CAP_MCE) {
            sys::set_machine_check_banks(&fd, MACHINE_CHECK_BANKS)
                .map_err(|e| failed("KVM refuses a processor's bank of machine checks", e))?;
        }
        shared.stores.add_processor(&fd)?;
        rate = tune(&fd, &config.cpuid, scaling)?;
        let (table, abilities) = match &common {
            Some(known) => known,
            None => {
                let (mut table, refused) = supported.restrict(&config.cpuid, Some(rate.khz));
                cpuid::say(&refused);
                if let Some(enlightenments) = &enlightenments {
                    hyperv::add(&mut table, enlightenments);
                }
                let (components, xsave) = cpuid::components(&table);
                let abilities = Abilities {
                    sregs2: host.has(KVM_CAP_SREGS2),
                    tsc_offset: host.has(KVM_CAP_VCPU_ATTRIBUTES) && sys::tsc_offset(&fd).is_ok(),
                    scaling: rate.scaling,
                    blocks_interrupts: host.capability(KVM_CAP_SET_GUEST_DEBUG2)
                        & KVM_GUESTDBG_BLOCKIRQ
                        != 0,
                    components,
                    xsave,
                    msrs: KnownMsrs::of(&fd)?,
                    arch_capabilities: cpuid::has_arch_capabilities(&table),
                    hyperv: config.hyperv,
                };
                common.insert((table, abilities))
            }
        };
        let table = table.for_processor(index, config.cpus);
        handles.push(time::second_handle(&shared.vm, &fd)?);
        vcpus.push(Some(KvmVcpu::new(fd, shared.clone(), index, table, abilities.clone())?));
    }
    let (_, abilities) =
        common.ok_or_else(|| Fault::Unsupported("a machine needs a processor".to_owned()))?;
    let time = GuestTime::new(shared.vm.clone(), handles, abilities);
    Ok(Processors { vcpus, time, tsc_khz: rate.khz, scaling: rate.scaling })
}

/// How fast a processor's TSC runs.
struct Rate {
    khz: u32,
    /// That is not the host's rate.
    scaling: Option<Scaling>,
}

/// Gives the guest's TSC the rate that CPUID tells, where KVM scales it; else CPUID will tell the
/// rate that it has.
fn tune(vcpu: &kvm_ioctls::VcpuFd, model: &CpuidTable, scaling: bool) -> Result<Rate, Fault> {
    let wanted = model.get(KVM_TIMING, 0).unwrap_or_default().eax;
    let rate = || vcpu.get_tsc_khz().map_err(|e| failed("KVM does not say how fast the TSC is", e));
    let has = rate()?;
    // What was measured is never exact, and scaling by a hair makes every RDTSC dearer.
    let is_near = u64::from(has.abs_diff(wanted)) * 1_000_000 <= u64::from(has) * 250;
    if wanted == 0 || is_near || !scaling {
        return Ok(Rate { khz: has, scaling: None });
    }
    if let Err(error) = vcpu.set_tsc_khz(wanted) {
        tracing::warn!("KVM does not scale the TSC from {has} to {wanted} kHz: {error}");
    }
    let khz = rate()?;
    let scaling = (khz != has).then_some(Scaling { guest_khz: khz, host_khz: has });
    Ok(Rate { khz, scaling })
}

impl KvmVm {
    /// A moment in the paravirtual clock's time: now.
    fn pv_epoch(&self) -> Result<PvEpoch, Fault> {
        let clock = self.shared.vm.get_clock();
        let ns = clock.map_err(|e| failed("KVM does not say what its clock shows", e))?.clock;
        Ok(PvEpoch { tsc: self.guest_tsc(runtime::tsc::read()), ns })
    }

    /// What the paravirtual clock shows, counted from `epoch`, when the host's TSC shows `host_tsc`.
    fn pv_clock(&self, epoch: PvEpoch, host_tsc: u64) -> u64 {
        // It may lie before or after.
        let ticks = i128::from(self.guest_tsc(host_tsc).wrapping_sub(epoch.tsc) as i64);
        // KVM's clock goes by the same rate, in kHz.
        let ns = ticks * 1_000_000 / i128::from(self.tsc_khz.max(1));
        epoch.ns.wrapping_add(ns as u64)
    }

    /// Processor 0's, when the host's shows `host_tsc`.
    fn guest_tsc(&self, host_tsc: u64) -> u64 {
        let ticks = self.scaling.map_or(host_tsc, |scaling| scaling.guest_ticks(host_tsc));
        ticks.wrapping_add(self.shared.tsc_offset.load(Ordering::Relaxed))
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
        let chips = chips::save(&self.shared.vm, self.time.pit().save(now)?)?;
        Ok(VmState { chips, pv_epoch: self.pv_epoch()? })
    }

    fn restore(&self, state: &VmState) -> Result<(), Fault> {
        self.time.pit().restore(&state.chips.pit)?;
        chips::restore(&self.shared.vm, &state.chips)?;
        self.time.restored(|host_tsc| self.pv_clock(state.pv_epoch, host_tsc))
    }

    fn log_stores(&self, on: bool) -> Result<(), Fault> {
        self.shared.stores.switch(on)
    }

    fn take_stores(&self) -> Result<Vec<StoredPages>, Fault> {
        self.shared.stores.take()
    }

    fn tsc_hz(&self) -> u64 {
        match self.scaling {
            Some(scaling) => u64::from(scaling.guest_khz) * 1000,
            None => runtime::tsc::frequency_hz(),
        }
    }

    fn stop_time(&self) {
        self.shared.stopped_at.store(self.time.stop(), Ordering::Relaxed);
    }

    fn resume_time(&self) {
        self.time.resume();
    }

    fn take_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, Fault> {
        match self.take(index) {
            Some(vcpu) => Ok(Box::new(vcpu)),
            None => Err(Fault::Unsupported(format!("there is no processor {index} to take"))),
        }
    }
}
