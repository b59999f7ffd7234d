//! The local APIC (SDM Vol. 3, chapter 11).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::vector::GP;

use crate::apic::{APIC_BASE, Apic, icr, reg, window};
use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::{Guest, TSC_DEADLINE, X2APIC};
use crate::layout::{self, DATA, eoi};
use crate::start::Start::Long;
use crate::tables::access;

type Result = std::result::Result<(), IcedError>;

const MASKED: u32 = 1 << 16;

/// The same case in both modes of the local APIC.
fn both(
    cases: &mut Vec<Case>,
    name: &str,
    build: impl Fn(&mut Guest, Apic) -> Result + Copy + Send + Sync + 'static,
) {
    for apic in [Apic::X, Apic::X2] {
        cases.push(case(format!("{}: {name}", apic.name()), Long, move |g| {
            apic.enable(g)?;
            build(g, apic)
        }));
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    registers(&mut cases);
    priorities(&mut cases);
    timers(&mut cases);
    modes(&mut cases);
    cases
}

fn registers(cases: &mut Vec<Case>) {
    both(cases, "identification", |g, apic| {
        apic.read(g, reg::ID)?;
        g.out_eax()?;
        apic.read(g, reg::VERSION)?;
        g.a.and(eax, 0xf0)?;
        g.out_eax()?;
        g.want(out(0));
        g.want(out(0x10));
        g.exit()
    });
    both(cases, "an IPI to itself by shorthand", |g, apic| {
        g.resume(0x41);
        apic.send(g, icr::SELF | 0x41, 0)?;
        window(g)?;
        g.want(fault(0x41));
        g.exit()
    });
    both(cases, "an IPI to itself by its ID", |g, apic| {
        g.resume(0x41);
        apic.send(g, icr::ASSERT | 0x41, 0)?;
        window(g)?;
        g.want(fault(0x41));
        g.exit()
    });
    both(cases, "an IPI to nobody", |g, apic| {
        g.resume(0x41);
        apic.send(g, icr::ASSERT | 0x41, 0x33)?;
        window(g)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    });
    both(cases, "requests that merge", |g, apic| {
        g.resume(0x41);
        for _ in 0..3 {
            apic.send(g, icr::SELF | 0x41, 0)?;
        }
        window(g)?;
        g.want(fault(0x41));
        g.exit()
    });
    both(cases, "IRR and ISR show requests", |g, apic| {
        g.gate(0x45, "handler", access::INTERRUPT_GATE, 0);
        apic.send(g, icr::SELF | 0x45, 0)?;
        apic.read(g, reg::IRR + 0x20)?;
        g.out_eax()?;
        g.want(out(1 << 5));
        window(g)?;
        g.want(out(0));
        g.want(out(1 << 5));
        g.want(out(0x40));
        g.want(out(0));
        g.mark("handler")?;
        apic.read(g, reg::IRR + 0x20)?;
        g.out_eax()?;
        apic.read(g, reg::ISR + 0x20)?;
        g.out_eax()?;
        apic.read(g, reg::PPR)?;
        g.a.and(eax, 0xf0)?;
        g.out_eax()?;
        apic.write(g, reg::EOI, 0)?;
        apic.read(g, reg::ISR + 0x20)?;
        g.out_eax()?;
        g.exit()
    });
    both(
        cases,
        "a local APIC that is disabled by software takes no fixed interrupts",
        |g, apic| {
            g.resume(0x41);
            apic.write(g, reg::SVR, 0xff)?;
            apic.send(g, icr::SELF | 0x41, 0)?;
            window(g)?;
            g.out(1)?;
            g.want(out(1));
            g.exit()
        },
    );
    both(cases, "an illegal vector is an error", |g, apic| {
        apic.write(g, reg::ESR, 0)?;
        apic.send(g, icr::SELF | 5, 0)?;
        apic.write(g, reg::ESR, 0)?;
        apic.read(g, reg::ESR)?;
        // Bit 5: send illegal vector.
        g.a.and(eax, 1 << 5)?;
        g.out_eax()?;
        g.want(out(1 << 5));
        g.exit()
    });
    both(cases, "an error interrupts", |g, apic| {
        g.resume(0x43);
        apic.write(g, reg::ESR, 0)?;
        apic.write(g, reg::LVT_ERROR, 0x43)?;
        apic.send(g, icr::SELF | 5, 0)?;
        window(g)?;
        g.want(fault(0x43));
        g.exit()
    });
}

fn priorities(cases: &mut Vec<Case>) {
    both(cases, "the highest vector comes first", |g, apic| {
        for vector in [0x41, 0x61, 0x51] {
            g.resume(vector);
            apic.send(g, icr::SELF | u32::from(vector), 0)?;
        }
        window(g)?;
        for vector in [0x61, 0x51, 0x41] {
            g.want(fault(vector));
        }
        g.exit()
    });
    both(cases, "TPR holds back its class and lower ones", |g, apic| {
        apic.write(g, reg::TPR, 0x50)?;
        for vector in [0x41, 0x5f, 0x60] {
            g.resume(vector);
            apic.send(g, icr::SELF | u32::from(vector), 0)?;
        }
        window(g)?;
        g.out(1)?;
        apic.write(g, reg::TPR, 0x40)?;
        window(g)?;
        g.out(2)?;
        apic.write(g, reg::TPR, 0)?;
        window(g)?;
        g.want(fault(0x60));
        g.want(out(1));
        g.want(fault(0x5f));
        g.want(out(2));
        g.want(fault(0x41));
        g.exit()
    });
    both(cases, "CR8 and TPR are one", |g, apic| {
        g.a.mov(eax, 5)?;
        g.a.mov(cr8, rax)?;
        apic.read(g, reg::TPR)?;
        g.out_eax()?;
        apic.write(g, reg::TPR, 0x93)?;
        g.a.mov(rax, cr8)?;
        g.out_eax()?;
        g.want(out(0x50));
        g.want(out(9));
        g.exit()
    });
    both(cases, "without EOI its class is held back, a higher one is not", |g, apic| {
        g.write64(layout::EOI, eoi::NONE);
        for vector in [0x41, 0x42, 0x51] {
            g.resume(vector);
        }
        apic.send(g, icr::SELF | 0x41, 0)?;
        window(g)?;
        apic.send(g, icr::SELF | 0x42, 0)?;
        window(g)?;
        g.out(1)?;
        apic.send(g, icr::SELF | 0x51, 0)?;
        window(g)?;
        // The end of 51H, then that of 41H.
        apic.write(g, reg::EOI, 0)?;
        window(g)?;
        g.out(2)?;
        apic.write(g, reg::EOI, 0)?;
        window(g)?;
        g.want(fault(0x41));
        g.want(out(1));
        g.want(fault(0x51));
        g.want(out(2));
        g.want(fault(0x42));
        g.exit()
    });
}

fn timers(cases: &mut Vec<Case>) {
    both(cases, "a one-shot timer fires once", |g, apic| {
        g.resume(0x40);
        apic.write(g, reg::DIVIDE, 0xb)?;
        apic.write(g, reg::LVT_TIMER, 0x40)?;
        apic.write(g, reg::INITIAL, 200_000)?;
        g.a.sti()?;
        g.a.hlt()?;
        g.a.cli()?;
        apic.read(g, reg::CURRENT)?;
        g.out_eax()?;
        g.want(fault(0x40));
        g.want(out(0));
        g.exit()
    });
    both(cases, "a periodic timer goes on", |g, apic| {
        g.gate(0x40, "handler", access::INTERRUPT_GATE, 0);
        apic.write(g, reg::DIVIDE, 0xb)?;
        apic.write(g, reg::LVT_TIMER, 0x40 | 1 << 17)?;
        apic.write(g, reg::INITIAL, 500_000)?;
        g.a.sti()?;
        g.mark("loop")?;
        g.a.hlt()?;
        g.a.cmp(dword_ptr(DATA), 4)?;
        let again = g.addr("loop");
        g.a.jb(again)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()?;
        g.mark("handler")?;
        g.a.inc(dword_ptr(DATA))?;
        apic.write(g, reg::EOI, 0)?;
        g.a.iretq()
    });
    both(cases, "the count runs down", |g, apic| {
        apic.write(g, reg::DIVIDE, 0xb)?;
        apic.write(g, reg::LVT_TIMER, MASKED | 0x40)?;
        apic.write(g, reg::INITIAL, u32::MAX)?;
        apic.read(g, reg::CURRENT)?;
        g.a.mov(ebx, eax)?;
        g.a.mov(esi, 5000)?;
        g.mark("loop")?;
        g.a.dec(esi)?;
        let again = g.addr("loop");
        g.a.jne(again)?;
        apic.read(g, reg::CURRENT)?;
        g.a.cmp(eax, ebx)?;
        g.a.setb(al)?;
        g.a.movzx(eax, al)?;
        g.out_eax()?;
        g.want(out(1));
        g.exit()
    });
    both(cases, "a masked timer does not interrupt", |g, apic| {
        g.resume(0x40);
        apic.write(g, reg::DIVIDE, 0xb)?;
        apic.write(g, reg::LVT_TIMER, MASKED | 0x40)?;
        apic.write(g, reg::INITIAL, 1000)?;
        g.mark("loop")?;
        apic.read(g, reg::CURRENT)?;
        g.a.test(eax, eax)?;
        let again = g.addr("loop");
        g.a.jne(again)?;
        window(g)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    });
    both(cases, "writing zero stops the timer", |g, apic| {
        g.resume(0x40);
        apic.write(g, reg::DIVIDE, 0xb)?;
        apic.write(g, reg::LVT_TIMER, 0x40 | 1 << 17)?;
        apic.write(g, reg::INITIAL, 1_000_000_000)?;
        apic.write(g, reg::INITIAL, 0)?;
        apic.read(g, reg::CURRENT)?;
        g.out_eax()?;
        g.want(out(0));
        g.exit()
    });
    both(cases, "a TSC deadline", |g, apic| {
        g.needs(&TSC_DEADLINE);
        g.resume(0x40);
        apic.write(g, reg::LVT_TIMER, 0x40 | 2 << 17)?;
        g.a.mfence()?;
        g.a.rdtsc()?;
        g.a.add(eax, 500_000)?;
        g.a.adc(edx, 0)?;
        g.a.mov(ecx, 0x6e0)?;
        g.a.wrmsr()?;
        g.a.sti()?;
        g.a.hlt()?;
        g.a.cli()?;
        g.rdmsr(0x6e0)?;
        g.out_eax()?;
        g.want(fault(0x40));
        g.want(out(0));
        g.exit()
    });
    both(cases, "a TSC deadline in the past", |g, apic| {
        g.needs(&TSC_DEADLINE);
        g.resume(0x40);
        apic.write(g, reg::LVT_TIMER, 0x40 | 2 << 17)?;
        g.a.mfence()?;
        g.wrmsr(0x6e0, 1)?;
        g.a.sti()?;
        g.a.hlt()?;
        g.want(fault(0x40));
        g.exit()
    });
    both(cases, "outside deadline mode the deadline is ignored", |g, apic| {
        g.needs(&TSC_DEADLINE);
        g.resume(0x40);
        apic.write(g, reg::LVT_TIMER, 0x40)?;
        g.wrmsr(0x6e0, 1)?;
        window(g)?;
        g.rdmsr(0x6e0)?;
        g.out_eax()?;
        g.want(out(0));
        g.exit()
    });
}

fn modes(cases: &mut Vec<Case>) {
    let mut refused = |name: &str, build: fn(&mut Guest) -> Result| {
        cases.push(case(format!("x2apic: {name} raises #GP"), Long, move |g| {
            Apic::X2.enable(g)?;
            g.want(fault(GP).code(0));
            build(g)?;
            g.exit()
        }));
    };
    refused("reading EOI", |g| g.rdmsr(0x80b));
    refused("reading the self-IPI register", |g| g.rdmsr(0x83f));
    refused("writing the ID", |g| g.wrmsr(0x802, 1));
    refused("writing the version", |g| g.wrmsr(0x803, 1));
    refused("writing LDR", |g| g.wrmsr(0x80d, 1));
    refused("writing IRR", |g| g.wrmsr(0x820, 1));
    refused("a register that does not exist", |g| g.rdmsr(0x80e));
    refused("DFR", |g| g.rdmsr(0x80e));
    refused("the upper half of the ICR as its own register", |g| g.rdmsr(0x831));
    refused("an EOI that is not zero", |g| g.wrmsr(0x80b, 1));
    refused("reserved bits of TPR", |g| g.wrmsr(0x808, 0x100));
    refused("reserved bits of an LVT entry", |g| g.wrmsr(0x832, 1 << 20));
    refused("going back to the register page at once", |g| {
        g.rdmsr(APIC_BASE)?;
        g.a.and(eax, !0x400)?;
        g.a.wrmsr()
    });
    cases.push(case("xapic: the register page can be moved", Long, |g| {
        g.wrmsr(APIC_BASE, 0xfed8_0900)?;
        g.a.mov(ecx, 0xfed8_0030u32)?;
        g.a.mov(eax, dword_ptr(rcx))?;
        g.a.and(eax, 0xf0)?;
        g.out_eax()?;
        // Nobody is where it was.
        g.a.mov(ecx, 0xfee0_0030u32)?;
        g.a.mov(eax, dword_ptr(rcx))?;
        g.out_eax()?;
        g.want(out(0x10));
        g.want(out(u32::MAX));
        g.exit()
    }));
    cases.push(case("x2apic: the register page is gone", Long, |g| {
        Apic::X2.enable(g)?;
        g.a.mov(ecx, 0xfee0_0030u32)?;
        g.a.mov(eax, dword_ptr(rcx))?;
        g.out_eax()?;
        g.want(out(u32::MAX));
        g.exit()
    }));
    cases.push(case("x2apic: its MSRs do not exist in xAPIC mode", Long, |g| {
        g.a.mov(ecx, 0x808)?;
        g.expect_fault("insn", "after", |a| a.rdmsr())?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("x2apic: not from a local APIC that is off", Long, |g| {
        g.needs(&X2APIC);
        g.rdmsr(APIC_BASE)?;
        g.a.and(eax, !0x800)?;
        g.a.wrmsr()?;
        g.a.or(eax, 0xc00)?;
        g.expect_fault("insn", "after", |a| a.wrmsr())?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("x2apic: the self-IPI register", Long, |g| {
        Apic::X2.enable(g)?;
        g.resume(0x41);
        g.wrmsr(0x83f, 0x41)?;
        window(g)?;
        g.want(fault(0x41));
        g.exit()
    }));
    cases.push(case("x2apic: the logical ID follows from the ID", Long, |g| {
        Apic::X2.enable(g)?;
        g.resume(0x41);
        g.rdmsr(0x80d)?;
        g.out_eax()?;
        g.want(out(1));
        Apic::X2.send(g, icr::LOGICAL | icr::ASSERT | 0x41, 1)?;
        window(g)?;
        g.want(fault(0x41));
        g.exit()
    }));
    cases.push(case("xapic: flat logical destinations", Long, |g| {
        Apic::X.enable(g)?;
        g.resume(0x41);
        g.resume(0x42);
        Apic::X.write(g, reg::DFR, u32::MAX)?;
        Apic::X.write(g, reg::LDR, 4 << 24)?;
        Apic::X.send(g, icr::LOGICAL | icr::ASSERT | 0x41, 4)?;
        Apic::X.send(g, icr::LOGICAL | icr::ASSERT | 0x42, 3)?;
        window(g)?;
        g.want(fault(0x41));
        g.exit()
    }));
}
