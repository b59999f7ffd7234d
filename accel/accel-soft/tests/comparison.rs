//! That a difference between two accelerators is found, and told with what came out on both.

use std::sync::Arc;

use accel::{
    Accelerator, CpuBus, CpuState, CpuidTable, DebugControl, Exit, Fault, Kicker, Sections,
    Statistics, Vcpu, Vm, VmResources,
};
use accel_soft::SoftAccelerator;
use conformance::Verdict;
use irqchip::IrqSink;
use x86::cpuid::{CpuidResult, Model, build};
use x86::state::gpr;

/// The software engine, whose processors hand out one bit of RBX wrongly when the machine looks at
/// them, and say one bit too many when they write to a port.
struct Wrong(SoftAccelerator);

struct WrongVm(Arc<dyn Vm>);

struct WrongVcpu(Box<dyn Vcpu>);

struct WrongBus<'a>(&'a dyn CpuBus);

/// What is wrong.
const BIT: u64 = 1 << 20;

impl Accelerator for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }

    fn create_vm(&self, config: VmResources) -> Result<Arc<dyn Vm>, Fault> {
        Ok(Arc::new(WrongVm(self.0.create_vm(config)?)))
    }
}

impl Vm for WrongVm {
    fn irq_sink(&self) -> Arc<dyn IrqSink> {
        self.0.irq_sink()
    }

    fn take_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, Fault> {
        Ok(Box::new(WrongVcpu(self.0.take_vcpu(index)?)))
    }

    fn stop_time(&self) {
        self.0.stop_time();
    }

    fn resume_time(&self) {
        self.0.resume_time();
    }
}

impl Vcpu for WrongVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Result<Exit, Fault> {
        self.0.run(&WrongBus(bus))
    }

    fn kicker(&self) -> Kicker {
        self.0.kicker()
    }

    fn load(&mut self, want: Sections) -> Result<&mut CpuState, Fault> {
        let state = self.0.load(want)?;
        state.gpr[gpr::RBX] |= BIT;
        Ok(state)
    }

    fn store(&mut self, changed: Sections) -> Result<(), Fault> {
        self.0.store(changed)
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

impl CpuBus for WrongBus<'_> {
    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        self.0.mmio_read(addr, data);
    }

    fn mmio_write(&self, addr: u64, data: &[u8]) {
        self.0.mmio_write(addr, data);
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.0.port_read(port, data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        let mut data = data.to_vec();
        if let [_, _, third, _] = &mut data[..] {
            *third |= (BIT >> 16) as u8;
        }
        self.0.port_write(port, &data);
    }
}

fn cpuid() -> CpuidTable {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    build(Model::Host, host, runtime::tsc::frequency_hz()).expect("every host can be itself")
}

fn compare(subject: &dyn Accelerator, reference: &dyn Accelerator, name: &str) -> Verdict {
    let case = conformance::all_cases().into_iter().find(|case| case.name == name);
    conformance::compare(subject, reference, &cpuid(), &case.expect("there is such a case"))
}

#[test]
fn both_outcomes_are_told() {
    let (wrong, right) = (Wrong(SoftAccelerator::default()), SoftAccelerator::default());
    let Verdict::Failed(detail) =
        compare(&wrong, &right, "iret 64-bit: to the same level takes SS:RSP")
    else {
        panic!("the difference was not found")
    };
    let (ours, other) = detail.split_once('\n').expect("a line for each of them");
    assert!(ours.starts_with("wrong: expected [") && ours.contains(" got ["), "{ours}");
    let rbx = format!("rbx={BIT:#x} ");
    assert!(ours.contains("ended at 0x") && ours.contains(&rbx), "{ours}");
    assert!(other.trim().starts_with("soft: as expected, ["), "{other}");
    assert!(other.contains("ended at 0x") && !other.contains(&rbx), "{other}");
}

#[test]
fn a_reference_that_fails_says_how() {
    let (wrong, right) = (Wrong(SoftAccelerator::default()), SoftAccelerator::default());
    let mut cases = conformance::impossible_cases().into_iter();
    let verdict = conformance::compare(&wrong, &right, &cpuid(), &cases.next().unwrap());
    let Verdict::Failed(detail) = verdict else { panic!("what is impossible passed") };
    assert_eq!(detail.matches("expected ").count(), 2, "{detail}");
}

#[test]
fn equals_are_no_difference() {
    let soft = SoftAccelerator::default();
    assert_eq!(
        compare(&soft, &soft, "iret 64-bit: to the same level takes SS:RSP"),
        Verdict::Passed
    );
}
