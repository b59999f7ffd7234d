//! Double and triple faults, and what delivery does to tables (SDM Vol. 3, 6.15, #DF).

use iced_x86::code_asm::*;
use x86::state::Segment;
use x86::vector::{BP, DF, GP, NP, PF, TS, UD};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::layout::{DATA, FRAMES, GDT, IDT64, TSS, WINDOW, sel};
use crate::start::Start::{Long, Prot32, Real};
use crate::tables::pte::{P, U, W};
use crate::tables::{access, gate, segment, size};

const DPL3: u8 = access::DPL3;
const INTERRUPT: u8 = access::INTERRUPT_GATE;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    doubles(&mut cases);
    cases
}

fn doubles(cases: &mut Vec<Case>) {
    // An exception whose gate is not present raises #NP with EXT.
    cases.push(case("double: #UD with a bad gate raises #NP", Long, |g| {
        g.gate_to(UD, sel::KCODE64, DATA, INTERRUPT & !0x80, 0);
        g.expect_fault("ud2", "after", |a| a.ud2())?;
        g.want(fault(NP).code(u32::from(UD) * 8 + 3).at("ud2"));
        g.exit()
    }));
    cases.push(case("double: #GP with a bad gate raises #DF", Long, |g| {
        g.gate_to(GP, sel::KCODE64, DATA, INTERRUPT & !0x80, 0);
        g.a.mov(rbx, 1u64 << 47)?;
        g.mark("load")?;
        g.a.mov(eax, dword_ptr(rbx))?;
        g.want(fault(DF).code(0));
        Ok(())
    }));
    cases.push(case("double: #DE with a bad gate raises #DF", Prot32, |g| {
        g.gate_to(0, sel::KCODE32, DATA, INTERRUPT & !0x80, 0);
        g.a.xor(ecx, ecx)?;
        g.a.div(ecx)?;
        g.want(fault(DF).code(0));
        Ok(())
    }));
    cases.push(case("double: #PF while #PF is delivered raises #DF", Long, |g| {
        g.handle_on_ist(DF, 1);
        g.a.mov(rsp, WINDOW + 0x1000)?;
        g.a.mov(eax, dword_ptr(rsp))?;
        g.want(fault(DF).code(0).rsp(WINDOW + 0x1000));
        Ok(())
    }));
    cases.push(case("double: #NP while #PF is delivered raises #DF", Long, |g| {
        g.gate_to(PF, sel::KCODE64, DATA, INTERRUPT & !0x80, 0);
        g.a.mov(ebx, WINDOW as u32)?;
        g.a.mov(eax, dword_ptr(rbx))?;
        g.want(fault(DF).code(0));
        Ok(())
    }));
    cases.push(case("double: #PF while #GP is delivered is a page fault", Long, |g| {
        // The gate of #GP leads to a stack that is not mapped.
        g.write64(TSS + 36 + 8, WINDOW + 0x1000);
        g.handle_on_ist(GP, 2);
        g.a.mov(rbx, 1u64 << 47)?;
        g.mark("load")?;
        g.a.mov(eax, dword_ptr(rbx))?;
        g.want(fault(PF).code(2).at("load"));
        Ok(())
    }));
    cases.push(case("double: #PF while #UD is delivered is a page fault", Long, |g| {
        g.write64(TSS + 36 + 8, WINDOW + 0x1000);
        g.handle_on_ist(UD, 2);
        g.mark("ud2")?;
        g.a.ud2()?;
        g.want(fault(PF).code(2).at("ud2"));
        Ok(())
    }));
    cases.push(case("double: a handler in a page that is gone faults on its own", Long, |g| {
        g.gate_to(UD, sel::KCODE64, WINDOW, INTERRUPT, 0);
        g.a.ud2()?;
        g.want(fault(PF).code(16).cr2(WINDOW).rip(WINDOW));
        Ok(())
    }));
    cases.push(case("double: an IDT that is not mapped shuts the processor down", Long, |g| {
        g.state(|state| state.idtr.base = WINDOW);
        g.a.ud2()?;
        g.want_triple_fault();
        Ok(())
    }));
    for (start, mode) in [(Long, "64-bit"), (Prot32, "32-bit"), (Real, "real mode")] {
        cases.push(case(format!("triple fault {mode}: no IDT"), start, |g| {
            g.state(|state| state.idtr.limit = 0);
            g.a.ud2()?;
            g.want_triple_fault();
            Ok(())
        }));
    }
    cases.push(case("triple fault: #DF with a bad gate", Long, |g| {
        g.gate_to(GP, sel::KCODE64, DATA, INTERRUPT & !0x80, 0);
        g.gate_to(DF, sel::KCODE64, DATA, INTERRUPT & !0x80, 0);
        g.a.mov(rbx, 1u64 << 47)?;
        g.a.mov(eax, dword_ptr(rbx))?;
        g.want_triple_fault();
        Ok(())
    }));
    cases.push(case("triple fault: #PF while #DF is delivered", Long, |g| {
        g.a.mov(rsp, WINDOW + 0x1000)?;
        g.a.ud2()?;
        g.want_triple_fault();
        Ok(())
    }));
    cases.push(case("double: the GDT in a page that is not present", Long, |g| {
        g.map(WINDOW, GDT, P | W);
        g.state(|state| state.gdtr.base = WINDOW + 0x1000);
        g.a.mov(ecx, u32::from(sel::KDATA))?;
        g.a.mov(es, ecx)?;
        g.want_triple_fault();
        Ok(())
    }));
    cases.push(case("delivery: reading tables is the supervisor's, whatever the CPL", Long, |g| {
        g.resume(BP);
        let handler = g.handler(BP);
        g.gate_to(BP, sel::KCODE64, handler, INTERRUPT | DPL3, 0);
        g.map(WINDOW, FRAMES, P | W | U);
        g.enter_user()?;
        g.a.int3()?;
        g.mark("after")?;
        g.out(1)?;
        g.want(fault(BP).at("after"));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("delivery: the accessed bit of the handler's segment is set", Long, |g| {
        let code = segment(0, 0xf_ffff, access::CODE, size::PAGES | size::BITS64);
        g.descriptor(sel::FREE, code);
        g.gate(0x80, "handler", INTERRUPT, 0);
        let target = g.addr("handler");
        g.gate_to(0x80, sel::FREE, target, INTERRUPT, 0);
        g.a.int(0x80)?;
        g.mark("handler")?;
        g.want_memory(GDT + u64::from(sel::FREE) + 5, 1, u64::from(access::CODE | 1));
        g.exit()
    }));
    cases.push(case("delivery: a task gate is none in long mode", Long, |g| {
        let low = gate(sel::TSS, 0, access::TASK_GATE, 0);
        g.write64(IDT64 + 0x80 * 16, low);
        g.expect_fault("int", "after", |a| a.int(0x80))?;
        g.want(fault(GP).code(0x402).at("int"));
        g.exit()
    }));
    cases.push(case("delivery 64-bit: a TSS that is too short", Long, |g| {
        g.state(|state| {
            state.tr = Segment { limit: 30, ..state.tr };
        });
        g.gate(0x80, "handler", INTERRUPT, 1);
        g.expect_fault("int", "after", |a| a.int(0x80))?;
        g.want(fault(TS).code(sel::TSS.into()).at("int"));
        g.exit()?;
        g.mark("handler")?;
        g.a.nop()
    }));
}
