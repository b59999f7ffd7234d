//! The local APIC and the machine's other interrupt controllers (SDM Vol. 3, chapter 11; 82093AA;
//! 8259A; 8254).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use irqchip::Msi;
use x86::vector::GP;

use crate::apic::{APIC_BASE, Apic, icr, read_ioapic, redirect, reg};
use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::{Guest, TSC_DEADLINE, X2APIC};
use crate::layout::{self, DATA, eoi};
use crate::start::Start::{Long, Real};
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

/// Interrupts come in here, one instruction long.
fn window(g: &mut Guest) -> Result {
    g.a.sti()?;
    g.a.nop()?;
    g.a.nop()?;
    g.a.cli()
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    registers(&mut cases);
    priorities(&mut cases);
    timers(&mut cases);
    modes(&mut cases);
    ioapic(&mut cases);
    legacy(&mut cases);
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

const PIN: u32 = 20;

fn lines(g: &mut Guest) {
    // Bit 0: the level of the pin.
    g.on_host_call(|host, level| host.irq.set_gsi(PIN, level != 0));
}

fn ioapic(cases: &mut Vec<Case>) {
    cases.push(case("ioapic: identification and size", Long, |g| {
        read_ioapic(g, 1)?;
        g.a.shr(eax, 16)?;
        g.a.and(eax, 0xff)?;
        g.out_eax()?;
        g.want(out(23));
        g.exit()
    }));
    cases.push(case("ioapic: pins are masked at first", Long, |g| {
        read_ioapic(g, 0x10 + PIN * 2)?;
        g.a.and(eax, MASKED as i32)?;
        g.out_eax()?;
        g.want(out(MASKED));
        g.exit()
    }));
    cases.push(case("ioapic: an edge interrupts once", Long, |g| {
        lines(g);
        Apic::X2.enable(g)?;
        g.resume(0x41);
        redirect(g, PIN, 0x41, 0)?;
        g.host(1)?;
        window(g)?;
        window(g)?;
        g.out(1)?;
        g.host(0)?;
        window(g)?;
        g.host(1)?;
        window(g)?;
        g.want(fault(0x41));
        g.want(out(1));
        g.want(fault(0x41));
        g.exit()
    }));
    cases.push(case("ioapic: a masked pin does not interrupt", Long, |g| {
        lines(g);
        Apic::X2.enable(g)?;
        g.resume(0x41);
        redirect(g, PIN, MASKED | 0x41, 0)?;
        g.host(1)?;
        window(g)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    for apic in [Apic::X, Apic::X2] {
        cases.push(case(
            format!("ioapic: a level interrupts until it is taken back ({})", apic.name()),
            Long,
            move |g| {
                lines(g);
                apic.enable(g)?;
                g.gate(0x41, "handler", access::INTERRUPT_GATE, 0);
                redirect(g, PIN, 1 << 15 | 0x41, 0)?;
                g.host(1)?;
                g.a.sti()?;
                g.wait_for(DATA, 3)?;
                g.a.cli()?;
                // Nothing is left.
                window(g)?;
                read_ioapic(g, 0x10 + PIN * 2)?;
                g.out_eax()?;
                for _ in 0..3 {
                    // Remote IRR.
                    g.want(out(1 << 14));
                }
                g.want(out(1 << 15 | 0x41));
                g.exit()?;
                g.mark("handler")?;
                g.a.push(rax)?;
                g.a.push(rcx)?;
                g.a.push(rdx)?;
                read_ioapic(g, 0x10 + PIN * 2)?;
                g.a.and(eax, 1 << 14)?;
                g.out_eax()?;
                g.a.inc(dword_ptr(DATA))?;
                g.a.cmp(dword_ptr(DATA), 3)?;
                let mut more = g.a.create_label();
                g.a.jne(more)?;
                g.host(0)?;
                g.a.set_label(&mut more)?;
                apic.write(g, reg::EOI, 0)?;
                g.a.pop(rdx)?;
                g.a.pop(rcx)?;
                g.a.pop(rax)?;
                g.a.iretq()
            },
        ));
    }
    cases.push(case("ioapic: an NMI by a pin", Long, |g| {
        lines(g);
        Apic::X2.enable(g)?;
        g.resume(2);
        redirect(g, PIN, 4 << 8, 0)?;
        g.host(1)?;
        for _ in 0..100 {
            g.a.pause()?;
        }
        g.out(1)?;
        g.want(fault(2));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("msi: a message interrupts", Long, |g| {
        g.on_host_call(|host, vector| {
            host.irq.send_msi(Msi { address: 0xfee0_0000, data: vector });
        });
        Apic::X2.enable(g)?;
        g.resume(0x44);
        g.host(0x44)?;
        window(g)?;
        g.want(fault(0x44));
        g.exit()
    }));
    cases.push(case("msi: a message to nobody is lost", Long, |g| {
        g.on_host_call(|host, vector| {
            host.irq.send_msi(Msi { address: 0xfee7_7000, data: vector });
        });
        Apic::X2.enable(g)?;
        g.resume(0x44);
        g.host(0x44)?;
        window(g)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
}

/// Initializes the 8259 pair: vectors from 30H and 38H, all but `open` masked.
fn init_pic(g: &mut Guest, open: u16) -> Result {
    for (port, value) in [
        (0x20u32, 0x11u32),
        (0x21, 0x30),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, 0x38),
        (0xa1, 2),
        (0xa1, 1),
        (0x21, u32::from(!open) & 0xff),
        (0xa1, u32::from(!open) >> 8 & 0xff),
    ] {
        g.a.mov(eax, value)?;
        g.a.out(port, al)?;
    }
    Ok(())
}

/// Passes the 8259 pair's output to the processor.
fn virtual_wire(g: &mut Guest) -> Result {
    Apic::X.enable(g)?;
    g.write64(layout::EOI, eoi::PIC);
    Apic::X.write(g, reg::LVT_LINT0, 7 << 8)
}

fn irq_lines(g: &mut Guest) {
    // Low byte: the line; bit 8: its level.
    g.on_host_call(|host, value| host.irq.set_gsi(value & 0xff, value & 0x100 != 0));
}

fn legacy(cases: &mut Vec<Case>) {
    for (irq, vector) in [(1u32, 0x31u8), (5, 0x35), (8, 0x38), (12, 0x3c)] {
        cases.push(case(format!("pic: IRQ {irq} through ExtINT"), Long, move |g| {
            irq_lines(g);
            virtual_wire(g)?;
            init_pic(g, 1 << irq | 4)?;
            g.resume(vector);
            for _ in 0..2 {
                g.host(0x100 | irq)?;
                window(g)?;
                g.host(irq)?;
                g.want(fault(vector));
            }
            window(g)?;
            g.exit()
        }));
    }
    cases.push(case("pic: priorities, and EOI for the next one", Long, |g| {
        irq_lines(g);
        virtual_wire(g)?;
        init_pic(g, 0xffff)?;
        for vector in [0x31, 0x35, 0x3a] {
            g.resume(vector);
        }
        for irq in [5u32, 10, 1] {
            g.host(0x100 | irq)?;
        }
        window(g)?;
        for vector in [0x31, 0x3a, 0x35] {
            g.want(fault(vector));
        }
        g.exit()
    }));
    cases.push(case("pic: a masked line waits", Long, |g| {
        irq_lines(g);
        virtual_wire(g)?;
        init_pic(g, 0)?;
        g.resume(0x31);
        g.host(0x101)?;
        window(g)?;
        g.out(1)?;
        g.a.mov(al, !2)?;
        g.a.out(0x21, al)?;
        window(g)?;
        g.want(out(1));
        g.want(fault(0x31));
        g.exit()
    }));
    cases.push(case("pic: LINT0 that is masked passes nothing", Long, |g| {
        irq_lines(g);
        virtual_wire(g)?;
        Apic::X.write(g, reg::LVT_LINT0, MASKED | 7 << 8)?;
        init_pic(g, 2)?;
        g.resume(0x31);
        g.host(0x101)?;
        window(g)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("pic: ExtINT minds neither TPR nor ISR", Long, |g| {
        irq_lines(g);
        virtual_wire(g)?;
        Apic::X.write(g, reg::TPR, 0xff)?;
        init_pic(g, 2)?;
        g.resume(0x31);
        g.host(0x101)?;
        window(g)?;
        g.want(fault(0x31));
        g.exit()
    }));
    cases.push(case("pic: real mode", Real, |g| {
        irq_lines(g);
        g.write64(layout::EOI, eoi::PIC);
        init_pic(g, 2)?;
        g.resume(0x31);
        g.host(0x101)?;
        g.a.sti()?;
        g.a.nop()?;
        g.mark("after")?;
        g.a.nop()?;
        g.want(fault(0x31).at("after"));
        g.exit()
    }));
    for (name, mode, count) in [("periodic", 0x34u32, 4u32), ("one-shot", 0x30, 1)] {
        cases.push(case(format!("pit: {name} interrupts on IRQ 0"), Long, move |g| {
            virtual_wire(g)?;
            init_pic(g, 1)?;
            g.gate(0x30, "handler", access::INTERRUPT_GATE, 0);
            g.a.mov(eax, mode)?;
            g.a.out(0x43, al)?;
            // A millisecond.
            g.a.mov(eax, 1193)?;
            g.a.out(0x40, al)?;
            g.a.mov(al, ah)?;
            g.a.out(0x40, al)?;
            g.a.sti()?;
            g.mark("loop")?;
            g.a.hlt()?;
            g.a.cmp(dword_ptr(DATA), count as i32)?;
            let again = g.addr("loop");
            g.a.jb(again)?;
            g.out(1)?;
            g.want(out(1));
            g.exit()?;
            g.mark("handler")?;
            g.a.inc(dword_ptr(DATA))?;
            g.a.mov(al, 0x20)?;
            g.a.out(0x20, al)?;
            g.a.iretq()
        }));
    }
    cases.push(case("pit: through pin 2 of the I/O APIC", Long, |g| {
        Apic::X2.enable(g)?;
        init_pic(g, 0)?;
        g.gate(0x41, "handler", access::INTERRUPT_GATE, 0);
        redirect(g, 2, 0x41, 0)?;
        g.a.mov(al, 0x34)?;
        g.a.out(0x43, al)?;
        g.a.mov(eax, 1193)?;
        g.a.out(0x40, al)?;
        g.a.mov(al, ah)?;
        g.a.out(0x40, al)?;
        g.a.sti()?;
        g.mark("loop")?;
        g.a.hlt()?;
        g.a.cmp(dword_ptr(DATA), 3)?;
        let again = g.addr("loop");
        g.a.jb(again)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()?;
        g.mark("handler")?;
        g.a.inc(dword_ptr(DATA))?;
        Apic::X2.write(g, reg::EOI, 0)?;
        g.a.iretq()
    }));
    cases.push(case("pit: channel 2 by port 61H", Long, |g| {
        // Gate on, mode 0, a millisecond: bit 5 is the output.
        g.a.mov(al, 1)?;
        g.a.out(0x61, al)?;
        g.a.mov(al, 0xb0u32)?;
        g.a.out(0x43, al)?;
        g.a.mov(eax, 1193)?;
        g.a.out(0x42, al)?;
        g.a.mov(al, ah)?;
        g.a.out(0x42, al)?;
        g.mark("loop")?;
        g.a.in_(al, 0x61)?;
        g.a.test(al, 0x20)?;
        let again = g.addr("loop");
        g.a.je(again)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
}
