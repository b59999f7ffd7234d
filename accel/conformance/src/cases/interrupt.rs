//! When interrupts and NMIs are taken (SDM Vol. 3, 6.7, 6.8), by IPIs of a processor to itself.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use irqchip::Msi;

use crate::apic::{Apic, reg};
use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::Guest;
use crate::layout::{DATA, STACK, sel};
use crate::start::Start::{Long, Prot32};
use crate::tables::access;

type Result = std::result::Result<(), IcedError>;

const VECTOR: u8 = 0x41;
const NMI: u8 = 2;

/// Requests an interrupt of this processor.
fn request(g: &mut Guest, vector: u8) -> Result {
    g.wrmsr(0x83f, vector.into())
}

fn prepare(g: &mut Guest) -> Result {
    Apic::X2.enable(g)?;
    g.resume(VECTOR);
    request(g, VECTOR)
}

/// The host sends an NMI to processor 0.
fn nmi_by_host(g: &mut Guest) {
    g.on_host_call(|host, _| host.irq.send_msi(Msi { address: 0xfee0_0000, data: 0x400 }));
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    enabling(&mut cases);
    halting(&mut cases);
    nmis(&mut cases);
    cases
}

fn enabling(cases: &mut Vec<Case>) {
    cases.push(case("interrupt: STI lets one more instruction pass", Long, |g| {
        prepare(g)?;
        g.a.sti()?;
        g.a.nop()?;
        g.mark("after")?;
        g.a.nop()?;
        g.want(fault(VECTOR).at("after").flags(0x200, 0x200));
        g.exit()
    }));
    cases.push(case("interrupt: CLI behind STI leaves no window", Long, |g| {
        prepare(g)?;
        g.a.sti()?;
        g.a.cli()?;
        g.a.nop()?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("interrupt: POPF has no shadow", Long, |g| {
        prepare(g)?;
        g.a.push(0x202)?;
        g.a.popfq()?;
        g.mark("after")?;
        g.a.nop()?;
        g.want(fault(VECTOR).at("after"));
        g.exit()
    }));
    cases.push(case("interrupt: IRET has no shadow", Long, |g| {
        prepare(g)?;
        let target = g.addr("target");
        g.iret_frame64(sel::KCODE64, target, 0x202, sel::KDATA, STACK)?;
        g.a.iretq()?;
        g.mark("target")?;
        g.a.nop()?;
        g.want(fault(VECTOR).at("target"));
        g.exit()
    }));
    cases.push(case("interrupt: STI with IF set has no shadow", Long, |g| {
        Apic::X2.enable(g)?;
        g.resume(VECTOR);
        g.a.sti()?;
        g.a.nop()?;
        request(g, VECTOR)?;
        g.mark("after")?;
        g.a.sti()?;
        g.a.nop()?;
        g.want(fault(VECTOR).at("after"));
        g.exit()
    }));
    cases.push(case("interrupt: MOV SS shields the next instruction", Long, |g| {
        // The interrupt becomes pending when CR8 is lowered, in the shadow's last instruction;
        // two instructions later all shadows are over. It is raised only then, because QEMU's AMD-V
        // ends itself at a store to CR8 while an interrupt waits for IF.
        g.a.mov(eax, 15)?;
        g.a.mov(cr8, rax)?;
        prepare(g)?;
        g.a.sti()?;
        g.a.xor(eax, eax)?;
        g.a.mov(ecx, u32::from(sel::KDATA))?;
        g.a.mov(ss, ecx)?;
        g.a.mov(cr8, rax)?;
        g.mark("after")?;
        g.a.nop()?;
        g.want(fault(VECTOR).at("after"));
        g.exit()
    }));
    cases.push(case("interrupt: CR8 that is lowered lets it in at once", Long, |g| {
        Apic::X2.enable(g)?;
        g.resume(VECTOR);
        g.a.mov(eax, 4)?;
        g.a.mov(cr8, rax)?;
        g.a.sti()?;
        request(g, VECTOR)?;
        g.out(1)?;
        g.a.mov(eax, 3)?;
        g.a.mov(cr8, rax)?;
        g.mark("after")?;
        g.out(2)?;
        g.want(out(1));
        g.want(fault(VECTOR).at("after"));
        g.want(out(2));
        g.exit()
    }));
    cases.push(case("interrupt: one that is delivered clears IF and TF", Long, |g| {
        g.gate(VECTOR, "handler", access::INTERRUPT_GATE, 0);
        Apic::X2.enable(g)?;
        g.a.sti()?;
        g.a.nop()?;
        request(g, VECTOR)?;
        g.a.nop()?;
        g.want(out(0));
        g.mark("handler")?;
        g.a.pushfq()?;
        g.a.pop(rax)?;
        g.a.and(eax, 0x4300)?;
        g.out_eax()?;
        g.exit()
    }));
    cases.push(case("interrupt: through a trap gate another one may follow", Long, |g| {
        g.gate(VECTOR, "handler", access::TRAP_GATE, 0);
        g.resume(0x61);
        Apic::X2.enable(g)?;
        g.a.sti()?;
        g.a.nop()?;
        request(g, VECTOR)?;
        g.a.nop()?;
        g.want(fault(0x61).at("inside"));
        g.mark("handler")?;
        request(g, 0x61)?;
        g.mark("inside")?;
        g.exit()
    }));
    cases.push(case("interrupt: in ring 3 the stack is switched", Long, |g| {
        Apic::X2.enable(g)?;
        g.resume(VECTOR);
        request(g, VECTOR)?;
        g.enter_user_with_flags(0x202)?;
        g.mark("user")?;
        g.out(1)?;
        let top = crate::layout::USER_STACK;
        g.want(fault(VECTOR).at("user").cs(sel::UCODE64).ss(sel::UDATA).rsp(top));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("interrupt: a loop without end is interrupted", Long, |g| {
        // The timer is one-shot; the handler leaves by the exit port.
        Apic::X2.enable(g)?;
        Apic::X2.write(g, reg::DIVIDE, 0xb)?;
        Apic::X2.write(g, reg::LVT_TIMER, VECTOR.into())?;
        Apic::X2.write(g, reg::INITIAL, 1_000_000)?;
        g.a.sti()?;
        g.a.nop()?;
        g.mark("loop")?;
        let again = g.addr("loop");
        g.a.jmp(again)?;
        g.want(fault(VECTOR).at("loop"));
        Ok(())
    }));
    cases.push(case("interrupt: REP is interrupted and goes on", Long, |g| {
        // 4 MiB, backwards, byte by byte: slow enough on any accelerator.
        g.gate(VECTOR, "handler", access::INTERRUPT_GATE, 0);
        let window = crate::layout::WINDOW;
        g.map_large(window, crate::layout::FRAMES, 2, 3);
        g.map_large(window + 0x20_0000, crate::layout::FRAMES + 0x20_0000, 2, 3);
        Apic::X2.enable(g)?;
        Apic::X2.write(g, reg::DIVIDE, 0xb)?;
        Apic::X2.write(g, reg::LVT_TIMER, u32::from(VECTOR) | 1 << 17)?;
        Apic::X2.write(g, reg::INITIAL, 300_000)?;
        g.a.sti()?;
        // Until an interrupt has come in the middle.
        g.mark("again")?;
        g.a.std()?;
        g.a.mov(edi, (window + 0x40_0000 - 1) as u32)?;
        g.a.mov(ecx, 0x40_0000)?;
        g.a.mov(al, 0x5a)?;
        g.mark("rep")?;
        g.a.rep().stosb()?;
        g.a.cld()?;
        let again = g.addr("again");
        g.a.cmp(dword_ptr(DATA), 0)?;
        g.a.je(again)?;
        g.a.mov(eax, ecx)?;
        g.out_eax()?;
        g.a.lea(eax, ptr(rdi + 1))?;
        g.out_eax()?;
        g.want(out(0));
        g.want(out(window as u32));
        let frames = crate::layout::FRAMES;
        g.want_memory(frames, 8, 0x5a5a_5a5a_5a5a_5a5a);
        g.want_memory(frames + 0x3f_fff8, 8, 0x5a5a_5a5a_5a5a_5a5a);
        g.exit()?;
        g.mark("handler")?;
        g.a.push(rax)?;
        g.a.push(rcx)?;
        g.a.push(rdx)?;
        // Interrupted before REP, and not before its first iteration.
        let rep = g.addr32("rep");
        let mut elsewhere = g.a.create_label();
        g.a.mov(eax, rep)?;
        g.a.cmp(qword_ptr(rsp + 24), rax)?;
        g.a.jne(elsewhere)?;
        g.a.cmp(ecx, 0x40_0000)?;
        g.a.je(elsewhere)?;
        g.a.mov(dword_ptr(DATA), 1)?;
        g.a.set_label(&mut elsewhere)?;
        Apic::X2.write(g, reg::EOI, 0)?;
        g.a.pop(rdx)?;
        g.a.pop(rcx)?;
        g.a.pop(rax)?;
        g.a.iretq()
    }));
}

fn halting(cases: &mut Vec<Case>) {
    cases.push(case("hlt: STI, HLT with an interrupt pending", Long, |g| {
        prepare(g)?;
        g.a.sti()?;
        g.a.hlt()?;
        g.mark("after")?;
        g.out(1)?;
        g.want(fault(VECTOR).at("after"));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("hlt: a message of a device wakes", Long, |g| {
        Apic::X2.enable(g)?;
        g.resume(VECTOR);
        g.on_host_call(|host, _| {
            let irq = host.irq.clone();
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(20));
                irq.send_msi(Msi { address: 0xfee0_0000, data: VECTOR.into() });
            });
        });
        g.host(0)?;
        g.a.sti()?;
        g.a.hlt()?;
        g.mark("after")?;
        g.out(1)?;
        g.want(fault(VECTOR).at("after"));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("hlt: an NMI wakes although IF is clear", Long, |g| {
        g.resume(NMI);
        g.on_host_call(|host, _| {
            let irq = host.irq.clone();
            std::thread::spawn(move || {
                // Longer than a busy host keeps the processor from its HLT.
                std::thread::sleep(std::time::Duration::from_secs(1));
                irq.send_msi(Msi { address: 0xfee0_0000, data: 0x400 });
            });
        });
        Apic::X2.enable(g)?;
        g.host(0)?;
        g.a.hlt()?;
        g.mark("after")?;
        g.out(1)?;
        g.want(fault(NMI).at("after"));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("hlt: the timer wakes again and again", Long, |g| {
        g.resume(VECTOR);
        Apic::X2.enable(g)?;
        Apic::X2.write(g, reg::DIVIDE, 0xb)?;
        Apic::X2.write(g, reg::LVT_TIMER, VECTOR.into())?;
        g.a.mov(esi, 3)?;
        g.mark("loop")?;
        g.a.cli()?;
        Apic::X2.write(g, reg::INITIAL, 500_000)?;
        g.a.sti()?;
        g.a.hlt()?;
        g.mark("woken")?;
        g.a.dec(esi)?;
        let again = g.addr("loop");
        g.a.jne(again)?;
        for _ in 0..3 {
            g.want(fault(VECTOR).at("woken"));
        }
        g.exit()
    }));
    cases.push(case("hlt: 32-bit code wakes by the register page's timer", Prot32, |g| {
        g.resume(VECTOR);
        Apic::X.enable(g)?;
        Apic::X.write(g, reg::DIVIDE, 0xb)?;
        Apic::X.write(g, reg::LVT_TIMER, VECTOR.into())?;
        Apic::X.write(g, reg::INITIAL, 500_000)?;
        g.a.sti()?;
        g.a.hlt()?;
        g.mark("after")?;
        g.out(1)?;
        g.want(fault(VECTOR).at("after"));
        g.want(out(1));
        g.exit()
    }));
}

fn nmis(cases: &mut Vec<Case>) {
    cases.push(case("nmi: taken although IF is clear", Long, |g| {
        nmi_by_host(g);
        g.resume(NMI);
        Apic::X2.enable(g)?;
        g.host(0)?;
        // It may come an instruction or two later.
        for _ in 0..100 {
            g.a.pause()?;
        }
        g.out(1)?;
        g.want(fault(NMI).flags(0x200, 0));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("nmi: blocked until IRET, and held meanwhile", Long, |g| {
        nmi_by_host(g);
        g.gate(NMI, "handler", access::INTERRUPT_GATE, 0);
        Apic::X2.enable(g)?;
        g.host(0)?;
        g.wait_for(DATA, 2)?;
        g.out(9)?;
        for value in [1, 2, 1, 2, 9] {
            g.want(out(value));
        }
        g.exit()?;
        g.mark("handler")?;
        g.out(1)?;
        // A second one within the first only.
        let mut no_more = g.a.create_label();
        g.a.inc(dword_ptr(DATA))?;
        g.a.cmp(dword_ptr(DATA), 1)?;
        g.a.jne(no_more)?;
        g.host(0)?;
        g.a.set_label(&mut no_more)?;
        for _ in 0..100 {
            g.a.pause()?;
        }
        g.out(2)?;
        g.a.iretq()
    }));
    cases.push(case("nmi: an exception within does not unblock, its IRET does", Long, |g| {
        nmi_by_host(g);
        g.gate(NMI, "handler", access::INTERRUPT_GATE, 0);
        g.resume(3);
        Apic::X2.enable(g)?;
        g.host(0)?;
        g.wait_for(DATA, 2)?;
        // The first is interrupted by the second once INT3's handler has returned.
        g.want(out(1));
        g.want(fault(3));
        g.want(out(1));
        g.want(out(2));
        g.want(out(2));
        g.exit()?;
        g.mark("handler")?;
        g.out(1)?;
        let mut no_more = g.a.create_label();
        g.a.inc(dword_ptr(DATA))?;
        g.a.cmp(dword_ptr(DATA), 1)?;
        g.a.jne(no_more)?;
        g.host(0)?;
        g.a.int3()?;
        g.a.set_label(&mut no_more)?;
        for _ in 0..100 {
            g.a.pause()?;
        }
        g.out(2)?;
        g.a.iretq()
    }));
}
