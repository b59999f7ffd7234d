//! Runs guest processors by the kernel's KVM, where hardware virtualization is to be had.
//!
//! Interrupt controllers, the PIT and the paravirtual clock are KVM's own. What KVM gives up on, an
//! instruction here and there, the interpreter of [`x86`] completes (`assist`).

mod apic_page;
mod assist;
mod chips;
mod cpuid;
mod debug;
mod doorbell;
mod host;
mod hyperv;
mod irq;
mod kick;
mod pit;
mod probe;
mod ring;
mod run_page;
mod scaling;
mod state;
mod statistics;
mod stores;
mod sys;
mod time;
mod vcpu;
mod vm;

use std::path::Path;
use std::sync::Arc;

use accel::{Accelerator, CpuidTable, Fault, Vm, VmResources};
use host::Host;
pub use host::Obstacle;
pub use probe::{Speed, hardware};

/// The kernel's KVM.
pub struct KvmAccelerator {
    host: Host,
}

impl KvmAccelerator {
    /// Opens /dev/kvm and makes sure that it has what is needed.
    ///
    /// # Errors
    ///
    /// If there is none, if it may not be opened, or if it is too old.
    pub fn open() -> Result<Self, Obstacle> {
        Self::open_at(Path::new("/dev/kvm"))
    }

    /// The same with another path.
    ///
    /// # Errors
    ///
    /// As with [`open`](Self::open).
    pub fn open_at(path: &Path) -> Result<Self, Obstacle> {
        Ok(Self { host: Host::new(host::open(path)?) })
    }

    /// The same KVM as if it lacked one of its capabilities (`KVM_CAP_*`): for tests of what is done
    /// where it does.
    #[must_use]
    pub fn without(mut self, capability: u32) -> Self {
        self.host.without.push(capability);
        self
    }

    /// Whether it serves Hyper-V's enlightenments.
    pub fn serves_hyperv(&self) -> bool {
        self.host.has(kvm_bindings::KVM_CAP_HYPERV_CPUID)
    }

    /// Measures how fast a guest's kernel would run, by a guest of a few instructions.
    ///
    /// # Errors
    ///
    /// If KVM makes no virtual machine, or cannot run this one.
    pub fn measure(&self) -> Result<Speed, Fault> {
        probe::measure(&self.host.kvm)
    }
}

impl Accelerator for KvmAccelerator {
    fn name(&self) -> &'static str {
        "kvm"
    }

    /// What guests do without is logged.
    fn offered(&self, model: &CpuidTable) -> Result<CpuidTable, Fault> {
        let (table, refused) = self.host.supported()?.restrict(model, None);
        cpuid::say(&refused);
        Ok(table)
    }

    fn scales_tsc(&self) -> bool {
        self.host.scales_tsc()
    }

    fn create_vm(&self, config: VmResources) -> Result<Arc<dyn Vm>, Fault> {
        Ok(Arc::new(vm::KvmVm::create(&self.host, &config)?))
    }
}
