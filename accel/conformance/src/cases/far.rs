//! Far jumps, calls and returns, and call gates (SDM Vol. 3, 5.8).

use iced_x86::code_asm::*;
use x86::vector::{GP, NP};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::Guest;
use crate::layout::{DATA, GDT, STACK, STACK0, USER_CODE, USER_DATA, USER_STACK, sel};
use crate::start::Start::{Compat, Long, Prot32, Real, V8086};
use crate::tables::{access, gate, segment, size};

const WIDE: u8 = size::PAGES | size::BITS32;
const FREE: u16 = sel::FREE;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    transfers(&mut cases);
    gates(&mut cases);
    cases
}

fn transfers(cases: &mut Vec<Case>) {
    cases.push(case("far: JMP loads CS", Prot32, |g| {
        g.descriptor(FREE, segment(DATA as u32, 0xffff, access::CODE, 4));
        g.a.jmp_far(FREE, 0x10)?;
        g.section(32, DATA + 0x10, 0x10)?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.want(out(FREE.into()));
        g.want_memory(GDT + u64::from(FREE) + 5, 1, u64::from(access::CODE | 1));
        g.exit()
    }));
    cases.push(case("far: CALL and RET", Prot32, |g| {
        g.descriptor(FREE, segment(DATA as u32, 0xffff, access::CODE, 4));
        g.a.push(0x11)?;
        g.a.call_far(FREE, 0x10)?;
        g.mark("after")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        let after = g.addr32("after");
        for value in [after, sel::KCODE32.into(), STACK as u32] {
            g.want(out(value));
        }
        g.exit()?;
        g.section(32, DATA + 0x10, 0x10)?;
        g.a.mov(eax, dword_ptr(esp))?;
        g.out_eax()?;
        g.a.mov(eax, dword_ptr(esp + 4))?;
        g.out_eax()?;
        // Releases the parameter.
        g.a.retf_1(4)
    }));
    cases.push(case("far 64-bit: CALL through memory to compatibility mode and back", Long, |g| {
        g.write32(DATA, DATA as u32 + 0x100);
        g.write16(DATA + 4, sel::KCODE32);
        g.a.mov(ebx, DATA as u32)?;
        g.a.call(fword_ptr(rbx))?;
        g.out(8)?;
        g.want(out(4));
        g.want(out(8));
        g.exit()?;
        g.section(32, DATA + 0x100, DATA + 0x100)?;
        g.a.xor(eax, eax)?;
        // INC EAX: a prefix in 64-bit mode.
        g.a.mov(eax, 3)?;
        g.a.db(&[0x40])?;
        g.out_eax()?;
        g.a.retf()
    }));
    cases.push(case("far 64-bit: RETFQ takes quadwords", Long, |g| {
        let target = g.addr32("target");
        g.a.push(i32::from(sel::KCODE64))?;
        g.a.push(target as i32)?;
        g.a.retf()?;
        g.mark("target")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want(out(STACK as u32));
        g.exit()
    }));
    cases.push(case("far 64-bit: RETFQ to ring 3", Long, |g| {
        g.a.push(i32::from(sel::UDATA))?;
        g.a.push(USER_STACK as i32)?;
        g.a.push(i32::from(sel::UCODE64))?;
        g.a.push(USER_CODE as i32)?;
        g.a.retf()?;
        g.section(64, USER_CODE, USER_CODE)?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want(out(sel::UCODE64.into()));
        g.want(out(USER_STACK as u32));
        g.exit()
    }));
    cases.push(case("far 32-bit: RETF n to ring 3 releases on both stacks", Prot32, |g| {
        for word in
            [sel::UDATA.into(), USER_STACK as u32, 0x55, sel::UCODE32.into(), USER_CODE as u32]
        {
            g.a.push(word as i32)?;
        }
        g.a.retf_1(4)?;
        g.section(32, USER_CODE, USER_CODE)?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want(out(USER_STACK as u32 + 4));
        g.exit()
    }));
    cases.push(case("far: conforming code keeps the CPL", Prot32, |g| {
        g.descriptor(FREE, segment(0, 0xf_ffff, access::CODE_CONFORMING, WIDE));
        g.enter_user()?;
        let target = g.addr32("target");
        g.a.jmp_far(FREE, target)?;
        g.mark("target")?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.want(out((FREE | 3).into()));
        g.exit()
    }));
    let bad: [(&str, u16, u64, u8, u32); 8] = [
        ("a null selector", 0, 0, GP, 0),
        ("data", sel::KDATA, 0, GP, sel::KDATA as u32),
        ("code of another level", sel::UCODE32, 0, GP, (sel::UCODE32 & !3) as u32),
        ("code with a high RPL", sel::KCODE32 | 1, 0, GP, sel::KCODE32 as u32),
        (
            "code that is not present",
            FREE,
            segment(0, 0xf_ffff, access::CODE & !0x80, WIDE),
            NP,
            FREE as u32,
        ),
        ("an LDT", FREE, segment(0, 0xff, access::LDT, 0), GP, FREE as u32),
        ("a selector beyond the GDT", 0x1000, 0, GP, 0x1000),
        ("an offset beyond the limit", FREE, segment(0, 0xff, access::CODE, 4), GP, 0),
    ];
    for (name, selector, descriptor, vector, code) in bad {
        for is_call in [false, true] {
            let insn = if is_call { "CALL" } else { "JMP" };
            cases.push(case(format!("far: {insn} to {name} is refused"), Prot32, move |g| {
                if selector == FREE {
                    g.descriptor(FREE, descriptor);
                }
                g.expect_fault("insn", "after", |a| {
                    if is_call {
                        a.call_far(selector, 0x1_0000)
                    } else {
                        a.jmp_far(selector, 0x1_0000)
                    }
                })?;
                g.a.mov(eax, esp)?;
                g.out_eax()?;
                g.want(fault(vector).code(code).at("insn"));
                g.want(out(STACK as u32));
                g.exit()
            }));
        }
    }
    cases.push(case("far real mode: JMP, CALL and RET", Real, |g| {
        g.a.call_far(0x2000, 0x10)?;
        g.out(2)?;
        g.want(out(0x2000));
        g.want(out(2));
        g.exit()?;
        g.section(16, DATA + 0x10, 0x10)?;
        g.a.xor(eax, eax)?;
        g.a.mov(ax, cs)?;
        g.out_eax()?;
        g.a.retf()
    }));
    cases.push(case("far virtual-8086 mode: CALL goes to a paragraph", V8086, |g| {
        g.a.call_far(0x2000, 0x10)?;
        g.out(2)?;
        g.want(out(0x2000));
        g.want(out(2));
        g.exit()?;
        g.section(16, DATA + 0x10, 0x10)?;
        g.a.xor(eax, eax)?;
        g.a.mov(ax, cs)?;
        g.out_eax()?;
        g.a.retf()
    }));
}

/// A 16-byte call gate in long mode, else one of eight bytes.
fn call_gate(g: &mut Guest, selector: u16, target: u16, offset: u64, access: u8, count: u8) {
    g.descriptor(selector, gate(target, offset, access, count));
    if g.start.is_long() {
        g.descriptor(selector + 8, offset >> 32);
    }
}

const GATE3: u8 = access::CALL_GATE | access::DPL3;

fn gates(cases: &mut Vec<Case>) {
    cases.push(case("call gate 32-bit: from ring 3 with parameters and back", Prot32, |g| {
        call_gate(g, FREE, sel::KCODE32, DATA, GATE3, 2);
        g.enter_user()?;
        g.a.push(0x11)?;
        g.a.push(0x22)?;
        g.a.call_far(FREE | 3, 0)?;
        g.mark("after")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        let after = g.addr32("after");
        for value in [
            STACK0 as u32 - 24,
            after,
            sel::UCODE32.into(),
            0x22,
            0x11,
            USER_STACK as u32 - 8,
            sel::UDATA.into(),
            USER_STACK as u32,
        ] {
            g.want(out(value));
        }
        g.exit()?;
        g.section(32, DATA, DATA)?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        for i in 0..6 {
            g.a.mov(eax, dword_ptr(esp + i * 4))?;
            g.out_eax()?;
        }
        g.a.retf_1(8)
    }));
    cases.push(case("call gate 16-bit: from ring 3 with a parameter", Prot32, |g| {
        call_gate(g, FREE, sel::KCODE32, 0xc000, access::CALL_GATE16 | access::DPL3, 1);
        g.enter_user()?;
        g.a.mov(eax, 0x3344)?;
        g.a.push(ax)?;
        g.a.call_far(FREE, 0)?;
        g.mark("after")?;
        let after = g.addr32("after");
        for value in [STACK0 as u32 - 10, after & 0xffff, sel::UCODE32.into(), 0x3344] {
            g.want(out(value));
        }
        g.section(32, 0xc000, 0xc000)?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        for i in 0..3 {
            g.a.movzx(eax, word_ptr(esp + i * 2))?;
            g.out_eax()?;
        }
        g.exit()
    }));
    cases.push(case("call gate 32-bit: on the same level", Prot32, |g| {
        call_gate(g, FREE, sel::KCODE32, DATA, access::CALL_GATE, 3);
        g.a.call_far(FREE, 0x1234_5678)?;
        g.out(1)?;
        g.want(out(STACK as u32 - 8));
        g.want(out(1));
        g.exit()?;
        g.section(32, DATA, DATA)?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.a.retf()
    }));
    cases.push(case("call gate 32-bit: JMP on the same level", Prot32, |g| {
        call_gate(g, FREE, sel::KCODE32, DATA, access::CALL_GATE, 0);
        g.a.jmp_far(FREE, 0)?;
        g.section(32, DATA, DATA)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("call gate 32-bit: JMP to an inner level is refused", Prot32, |g| {
        call_gate(g, FREE, sel::KCODE32, DATA, GATE3, 0);
        g.enter_user()?;
        g.expect_fault("insn", "after", |a| a.jmp_far(FREE, 0))?;
        g.want(fault(GP).code(sel::KCODE32.into()).at("insn"));
        g.exit()
    }));
    cases.push(case("call gate: its DPL is obeyed", Prot32, |g| {
        call_gate(g, FREE, sel::KCODE32, DATA, access::CALL_GATE, 0);
        g.enter_user()?;
        g.expect_fault("insn", "after", |a| a.call_far(FREE, 0))?;
        g.want(fault(GP).code(FREE.into()).at("insn"));
        g.exit()
    }));
    cases.push(case("call gate: one that is not present", Prot32, |g| {
        call_gate(g, FREE, sel::KCODE32, DATA, access::CALL_GATE & !0x80, 0);
        g.expect_fault("insn", "after", |a| a.call_far(FREE, 0))?;
        g.want(fault(NP).code(FREE.into()).at("insn"));
        g.exit()
    }));
    cases.push(case("call gate: to data is refused", Prot32, |g| {
        call_gate(g, FREE, sel::KDATA, DATA, access::CALL_GATE, 0);
        g.expect_fault("insn", "after", |a| a.call_far(FREE, 0))?;
        g.want(fault(GP).code(sel::KDATA.into()).at("insn"));
        g.exit()
    }));
    cases.push(case("call gate 64-bit: from ring 3 and back", Long, |g| {
        call_gate(g, FREE, sel::KCODE64, DATA, GATE3, 0);
        g.write32(USER_DATA, 0);
        g.write16(USER_DATA + 4, FREE | 3);
        g.enter_user()?;
        g.a.mov(ebx, USER_DATA as u32)?;
        g.a.call(fword_ptr(rbx))?;
        g.mark("after")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        let after = g.addr32("after");
        for value in [
            STACK0 as u32 - 32,
            0,
            after,
            sel::UCODE64.into(),
            USER_STACK as u32,
            sel::UDATA.into(),
            USER_STACK as u32,
        ] {
            g.want(out(value));
        }
        g.exit()?;
        g.section(64, DATA, DATA)?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.a.mov(eax, ss)?;
        g.out_eax()?;
        for i in 0..4 {
            g.a.mov(eax, dword_ptr(rsp + i * 8))?;
            g.out_eax()?;
        }
        g.a.retf()
    }));
    cases.push(case("call gate 64-bit: from compatibility mode", Compat, |g| {
        call_gate(g, FREE, sel::KCODE64, DATA, access::CALL_GATE, 0);
        g.a.call_far(FREE, 0)?;
        g.out(2)?;
        g.want(out(1));
        g.want(out(2));
        g.exit()?;
        g.section(64, DATA, DATA)?;
        g.a.mov(rax, 0x1_0000_0000u64)?;
        g.a.shr(rax, 32)?;
        g.out_eax()?;
        g.a.retf()
    }));
    cases.push(case("call gate 64-bit: to 32-bit code is refused", Long, |g| {
        call_gate(g, FREE, sel::KCODE32, DATA, access::CALL_GATE, 0);
        g.write32(DATA, 0);
        g.write16(DATA + 4, FREE);
        g.a.mov(ebx, DATA as u32)?;
        g.expect_fault("insn", "after", |a| a.call(fword_ptr(rbx)))?;
        g.want(fault(GP).code(sel::KCODE32.into()).at("insn"));
        g.exit()
    }));
}
