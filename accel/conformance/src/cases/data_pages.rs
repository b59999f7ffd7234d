//! Programs whose data changes places under them, and faults of programs.
//!
//! Engines may look at a program's memory by way of the host's page tables. Those must show what the
//! guest's do, and a fault there must become the guest's, with all that belongs to it.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::state::Cr4;
use x86::vector::{GP, PF, SS};

use crate::case::{Case, case};
use crate::cases::program::{Invalidate, program};
use crate::expect::{fault, out};
use crate::guest::{Guest, PCID};
use crate::layout::{FRAMES, USER_STACK, WINDOW};
use crate::start::Start::Long;
use crate::tables::pte::{A, D, P, PS, U, W};

type Result = std::result::Result<(), IcedError>;

const FRAME: [u64; 2] = [FRAMES, FRAMES + 0x1000];
const USER: u64 = P | W | U;
/// Nothing is here.
const MISSING: u64 = WINDOW + 0x8_0000;
/// A page behind it may be mapped.
const PRESENT: u64 = MISSING + 0x1000;
/// Where a CALL may lead.
const SOMEWHERE: u32 = WINDOW as u32;
/// The last page of the user's half of the address space.
const LAST: u64 = 0x7fff_ffff_f000;

/// The window shows the first frame, and the kernel's service is to change its entry to R8.
fn changing(
    cases: &mut Vec<Case>,
    name: &str,
    user: impl Fn(&mut Guest, u64) -> Result + Copy + Send + Sync + 'static,
) {
    for how in Invalidate::all() {
        cases.push(case(format!("data pages: {name}, {how}"), Long, move |g| {
            let bits = USER | how.bits();
            for (frame, value) in FRAME.into_iter().zip(1..) {
                g.write32(frame, value);
            }
            g.map(WINDOW, FRAME[0], bits);
            let place = g.entry(WINDOW, 1);
            how.prepare(g)?;
            program(
                g,
                |g| {
                    g.a.mov(qword_ptr(place), r8)?;
                    how.invalidate(g, WINDOW)
                },
                |g| user(g, bits),
            )
        }));
    }
}

fn serve(g: &mut Guest, value: u64) -> Result {
    g.a.mov(r8, value)?;
    g.a.int(0x80)
}

/// Shows the number at the start of the window.
fn show(g: &mut Guest, value: u32) -> Result {
    g.a.mov(rbx, WINDOW)?;
    g.a.mov(eax, dword_ptr(rbx))?;
    g.out_eax()?;
    g.want(out(value));
    Ok(())
}

/// A load, a store and an addition to memory at RBX; the bits of a page fault's error code besides the
/// user's.
type Access = (fn(&mut CodeAssembler) -> Result, u32);
const ACCESSES: [Access; 3] = [
    (|a| a.mov(ecx, dword_ptr(rbx)), 0),
    (|a| a.mov(dword_ptr(rbx), ecx), 2),
    (|a| a.add(dword_ptr(rbx), ecx), 2),
];

/// Marks of instructions that fault, and of what follows them.
const MARKS: [[&str; 2]; 12] = [
    ["fault 0", "after 0"],
    ["fault 1", "after 1"],
    ["fault 2", "after 2"],
    ["fault 3", "after 3"],
    ["fault 4", "after 4"],
    ["fault 5", "after 5"],
    ["fault 6", "after 6"],
    ["fault 7", "after 7"],
    ["fault 8", "after 8"],
    ["fault 9", "after 9"],
    ["fault 10", "after 10"],
    ["fault 11", "after 11"],
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    changing(&mut cases, "a page that is remapped", |g, bits| {
        for i in [0, 1, 0, 1] {
            serve(g, FRAME[i] | bits)?;
            show(g, 1 + i as u32)?;
            show(g, 1 + i as u32)?;
        }
        Ok(())
    });
    changing(&mut cases, "a page that is copied before it is stored to", |g, bits| {
        serve(g, FRAME[0] | bits & !W)?;
        show(g, 1)?;
        serve(g, FRAME[1] | bits)?;
        g.a.mov(rbx, WINDOW)?;
        g.a.mov(dword_ptr(rbx + 4), 7)?;
        show(g, 2)?;
        g.want_memory(FRAME[0] + 4, 4, 0);
        g.want_memory(FRAME[1] + 4, 4, 7);
        Ok(())
    });
    changing(&mut cases, "a page whose dirty bit is cleared", |g, bits| {
        g.a.mov(rbx, WINDOW)?;
        for value in 1..4 {
            g.a.mov(dword_ptr(rbx + 4), value)?;
            serve(g, FRAME[0] | bits)?;
            g.a.mov(rbx, WINDOW)?;
            g.a.mov(ecx, dword_ptr(rbx + 4))?;
        }
        g.a.mov(dword_ptr(rbx + 4), 9)?;
        let place = g.entry(WINDOW, 1);
        g.want_memory(place, 8, FRAME[0] | bits | A | D);
        g.want_memory(FRAME[0] + 4, 4, 9);
        Ok(())
    });
    changing(&mut cases, "a page that must not be accessed", |g, bits| {
        let mut marks = MARKS.into_iter();
        for (taken, present) in [(USER, 0), (U, 1)] {
            serve(g, FRAME[0] | bits)?;
            show(g, 1)?;
            g.a.mov(dword_ptr(rbx + 4), 5)?;
            serve(g, FRAME[0] | bits & !taken)?;
            g.a.mov(rbx, WINDOW)?;
            g.a.mov(ecx, 6)?;
            for (access, code) in ACCESSES {
                let [at, after] = marks.next().unwrap_or_default();
                g.want(fault(PF).code(4 | code | present).cr2(WINDOW).at(at));
                g.expect_fault(at, after, access)?;
            }
        }
        g.want_memory(FRAME[0], 4, 1);
        g.want_memory(FRAME[0] + 4, 4, 5);
        Ok(())
    });
    changing(&mut cases, "a page that must not be stored to", |g, bits| {
        let mut marks = MARKS.into_iter();
        for value in [5, 6] {
            serve(g, FRAME[0] | bits)?;
            g.a.mov(rbx, WINDOW)?;
            g.a.mov(dword_ptr(rbx + 4), value)?;
            serve(g, FRAME[0] | bits & !W)?;
            show(g, 1)?;
            g.a.mov(ecx, 6)?;
            for (access, _) in &ACCESSES[1..] {
                let [at, after] = marks.next().unwrap_or_default();
                g.want(fault(PF).code(7).cr2(WINDOW).at(at));
                g.expect_fault(at, after, *access)?;
            }
        }
        g.want_memory(FRAME[0], 4, 1);
        g.want_memory(FRAME[0] + 4, 4, 6);
        Ok(())
    });
    programs(&mut cases);
    faults(&mut cases);
    places(&mut cases);
    many(&mut cases);
    cases
}

/// Two programs, which have different memory at one address.
fn programs(cases: &mut Vec<Case>) {
    const OTHER_ROOT: u64 = FRAMES + 0x10_0000;
    const NO_FLUSH: u64 = 1 << 63;
    for (name, pcids, later) in [
        ("", [0, 0], 0),
        (" with PCIDs", [1, 2], 0),
        (" with PCIDs that are kept", [1, 2], NO_FLUSH),
    ] {
        cases.push(case(format!("data pages: two programs{name}"), Long, move |g| {
            for (frame, value) in FRAME.into_iter().zip(1..) {
                g.write32(frame, value);
            }
            g.map(WINDOW, FRAME[0], USER);
            let table = g.copy_tables(WINDOW, OTHER_ROOT);
            let index = g.start.paging().index(1, WINDOW);
            g.write64(table + index * 8, FRAME[1] | USER);
            if pcids[1] != 0 {
                g.needs(&PCID);
                g.change_cr4(Cr4::PCIDE.bits() as u32, 0)?;
            }
            let roots = [g.root | pcids[0], OTHER_ROOT | pcids[1]];
            program(
                g,
                |g| g.a.mov(cr3, r8),
                |g| {
                    for round in 0..4 {
                        for (root, value) in roots.into_iter().zip(1..) {
                            serve(g, root | if round == 0 { 0 } else { later })?;
                            show(g, value)?;
                            g.a.add(dword_ptr(rbx + 4), value as i32)?;
                        }
                    }
                    g.want_memory(FRAME[0] + 4, 4, 4);
                    g.want_memory(FRAME[1] + 4, 4, 8);
                    Ok(())
                },
            )
        }));
    }
}

type Op = fn(&mut CodeAssembler) -> Result;
/// The status flags.
const STATUS: u64 = 0x8d5;
/// CMP of 5 with 7: CF, AF and SF.
const LESS: u64 = 0x91;

/// Behind `before`, `op` faults at `place`, with RSP `top` before both and `then` in between. There is memory on
/// either side of what is missing. RBX points to that, RDI to where it goes on.
fn fault_on_stack(
    cases: &mut Vec<Case>,
    name: &str,
    before: Op,
    op: Op,
    [top, then]: [u64; 2],
    place: u64,
    code: u32,
) {
    cases.push(case(format!("data pages: the state at a fault of {name}"), Long, move |g| {
        g.map(PRESENT, FRAME[0], USER);
        g.map(MISSING - 0x1000, FRAME[1], USER);
        program(
            g,
            |_| Ok(()),
            |g| {
                for [at, after] in &MARKS[..3] {
                    g.recover(after)?;
                    let to = g.addr(after);
                    g.a.mov(edi, to as u32)?;
                    g.a.mov(rsp, top)?;
                    g.a.mov(rbx, MISSING)?;
                    g.a.mov(edx, 11)?;
                    g.a.mov(eax, 5)?;
                    g.a.cmp(eax, 7)?;
                    before(&mut g.a)?;
                    g.mark(at)?;
                    op(&mut g.a)?;
                    g.mark(after)?;
                    g.a.mov(rsp, USER_STACK)?;
                    g.a.mov(eax, edx)?;
                    g.out_eax()?;
                    let want = fault(PF).code(4 | code).cr2(place).at(at);
                    g.want(want.flags(STATUS, LESS).rsp(then));
                    g.want(out(11));
                }
                Ok(())
            },
        )
    }));
}

/// What the frame of a fault has of the program's state.
fn faults(cases: &mut Vec<Case>) {
    /// What faults, and whether it is by a store.
    const OPS: [(&str, Op, u32); 12] = [
        ("MOV from memory", |a| a.mov(edx, dword_ptr(rbx)), 0),
        ("MOV to memory", |a| a.mov(qword_ptr(rbx), rdx), 2),
        ("ADD to memory", |a| a.add(dword_ptr(rbx), edx), 2),
        ("ADC from memory", |a| a.adc(edx, dword_ptr(rbx)), 0),
        ("XCHG", |a| a.xchg(dword_ptr(rbx), edx), 2),
        ("LOCK CMPXCHG", |a| a.lock().cmpxchg(dword_ptr(rbx), edx), 2),
        ("SETC", |a| a.setb(byte_ptr(rbx)), 2),
        ("CMOVC", |a| a.cmovb(edx, dword_ptr(rbx)), 0),
        ("SHL by CL", |a| a.shl(dword_ptr(rbx), cl), 2),
        ("DIV", |a| a.div(dword_ptr(rbx)), 0),
        ("PUSH from memory", |a| a.push(qword_ptr(rbx)), 0),
        ("JMP through memory", |a| a.jmp(qword_ptr(rbx)), 0),
    ];
    for (name, op, code) in OPS {
        cases.push(case(format!("data pages: the state at a fault of {name}"), Long, move |g| {
            program(
                g,
                |_| Ok(()),
                |g| {
                    for [at, after] in &MARKS[..3] {
                        g.recover(after)?;
                        g.a.mov(rbx, MISSING)?;
                        g.a.mov(ecx, 3)?;
                        g.a.mov(edx, 0)?;
                        g.a.mov(eax, 5)?;
                        g.a.cmp(eax, 7)?;
                        // Flags are in use neither before nor behind it, as far as the block goes.
                        g.a.lea(rsi, ptr(rbx + 1))?;
                        g.mark(at)?;
                        op(&mut g.a)?;
                        g.a.xor(edi, edi)?;
                        g.mark(after)?;
                        g.a.lea(eax, ptr(rax + rcx * 2))?;
                        g.a.add(eax, edx)?;
                        g.out_eax()?;
                        g.want(
                            fault(PF)
                                .code(4 | code)
                                .cr2(MISSING)
                                .at(at)
                                .flags(STATUS, LESS)
                                .rsp(USER_STACK),
                        );
                        g.want(out(11));
                    }
                    Ok(())
                },
            )
        }));
    }
    /// The same of what uses the stack, which is missing: PUSH, CALL and POP, RET.
    const ON_STACK: [(&str, Op, u64, u32); 6] = [
        ("PUSH", |a| a.push(rdx), MISSING + 0x1000, 2),
        ("CALL", |a| a.call(u64::from(SOMEWHERE)), MISSING + 0x1000, 2),
        ("CALL through a register", |a| a.call(rdi), MISSING + 0x1000, 2),
        ("POP", |a| a.pop(rdx), MISSING, 0),
        ("RET", |a| a.ret(), MISSING, 0),
        ("RET with an operand", |a| a.ret_1(16), MISSING, 0),
    ];
    for (name, op, top, code) in ON_STACK {
        let place = if code == 2 { top - 8 } else { top };
        fault_on_stack(cases, name, |_| Ok(()), op, [top, top], place, code);
    }
    /// The same behind others that use the stack: what comes before, what faults, where the stack ends and RSP
    /// is then, what is accessed.
    type Several = (&'static str, Op, Op, [u64; 2], u64, u32);
    const SEVERAL: [Several; 7] = [
        ("PUSH behind two", two_pushes, |a| a.push(rdx), [PRESENT + 16, PRESENT], PRESENT - 8, 2),
        ("PUSH of a number", two_pushes, |a| a.push(7), [PRESENT + 16, PRESENT], PRESENT - 8, 2),
        (
            "CALL behind two PUSHes",
            two_pushes,
            |a| a.call(u64::from(SOMEWHERE)),
            [PRESENT + 16, PRESENT],
            PRESENT - 8,
            2,
        ),
        (
            "MOV from memory behind two PUSHes",
            two_pushes,
            |a| a.mov(edx, dword_ptr(rbx)),
            [PRESENT + 64, PRESENT + 48],
            MISSING,
            0,
        ),
        (
            "MOV to memory behind two PUSHes",
            two_pushes,
            |a| a.mov(qword_ptr(rbx), rdx),
            [PRESENT + 64, PRESENT + 48],
            MISSING,
            2,
        ),
        ("POP behind two", two_pops, |a| a.pop(rsi), [MISSING - 16, MISSING], MISSING, 0),
        ("RET behind two POPs", two_pops, |a| a.ret(), [MISSING - 16, MISSING], MISSING, 0),
    ];
    fn two_pushes(a: &mut CodeAssembler) -> Result {
        a.push(rsi)?;
        a.push(rdx)
    }
    fn two_pops(a: &mut CodeAssembler) -> Result {
        a.pop(rsi)?;
        a.pop(rsi)
    }
    for (name, before, op, stack, place, code) in SEVERAL {
        fault_on_stack(cases, name, before, op, stack, place, code);
    }
    cases.push(case("data pages: addresses that are not canonical", Long, |g| {
        program(
            g,
            |_| Ok(()),
            |g| {
                g.a.mov(rbx, 0x8000_0000_0000u64)?;
                g.a.mov(rbp, rbx)?;
                let ops: [(Op, u8); 4] = [
                    (|a| a.mov(ecx, dword_ptr(rbx)), GP),
                    (|a| a.mov(dword_ptr(rbx), ecx), GP),
                    (|a| a.mov(ecx, dword_ptr(rbp)), SS),
                    (|a| a.add(dword_ptr(rbp), ecx), SS),
                ];
                for ((op, vector), [at, after]) in ops.into_iter().zip(MARKS) {
                    g.want(fault(vector).code(0).at(at).flags(STATUS, LESS));
                    g.recover(after)?;
                    g.a.mov(eax, 5)?;
                    g.a.cmp(eax, 7)?;
                    g.mark(at)?;
                    op(&mut g.a)?;
                    g.mark(after)?;
                }
                Ok(())
            },
        )
    }));
    cases.push(case("data pages: accesses that end in a page that is missing", Long, |g| {
        let at = WINDOW + 0xffc;
        g.map(WINDOW, FRAME[0], USER);
        g.write32(FRAME[0] + 0xffc, 0x1234_5678);
        program(
            g,
            |_| Ok(()),
            |g| {
                g.a.mov(rbx, at)?;
                // Both of its pages would have to be there; nothing is stored.
                let ops: [(Op, u32); 4] = [
                    (|a| a.mov(rcx, qword_ptr(rbx)), 0),
                    (|a| a.mov(qword_ptr(rbx), rcx), 2),
                    (|a| a.inc(qword_ptr(rbx)), 2),
                    (|a| a.lock().xadd(qword_ptr(rbx), rcx), 2),
                ];
                for ((op, code), [mark, after]) in ops.into_iter().zip(MARKS) {
                    g.want(fault(PF).code(4 | code).cr2(WINDOW + 0x1000).at(mark));
                    g.expect_fault(mark, after, op)?;
                }
                g.want_memory(FRAME[0] + 0xffc, 4, 0x1234_5678);
                Ok(())
            },
        )
    }));
}

/// Where programs may have memory, and others do not.
fn places(cases: &mut Vec<Case>) {
    let mut add = |name: &str, linear: u64, alone: bool| {
        cases.push(case(format!("data pages: memory {name}"), Long, move |g| {
            g.map(linear, FRAME[0], USER);
            if !alone {
                g.map(linear - 0x1000, FRAME[1], USER);
            }
            program(
                g,
                |_| Ok(()),
                |g| {
                    g.a.mov(rbx, linear)?;
                    for value in 1..5 {
                        g.a.add(dword_ptr(rbx), value)?;
                        g.a.mov(eax, dword_ptr(rbx))?;
                        g.a.mov(dword_ptr(rbx + 0xffc), eax)?;
                        if !alone {
                            g.a.mov(dword_ptr(rbx - 0x1000), eax)?;
                            // Two pages, which are neighbours here and nowhere else.
                            g.a.add(qword_ptr(rbx - 4), rax)?;
                        }
                    }
                    g.want_memory(FRAME[0] + 0xffc, 4, 10);
                    if !alone {
                        g.want_memory(FRAME[1], 4, 10);
                        g.want_memory(FRAME[1] + 0xffc, 4, 1 + 3 + 6 + 10);
                    }
                    Ok(())
                },
            )
        }));
    };
    add("at the end of the user's half", LAST, true);
    add("at the end of the user's half, and before", LAST, false);
    add("before the last page", LAST - 0x1000, true);
    add("near the start", 0xf000, true);
    add("in the middle of nowhere", 0x2345_6789_a000, false);
    add("at the end of a page table", 0x2345_6780_0000, false);
    add("at the end of a GiB", 0x2340_0000_0000, false);
}

/// More pages than the host allows mappings.
fn many(cases: &mut Vec<Case>) {
    /// The start of a region, in an entry of level 4 of its own.
    const REGION: u64 = 1 << 39;
    const LARGE_FRAME: u64 = FRAMES + 0x20_0000;
    /// Regions of 2 MiB, each with the same pages.
    const LARGE_PAGES: u64 = 150;

    /// Loads from `count` places from RBX on, `step` bytes apart.
    fn sweep(g: &mut Guest, count: u32, step: u64) -> Result {
        let mut next = g.a.create_label();
        g.a.mov(rbx, REGION)?;
        g.a.mov(rdx, step)?;
        g.a.mov(ecx, count)?;
        g.a.set_label(&mut next)?;
        g.a.add(eax, dword_ptr(rbx))?;
        g.a.add(rbx, rdx)?;
        g.a.dec(ecx)?;
        g.a.jne(next)
    }

    for (name, every) in
        [("become read-only, as by fork", 1u64), ("change, but not their neighbours", 2)]
    {
        cases.push(case(format!("data pages: many that {name}"), Long, move |g| {
            // One page table, by way of many entries.
            let table = g.entry(REGION, 1);
            for i in 0..512 {
                g.write64(table + i * 8, (LARGE_FRAME + i * 0x1000) | USER | A | D);
            }
            g.write32(LARGE_FRAME, 1);
            let directory = g.entry(REGION, 2);
            for i in 0..LARGE_PAGES {
                g.write64(directory + i * 8, table | USER | A);
            }
            program(
                g,
                // R8 is what is taken from the entries of every page that changes.
                |g| {
                    let mut next = g.a.create_label();
                    g.a.mov(rbx, table)?;
                    g.a.mov(ecx, (512 / every) as u32)?;
                    g.a.set_label(&mut next)?;
                    g.a.xor(qword_ptr(rbx), r8)?;
                    g.a.add(rbx, 8 * every as i32)?;
                    g.a.dec(ecx)?;
                    g.a.jne(next)?;
                    Invalidate::Cr3.invalidate(g, 0)
                },
                |g| {
                    g.a.xor(eax, eax)?;
                    for _ in 0..2 {
                        sweep(g, LARGE_PAGES as u32 * 4, 0x8_0000)?;
                        serve(g, W)?;
                        g.a.mov(rbx, REGION)?;
                        g.a.mov(eax, dword_ptr(rbx))?;
                    }
                    g.a.mov(rbx, REGION)?;
                    g.a.mov(dword_ptr(rbx), 7)?;
                    sweep(g, LARGE_PAGES as u32, 0x20_0000)?;
                    g.out_eax()?;
                    g.want(out(LARGE_PAGES as u32 * 7 + 1));
                    Ok(())
                },
            )
        }));
    }
    cases.push(case("data pages: more that lie apart than a host maps", Long, |g| {
        // Each GiB has the same large page.
        const COUNT: u32 = 26_000;
        let lowest = g.entry(REGION, 2);
        g.write64(lowest, LARGE_FRAME | USER | A | D | PS);
        g.write32(LARGE_FRAME, 1);
        let middle = g.entry(REGION, 3);
        let entry = g.read(middle, 8);
        for i in 0..512 {
            g.write64(middle + i * 8, entry);
        }
        let top = g.entry(REGION, 4);
        let entry = g.read(top, 8);
        for i in 0..u64::from(COUNT) / 512 + 1 {
            g.write64(top + i * 8, entry);
        }
        program(
            g,
            |_| Ok(()),
            |g| {
                g.a.xor(eax, eax)?;
                sweep(g, COUNT, 1 << 30)?;
                g.out_eax()?;
                g.want(out(COUNT));
                Ok(())
            },
        )
    }));
}
