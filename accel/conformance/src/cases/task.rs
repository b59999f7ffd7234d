//! Task switches with 32-bit task-state segments (SDM Vol. 3, chapter 7).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::vector::{DB, GP, NP, TS};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::Guest;
use crate::layout::{DATA, GDT, OTHER_TSS, STACK, TSS, sel};
use crate::start::Start::{Paged32, Prot32};
use crate::tables::pte::{P, W};
use crate::tables::{access, gate, segment};

type Result = std::result::Result<(), IcedError>;

const OTHER: u16 = sel::FREE;
const TASK_GATE: u16 = sel::FREE + 8;
/// Stack of the other task.
const OTHER_STACK: u32 = 0x6_8000;

/// Offsets in a TSS.
mod tss {
    pub const LINK: u64 = 0;
    pub const CR3: u64 = 28;
    pub const EIP: u64 = 32;
    pub const EFLAGS: u64 = 36;
    pub const EAX: u64 = 40;
    pub const ECX: u64 = 44;
    pub const ESP: u64 = 56;
    pub const ES: u64 = 72;
    pub const CS: u64 = 76;
    pub const SS: u64 = 80;
    pub const LDT: u64 = 96;
    pub const TRAP: u64 = 100;
}

/// A second task whose code is the section that follows.
fn other_task(g: &mut Guest) {
    g.descriptor(OTHER, segment(OTHER_TSS as u32, 0x67, access::TSS, 0));
    g.descriptor(TASK_GATE, gate(OTHER, 0, access::TASK_GATE, 0));
    let at = OTHER_TSS;
    g.write32(at + 4, OTHER_STACK);
    g.write32(at + 8, sel::KDATA.into());
    let root = g.root as u32;
    g.write32(at + tss::CR3, if g.start == Paged32 { root } else { 0 });
    g.write32(at + tss::EIP, DATA as u32);
    g.write32(at + tss::EFLAGS, 2);
    g.write32(at + tss::EAX, 0xaaaa);
    g.write32(at + tss::ECX, 0xcccc);
    g.write32(at + tss::ESP, OTHER_STACK);
    for i in 0..6 {
        g.write32(at + tss::ES + i * 4, sel::KDATA.into());
    }
    g.write32(at + tss::CS, sel::KCODE32.into());
}

fn task_section(g: &mut Guest) -> Result {
    g.section(32, DATA, DATA)
}

fn show_tr(g: &mut Guest) -> Result {
    g.a.str(eax)?;
    g.out_eax()
}

fn busy(selector: u16, is_busy: bool) -> (u64, u64) {
    let access = if is_busy { access::TSS_BUSY } else { access::TSS };
    (GDT + u64::from(selector) + 5, access.into())
}

fn want_busy(g: &mut Guest, selector: u16, is_busy: bool) {
    let (at, value) = busy(selector, is_busy);
    g.want_memory(at, 1, value);
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    switches(&mut cases);
    refusals(&mut cases);
    cases
}

fn switches(cases: &mut Vec<Case>) {
    for (selector, name) in [(OTHER, "the TSS"), (TASK_GATE, "a task gate")] {
        cases.push(case(format!("task: JMP to {name}"), Prot32, move |g| {
            other_task(g);
            g.a.mov(ecx, 0x1234)?;
            g.a.jmp_far(selector, 0)?;
            g.mark("after")?;
            let after = g.addr("after");
            g.want(out(0xaaaa));
            g.want(out(0xcccc));
            g.want(out(OTHER_STACK));
            g.want(out(OTHER.into()));
            // CR0.TS.
            g.want(out(8));
            g.want_memory(TSS + tss::EIP, 4, after);
            g.want_memory(TSS + tss::ECX, 4, 0x1234);
            g.want_memory(TSS + tss::ESP, 4, STACK);
            g.want_memory(TSS + tss::CS, 2, sel::KCODE32.into());
            g.want_memory(TSS + tss::SS, 2, sel::KDATA.into());
            want_busy(g, sel::TSS, false);
            want_busy(g, OTHER, true);
            task_section(g)?;
            g.out_eax()?;
            g.a.mov(eax, ecx)?;
            g.out_eax()?;
            g.a.mov(eax, esp)?;
            g.out_eax()?;
            show_tr(g)?;
            g.a.mov(eax, cr0)?;
            g.a.and(eax, 8)?;
            g.out_eax()?;
            g.exit()
        }));
        cases.push(case(format!("task: CALL to {name} and IRET"), Prot32, move |g| {
            other_task(g);
            g.a.mov(ebx, 0x77)?;
            g.a.call_far(selector, 0)?;
            g.a.mov(eax, ebx)?;
            g.out_eax()?;
            show_tr(g)?;
            g.a.pushfd()?;
            g.a.pop(eax)?;
            g.a.and(eax, 0x4000)?;
            g.out_eax()?;
            // In the task: NT is set and the link leads back.
            g.want(out(0x4000));
            g.want(out(0x77));
            g.want(out(sel::TSS.into()));
            g.want(out(0));
            g.want_memory(OTHER_TSS + tss::LINK, 2, sel::TSS.into());
            want_busy(g, sel::TSS, true);
            want_busy(g, OTHER, false);
            // The other task goes on behind its IRET next time, without NT.
            g.want_memory(OTHER_TSS + tss::EFLAGS, 4, 6);
            g.exit()?;
            task_section(g)?;
            g.a.pushfd()?;
            g.a.pop(eax)?;
            g.a.and(eax, 0x4000)?;
            g.out_eax()?;
            // A known result of the last addition: PF only.
            g.a.mov(eax, 3)?;
            g.a.test(eax, eax)?;
            g.a.iretd()
        }));
    }
    cases.push(case("task: INT through a task gate and IRET", Prot32, |g| {
        other_task(g);
        g.gate_to(0x80, OTHER, 0, access::TASK_GATE, 0);
        g.a.int(0x80)?;
        g.mark("after")?;
        show_tr(g)?;
        g.want(out(OTHER.into()));
        g.want(out(sel::TSS.into()));
        g.exit()?;
        task_section(g)?;
        show_tr(g)?;
        g.a.iretd()
    }));
    cases.push(case("task: an exception through a task gate pushes its error code", Prot32, |g| {
        other_task(g);
        g.gate_to(GP, OTHER, 0, access::TASK_GATE, 0);
        g.a.mov(ecx, 0x1000)?;
        g.mark("load")?;
        g.a.mov(fs, ecx)?;
        let load = g.addr("load");
        g.want(out(0x1000));
        g.want(out(OTHER_STACK - 4));
        g.want_memory(TSS + tss::EIP, 4, load);
        task_section(g)?;
        g.a.mov(eax, dword_ptr(esp))?;
        g.out_eax()?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.exit()
    }));
    cases.push(case("task: a double fault through a task gate", Prot32, |g| {
        other_task(g);
        g.gate_to(8, OTHER, 0, access::TASK_GATE, 0);
        // No stack at all.
        g.descriptor(sel::FREE + 0x20, segment(0, 0, access::DATA, 4));
        g.a.mov(eax, u32::from(sel::FREE) + 0x20)?;
        g.a.mov(ss, eax)?;
        g.a.push(1)?;
        g.want(out(0));
        task_section(g)?;
        g.a.mov(eax, dword_ptr(esp))?;
        g.out_eax()?;
        g.exit()
    }));
    cases.push(case("task: CR3 is switched", Paged32, |g| {
        other_task(g);
        // The window is mapped differently in the other address space.
        let window = crate::layout::WINDOW;
        let frames = crate::layout::FRAMES;
        g.write32(frames, 1);
        g.write32(frames + 0x1000, 2);
        g.map(window, frames, P | W);
        let other_root = frames + 0x2000;
        let (root, index) = (g.root, window >> 22);
        for i in 0..1024 {
            let entry = g.read(root + i * 4, 4);
            g.write32(other_root + i * 4, entry as u32);
        }
        g.write32(other_root + index * 4, (frames + 0x3000) as u32 | 3);
        g.write32(frames + 0x3000, (frames + 0x1000) as u32 | 3);
        g.write32(OTHER_TSS + tss::CR3, other_root as u32);
        g.a.mov(eax, dword_ptr(window))?;
        g.out_eax()?;
        g.a.call_far(OTHER, 0)?;
        g.a.mov(eax, cr3)?;
        g.out_eax()?;
        g.want(out(1));
        g.want(out(2));
        // CR3 is not saved in the old TSS, which holds zero: set it before.
        g.write32(TSS + tss::CR3, root as u32);
        g.want(out(root as u32));
        g.exit()?;
        task_section(g)?;
        g.a.mov(eax, dword_ptr(window))?;
        g.out_eax()?;
        g.a.iretd()
    }));
    cases.push(case("task: the LDT is switched", Prot32, |g| {
        other_task(g);
        g.write32(OTHER_TSS + tss::LDT, sel::LDT.into());
        g.a.jmp_far(OTHER, 0)?;
        g.want(out(sel::LDT.into()));
        task_section(g)?;
        g.a.sldt(eax)?;
        g.out_eax()?;
        g.exit()
    }));
    cases.push(case("task: T in the new TSS raises #DB", Prot32, |g| {
        other_task(g);
        g.write32(OTHER_TSS + tss::TRAP, 1);
        g.a.jmp_far(OTHER, 0)?;
        g.want(fault(DB).rip(DATA).dr6(1 << 15, 1 << 15));
        Ok(())
    }));
    cases.push(case("task: local breakpoints are disarmed", Prot32, |g| {
        other_task(g);
        g.a.mov(eax, 0x455u32)?;
        g.a.mov(dr7, eax)?;
        g.a.jmp_far(OTHER, 0)?;
        g.want(out(0x400));
        task_section(g)?;
        g.a.mov(eax, dr7)?;
        g.out_eax()?;
        g.exit()
    }));
    cases.push(case("task: to ring 3", Prot32, |g| {
        other_task(g);
        g.write32(OTHER_TSS + tss::CS, sel::UCODE32.into());
        for i in [0, 2, 3, 4, 5] {
            g.write32(OTHER_TSS + tss::ES + i * 4, sel::UDATA.into());
        }
        g.write32(OTHER_TSS + tss::EFLAGS, 0x3002);
        g.a.jmp_far(OTHER, 0)?;
        g.want(out(sel::UCODE32.into()));
        task_section(g)?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.exit()
    }));
    cases.push(case("task: to virtual-8086 mode", Prot32, |g| {
        other_task(g);
        g.write32(OTHER_TSS + tss::EFLAGS, 0x2_3002);
        g.write32(OTHER_TSS + tss::EIP, 0);
        for i in 0..6 {
            g.write32(OTHER_TSS + tss::ES + i * 4, 0x2000 + i as u32 * 0x10);
        }
        g.write32(OTHER_TSS + tss::CS, 0x2000);
        g.a.jmp_far(OTHER, 0)?;
        g.want(out(0x2000));
        g.want(out(0x2030));
        g.section(16, DATA, 0)?;
        g.a.xor(eax, eax)?;
        g.a.mov(ax, cs)?;
        g.out_eax()?;
        g.a.mov(ax, ds)?;
        g.out_eax()?;
        g.exit()
    }));
}

fn refusals(cases: &mut Vec<Case>) {
    let bad: [(&str, u64, u8, u32); 4] = [
        ("a busy TSS", segment(OTHER_TSS as u32, 0x67, access::TSS_BUSY, 0), GP, OTHER as u32),
        (
            "a TSS that is not present",
            segment(OTHER_TSS as u32, 0x67, access::TSS & !0x80, 0),
            NP,
            OTHER as u32,
        ),
        (
            "a TSS that is too short",
            segment(OTHER_TSS as u32, 0x66, access::TSS, 0),
            TS,
            OTHER as u32,
        ),
        ("an LDT", segment(OTHER_TSS as u32, 0x67, access::LDT, 0), GP, OTHER as u32),
    ];
    for (name, descriptor, vector, code) in bad {
        cases.push(case(format!("task: JMP to {name} is refused"), Prot32, move |g| {
            other_task(g);
            g.descriptor(OTHER, descriptor);
            g.expect_fault("insn", "after", |a| a.jmp_far(OTHER, 0))?;
            show_tr(g)?;
            g.want(fault(vector).code(code).at("insn"));
            g.want(out(sel::TSS.into()));
            g.exit()
        }));
    }
    cases.push(case("task: IRET to a task that is not busy is refused", Prot32, |g| {
        other_task(g);
        g.write16(TSS + tss::LINK, OTHER);
        g.a.push(0x4002)?;
        g.a.popfd()?;
        g.mark("iret")?;
        g.a.iretd()?;
        g.want(fault(TS).code(OTHER.into()).at("iret"));
        Ok(())
    }));
    cases.push(case("task: a bad CS is the new task's fault", Prot32, |g| {
        other_task(g);
        // Ring 3, so that the handler gets a stack that does not depend on what was loaded.
        g.write32(OTHER_TSS + tss::CS, sel::UDATA.into());
        g.a.jmp_far(OTHER, 0)?;
        g.want(fault(TS).code((sel::UDATA & !3).into()).rip(DATA));
        Ok(())
    }));
    cases.push(case("task: the DPL of a TSS is obeyed", Prot32, |g| {
        other_task(g);
        g.enter_user()?;
        g.expect_fault("insn", "after", |a| a.jmp_far(OTHER, 0))?;
        g.want(fault(GP).code(OTHER.into()).at("insn"));
        g.exit()
    }));
    cases.push(case("task: a task gate opens a TSS of ring 0 to ring 3", Prot32, |g| {
        other_task(g);
        g.descriptor(TASK_GATE, gate(OTHER, 0, access::TASK_GATE | access::DPL3, 0));
        g.enter_user()?;
        g.a.jmp_far(TASK_GATE, 0)?;
        g.want(out(sel::KCODE32.into()));
        task_section(g)?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.exit()
    }));
}
