//! Runs guest processors by the kernel's KVM, where hardware virtualization is to be had.
//!
//! Interrupt controllers, the PIT and the paravirtual clock are KVM's own. What KVM gives up on, an
//! instruction here and there, the interpreter of [`x86`] completes (`assist`).

mod assist;
mod cpuid;
mod doorbell;
mod host;
mod irq;
mod kick;
mod state;
mod statistics;
mod sys;
mod vcpu;
mod vm;

use std::path::Path;
use std::sync::Arc;

use accel::{Accelerator, Fault, Vm, VmResources};
use kvm_ioctls::Kvm;

/// The kernel's KVM.
pub struct KvmAccelerator {
    kvm: Kvm,
}

impl KvmAccelerator {
    /// Opens /dev/kvm and makes sure that it has what is needed.
    ///
    /// # Errors
    ///
    /// [`Fault::Host`] if there is none, if it may not be opened, or if it is too old.
    pub fn open() -> Result<Self, Fault> {
        Self::open_at(Path::new("/dev/kvm"))
    }

    /// The same with another path.
    ///
    /// # Errors
    ///
    /// As with [`open`](Self::open).
    pub fn open_at(path: &Path) -> Result<Self, Fault> {
        Ok(Self { kvm: host::open(path)? })
    }
}

impl Accelerator for KvmAccelerator {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn create_vm(&self, config: VmResources) -> Result<Arc<dyn Vm>, Fault> {
        Ok(Arc::new(vm::KvmVm::create(&self.kvm, &config)?))
    }
}
