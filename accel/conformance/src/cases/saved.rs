//! A processor that is saved, and goes on in another machine: what hypervisors keep for a guest is
//! part of it.

use accel::{Accelerator, CpuidTable, Exit};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use mem::GuestAddress;
use mem::vm_memory::Bytes;

use super::bench::{Bench, Checked, equal};
use super::hyperv;
use crate::apic::{Apic, reg};
use crate::case::{Case, Lacks, check_where};
use crate::guest::{ASYNC_PF_INT, Feature, Guest, PV_EOI, STEAL_TIME, TSC_DEADLINE};
use crate::layout::{DATA, FRAMES, port};
use crate::start::Start::Long;

/// KVM's registers (Linux, Documentation/virt/kvm/x86/msr.rst), with what a guest sets them to.
const WALL_CLOCK: (u32, u64) = (0x4b56_4d00, DATA + 0x100);
const SYSTEM_TIME: (u32, u64) = (0x4b56_4d01, DATA + 0x141);
const STEAL: (u32, u64) = (0x4b56_4d03, STEAL_AREA | 1);
const EOI: (u32, u64) = (0x4b56_4d04, DATA + 0x201);
const ASYNC_PF_VECTOR: (u32, u64) = (0x4b56_4d06, 0x41);
const ASYNC_PF: (u32, u64) = (0x4b56_4d02, DATA + 0x280 + 9);
/// `kvm_steal_time`.
const STEAL_AREA: u64 = DATA + 0x180;
/// Its field `preempted`, and the value that has another processor leave a TLB flush to KVM.
const PREEMPTED: u64 = STEAL_AREA + 16;
/// Registers that any processor has.
const TSC_ADJUST: u32 = 0x3b;
const TSC_DEADLINE_MSR: u32 = 0x6e0;

/// Hyper-V's (Hypervisor Top Level Functional Specification), likewise.
const HYPERV: [(u32, u64); 9] = [
    (0x4000_0000, 0x8100_0000_0000_0000),
    (0x4000_0001, FRAMES | 1),
    (0x4000_0021, (FRAMES + 0x1000) | 1),
    (0x4000_0080, 1),
    (0x4000_0082, (FRAMES + 0x2000) | 1),
    (0x4000_0083, (FRAMES + 0x3000) | 1),
    (0x4000_0092, 0x52),
    // A timer that sends messages to synthetic interrupt 2, in some days.
    (0x4000_00b0, 2 << 16),
    (0x4000_00b1, 0x7fff_ffff_ffff),
];

/// Sets registers, ends a turn, and tells what is in them.
fn set_and_tell(g: &mut Guest, registers: &[(u32, u64)]) -> Result<(), IcedError> {
    for &(index, value) in registers {
        g.wrmsr(index, value)?;
    }
    g.a.out(u32::from(port::EXIT), al)?;
    for &(index, _) in registers {
        g.rdmsr(index)?;
        g.out_eax()?;
        g.a.mov(eax, edx)?;
        g.out_eax()?;
    }
    g.exit()
}

/// What is told then.
fn told(registers: &[(u32, u64)]) -> Vec<u32> {
    registers.iter().flat_map(|&(_, value)| [value as u32, (value >> 32) as u32]).collect()
}

/// The same guest as `from`, in a machine of its own, as it is now.
pub fn moved(from: &mut Bench, mut to: Bench) -> Checked<Bench> {
    let fault = |error: accel::Fault| error.to_string();
    from.clock.pause();
    from.vm.stop_time();
    let processor = from.vcpu.save().map_err(fault)?;
    let shared = from.vm.save().map_err(fault)?;
    let mut memory = vec![0; 0x1_0000];
    for at in [DATA, FRAMES] {
        from.guest.memory.read_slice(&mut memory, GuestAddress(at)).map_err(|e| e.to_string())?;
        to.guest.memory.write_slice(&memory, GuestAddress(at)).map_err(|e| e.to_string())?;
    }
    to.clock.pause();
    to.vm.stop_time();
    to.vcpu.restore(&processor).map_err(fault)?;
    to.vm.restore(&shared).map_err(fault)?;
    // What was taken over is what is there. The run time of Hyper-V's goes on.
    let mut again = to.vcpu.save().map_err(fault)?;
    const RUN_TIME: u32 = 0x4000_0010;
    if let Some(run_time) = again.hypervisor_msrs.get_mut(&RUN_TIME) {
        *run_time = processor.hypervisor_msrs.get(&RUN_TIME).copied().unwrap_or_default();
    }
    equal("hypervisors' registers", &processor.hypervisor_msrs, &again.hypervisor_msrs)?;
    equal("the paravirtual clock", processor.pv_clock, again.pv_clock)?;
    equal("TSC_ADJUST", processor.cpu.msrs.tsc_adjust, again.cpu.msrs.tsc_adjust)?;
    equal("the TSC's deadline", processor.lapic.timer, again.lapic.timer)?;
    to.vm.resume_time();
    to.clock.resume();
    Ok(to)
}

/// Which of KVM's registers the processors have.
fn offered(cpuid: &CpuidTable) -> Vec<(u32, u64)> {
    let features: [(&Feature, &[(u32, u64)]); 3] =
        [(&ASYNC_PF_INT, &[ASYNC_PF_VECTOR, ASYNC_PF]), (&STEAL_TIME, &[STEAL]), (&PV_EOI, &[EOI])];
    let mut registers = vec![WALL_CLOCK, SYSTEM_TIME];
    let has = |feature: &Feature| feature.is_in(cpuid);
    registers.extend(features.into_iter().filter(|(f, _)| has(f)).flat_map(|(_, list)| list));
    registers
}

fn lacks_steal_time(_: &dyn Accelerator, cpuid: &CpuidTable) -> Checked<Option<&'static str>> {
    Ok((!STEAL_TIME.is_in(cpuid)).then_some("steal time"))
}

fn lacks_deadline(_: &dyn Accelerator, cpuid: &CpuidTable) -> Checked<Option<&'static str>> {
    Ok((!TSC_DEADLINE.is_in(cpuid)).then_some("TSC-deadline"))
}

/// Ends a turn, and tells whether KVM still says that the processor was preempted.
fn tell_preempted(g: &mut Guest) -> Result<(), IcedError> {
    g.wrmsr(STEAL.0, STEAL.1)?;
    g.a.out(u32::from(port::EXIT), al)?;
    g.a.mov(ebx, PREEMPTED as u32)?;
    g.a.movzx(eax, byte_ptr(rbx))?;
    g.out_eax()?;
    g.exit()
}

const NOTHING: Lacks = |_, _| Ok(None);

pub fn cases() -> Vec<Case> {
    vec![
        check_where(NOTHING, "saved: paravirtual registers", |a, cpuid| {
            let registers = offered(cpuid);
            let bench = || {
                let registers = registers.clone();
                Bench::new(a, cpuid, Long, move |g| set_and_tell(g, &registers))
            };
            let mut first = bench()?;
            equal("the exit", Exit::Kicked, first.run()?)?;
            let mut second = moved(&mut first, bench()?)?;
            equal("the exit", Exit::Kicked, second.run()?)?;
            equal("what they are set to", told(&registers), second.outs())
        }),
        check_where(lacks_steal_time, "saved: a processor that was preempted", |a, cpuid| {
            let bench = || Bench::new(a, cpuid, Long, tell_preempted);
            let mut first = bench()?;
            equal("the exit", Exit::Kicked, first.run()?)?;
            // As if it had been when it was saved, with a flush of its TLB left to KVM.
            let preempted: u8 = 1 | 2;
            let place = GuestAddress(PREEMPTED);
            first.guest.memory.write_obj(preempted, place).map_err(|e| e.to_string())?;
            let mut second = moved(&mut first, bench()?)?;
            equal("the exit", Exit::Kicked, second.run()?)?;
            equal("what is said of it", vec![0], second.outs())
        }),
        check_where(
            NOTHING,
            "saved: the wall clock's place has something else by now",
            |a, cpuid| {
                let bench = || Bench::new(a, cpuid, Long, |g| set_and_tell(g, &[WALL_CLOCK]));
                let mut first = bench()?;
                equal("the exit", Exit::Kicked, first.run()?)?;
                let (value, place) = (0x1234_5678_9abc_def0u64, GuestAddress(WALL_CLOCK.1));
                first.guest.memory.write_obj(value, place).map_err(|e| e.to_string())?;
                let second = moved(&mut first, bench()?)?;
                equal("what is there", value, second.guest.read(WALL_CLOCK.1, 8))
            },
        ),
        check_where(lacks_deadline, "saved: a deadline and an adjusted TSC", |a, cpuid| {
            let bench = || {
                Bench::new(a, cpuid, Long, |g| {
                    Apic::X2.enable(g)?;
                    Apic::X2.write(g, reg::LVT_TIMER, 0x41 | 2 << 17)?;
                    g.a.mfence()?;
                    // In some days.
                    set_and_tell(g, &[(TSC_ADJUST, 0x1_0000), (TSC_DEADLINE_MSR, 1 << 52)])
                })
            };
            let mut first = bench()?;
            equal("the exit", Exit::Kicked, first.run()?)?;
            let mut second = moved(&mut first, bench()?)?;
            equal("the exit", Exit::Kicked, second.run()?)?;
            equal("what they are set to", vec![0x1_0000, 0, 0, 1 << 20], second.outs())
        }),
        check_where(hyperv::lacks, "saved: Hyper-V's registers", |a, cpuid| {
            let bench = || Bench::enlightened(a, cpuid, |g| set_and_tell(g, &HYPERV));
            let mut first = bench()?;
            equal("the exit", Exit::Kicked, first.run()?)?;
            let mut second = moved(&mut first, bench()?)?;
            equal("the exit", Exit::Kicked, second.run()?)?;
            equal("what they are set to", told(&HYPERV), second.outs())
        }),
        check_where(NOTHING, "saved: a PIT that counts", |a, cpuid| {
            let bench = || {
                Bench::new(a, cpuid, Long, |g| {
                    super::pause::start_pit(g)?;
                    g.a.out(u32::from(port::EXIT), al)?;
                    super::pause::wait_for_pit(g)?;
                    g.exit()
                })
            };
            let mut first = bench()?;
            equal("the exit", Exit::Kicked, first.run()?)?;
            let mut second = moved(&mut first, bench()?)?;
            equal("the exit", Exit::Kicked, second.run()?)
        }),
    ]
}
