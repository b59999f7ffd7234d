//! KVM's paravirtual features, as far as an accelerator declares them (Linux,
//! Documentation/virt/kvm/x86/cpuid.rst, msr.rst and hypercalls.rst). The clock has cases of its own.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::apic::{Apic, icr, reg, window};
use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::{AMD, ASYNC_PF_INT, Guest, PV_EOI, PV_SEND_IPI, STEAL_TIME};
use crate::layout::DATA;
use crate::start::Start::Long;
use crate::tables::access;

type Result = std::result::Result<(), IcedError>;

const ASYNC_PF_EN: u32 = 0x4b56_4d02;
const STEAL: u32 = 0x4b56_4d03;
const EOI_EN: u32 = 0x4b56_4d04;
const ASYNC_PF_VECTOR: u32 = 0x4b56_4d06;
const VECTOR: u8 = 0x41;

/// Writes an MSR; that raises #GP.
fn refuses(g: &mut Guest, msr: u32, value: u64, names: [&'static str; 2]) -> Result {
    g.a.mov(ecx, msr)?;
    g.a.mov(eax, value as u32)?;
    g.a.xor(edx, edx)?;
    g.expect_fault(names[0], names[1], |a| a.wrmsr())?;
    g.want(fault(13).code(0).at(names[0]));
    Ok(())
}

pub fn cases() -> Vec<Case> {
    vec![
        case("paravirtual: the end of an interrupt in memory", Long, |g| {
            g.needs(&PV_EOI);
            Apic::X2.enable(g)?;
            g.gate(VECTOR, "handler", access::INTERRUPT_GATE, 0);
            g.wrmsr(EOI_EN, DATA | 1)?;
            for round in 1..=3 {
                Apic::X2.send(g, u32::from(VECTOR) | icr::SELF | icr::ASSERT, 0)?;
                // It wakes the processor, however late it comes.
                g.a.sti()?;
                g.a.hlt()?;
                g.a.cli()?;
                g.out(round)?;
                // The interrupt is over.
                Apic::X2.read(g, reg::ISR + u32::from(VECTOR) / 32 * 0x10)?;
                g.out_eax()?;
                g.want(out(0x41));
                g.want(out(round));
                g.want(out(0));
            }
            g.wrmsr(EOI_EN, 0)?;
            g.exit()?;
            g.mark("handler")?;
            g.out(0x41)?;
            // The hypervisor may have said that a flag in memory is enough.
            let over = g.addr("over");
            g.a.mov(ebx, DATA as u32)?;
            g.a.btr(dword_ptr(rbx), 0)?;
            g.a.jc(over)?;
            Apic::X2.write(g, reg::EOI, 0)?;
            g.mark("over")?;
            g.a.iretq()
        }),
        case("paravirtual: stolen time is told by a version that is even", Long, |g| {
            g.needs(&STEAL_TIME);
            g.wrmsr(STEAL, DATA | 1)?;
            // KVM writes it when it enters the guest.
            g.out(1)?;
            g.a.mov(ebx, DATA as u32)?;
            g.a.mov(eax, dword_ptr(rbx + 8))?;
            g.a.and(eax, 1)?;
            g.out_eax()?;
            g.a.mov(eax, dword_ptr(rbx + 8))?;
            g.a.shr(eax, 1)?;
            g.a.neg(eax)?;
            g.a.sbb(eax, eax)?;
            g.out_eax()?;
            g.rdmsr(STEAL)?;
            g.out_eax()?;
            for value in [1, 0, u32::MAX, DATA as u32 | 1] {
                g.want(out(value));
            }
            g.wrmsr(STEAL, 0)?;
            g.exit()
        }),
        case("paravirtual: a place for stolen time that cannot be", Long, |g| {
            g.needs(&STEAL_TIME);
            refuses(g, STEAL, DATA | 3, ["steal", "after"])?;
            g.exit()
        }),
        case("paravirtual: asynchronous page faults by an interrupt", Long, |g| {
            const ENABLED: u64 = 1;
            const BY_INTERRUPT: u64 = 8;
            g.needs(&ASYNC_PF_INT);
            g.wrmsr(ASYNC_PF_VECTOR, VECTOR.into())?;
            g.wrmsr(ASYNC_PF_EN, DATA | ENABLED | BY_INTERRUPT)?;
            g.rdmsr(ASYNC_PF_EN)?;
            g.out_eax()?;
            g.want(out((DATA | ENABLED | BY_INTERRUPT) as u32));
            g.wrmsr(ASYNC_PF_EN, 0)?;
            refuses(g, ASYNC_PF_EN, DATA | 0x30, ["reserved", "after"])?;
            g.exit()
        }),
        case("paravirtual: an interrupt by hypercall", Long, |g| {
            const SEND_IPI: u32 = 10;
            g.needs(&PV_SEND_IPI);
            Apic::X2.enable(g)?;
            g.resume(VECTOR);
            let is_amd = g.has(&AMD);
            // To processor 0, which is bit 0 of those from 0 on.
            g.a.mov(eax, SEND_IPI)?;
            g.a.mov(ebx, 1)?;
            g.a.xor(ecx, ecx)?;
            g.a.xor(edx, edx)?;
            g.a.mov(esi, u32::from(VECTOR))?;
            if is_amd {
                g.a.vmmcall()?
            } else {
                g.a.vmcall()?
            };
            g.out_eax()?;
            window(g)?;
            g.want(out(1));
            g.want(fault(VECTOR));
            g.exit()
        }),
    ]
}
