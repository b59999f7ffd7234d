//! Hyper-V's enlightenments, where an accelerator serves them (Microsoft, Hypervisor Top Level
//! Functional Specification).

use accel::{Accelerator, CpuidTable, Exit, Fault};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::bench::{Bench, Checked, equal};
use crate::case::{Case, check_where};
use crate::guest::Guest;
use crate::layout::{CODE, DATA, FRAMES};
use crate::runner;
use crate::start::Start::Long;

const GUEST_OS_ID: u32 = 0x4000_0000;
const HYPERCALL: u32 = 0x4000_0001;
const VP_INDEX: u32 = 0x4000_0002;
const TIME_REF_COUNT: u32 = 0x4000_0020;
const REFERENCE_TSC: u32 = 0x4000_0021;

/// Why the accelerator is not asked.
pub fn lacks(accelerator: &dyn Accelerator, cpuid: &CpuidTable) -> Checked<Option<&'static str>> {
    let memory = Bench::new(accelerator, cpuid, Long, |g| g.exit())?.guest.memory.clone();
    let mut resources = runner::resources(cpuid, memory, 1)?;
    resources.hyperv = true;
    match accelerator.create_vm(resources) {
        Ok(_) => Ok(None),
        Err(Fault::Unsupported(why)) if why.contains("--hyperv") => Ok(Some("enlightenments")),
        Err(other) => Err(other.to_string()),
    }
}

/// Says what CPUID tells in EAX to EDX.
fn say_cpuid(g: &mut Guest, leaf: u32) -> Result<(), IcedError> {
    g.a.mov(eax, leaf)?;
    g.a.xor(ecx, ecx)?;
    g.a.cpuid()?;
    g.out_eax()?;
    for register in [ebx, ecx, edx] {
        g.a.mov(eax, register)?;
        g.out_eax()?;
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    vec![
        check_where(lacks, "hyperv: CPUID declares it, and KVM above it", |a, cpuid| {
            let mut bench = Bench::enlightened(a, cpuid, |g| {
                say_cpuid(g, 0x4000_0000)?;
                say_cpuid(g, 0x4000_0001)?;
                say_cpuid(g, 0x4000_0100)?;
                g.exit()
            })?;
            equal("the exit", Exit::Kicked, bench.run()?)?;
            let outs = bench.outs();
            let text = |at: usize, count: usize| {
                let words = outs.get(at..at + count).unwrap_or_default();
                words.iter().flat_map(|w| w.to_le_bytes()).map(char::from).collect::<String>()
            };
            equal("the vendor", "Microsoft Hv", &text(1, 3))?;
            equal("the interface", "Hv#1", &text(4, 1))?;
            equal("the other vendor", "KVMKVMKVM\0\0\0", &text(9, 3))?;
            let last = outs.first().copied().unwrap_or_default();
            if !(0x4000_0005..0x4000_0100).contains(&last) {
                return Err(format!("the last leaf is {last:#x}"));
            }
            Ok(())
        }),
        check_where(lacks, "hyperv: hypercalls by the page of code for them", |a, cpuid| {
            let mut bench = Bench::enlightened(a, cpuid, |g| {
                // A page of code that the hypervisor writes.
                g.map(FRAMES, FRAMES, 3);
                g.wrmsr(GUEST_OS_ID, 0x8100_0000_0000_0000)?;
                g.wrmsr(HYPERCALL, FRAMES | 1)?;
                // There is none of this number.
                g.a.mov(ecx, 0x3fff)?;
                g.a.xor(edx, edx)?;
                g.a.mov(r8, rdx)?;
                g.a.mov(eax, FRAMES as u32)?;
                g.a.call(rax)?;
                g.a.and(eax, 0xffff)?;
                g.out_eax()?;
                g.exit()
            })?;
            equal("the exit", Exit::Kicked, bench.run()?)?;
            equal("HV_STATUS_INVALID_HYPERCALL_CODE", vec![2], bench.outs())
        }),
        check_where(lacks, "hyperv: time goes on in units of 100 ns", |a, cpuid| {
            let mut bench = Bench::enlightened(a, cpuid, |g| {
                g.wrmsr(GUEST_OS_ID, 0x8100_0000_0000_0000)?;
                g.wrmsr(REFERENCE_TSC, FRAMES | 1)?;
                g.rdmsr(VP_INDEX)?;
                g.out_eax()?;
                g.a.mov(ebx, DATA as u32)?;
                for at in [0, 8] {
                    g.rdmsr(TIME_REF_COUNT)?;
                    g.a.mov(dword_ptr(rbx + at), eax)?;
                    g.a.mov(dword_ptr(rbx + at + 4), edx)?;
                }
                g.exit()
            })?;
            let begun = std::time::Instant::now();
            equal("the exit", Exit::Kicked, bench.run()?)?;
            let most = begun.elapsed().as_nanos() / 100;
            equal("the processor's index", vec![0], bench.outs())?;
            let (earlier, later) = (bench.guest.read(DATA, 8), bench.guest.read(DATA + 8, 8));
            match later.checked_sub(earlier) {
                // A hundredth for rates that were measured.
                Some(passed) if u128::from(passed) <= most + most / 100 => Ok(()),
                _ => Err(format!("it was {earlier}, then {later}, with {most} in between")),
            }
        }),
        check_where(lacks, "hyperv: what is not declared is not there", |a, cpuid| {
            // The MSR that resets the machine; a guest that was refused it goes on.
            let mut bench = Bench::enlightened(a, cpuid, |g| {
                g.expect_fault("reset", "after", |a| {
                    a.mov(ecx, 0x4000_0003)?;
                    a.mov(eax, 1)?;
                    a.xor(edx, edx)?;
                    a.wrmsr()
                })?;
                g.out(7)?;
                g.exit()
            })?;
            match bench.run()? {
                Exit::Kicked => equal("the outputs", vec![7], bench.outs()),
                // Before Linux 5.14 KVM serves it all the same.
                Exit::TripleFault => Ok(()),
                other => Err(format!("the exit is {other:?}")),
            }
        }),
        check_where(lacks, "hyperv: it is not there unasked", |a, cpuid| {
            let mut bench = Bench::new(a, cpuid, Long, |g| {
                say_cpuid(g, 0x4000_0000)?;
                g.exit()
            })?;
            equal("the exit", Exit::Kicked, bench.run()?)?;
            let vendor = bench.outs().get(1).copied();
            equal("the vendor", Some(u32::from_le_bytes(*b"KVMK")), vendor)?;
            equal("CODE", true, bench.state()?.rip >= CODE)
        }),
    ]
}
