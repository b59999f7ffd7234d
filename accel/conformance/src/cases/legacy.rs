//! Corners of real and virtual-8086 mode, and of stacks and tables that are hard to reach.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::vector::{GP, PF};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::Guest;
use crate::layout::{DATA, GDT, STACK, TSS, WINDOW, sel};
use crate::start::Start::{Long, Prot32, Real, V8086};
use crate::tables::pte::{P, W};
use crate::tables::{access, segment};

type Result = std::result::Result<(), IcedError>;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    real(&mut cases);
    virtual_8086(&mut cases);
    memory(&mut cases);
    cases
}

fn real(cases: &mut Vec<Case>) {
    cases.push(case("real mode: SP wraps from 0 to FFFEH", Real, |g| {
        g.a.mov(esp, 0x1234_0000)?;
        g.a.mov(ax, 0x5678)?;
        g.a.push(ax)?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want(out(0x1234_fffe));
        g.want_memory(0x3_fffe, 2, 0x5678);
        g.exit()
    }));
    cases.push(case("real mode: a push at SP 1 finds no stack for its exception", Real, |g| {
        g.a.mov(sp, 1)?;
        g.a.push(ax)?;
        g.want_triple_fault();
        Ok(())
    }));
    cases.push(case("real mode: an interrupt at SP 2 wraps between its words", Real, |g| {
        g.write32(0x80 * 4, 0x1000 << 16 | g.addr32("handler"));
        g.a.mov(sp, 2)?;
        g.a.int(0x80)?;
        g.mark("after")?;
        g.a.nop()?;
        g.mark("handler")?;
        g.want_memory(0x3_0000, 2, 2);
        g.want_memory(0x3_fffe, 2, 0x1000);
        g.want_memory(0x3_fffc, 2, g.addr("after"));
        g.exit()
    }));
    cases.push(case("real mode: 32-bit operands and addresses", Real, |g| {
        g.write32(0x6_0000 + 0x1234, 0xabcd_ef01);
        g.a.mov(ax, 0x6000)?;
        g.a.mov(es, ax)?;
        g.a.mov(ebx, 0x1000)?;
        g.a.mov(ecx, 0x8d)?;
        g.a.mov(eax, dword_ptr(ebx + ecx * 4).es())?;
        g.out_eax()?;
        g.want(out(0xabcd_ef01));
        g.exit()
    }));
    cases.push(case("real mode: an address above 64 KiB raises #GP", Real, |g| {
        g.a.mov(ebx, 0x1_0000)?;
        g.expect_fault("load", "after", |a| a.mov(al, byte_ptr(ebx)))?;
        g.want(fault(GP).at("load"));
        g.exit()
    }));
    cases.push(case("real mode: through SS it raises #SS", Real, |g| {
        g.a.mov(ebp, 0x1_0000)?;
        g.expect_fault("load", "after", |a| a.mov(al, byte_ptr(ebp)))?;
        g.want(fault(12).at("load"));
        g.exit()
    }));
    cases.push(case("real mode: IP beyond 64 KiB raises #GP", Real, |g| {
        // A 32-bit jump.
        g.a.mov(ebx, 0x1_0000)?;
        g.expect_fault("jump", "after", |a| a.jmp(ebx))?;
        g.want(fault(GP).at("jump"));
        g.exit()
    }));
}

/// Virtual-8086 code with IOPL 3.
fn privileged(
    cases: &mut Vec<Case>,
    name: &str,
    build: impl Fn(&mut Guest) -> Result + Send + Sync + 'static,
) {
    cases.push(case(format!("virtual-8086 with IOPL 3: {name}"), V8086, move |g| {
        g.state(|state| state.rflags |= 3 << 12);
        build(g)?;
        g.exit()
    }));
}

fn virtual_8086(cases: &mut Vec<Case>) {
    privileged(cases, "PUSHF shows IOPL, but not VM", |g| {
        g.a.xor(eax, eax)?;
        g.a.pushfd()?;
        g.a.pop(eax)?;
        g.a.and(eax, !0x44)?;
        g.out_eax()?;
        g.want(out(0x3002));
        Ok(())
    });
    privileged(cases, "POPF changes neither IOPL nor VM", |g| {
        g.a.mov(eax, 0x0002)?;
        g.a.push(eax)?;
        g.a.popfd()?;
        g.a.pushfd()?;
        g.a.pop(eax)?;
        g.out_eax()?;
        g.a.mov(ax, cs)?;
        g.a.movzx(eax, ax)?;
        g.out_eax()?;
        g.want(out(0x3002));
        g.want(out(0x1000));
        Ok(())
    });
    privileged(cases, "STI and CLI change IF", |g| {
        g.a.sti()?;
        g.a.pushf()?;
        g.a.cli()?;
        g.a.pushf()?;
        for value in [0x3002, 0x3202] {
            g.a.xor(eax, eax)?;
            g.a.pop(ax)?;
            g.out_eax()?;
            g.want(out(value));
        }
        Ok(())
    });
    privileged(cases, "INT n goes through the gate", |g| {
        g.resume(0x80);
        let handler = g.handler(0x80);
        g.gate_to(0x80, sel::KCODE32, handler, access::INTERRUPT_GATE | access::DPL3, 0);
        g.a.int(0x80)?;
        g.mark("after")?;
        g.want(fault(0x80).at("after").cs(0x1000).ss(0x3000));
        Ok(())
    });
    privileged(cases, "INT n obeys the gate's DPL", |g| {
        g.expect_fault("int", "after", |a| a.int(0x80))?;
        g.want(fault(GP).code(0x402).at("int"));
        Ok(())
    });
    privileged(cases, "CPL is 3: HLT raises #GP", |g| {
        g.expect_fault("hlt", "after", |a| a.hlt())?;
        g.want(fault(GP).code(0).at("hlt"));
        Ok(())
    });
    privileged(cases, "limits are 64 KiB", |g| {
        g.a.mov(bx, 0xffff)?;
        g.expect_fault("load", "after", |a| a.mov(ax, word_ptr(bx)))?;
        g.want(fault(GP).code(0).at("load"));
        Ok(())
    });
    cases.push(case("virtual-8086: MOV SS takes any paragraph", V8086, |g| {
        g.a.mov(ax, 0x2345)?;
        g.a.mov(ss, ax)?;
        g.a.mov(sp, 0x100)?;
        g.a.mov(ax, 0x99)?;
        g.a.push(ax)?;
        g.want_memory(0x2_3450 + 0xfe, 2, 0x99);
        g.exit()
    }));
}

fn memory(cases: &mut Vec<Case>) {
    cases.push(case("tables: an accessed bit in a page that cannot be written", Long, |g| {
        g.map(WINDOW, GDT, P);
        g.descriptor(sel::FREE, segment(0, 0xff, access::DATA, 4));
        g.state(|state| state.gdtr.base = WINDOW);
        g.a.mov(ecx, u32::from(sel::FREE))?;
        g.expect_fault("load", "after", |a| a.mov(fs, ecx))?;
        g.want(fault(PF).code(3).at("load"));
        g.exit()
    }));
    cases.push(case("tables: a descriptor across two pages", Long, |g| {
        // The table begins four bytes before a page's end.
        g.map(WINDOW, crate::layout::FRAMES, P | W);
        g.map(WINDOW + 0x1000, crate::layout::FRAMES + 0x3000, P | W);
        let base = WINDOW + 0x1000 - 4 - u64::from(sel::FREE);
        for selector in (8..sel::FREE).step_by(8) {
            let descriptor = g.read(GDT + u64::from(selector), 8);
            g.write64(base - WINDOW + crate::layout::FRAMES + u64::from(selector), descriptor);
        }
        let descriptor = segment(DATA as u32, 0xfff, access::DATA | 1, 4);
        g.write32(crate::layout::FRAMES + 0xffc, descriptor as u32);
        g.write32(crate::layout::FRAMES + 0x3000, (descriptor >> 32) as u32);
        g.state(move |state| state.gdtr.base = base);
        g.a.mov(ecx, u32::from(sel::FREE))?;
        g.a.mov(fs, ecx)?;
        g.a.xor(ebx, ebx)?;
        g.a.mov(dword_ptr(rbx + 8).fs(), 3)?;
        g.want_memory(DATA + 8, 4, 3);
        g.exit()
    }));
    cases.push(case("tables: a TSS that is not mapped faults at its stack pointer", Long, |g| {
        g.gate(0x80, "handler", access::INTERRUPT_GATE, 1);
        g.state(|state| state.tr.base = WINDOW);
        g.expect_fault("int", "after", |a| a.int(0x80))?;
        g.want(fault(PF).code(0).cr2(WINDOW + 36).at("int"));
        g.exit()?;
        g.mark("handler")?;
        g.a.nop()
    }));
    cases.push(case("iret 64-bit: IRETD takes five doublewords", Long, |g| {
        for (i, word) in
            [g.addr32("target"), sel::KCODE64.into(), 2, STACK as u32 - 0x80, sel::KDATA.into()]
                .into_iter()
                .enumerate()
        {
            g.a.mov(dword_ptr(rsp + (i as i32 * 4 - 0x40)), word)?;
        }
        g.a.lea(rsp, ptr(rsp - 0x40))?;
        g.a.iretd()?;
        g.mark("target")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want(out(STACK as u32 - 0x80));
        g.exit()
    }));
    cases.push(case("stack: a 32-bit gate with a 16-bit stack of the TSS", Prot32, |g| {
        g.descriptor(sel::FREE, segment(0x5_0000, 0xffff, access::DATA, 0));
        g.write32(TSS + 4, 0x1234_8000);
        g.write32(TSS + 8, sel::FREE.into());
        g.gate(0x80, "handler", access::INTERRUPT_GATE | access::DPL3, 0);
        g.enter_user()?;
        g.a.int(0x80)?;
        g.want(out(0x1234_8000 - 20));
        g.section(32, DATA, DATA)?;
        g.mark("handler")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want_memory(0x5_8000 - 8, 4, crate::layout::USER_STACK);
        g.exit()
    }));
}
