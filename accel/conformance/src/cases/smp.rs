//! Two processors: start, messages, atomics, code and translations that the other one changes
//! (SDM Vol. 3, chapter 8 and 4.10.5).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::vector::UD;

use crate::apic::{Apic, icr, reg};
use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::{CX16, Guest};
use crate::layout::{AP_CODE, DATA, FRAMES, ROM, WINDOW, eoi};
use crate::start::Start::{Long, Real};
use crate::tables::access;
use crate::tables::pte::{P, W};

type Result = std::result::Result<(), IcedError>;

/// 64-bit code of processor 1.
const AP: u64 = 0x1_8000;
/// The AP has come up, and other flags.
const READY: u64 = DATA + 0x100;
const GO: u64 = DATA + 0x140;
const DONE: u64 = DATA + 0x180;
/// What they work on.
const SHARED: u64 = DATA + 0x200;

fn set(g: &mut Guest, at: u64, value: u32) -> Result {
    g.a.mov(dword_ptr(at), value)
}

/// Both processors run `work`; the first one then ends the case.
fn together(
    cases: &mut Vec<Case>,
    name: &str,
    work: impl Fn(&mut Guest) -> Result + Copy + Send + Sync + 'static,
    check: impl Fn(&mut Guest) + Copy + Send + Sync + 'static,
) {
    cases.push(case(format!("smp: {name}"), Long, move |g| {
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(READY, 1)?;
        set(g, GO, 1)?;
        work(g)?;
        g.wait_for(DONE, 1)?;
        check(g);
        g.exit()?;
        g.ap_long(AP)?;
        set(g, READY, 1)?;
        g.wait_for(GO, 1)?;
        work(g)?;
        set(g, DONE, 1)?;
        g.park()
    }));
}

const ROUNDS: u32 = 30_000;
/// How often a locked access crosses a cache line: each stops all processors of the host, and many hosts
/// make whoever does it wait for a while.
const SPLIT_ROUNDS: u32 = 300;

/// `body`, [`ROUNDS`] times, counted in ESI.
fn rounds(g: &mut Guest, body: impl Fn(&mut CodeAssembler) -> Result) -> Result {
    times(g, ROUNDS, body)
}

/// `body`, `count` times, counted in ESI.
fn times(g: &mut Guest, count: u32, body: impl Fn(&mut CodeAssembler) -> Result) -> Result {
    g.a.mov(esi, count)?;
    let mut again = g.a.create_label();
    g.a.set_label(&mut again)?;
    g.a.zero_bytes()?;
    body(&mut g.a)?;
    g.a.dec(esi)?;
    g.a.jne(again)
}

fn want_twice(g: &mut Guest) {
    g.want_memory(SHARED, 4, u64::from(ROUNDS) * 2);
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    atomics(&mut cases);
    start(&mut cases);
    messages(&mut cases);
    coherence(&mut cases);
    cases
}

fn atomics(cases: &mut Vec<Case>) {
    together(cases, "LOCK INC", |g| rounds(g, |a| a.lock().inc(dword_ptr(SHARED))), want_twice);
    together(
        cases,
        "LOCK ADD across a cache line",
        |g| times(g, SPLIT_ROUNDS, |a| a.lock().add(dword_ptr(SHARED + 0x3e), 1)),
        |g| g.want_memory(SHARED + 0x3e, 4, u64::from(SPLIT_ROUNDS) * 2),
    );
    together(
        cases,
        "LOCK XADD",
        |g| {
            rounds(g, |a| {
                a.mov(eax, 1)?;
                a.lock().xadd(dword_ptr(SHARED), eax)
            })
        },
        want_twice,
    );
    together(
        cases,
        "XCHG as a lock",
        |g| {
            rounds(g, |a| {
                let mut again = a.create_label();
                let mut mine = a.create_label();
                a.set_label(&mut again)?;
                a.mov(eax, 1)?;
                a.xchg(dword_ptr(SHARED + 0x40), eax)?;
                a.test(eax, eax)?;
                a.je(mine)?;
                a.pause()?;
                a.jmp(again)?;
                a.set_label(&mut mine)?;
                // Not atomic: the lock must hold.
                a.mov(eax, dword_ptr(SHARED))?;
                a.add(eax, 1)?;
                a.mov(dword_ptr(SHARED), eax)?;
                a.mov(dword_ptr(SHARED + 0x40), 0)
            })
        },
        want_twice,
    );
    together(
        cases,
        "LOCK BTS as a lock",
        |g| {
            rounds(g, |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.pause()?;
                a.lock().bts(dword_ptr(SHARED + 0x40), 5)?;
                a.jb(again)?;
                a.inc(dword_ptr(SHARED))?;
                a.lock().btr(dword_ptr(SHARED + 0x40), 5)
            })
        },
        want_twice,
    );
    together(
        cases,
        "LOCK CMPXCHG",
        |g| {
            rounds(g, |a| {
                let mut again = a.create_label();
                a.mov(eax, dword_ptr(SHARED))?;
                a.set_label(&mut again)?;
                a.lea(ecx, ptr(rax + 1))?;
                a.lock().cmpxchg(dword_ptr(SHARED), ecx)?;
                a.jne(again)
            })
        },
        want_twice,
    );
    together(
        cases,
        "LOCK CMPXCHG8B",
        |g| {
            rounds(g, |a| {
                let mut again = a.create_label();
                a.mov(eax, dword_ptr(SHARED))?;
                a.mov(edx, dword_ptr(SHARED + 4))?;
                a.set_label(&mut again)?;
                a.lea(ebx, ptr(rax + 1))?;
                a.lea(ecx, ptr(rdx + 2))?;
                a.lock().cmpxchg8b(qword_ptr(SHARED))?;
                a.jne(again)
            })
        },
        |g| {
            want_twice(g);
            g.want_memory(SHARED + 4, 4, u64::from(ROUNDS) * 4);
        },
    );
    together(
        cases,
        "LOCK CMPXCHG16B",
        |g| {
            g.needs(&CX16);
            rounds(g, |a| {
                let mut again = a.create_label();
                a.mov(rax, qword_ptr(SHARED))?;
                a.mov(rdx, qword_ptr(SHARED + 8))?;
                a.set_label(&mut again)?;
                a.lea(rbx, ptr(rax + 1))?;
                a.lea(rcx, ptr(rdx + 2))?;
                a.lock().cmpxchg16b(xmmword_ptr(SHARED))?;
                a.jne(again)
            })
        },
        |g| {
            want_twice(g);
            g.want_memory(SHARED + 8, 4, u64::from(ROUNDS) * 4);
        },
    );
    together(
        cases,
        "aligned stores are not torn",
        |g| {
            // One of them stores zeroes, the other ones: whoever loads sees all or nothing.
            g.a.mov(rdi, rsp)?;
            g.a.shr(edi, 16)?;
            g.a.and(edi, 4)?;
            g.a.sete(dil)?;
            g.a.movzx(edi, dil)?;
            g.a.neg(rdi)?;
            rounds(g, |a| {
                let mut fine = a.create_label();
                a.mov(qword_ptr(SHARED), rdi)?;
                a.mov(rax, qword_ptr(SHARED))?;
                a.inc(rax)?;
                a.cmp(rax, 1)?;
                a.jbe(fine)?;
                a.ud2()?;
                a.set_label(&mut fine)?;
                a.zero_bytes()
            })
        },
        |_| (),
    );
}

fn start(cases: &mut Vec<Case>) {
    for apic in [Apic::X, Apic::X2] {
        cases.push(case(
            format!("smp: INIT and SIPI start a processor ({})", apic.name()),
            Long,
            move |g| {
                apic.enable(g)?;
                g.start_ap(apic)?;
                g.cpus = 2;
                g.want(out(AP_CODE as u32 >> 4));
                g.want(out(0));
                g.want(out(0));
                g.wait_for(READY, 1)?;
                g.exit()?;
                g.section(16, AP_CODE, 0)?;
                g.a.xor(eax, eax)?;
                g.a.mov(ax, cs)?;
                g.out_eax()?;
                g.a.xor(eax, eax)?;
                g.a.mov(ax, ds)?;
                g.out_eax()?;
                g.a.mov(eax, cr0)?;
                g.a.and(eax, 1)?;
                g.out_eax()?;
                g.a.mov(ax, (READY >> 4) as u32 as i32)?;
                g.a.mov(es, ax)?;
                g.a.mov(byte_ptr(0).es(), 1)?;
                g.a.hlt()
            },
        ));
    }
    cases.push(case("smp: the second processor knows who it is", Long, |g| {
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(READY, 1)?;
        g.exit()?;
        g.ap_long(AP)?;
        // Not the bootstrap processor; CPUID's initial APIC ID; the local APIC's.
        g.rdmsr(0x1b)?;
        g.out_eax()?;
        g.a.mov(eax, 1)?;
        g.a.cpuid()?;
        g.a.mov(eax, ebx)?;
        g.a.shr(eax, 24)?;
        g.out_eax()?;
        g.a.mov(eax, 0xfee0_0020u32)?;
        g.a.mov(eax, dword_ptr(rax))?;
        g.out_eax()?;
        for value in [0xfee0_0800, 1, 1 << 24] {
            g.want(out(value));
        }
        set(g, READY, 1)?;
        g.park()
    }));
    cases.push(case("smp: a second SIPI has no effect", Long, |g| {
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(READY, 1)?;
        Apic::X2.send(g, icr::STARTUP | icr::ASSERT | 0x0c, 1)?;
        set(g, GO, 1)?;
        g.wait_for(DONE, 1)?;
        g.want_memory(SHARED, 4, 1);
        g.exit()?;
        g.ap_long(AP)?;
        g.a.inc(dword_ptr(SHARED))?;
        set(g, READY, 1)?;
        g.wait_for(GO, 1)?;
        set(g, DONE, 1)?;
        g.park()
    }));
    cases.push(case("smp: INIT stops a processor, SIPI starts it anew", Long, |g| {
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(SHARED, 1)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(SHARED, 2)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()?;
        g.ap_long(AP)?;
        g.a.inc(dword_ptr(SHARED))?;
        g.mark("spin")?;
        g.a.pause()?;
        let spin = g.addr("spin");
        g.a.jmp(spin)
    }));
    cases.push(case("smp: INIT wakes a processor that halted with IF clear", Long, |g| {
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(SHARED, 1)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(SHARED, 2)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()?;
        g.ap_long(AP)?;
        g.a.inc(dword_ptr(SHARED))?;
        g.a.cli()?;
        g.park()
    }));
    cases.push(case("smp: INIT sends the bootstrap processor to its reset vector", Long, |g| {
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.mark("spin")?;
        let spin = g.addr("spin");
        g.a.jmp(spin)?;
        g.want(out(0xf000));
        g.ap_long(AP)?;
        // The second processor's local APIC is in xAPIC mode.
        Apic::X.enable(g)?;
        Apic::X.send(g, icr::INIT | icr::ASSERT, 0)?;
        g.park()?;
        g.section(16, ROM + 0xfff0, 0xfff0)?;
        g.a.xor(eax, eax)?;
        g.a.mov(ax, cs)?;
        g.out_eax()?;
        g.exit()
    }));
    cases.push(case("smp: a triple fault of the second processor", Long, |g| {
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.mark("spin")?;
        let spin = g.addr("spin");
        g.a.jmp(spin)?;
        g.want_triple_fault();
        g.ap_long(AP)?;
        g.write16(DATA + 0x10, 0);
        g.a.mov(eax, DATA as u32 + 0x10)?;
        g.a.lidt(ptr(rax))?;
        g.a.ud2()
    }));
    cases.push(case("smp: processors wait until they are started", Real, |g| {
        g.cpus = 2;
        g.out(1)?;
        g.want(out(1));
        g.exit()?;
        g.section(16, AP_CODE, 0)?;
        g.a.ud2()
    }));
}

/// The second processor takes interrupts in `hlt`; the first one sends.
fn receiver(
    cases: &mut Vec<Case>,
    name: &str,
    apic: Apic,
    send: impl Fn(&mut Guest) -> Result + Copy + Send + Sync + 'static,
    wants: impl Fn(&mut Guest) + Copy + Send + Sync + 'static,
) {
    cases.push(case(format!("smp {}: {name}", apic.name()), Long, move |g| {
        apic.enable(g)?;
        g.write64(crate::layout::EOI, eoi::NONE);
        g.gate(0x41, "handler", access::INTERRUPT_GATE, 0);
        g.gate(2, "handler", access::INTERRUPT_GATE, 0);
        g.start_ap(apic)?;
        g.wait_for(READY, 1)?;
        send(g)?;
        g.wait_for(DONE, 1)?;
        wants(g);
        g.exit()?;
        g.mark("handler")?;
        // Whoever takes it counts in its own place: by its APIC ID.
        g.a.push(rax)?;
        g.a.push(rbx)?;
        g.a.push(rcx)?;
        g.a.push(rdx)?;
        apic.read(g, reg::ID)?;
        if apic == Apic::X {
            g.a.shr(eax, 24)?;
        }
        g.a.inc(dword_ptr(rax * 4 + SHARED as i32))?;
        apic.write(g, reg::EOI, 0)?;
        g.a.pop(rdx)?;
        g.a.pop(rcx)?;
        g.a.pop(rbx)?;
        g.a.pop(rax)?;
        g.a.iretq()?;
        g.ap_long(AP)?;
        apic.enable(g)?;
        g.write64(crate::layout::EOI, eoi::NONE);
        g.a.sti()?;
        set(g, READY, 1)?;
        let mut again = g.a.create_label();
        g.a.set_label(&mut again)?;
        g.a.pause()?;
        g.a.cmp(dword_ptr(SHARED + 4), 0)?;
        g.a.je(again)?;
        set(g, DONE, 1)?;
        g.park()
    }));
}

fn counts(g: &mut Guest, first: u32, second: u32) {
    g.want_memory(SHARED, 4, first.into());
    g.want_memory(SHARED + 4, 4, second.into());
}

fn messages(cases: &mut Vec<Case>) {
    for apic in [Apic::X, Apic::X2] {
        receiver(
            cases,
            "an IPI by ID",
            apic,
            move |g| apic.send(g, icr::ASSERT | 0x41, 1),
            |g| counts(g, 0, 1),
        );
        receiver(
            cases,
            "an IPI to all others",
            apic,
            move |g| {
                g.a.sti()?;
                apic.send(g, icr::OTHERS | icr::ASSERT | 0x41, 0)
            },
            |g| counts(g, 0, 1),
        );
        receiver(
            cases,
            "an IPI to all",
            apic,
            move |g| {
                g.a.sti()?;
                apic.send(g, icr::ALL | icr::ASSERT | 0x41, 0)?;
                g.wait_for(SHARED, 1)
            },
            |g| counts(g, 1, 1),
        );
        receiver(
            cases,
            "an IPI by broadcast ID",
            apic,
            move |g| {
                g.a.sti()?;
                let everybody = if apic == Apic::X { 0xff } else { u32::MAX };
                apic.send(g, icr::ASSERT | 0x41, everybody)?;
                g.wait_for(SHARED, 1)
            },
            |g| counts(g, 1, 1),
        );
        receiver(
            cases,
            "an NMI by ID",
            apic,
            move |g| apic.send(g, icr::NMI | icr::ASSERT, 1),
            |g| counts(g, 0, 1),
        );
    }
    receiver(
        cases,
        "an IPI by logical ID",
        Apic::X2,
        |g| Apic::X2.send(g, icr::LOGICAL | icr::ASSERT | 0x41, 2),
        |g| counts(g, 0, 1),
    );
    cases.push(case("smp: an IPI wakes a processor from HLT", Long, |g| {
        Apic::X2.enable(g)?;
        g.gate(0x41, "handler", access::INTERRUPT_GATE, 0);
        g.start_ap(Apic::X2)?;
        for i in 1..=3u32 {
            g.wait_for(READY, i)?;
            // Time to fall asleep, or nearly.
            for _ in 0..50 {
                g.a.pause()?;
            }
            Apic::X2.send(g, icr::ASSERT | 0x41, 1)?;
            g.wait_for(SHARED, i)?;
        }
        g.out(1)?;
        g.want(out(1));
        g.exit()?;
        g.mark("handler")?;
        g.a.inc(dword_ptr(SHARED))?;
        g.a.mov(eax, 0xfee0_00b0u32)?;
        g.a.mov(dword_ptr(rax), 0)?;
        g.a.iretq()?;
        g.ap_long(AP)?;
        Apic::X.enable(g)?;
        g.mark("loop")?;
        g.a.cli()?;
        g.a.inc(dword_ptr(READY))?;
        g.a.sti()?;
        g.a.hlt()?;
        let again = g.addr("loop");
        g.a.jmp(again)
    }));
    cases.push(case("smp: exceptions of the second processor", Long, |g| {
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(READY, 1)?;
        g.exit()?;
        g.ap_long(AP)?;
        g.expect_fault("ud2", "after", |a| a.ud2())?;
        g.want(fault(UD).at("ud2"));
        set(g, READY, 1)?;
        g.park()
    }));
}

fn coherence(cases: &mut Vec<Case>) {
    cases.push(case("smp: stores are seen in their order", Long, |g| {
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(READY, 1)?;
        // The writer stores data, then the flag; the reader loads the flag, then the data.
        g.a.mov(esi, ROUNDS)?;
        g.mark("loop")?;
        g.a.mov(eax, dword_ptr(SHARED + 0x40))?;
        g.a.mov(ebx, dword_ptr(SHARED))?;
        g.a.cmp(ebx, eax)?;
        let (bad, again) = (g.addr("bad"), g.addr("loop"));
        g.a.jb(bad)?;
        g.a.dec(esi)?;
        g.a.jne(again)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()?;
        g.mark("bad")?;
        g.out(0)?;
        g.exit()?;
        g.ap_long(AP)?;
        set(g, READY, 1)?;
        g.a.xor(eax, eax)?;
        g.mark("writer")?;
        g.a.inc(eax)?;
        g.a.mov(dword_ptr(SHARED), eax)?;
        g.a.mov(dword_ptr(SHARED + 0x40), eax)?;
        let writer = g.addr("writer");
        g.a.jmp(writer)
    }));
    cases.push(case("smp: code that the other processor changes", Long, |g| {
        // MOV EAX, 1; RET.
        const ROUTINE: u64 = DATA + 0x800;
        g.write(ROUTINE, &[0xb8, 1, 0, 0, 0, 0xc3]);
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        for i in 1..=5u32 {
            g.wait_for(READY, i)?;
            g.a.mov(byte_ptr(ROUTINE + 1), (i + 1) as i32)?;
            set(g, GO, i)?;
        }
        g.wait_for(DONE, 1)?;
        for i in 2..=6u32 {
            g.want(out(i));
        }
        g.exit()?;
        g.ap_long(AP)?;
        for i in 1..=5u32 {
            g.a.mov(ecx, ROUTINE as u32)?;
            g.a.call(rcx)?;
            set(g, READY, i)?;
            g.wait_for(GO, i)?;
            // Cross-modifying code asks for a serializing instruction.
            g.a.cpuid()?;
            g.a.mov(ecx, ROUTINE as u32)?;
            g.a.call(rcx)?;
            g.out_eax()?;
        }
        set(g, DONE, 1)?;
        g.park()
    }));
    cases.push(case("smp: a translation that the other processor takes away", Long, |g| {
        g.map(WINDOW, FRAMES, P | W);
        g.write32(FRAMES, 1);
        g.write32(FRAMES + 0x1000, 2);
        let place = g.entry(WINDOW, 1);
        g.gate(0x41, "handler", access::INTERRUPT_GATE, 0);
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(READY, 1)?;
        g.a.mov(dword_ptr(place), ((FRAMES + 0x1000) | P | W) as u32)?;
        Apic::X2.send(g, icr::ASSERT | 0x41, 1)?;
        g.wait_for(GO, 1)?;
        g.wait_for(DONE, 1)?;
        g.want(out(1));
        g.want(out(2));
        g.exit()?;
        // The shootdown.
        g.mark("handler")?;
        g.a.push(rax)?;
        g.a.mov(eax, WINDOW as u32)?;
        g.a.invlpg(ptr(rax))?;
        g.a.mov(eax, 0xfee0_00b0u32)?;
        g.a.mov(dword_ptr(rax), 0)?;
        g.a.pop(rax)?;
        set(g, GO, 1)?;
        g.a.iretq()?;
        g.ap_long(AP)?;
        Apic::X.enable(g)?;
        g.a.sti()?;
        g.a.mov(ebx, WINDOW as u32)?;
        g.a.mov(eax, dword_ptr(rbx))?;
        g.out_eax()?;
        set(g, READY, 1)?;
        g.wait_for(GO, 1)?;
        g.a.mov(eax, dword_ptr(rbx))?;
        g.out_eax()?;
        set(g, DONE, 1)?;
        g.park()
    }));
    cases.push(case("smp: both processors set accessed and dirty bits", Long, |g| {
        // The second one walks the tables all the time; the first one counts in an ignored bit
        // field of the same entry with locked additions, none of which may be lost.
        g.map(WINDOW, FRAMES, P | W);
        let place = g.entry(WINDOW, 1);
        Apic::X2.enable(g)?;
        g.start_ap(Apic::X2)?;
        g.wait_for(READY, 1)?;
        g.a.mov(esi, 511)?;
        g.mark("loop")?;
        g.a.mov(rax, 1u64 << 52)?;
        g.a.lock().add(qword_ptr(place), rax)?;
        g.a.lock().and(qword_ptr(place), !0x60)?;
        for _ in 0..10 {
            g.a.pause()?;
        }
        g.a.dec(esi)?;
        let again = g.addr("loop");
        g.a.jne(again)?;
        g.a.mov(rax, qword_ptr(place))?;
        g.a.shr(rax, 52)?;
        g.out_eax()?;
        g.want(out(511));
        g.exit()?;
        g.ap_long(AP)?;
        set(g, READY, 1)?;
        g.a.mov(ebx, WINDOW as u32)?;
        g.mark("walk")?;
        g.a.invlpg(ptr(rbx))?;
        g.a.mov(dword_ptr(rbx), 1)?;
        let walk = g.addr("walk");
        g.a.jmp(walk)
    }));
}
