//! Interrupts through gates: frames, stacks, checks, double and triple faults
//! (SDM Vol. 3, 6.10 to 6.15).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::state::SegReg;
use x86::vector::{BP, GP, NP, SS, TS, UD};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::Guest;
use crate::layout::{self, DATA, GDT, IDT64, IVT, STACK, STACK0, TSS, USER_STACK, sel};
use crate::start::Start::{Compat, Long, Paged32, Prot16, Prot32, Real, V8086};
use crate::tables::pte::{P, W};
use crate::tables::{access, segment, size};

type Result = std::result::Result<(), IcedError>;

const DPL3: u8 = access::DPL3;
const INTERRUPT: u8 = access::INTERRUPT_GATE;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    frames(&mut cases);
    stacks(&mut cases);
    checks(&mut cases);
    cases
}

/// Shows the `count` words of `size` bytes on top of the stack, the first one first.
fn show_stack(g: &mut Guest, count: i32) -> Result {
    for i in 0..count {
        match g.a.bitness() {
            64 => g.a.mov(eax, dword_ptr(rsp + i * 8))?,
            32 => g.a.mov(eax, dword_ptr(esp + i * 4))?,
            _ => {
                g.a.mov(bp, sp)?;
                g.a.movzx(eax, word_ptr(bp + i * 2))?;
            }
        }
        g.out_eax()?;
    }
    Ok(())
}

fn frames(cases: &mut Vec<Case>) {
    cases.push(case("delivery 64-bit: the frame is aligned and always has SS:RSP", Long, |g| {
        g.gate(0x80, "handler", INTERRUPT, 0);
        g.a.lea(rsp, ptr(rsp - 5))?;
        g.a.int(0x80)?;
        g.mark("after")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want(out(STACK as u32 - 16 - 40));
        for value in [g.addr32("after"), sel::KCODE64.into(), 2, STACK as u32 - 5] {
            g.want(out(value));
        }
        g.want(out(sel::KDATA.into()));
        g.want(out(STACK as u32 - 5));
        g.exit()?;
        g.mark("handler")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        show_stack(g, 5)?;
        g.a.iretq()
    }));
    cases.push(case(
        "delivery 64-bit: from ring 3 the stack is the TSS's and SS null",
        Long,
        |g| {
            g.gate(0x80, "handler", INTERRUPT | DPL3, 0);
            g.enter_user()?;
            g.a.int(0x80)?;
            g.mark("after")?;
            for value in
                [STACK0 as u32 - 40, 0, sel::KCODE64.into(), g.addr32("after"), sel::UCODE64.into()]
            {
                g.want(out(value));
            }
            g.want(out(2));
            g.want(out(USER_STACK as u32));
            g.want(out(sel::UDATA.into()));
            g.section(64, DATA, DATA)?;
            g.mark("handler")?;
            for reg in [SegReg::Ss, SegReg::Cs] {
                if reg == SegReg::Ss {
                    g.a.mov(eax, esp)?;
                    g.out_eax()?;
                    g.a.mov(eax, ss)?;
                } else {
                    g.a.mov(eax, cs)?;
                }
                g.out_eax()?;
            }
            show_stack(g, 5)?;
            g.exit()
        },
    ));
    cases.push(case("delivery 32-bit: on the same level three words", Prot32, |g| {
        g.gate(0x80, "handler", INTERRUPT, 0);
        g.a.int(0x80)?;
        g.mark("after")?;
        g.want(out(STACK as u32 - 12));
        for value in [g.addr32("after"), sel::KCODE32.into(), 2] {
            g.want(out(value));
        }
        g.mark("handler")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        show_stack(g, 3)?;
        g.exit()
    }));
    cases.push(case("delivery 32-bit: from ring 3 five words on the TSS's stack", Paged32, |g| {
        g.gate(0x80, "handler", INTERRUPT | DPL3, 0);
        g.enter_user()?;
        g.a.int(0x80)?;
        g.mark("after")?;
        g.want(out(STACK0 as u32 - 20));
        g.want(out(sel::KDATA.into()));
        for value in [g.addr32("after"), sel::UCODE32.into(), 2, USER_STACK as u32] {
            g.want(out(value));
        }
        g.want(out(sel::UDATA.into()));
        g.section(32, DATA, DATA)?;
        g.mark("handler")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.a.mov(eax, ss)?;
        g.out_eax()?;
        show_stack(g, 5)?;
        g.exit()
    }));
    cases.push(case("delivery 32-bit: a 16-bit gate pushes words", Prot32, |g| {
        // The handler must lie in the first 64 KiB.
        g.gate_to(0x80, sel::KCODE32, layout::AP_CODE, access::INTERRUPT_GATE16, 0);
        g.a.int(0x80)?;
        g.mark("after")?;
        g.out(7)?;
        g.exit()?;
        let after = g.addr32("after");
        for value in [STACK as u32 - 6, after & 0xffff, sel::KCODE32.into(), 2] {
            g.want(out(value));
        }
        g.section(32, layout::AP_CODE, layout::AP_CODE)?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        for i in 0..3 {
            g.a.movzx(eax, word_ptr(esp + i * 2))?;
            g.out_eax()?;
        }
        g.exit()
    }));
    cases.push(case("delivery 16-bit: a 32-bit gate, and back", Prot16, |g| {
        g.resume(0x80);
        g.a.int(0x80)?;
        g.mark("after")?;
        g.out(7)?;
        g.want(fault(0x80).at("after").cs(sel::KCODE16));
        g.want(out(7));
        g.exit()
    }));
    cases.push(case("delivery real mode: three words and the vector table", Real, |g| {
        let handler = g.addr32("handler");
        g.write32(IVT + 0x80 * 4, 0x1000 << 16 | handler);
        g.a.sti()?;
        g.a.int(0x80)?;
        g.mark("after")?;
        g.a.pushf()?;
        g.a.pop(ax)?;
        g.a.and(eax, 0x202)?;
        g.out_eax()?;
        for value in [g.addr32("after"), 0x1000, 0x202] {
            g.want(out(value));
        }
        g.want(out(2));
        g.want(out(0x202));
        g.exit()?;
        g.mark("handler")?;
        show_stack(g, 3)?;
        g.a.pushf()?;
        g.a.pop(ax)?;
        g.a.and(eax, 0x202)?;
        g.out_eax()?;
        g.a.iret()
    }));
    cases.push(case("delivery real mode: LIDT moves the vector table", Real, |g| {
        let handler = g.addr32("handler");
        g.write32(0x5000 + 0x80 * 4, 0x1000 << 16 | handler);
        g.write16(0x4000, 0x3ff);
        g.write32(0x4002, 0x5000);
        g.a.lidt(ptr(0x4000))?;
        g.a.int(0x80)?;
        g.mark("handler")?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("delivery real mode: a vector beyond the limit raises #GP", Real, |g| {
        g.write16(0x4000, 0x7f);
        g.write32(0x4002, 0);
        g.a.lidt(ptr(0x4000))?;
        g.expect_fault("int", "after", |a| a.int(0x80))?;
        g.want(fault(GP).at("int"));
        g.exit()
    }));
    cases.push(case("delivery virtual-8086: segments are pushed and nulled", V8086, |g| {
        g.gate(0x80, "handler", INTERRUPT | DPL3, 0);
        g.state(|state| state.rflags |= 3 << 12);
        for (value, which) in [(0x1111, 0), (0x2222, 1), (0x3333, 2), (0x4444, 3)] {
            g.a.mov(ax, value)?;
            match which {
                0 => g.a.mov(es, ax)?,
                1 => g.a.mov(ds, ax)?,
                2 => g.a.mov(fs, ax)?,
                _ => g.a.mov(gs, ax)?,
            }
        }
        g.a.int(0x80)?;
        g.mark("after")?;
        for value in [g.addr32("after"), 0x1000, 0x2_3002, STACK as u32 & 0xffff] {
            g.want(out(value));
        }
        for value in [0x3000, 0x1111, 0x2222, 0x3333, 0x4444] {
            g.want(out(value));
        }
        // ES, and the stack.
        g.want(out(0));
        g.want(out(STACK0 as u32 - 36));
        g.section(32, DATA, DATA)?;
        g.mark("handler")?;
        show_stack(g, 9)?;
        g.a.mov(eax, es)?;
        g.out_eax()?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.exit()
    }));
    cases.push(case("delivery virtual-8086: IRET returns there with all segments", V8086, |g| {
        g.resume(BP);
        let bp_handler = g.handler(BP);
        g.gate_to(BP, sel::KCODE32, bp_handler, INTERRUPT | DPL3, 0);
        g.a.mov(ax, 0x1234)?;
        g.a.mov(fs, ax)?;
        g.a.int3()?;
        g.mark("after")?;
        g.a.xor(eax, eax)?;
        g.a.mov(ax, fs)?;
        g.out_eax()?;
        g.want(fault(BP).at("after").cs(0x1000).ss(0x3000).flags(1 << 17, 1 << 17));
        g.want(out(0x1234));
        g.exit()
    }));
    cases.push(case("delivery virtual-8086: INTO does not need IOPL 3", V8086, |g| {
        g.resume(4);
        let handler = g.handler(4);
        g.gate_to(4, sel::KCODE32, handler, INTERRUPT | DPL3, 0);
        g.a.mov(al, 0x7f)?;
        g.a.add(al, 1)?;
        g.a.db(&[0xce])?;
        g.mark("after")?;
        g.out(1)?;
        g.want(fault(4).at("after"));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("delivery virtual-8086: handlers must be of ring 0", V8086, |g| {
        let code = segment(0, 0xf_ffff, access::CODE | 1 | 0x20, size::PAGES | size::BITS32);
        g.descriptor(sel::FREE, code);
        let handler = g.handler(BP);
        g.gate_to(BP, sel::FREE | 1, handler, INTERRUPT | DPL3, 0);
        g.expect_fault("int3", "after", |a| a.int3())?;
        g.want(fault(GP).code(sel::FREE.into()).at("int3"));
        g.exit()
    }));
}

fn stacks(cases: &mut Vec<Case>) {
    for ist in [1u8, 3, 7] {
        cases.push(case(format!("delivery 64-bit: IST {ist}"), Long, move |g| {
            g.gate(0x80, "handler", INTERRUPT, ist);
            g.a.int(0x80)?;
            let top = layout::IST + u64::from(ist - 1) * layout::IST_STEP;
            g.want(out(top as u32 - 40));
            // The level has not changed, so SS is as before.
            g.want(out(sel::KDATA.into()));
            g.mark("handler")?;
            g.a.mov(eax, esp)?;
            g.out_eax()?;
            g.a.mov(eax, ss)?;
            g.out_eax()?;
            g.exit()
        }));
    }
    cases.push(case("delivery 64-bit: IST from ring 3", Long, |g| {
        g.gate(0x80, "handler", INTERRUPT | DPL3, 2);
        g.enter_user()?;
        g.a.int(0x80)?;
        g.want(out((layout::IST + layout::IST_STEP) as u32 - 40));
        g.want(out(0));
        g.section(64, DATA, DATA)?;
        g.mark("handler")?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.a.mov(eax, ss)?;
        g.out_eax()?;
        g.exit()
    }));
    cases.push(case("delivery 64-bit: a stack that is not canonical raises #SS", Long, |g| {
        g.write64(TSS + 36, 1 << 47);
        g.gate(0x80, "handler", INTERRUPT, 1);
        g.expect_fault("int", "after", |a| a.int(0x80))?;
        g.want(fault(SS).code(0).at("int"));
        g.exit()?;
        g.mark("handler")?;
        g.a.nop()
    }));
    for (start, mode) in [(Long, "64-bit"), (Compat, "compatibility mode")] {
        cases.push(case(
            format!("delivery {mode}: tables, handlers and stacks in the upper half"),
            start,
            |g| {
                const HIGH: u64 = 0xffff_8000_0000_0000;
                for page in (0..layout::TABLES).step_by(0x1000) {
                    g.map(HIGH + page, page, P | W);
                }
                // They are nowhere else.
                for page in [GDT, IDT64, TSS, layout::IST - 0x1000, DATA] {
                    let place = g.entry(page, 1);
                    g.set_entry(place, 0);
                }
                g.state(|state| {
                    state.idtr.base += HIGH;
                    state.gdtr.base += HIGH;
                    state.tr.base += HIGH;
                });
                g.write64(TSS + 36, HIGH + layout::IST);
                let handler = g.addr("handler") + HIGH;
                g.gate_to(0x80, sel::KCODE64, handler, INTERRUPT, 1);
                g.a.mov(ecx, u32::from(sel::KDATA))?;
                g.a.mov(es, ecx)?;
                g.a.int(0x80)?;
                g.mark("after")?;
                g.out(5)?;
                g.want(out(0xffff_8000));
                g.want(out(0xffff_8000));
                g.want(out(5));
                g.exit()?;
                g.section(64, DATA, DATA)?;
                g.mark("handler")?;
                let mut here = g.a.create_label();
                g.a.call(here)?;
                g.a.set_label(&mut here)?;
                g.a.pop(rax)?;
                g.a.shr(rax, 32)?;
                g.out_eax()?;
                g.a.mov(rax, rsp)?;
                g.a.shr(rax, 32)?;
                g.out_eax()?;
                g.a.iretq()
            },
        ));
    }
    cases.push(case(
        "delivery compatibility mode: the handler is 64-bit and returns",
        Compat,
        |g| {
            g.resume(0x80);
            g.a.int(0x80)?;
            g.mark("after")?;
            g.out(3)?;
            g.want(fault(0x80).at("after").cs(sel::KCODE32).ss(sel::KDATA).rsp(STACK));
            g.want(out(3));
            g.exit()
        },
    ));
    cases.push(case(
        "delivery 32-bit: a conforming handler runs at the caller's level",
        Paged32,
        |g| {
            let code =
                segment(0, 0xf_ffff, access::CODE_CONFORMING | 1, size::PAGES | size::BITS32);
            g.descriptor(sel::FREE, code);
            let handler = layout::USER_CODE + 0x1000;
            g.gate_to(0x80, sel::FREE, handler, INTERRUPT | DPL3, 0);
            g.enter_user()?;
            g.a.int(0x80)?;
            g.want(out((sel::FREE | 3).into()));
            g.want(out(USER_STACK as u32 - 12));
            g.section(32, handler, handler)?;
            g.a.mov(eax, cs)?;
            g.out_eax()?;
            g.a.mov(eax, esp)?;
            g.out_eax()?;
            g.exit()
        },
    ));
}

fn checks(cases: &mut Vec<Case>) {
    cases.push(case("delivery: INT n obeys the gate's DPL", Long, |g| {
        g.enter_user()?;
        g.expect_fault("int", "after", |a| a.int(0x80))?;
        g.want(fault(GP).code(0x80 * 8 + 2).at("int"));
        g.exit()
    }));
    cases.push(case("delivery: INT3 obeys the gate's DPL", Long, |g| {
        g.enter_user()?;
        g.expect_fault("int", "after", |a| a.int3())?;
        g.want(fault(GP).code(3 * 8 + 2).at("int"));
        g.exit()
    }));
    cases.push(case("delivery: INT1 does not obey the gate's DPL", Long, |g| {
        g.enter_user()?;
        g.a.int1()?;
        g.mark("after")?;
        g.want(fault(1).at("after"));
        g.exit()
    }));
    cases.push(case("delivery: INT 13 pushes no error code", Long, |g| {
        g.gate(GP, "handler", INTERRUPT, 0);
        g.a.int(i32::from(GP))?;
        g.mark("after")?;
        g.want(out(g.addr32("after")));
        g.mark("handler")?;
        show_stack(g, 1)?;
        g.exit()
    }));
    // What is wrong with a gate, and what INT 80H raises.
    #[allow(clippy::type_complexity)]
    let bad: [(&str, u8, u32, fn(&mut Guest)); 10] = [
        ("a gate that is not present", NP, 0x402, |g| {
            g.gate_to(0x80, sel::KCODE64, DATA, INTERRUPT & !0x80, 0);
        }),
        ("a gate that is none", GP, 0x402, |g| {
            g.gate_to(0x80, sel::KCODE64, DATA, access::TSS, 0);
        }),
        ("a call gate", GP, 0x402, |g| g.gate_to(0x80, sel::KCODE64, DATA, access::CALL_GATE, 0)),
        ("a null code segment", GP, 0, |g| g.gate_to(0x80, 0, DATA, INTERRUPT, 0)),
        ("a data segment", GP, sel::KDATA as u32, |g| {
            g.gate_to(0x80, sel::KDATA, DATA, INTERRUPT, 0);
        }),
        ("32-bit code", GP, sel::KCODE32 as u32, |g| {
            g.gate_to(0x80, sel::KCODE32, DATA, INTERRUPT, 0);
        }),
        ("code of a lower privilege", GP, 0x30, |g| {
            // Its DPL is above CPL.
            g.gate_to(0x80, sel::UCODE64 & !3, DATA, INTERRUPT, 0);
        }),
        ("code that is not present", NP, sel::FREE as u32, |g| {
            let code = segment(0, 0xf_ffff, access::CODE & !0x80, size::PAGES | size::BITS64);
            g.descriptor(sel::FREE, code);
            g.gate_to(0x80, sel::FREE, DATA, INTERRUPT, 0);
        }),
        ("a selector beyond the GDT", GP, 0x2000, |g| {
            g.gate_to(0x80, 0x2000, DATA, INTERRUPT, 0);
        }),
        ("an address that is not canonical", GP, 0, |g| {
            g.gate_to(0x80, sel::KCODE64, 1 << 47, INTERRUPT, 0);
        }),
    ];
    for (name, vector, code, prepare) in bad {
        cases.push(case(format!("delivery 64-bit: {name}"), Long, move |g| {
            prepare(g);
            g.expect_fault("int", "after", |a| a.int(0x80))?;
            g.want(fault(vector).code(code).at("int"));
            g.exit()
        }));
    }
    cases.push(case("delivery 64-bit: a vector beyond the IDT", Long, |g| {
        g.state(|state| state.idtr.limit = 0x7ff);
        g.expect_fault("int", "after", |a| a.int(0x80))?;
        g.want(fault(GP).code(0x402).at("int"));
        g.exit()
    }));
    cases.push(case("delivery 32-bit: an address beyond the code segment", Prot32, |g| {
        let code = segment(0, 0xfff, access::CODE, size::BITS32);
        g.descriptor(sel::FREE, code);
        g.gate_to(0x80, sel::FREE, 0x1000, INTERRUPT, 0);
        g.expect_fault("int", "after", |a| a.int(0x80))?;
        g.want(fault(GP).code(0).at("int"));
        g.exit()
    }));
    cases.push(case("delivery 32-bit: a stack without room raises #SS", Prot32, |g| {
        ring1(g, (sel::FREE + 8) | 1, |g| {
            g.descriptor(sel::FREE + 8, segment(0, 0xf, access::DATA | 0x20, size::BITS32));
        });
        g.write32(TSS + 12, 8);
        to_ring3(g)?;
        g.expect_fault("int", "after", |a| a.int(0x80))?;
        g.want(fault(SS).code((sel::FREE + 8).into()).at("int"));
        g.exit()
    }));
    for (name, vector, selector, prepare) in [
        ("null", TS, 0u16, (|_| ()) as fn(&mut Guest)),
        ("beyond the GDT", TS, 0x2001, |_| ()),
        ("of the wrong level", TS, sel::KDATA | 1, |_| ()),
        ("read-only", TS, (sel::FREE + 8) | 1, |g| {
            let data = segment(0, 0xf_ffff, access::DATA_READ_ONLY | 0x20, size::BITS32);
            g.descriptor(sel::FREE + 8, data);
        }),
        ("not present", SS, (sel::FREE + 8) | 1, |g| {
            let data = segment(0, 0xf_ffff, access::DATA & !0x80 | 0x20, size::BITS32);
            g.descriptor(sel::FREE + 8, data);
        }),
    ] {
        cases.push(case(format!("delivery 32-bit: a TSS with SS1 {name}"), Prot32, move |g| {
            ring1(g, selector, prepare);
            to_ring3(g)?;
            g.expect_fault("int", "after", |a| a.int(0x80))?;
            g.want(fault(vector).code(u32::from(selector & !3)).at("int"));
            g.exit()
        }));
        cases.push(case(
            format!("delivery 32-bit: a TSS with SS1 {name} while an exception is delivered"),
            Prot32,
            move |g| {
                ring1(g, selector, prepare);
                g.gate_to(UD, (sel::FREE) | 1, DATA, INTERRUPT, 0);
                to_ring3(g)?;
                g.expect_fault("ud2", "after", |a| a.ud2())?;
                // EXT: the program has not asked for it.
                g.want(fault(vector).code(u32::from(selector & !3) | 1).at("ud2"));
                g.exit()
            },
        ));
    }
}

/// A gate to ring 1 whose stack segment in the TSS is `selector`.
fn ring1(g: &mut Guest, selector: u16, prepare: fn(&mut Guest)) {
    let code = segment(0, 0xf_ffff, access::CODE | 0x20, size::PAGES | size::BITS32);
    g.descriptor(sel::FREE, code);
    prepare(g);
    g.gate_to(0x80, sel::FREE | 1, DATA, INTERRUPT | DPL3, 0);
    g.write32(TSS + 12, STACK as u32);
    g.write32(TSS + 16, selector.into());
}

/// Ring 3 without paging, where every section may be the user's.
fn to_ring3(g: &mut Guest) -> Result {
    g.enter_user()
}
