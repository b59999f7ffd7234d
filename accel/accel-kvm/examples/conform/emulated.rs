//! KVM on an AMD processor that QEMU emulates.
//!
//! QEMU (7.2, `target/i386/tcg/seg_helper.c`) keeps the task register as it is before LTR sets the
//! busy bit, relies on that when it looks for an inner stack or at the I/O permission bitmap, and
//! ends itself where it finds a busy one. A processor does not care (AMD APM Vol. 2, 15.5.1), and
//! KVM hands on what it is given. So what is given here is not busy.

use std::sync::Arc;

use accel::{
    Accelerator, CpuBus, CpuState, DebugControl, Exit, Fault, Kicker, Sections, Statistics,
    StoredPages, Vcpu, VcpuState, Vm, VmResources, VmState,
};
use accel_kvm::KvmAccelerator;
use irqchip::IrqSink;
use x86::state::SegmentAttributes;

/// The busy bit of a task-state segment's type.
const BUSY: u32 = 2;

/// KVM, but for the task register.
pub struct Emulated(pub KvmAccelerator);

struct EmulatedVm(Arc<dyn Vm>);

struct EmulatedVcpu(Box<dyn Vcpu>);

impl Accelerator for Emulated {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn create_vm(&self, config: VmResources) -> Result<Arc<dyn Vm>, Fault> {
        Ok(Arc::new(EmulatedVm(self.0.create_vm(config)?)))
    }
}

impl Vm for EmulatedVm {
    fn irq_sink(&self) -> Arc<dyn IrqSink> {
        self.0.irq_sink()
    }

    fn log_stores(&self, on: bool) -> Result<(), Fault> {
        self.0.log_stores(on)
    }

    fn take_stores(&self) -> Result<Vec<StoredPages>, Fault> {
        self.0.take_stores()
    }

    fn save(&self) -> Result<VmState, Fault> {
        self.0.save()
    }

    fn restore(&self, state: &VmState) -> Result<(), Fault> {
        self.0.restore(state)
    }

    fn stop_time(&self) {
        self.0.stop_time();
    }

    fn resume_time(&self) {
        self.0.resume_time();
    }

    fn take_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, Fault> {
        let mut vcpu = EmulatedVcpu(self.0.take_vcpu(index)?);
        // After RESET it is busy, too.
        vcpu.load(Sections::SYSTEM)?;
        vcpu.store(Sections::SYSTEM)?;
        Ok(Box::new(vcpu))
    }
}

impl Vcpu for EmulatedVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<Exit, Fault> {
        self.0.run(bus)
    }

    fn kicker(&self) -> Kicker {
        self.0.kicker()
    }

    fn load(&mut self, want: Sections) -> Result<&mut CpuState, Fault> {
        self.0.load(want)
    }

    fn store(&mut self, changed: Sections) -> Result<(), Fault> {
        if changed.contains(Sections::SYSTEM) {
            // Nothing is loaded anew: this would undo what was changed.
            let state = self.0.load(Sections::empty())?;
            let SegmentAttributes(attributes) = state.tr.attributes;
            state.tr.attributes = SegmentAttributes(attributes & !BUSY);
        }
        self.0.store(changed)
    }

    fn save(&mut self) -> Result<VcpuState, Fault> {
        self.0.save()
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Fault> {
        self.0.restore(state)?;
        self.load(Sections::SYSTEM)?;
        self.store(Sections::SYSTEM)
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), Fault> {
        self.0.set_debug(control)
    }

    fn pass_int3(&mut self) -> Result<(), Fault> {
        self.0.pass_int3()
    }

    fn statistics(&self) -> Statistics {
        self.0.statistics()
    }
}
