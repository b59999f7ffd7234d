//! The interrupt controllers and the timer of the board: I/O APIC, messages, 8259A, 8254.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use irqchip::Msi;

use crate::apic::{Apic, read_ioapic, redirect, reg, window};
use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::Guest;
use crate::layout::{self, DATA, eoi};
use crate::start::Start::{Long, Real};
use crate::tables::access;

type Result = std::result::Result<(), IcedError>;

const MASKED: u32 = 1 << 16;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    ioapic(&mut cases);
    legacy(&mut cases);
    cases
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
pub fn init_pic(g: &mut Guest, open: u16) -> Result {
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
