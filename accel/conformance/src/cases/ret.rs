//! IRET in all directions (SDM Vol. 2, IRET).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::vector::{GP, NP, SS};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::Guest;
use crate::layout::{DATA, STACK, USER_CODE, USER_STACK, WINDOW, sel};
use crate::start::Start::{Compat, Long, Paged32, Prot32, Real};
use crate::tables::{access, segment, size};

type Result = std::result::Result<(), IcedError>;

/// A frame for IRETD.
fn frame32(g: &mut Guest, words: &[u32]) -> Result {
    for word in words.iter().rev() {
        g.a.push(*word as i32)?;
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    directions(&mut cases);
    refusals(&mut cases);
    flags(&mut cases);
    cases
}

fn directions(cases: &mut Vec<Case>) {
    cases.push(case("iret 64-bit: to the same level takes SS:RSP", Long, |g| {
        let target = g.addr("target");
        g.iret_frame64(sel::KCODE64, target, 2, sel::KDATA, STACK - 0x100)?;
        g.a.iretq()?;
        g.mark("target")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want(out(STACK as u32 - 0x100));
        g.exit()
    }));
    cases.push(case("iret 64-bit: to the same level with a null SS", Long, |g| {
        let target = g.addr("target");
        g.iret_frame64(sel::KCODE64, target, 2, 0, STACK)?;
        g.a.iretq()?;
        g.mark("target")?;
        g.a.mov(eax, ss)?;
        g.out_eax()?;
        g.want(out(0));
        g.exit()
    }));
    cases.push(case("iret 64-bit: to compatibility mode and back by INT", Long, |g| {
        g.gate(0x80, "handler", access::INTERRUPT_GATE, 0);
        g.iret_frame64(sel::KCODE32, DATA, 2, sel::KDATA, STACK)?;
        g.a.iretq()?;
        g.mark("handler")?;
        g.a.mov(rax, qword_ptr(rsp + 8))?;
        g.out_eax()?;
        g.want(out(0x8765_4321));
        g.want(out(sel::KCODE32.into()));
        g.exit()?;
        g.section(32, DATA, DATA)?;
        // DEC EAX is a REX prefix in 64-bit mode.
        g.a.mov(eax, 0x8765_4322u32)?;
        g.a.db(&[0x48])?;
        g.out_eax()?;
        g.a.int(0x80)
    }));
    cases.push(case("iret 64-bit: to ring 3 in compatibility mode", Long, |g| {
        g.iret_frame64(sel::UCODE32, USER_CODE, 2, sel::UDATA, USER_STACK)?;
        g.a.iretq()?;
        g.section(32, USER_CODE, USER_CODE)?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.a.push(eax)?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want(out(sel::UCODE32.into()));
        g.want(out(USER_STACK as u32 - 4));
        g.exit()
    }));
    cases.push(case("iret compatibility mode: to 64-bit mode", Compat, |g| {
        // To another level, so that SS:ESP is taken.
        frame32(
            g,
            &[USER_CODE as u32, sel::UCODE64.into(), 2, USER_STACK as u32, sel::UDATA.into()],
        )?;
        g.a.iretd()?;
        g.section(64, USER_CODE, USER_CODE)?;
        g.a.mov(rax, 0x1_0000_0005u64)?;
        g.a.shr(rax, 32)?;
        g.out_eax()?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("iret 64-bit: data segments of the supervisor are taken away", Long, |g| {
        g.a.mov(eax, u32::from(sel::KDATA))?;
        g.a.mov(ds, eax)?;
        g.a.mov(es, eax)?;
        g.a.mov(fs, eax)?;
        g.a.mov(eax, u32::from(sel::UDATA))?;
        g.a.mov(gs, eax)?;
        g.enter_user()?;
        g.a.mov(eax, ds)?;
        g.out_eax()?;
        g.a.mov(eax, es)?;
        g.out_eax()?;
        g.a.mov(eax, fs)?;
        g.out_eax()?;
        g.a.mov(eax, gs)?;
        g.out_eax()?;
        for value in [0, 0, 0, u32::from(sel::UDATA)] {
            g.want(out(value));
        }
        g.exit()
    }));
    cases.push(case("iret 32-bit: to the same level takes three words", Prot32, |g| {
        let target = g.addr32("target");
        frame32(g, &[target, sel::KCODE32.into(), 2])?;
        g.a.iretd()?;
        g.mark("target")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want(out(STACK as u32));
        g.exit()
    }));
    cases.push(case("iret 32-bit: IRETW takes words", Prot32, |g| {
        g.a.push(0x1234_5678)?;
        for word in [2, u32::from(sel::KCODE32), 0xc000] {
            g.a.mov(eax, word)?;
            g.a.push(ax)?;
        }
        g.a.iret()?;
        g.section(32, 0xc000, 0xc000)?;
        g.a.pop(eax)?;
        g.out_eax()?;
        g.want(out(0x1234_5678));
        g.exit()
    }));
    cases.push(case("iret 32-bit: to ring 3 and back by INT", Paged32, |g| {
        g.resume(0x80);
        let handler = g.handler(0x80);
        g.gate_to(0x80, sel::KCODE32, handler, access::INTERRUPT_GATE | access::DPL3, 0);
        g.enter_user()?;
        g.a.int(0x80)?;
        g.mark("after")?;
        g.a.mov(eax, ss)?;
        g.out_eax()?;
        g.want(fault(0x80).at("after").cs(sel::UCODE32).ss(sel::UDATA).rsp(USER_STACK));
        g.want(out(sel::UDATA.into()));
        g.exit()
    }));
    cases.push(case("iret 32-bit: to virtual-8086 mode", Prot32, |g| {
        frame32(g, &[0x10, 0x2000, 0x2_0002, 0xfff0, 0x3000, 0x1111, 0x2222, 0x3333, 0x4444])?;
        g.a.iretd()?;
        g.section(16, 0x2_0010, 0x10)?;
        g.a.xor(eax, eax)?;
        g.a.mov(ax, cs)?;
        g.out_eax()?;
        g.a.mov(ax, ss)?;
        g.out_eax()?;
        g.a.mov(ax, es)?;
        g.out_eax()?;
        g.a.mov(ax, ds)?;
        g.out_eax()?;
        g.a.mov(ax, fs)?;
        g.out_eax()?;
        g.a.mov(ax, gs)?;
        g.out_eax()?;
        g.a.mov(ax, sp)?;
        g.out_eax()?;
        for value in [0x2000, 0x3000, 0x1111, 0x2222, 0x3333, 0x4444, 0xfff0] {
            g.want(out(value));
        }
        g.exit()
    }));
    cases.push(case("iret virtual-8086: with IOPL 3 within the mode", Prot32, |g| {
        frame32(g, &[0x10, 0x2000, 0x2_3002, 0xfff0, 0x3000, 0, 0, 0, 0])?;
        g.a.iretd()?;
        g.section(16, 0x2_0010, 0x10)?;
        g.a.pushf()?;
        g.a.push(0x2000)?;
        g.a.push(0x100)?;
        g.a.iret()?;
        g.section(16, 0x2_0100, 0x100)?;
        g.out(9)?;
        g.want(out(9));
        g.exit()
    }));
    cases.push(case("iret real mode: to another segment", Real, |g| {
        g.a.push(0x246)?;
        g.a.push(0x2000)?;
        g.a.push(0x10)?;
        g.a.iret()?;
        g.section(16, 0x2_0010, 0x10)?;
        g.a.pushf()?;
        g.a.pop(ax)?;
        g.a.and(eax, 0xffff)?;
        g.out_eax()?;
        g.want(out(0x246));
        g.exit()
    }));
}

fn refusals(cases: &mut Vec<Case>) {
    /// What is returned to: CS, RIP, SS, RSP.
    type Target = (u16, u64, u16, u64);
    #[allow(clippy::type_complexity)]
    let bad: [(&str, Target, u8, u32, fn(&mut Guest)); 10] = [
        ("a null CS", (0, DATA, sel::KDATA, STACK), GP, 0, |_| ()),
        ("a CS beyond the GDT", (0x3000, DATA, sel::KDATA, STACK), GP, 0x3000, |_| ()),
        ("a CS that is data", (sel::KDATA, DATA, sel::KDATA, STACK), GP, sel::KDATA as u32, |_| ()),
        ("a CS whose DPL is not its RPL", (0x13, DATA, sel::UDATA, STACK), GP, 0x10, |_| ()),
        (
            "a CS that is not present",
            (sel::FREE, DATA, sel::KDATA, STACK),
            NP,
            sel::FREE as u32,
            |g| {
                let code = segment(0, 0xf_ffff, access::CODE & !0x80, size::PAGES | size::BITS64);
                g.descriptor(sel::FREE, code);
            },
        ),
        (
            "a CS that is both 64-bit and 32-bit",
            (sel::FREE, DATA, sel::KDATA, STACK),
            GP,
            sel::FREE as u32,
            |g| {
                let code =
                    segment(0, 0xf_ffff, access::CODE, size::PAGES | size::BITS64 | size::BITS32);
                g.descriptor(sel::FREE, code);
            },
        ),
        (
            "an address that is not canonical",
            (sel::KCODE64, 1 << 47, sel::KDATA, STACK),
            GP,
            0,
            |_| (),
        ),
        ("a null SS of ring 3", (sel::UCODE64, USER_CODE, 3, STACK), GP, 0, |_| ()),
        (
            "an SS of another level",
            (sel::UCODE64, USER_CODE, sel::KDATA | 3, STACK),
            GP,
            sel::KDATA as u32,
            |_| (),
        ),
        (
            "an SS that is not present",
            (sel::KCODE64, DATA, sel::FREE, STACK),
            SS,
            sel::FREE as u32,
            |g| {
                let data = segment(0, 0xf_ffff, access::DATA & !0x80, size::PAGES | size::BITS32);
                g.descriptor(sel::FREE, data);
            },
        ),
    ];
    for (name, (cs_to, rip_to, ss_to, rsp_to), vector, code, prepare) in bad {
        cases.push(case(format!("iret 64-bit: {name} is refused"), Long, move |g| {
            prepare(g);
            g.iret_frame64(cs_to, rip_to, 2, ss_to, rsp_to)?;
            g.mark("iret")?;
            g.a.iretq()?;
            g.want(fault(vector).code(code).at("iret").rsp(STACK - 40).cs(sel::KCODE64));
            Ok(())
        }));
    }
    cases.push(case("iret 32-bit: an address beyond the limit is refused", Prot32, |g| {
        g.descriptor(sel::FREE, segment(0, 0xfff, access::CODE, size::BITS32));
        frame32(g, &[0x1000, sel::FREE.into(), 2])?;
        g.mark("iret")?;
        g.a.iretd()?;
        g.want(fault(GP).code(0).at("iret"));
        Ok(())
    }));
    cases.push(case("iret: to an inner level is refused", Long, |g| {
        g.enter_user()?;
        g.iret_frame64(sel::KCODE64, DATA, 2, sel::KDATA, STACK)?;
        g.mark("iret")?;
        g.a.iretq()?;
        g.want(fault(GP).code(sel::KCODE64.into()).at("iret"));
        Ok(())
    }));
    cases.push(case("iret: NT in long mode raises #GP", Long, |g| {
        let target = g.addr("target");
        g.iret_frame64(sel::KCODE64, target, 2, sel::KDATA, STACK)?;
        g.a.push(0x4002)?;
        g.a.popfq()?;
        g.mark("iret")?;
        g.a.iretq()?;
        g.mark("target")?;
        g.want(fault(GP).code(0).at("iret"));
        Ok(())
    }));
    cases.push(case("iret: a stack that is not mapped", Long, |g| {
        g.handle_on_ist(14, 1);
        g.a.mov(rsp, WINDOW)?;
        g.mark("iret")?;
        g.a.iretq()?;
        g.want(fault(14).code(0).cr2(WINDOW).at("iret").rsp(WINDOW));
        Ok(())
    }));
}

fn flags(cases: &mut Vec<Case>) {
    cases.push(case("iret: ring 3 can change neither IF nor IOPL", Long, |g| {
        g.enter_user()?;
        let target = g.addr("target");
        g.iret_frame64(sel::UCODE64, target, 0x3ed7, sel::UDATA, USER_STACK)?;
        g.a.iretq()?;
        g.mark("target")?;
        g.a.pushfq()?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.want(out(0xcd7));
        g.exit()
    }));
    cases.push(case("iret: ring 0 can change all", Long, |g| {
        let target = g.addr("target");
        g.iret_frame64(sel::KCODE64, target, 0x24_7ed7, sel::KDATA, STACK)?;
        g.a.iretq()?;
        g.mark("target")?;
        g.a.pushfq()?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.want(out(0x24_7ed7));
        g.exit()
    }));
    cases.push(case("popf: ring 3 can change neither IF nor IOPL", Long, |g| {
        g.enter_user()?;
        g.a.push(0x3ed7)?;
        g.a.popfq()?;
        g.a.pushfq()?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.want(out(0xcd7));
        g.exit()
    }));
    cases.push(case("popf: ring 3 with IOPL 3 can change IF only", Long, |g| {
        g.enter_user_with_flags(0x3002)?;
        g.a.push(0x202)?;
        g.a.popfq()?;
        g.a.pushfq()?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.a.cli()?;
        g.a.pushfq()?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.want(out(0x3202));
        g.want(out(0x3002));
        g.exit()
    }));
    cases.push(case("popf: ring 0 can change all but VM and RF", Long, |g| {
        g.a.mov(rax, 0x27_7ed7u64)?;
        g.a.push(rax)?;
        g.a.popfq()?;
        g.a.pushfq()?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.want(out(0x24_7ed7));
        g.exit()
    }));
    cases.push(case("popf: 16 bits leave the rest", Long, |g| {
        g.a.push(0x20_0002)?;
        g.a.popfq()?;
        g.a.mov(eax, 0x8d7)?;
        g.a.push(ax)?;
        g.a.popf()?;
        g.a.pushfq()?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.want(out(0x20_08d7));
        g.exit()
    }));
    cases.push(case("pushf: VM and RF are not shown", Prot32, |g| {
        let target = g.addr32("target");
        frame32(g, &[target, sel::KCODE32.into(), 0x1_0002])?;
        g.a.iretd()?;
        g.mark("target")?;
        g.a.pushfd()?;
        g.a.pop(eax)?;
        g.out_eax()?;
        g.want(out(2));
        g.exit()
    }));
}
