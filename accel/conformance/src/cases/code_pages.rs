//! Programs whose code goes from page to page, while what lies there changes.
//!
//! A page of code jumps to the next page, which is mapped anew, taken away or overwritten. Engines that
//! translate code like to make such a jump lead to the translation itself, which must not outlive the page.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use mem::GuestAddress;
use mem::vm_memory::Bytes;
use x86::state::{Cr0, Cr4};
use x86::vector::{GP, NM, PF};

use crate::apic::Apic;
use crate::case::{Case, case};
use crate::cases::program::{Invalidate, program};
use crate::expect::{fault, out};
use crate::guest::{Guest, PCID};
use crate::layout::{FRAMES, USER_DATA, WINDOW};
use crate::start::Start::Long;
use crate::tables::pte::{NX, P, U, W};

type Result = std::result::Result<(), IcedError>;

/// The page with the jump, and the one behind it, which it leads to.
const SOURCE: u64 = WINDOW;
const TARGET: u64 = WINDOW + 0x1000;
/// The source once more, with another page behind it.
const TWIN: u64 = WINDOW + 0x1_0000;
/// Where the first target's frame can be stored to.
const ALIAS: u64 = WINDOW + 0x2_0000;

/// The frames of the source, and of the targets that take turns.
const SOURCE_FRAME: u64 = FRAMES;
const FRAME: [u64; 2] = [FRAMES + 0x1000, FRAMES + 0x2000];

const USER: u64 = P | W | U;

/// Ways from the source to the start of the target: what they are called, where in the source they begin,
/// and their code.
const WAYS: [(&str, u64, &[u8]); 5] = [
    // JMP.
    ("a jump", 0, &[0xe9, 0xfb, 0x0f, 0, 0]),
    // XOR EAX, EAX; JE.
    ("a conditional jump", 0, &[0x31, 0xc0, 0x0f, 0x84, 0xf8, 0x0f, 0, 0]),
    // CALL; RET.
    ("a call", 0, &[0xe8, 0xfb, 0x0f, 0, 0, 0xc3]),
    // NOPs up to the end of the page.
    ("running on", 0xff8, &[0x90; 8]),
    // STC; NOP; JMP, the last instruction of the page.
    ("a jump at the end", 0xff9, &[0xf9, 0x90, 0xe9, 0, 0, 0, 0]),
];

/// MOV EAX, value; RET.
fn routine(value: u8) -> [u8; 6] {
    [0xb8, value, 0, 0, 0, 0xc3]
}

/// The source jumps this way to a target, of which there are two: they give 1 and 2. Returns where the
/// source is entered.
fn prepare(g: &mut Guest, way: usize) -> u64 {
    let (_, entry, code) = WAYS[way];
    g.write(SOURCE_FRAME + entry, code);
    for (frame, value) in FRAME.into_iter().zip(1..) {
        g.write(frame, &routine(value));
    }
    g.map(SOURCE, SOURCE_FRAME, USER);
    g.map(TARGET, FRAME[0], USER);
    g.map(ALIAS, FRAME[0], USER);
    SOURCE + entry
}

/// Calls what is at `address`, as often as an engine may take to make the most of it: each time it gives
/// `value`.
fn call(g: &mut Guest, address: u64, value: u32) -> Result {
    for _ in 0..4 {
        g.a.mov(ecx, address as u32)?;
        g.a.call(rcx)?;
        g.out_eax()?;
        g.want(out(value));
    }
    Ok(())
}

/// Has the kernel do its service, with `value` in R8.
fn serve(g: &mut Guest, value: u64) -> Result {
    g.a.mov(r8, value)?;
    g.a.int(0x80)
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (way, (name, ..)) in WAYS.into_iter().enumerate() {
        for how in Invalidate::all() {
            remapped(&mut cases, way, name, how);
        }
        taken_away(&mut cases, way, name);
        overwritten(&mut cases, way, name);
        two_places(&mut cases, way, name);
        address_spaces(&mut cases, way, name);
    }
    across(&mut cases);
    settings(&mut cases);
    cases.push(case("code pages: more code than any cache holds", Long, full_cache));
    cases.push(case("code pages: code that another processor overwrites", Long, other_processor));
    cases
}

/// The target's linear page becomes another frame, and the first one again.
fn remapped(cases: &mut Vec<Case>, way: usize, name: &str, how: Invalidate) {
    cases.push(case(
        format!("code pages: {name} to a page that is remapped, {how}"),
        Long,
        move |g| {
            let entry = prepare(g, way);
            let bits = USER | how.bits();
            g.map(TARGET, FRAME[0], bits);
            let place = g.entry(TARGET, 1);
            how.prepare(g)?;
            program(
                g,
                |g| {
                    g.a.mov(qword_ptr(place), r8)?;
                    how.invalidate(g, TARGET)
                },
                |g| {
                    for (frame, value) in [(0, 1), (1, 2), (0, 1), (1, 2)] {
                        serve(g, FRAME[frame] | bits)?;
                        call(g, entry, value)?;
                    }
                    Ok(())
                },
            )
        },
    ));
}

/// The target's page is not there any more, or must not be executed; then it is there again.
fn taken_away(cases: &mut Vec<Case>, way: usize, name: &str) {
    for (what, entry_bits, code) in [
        ("not present", 0, 0x14),
        ("not executable", USER | NX, 0x15),
        ("the kernel's", P | W, 0x15),
    ] {
        for how in [Invalidate::Page, Invalidate::Cr3] {
            cases.push(case(
                format!("code pages: {name} to a page that becomes {what}, {how}"),
                Long,
                move |g| {
                    let entry = prepare(g, way);
                    let place = g.entry(TARGET, 1);
                    program(
                        g,
                        |g| {
                            g.a.mov(qword_ptr(place), r8)?;
                            how.invalidate(g, TARGET)
                        },
                        |g| {
                            call(g, entry, 1)?;
                            serve(g, FRAME[0] | entry_bits)?;
                            for round in ["first", "second"] {
                                g.want(fault(PF).code(code).cr2(TARGET).rip(TARGET));
                                g.recover(round)?;
                                g.a.mov(ecx, entry as u32)?;
                                g.a.call(rcx)?;
                                g.mark(round)?;
                                g.a.mov(esp, crate::layout::USER_STACK as u32)?;
                            }
                            serve(g, FRAME[1] | USER)?;
                            call(g, entry, 2)
                        },
                    )
                },
            ));
        }
    }
}

/// The target's code is overwritten by way of another mapping, and the source's jump.
fn overwritten(cases: &mut Vec<Case>, way: usize, name: &str) {
    cases.push(case(
        format!("code pages: {name} to code that the program overwrites"),
        Long,
        move |g| {
            let entry = prepare(g, way);
            program(
                g,
                |_| Ok(()),
                |g| {
                    for value in 1..5 {
                        g.a.mov(ebx, ALIAS as u32 + 1)?;
                        g.a.mov(byte_ptr(rbx), value as i32)?;
                        g.a.cpuid()?;
                        call(g, entry, value)?;
                    }
                    Ok(())
                },
            )
        },
    ));
    cases.push(case(
        format!("code pages: {name} to code that the kernel overwrites"),
        Long,
        move |g| {
            let entry = prepare(g, way);
            program(
                g,
                |g| {
                    g.a.mov(edi, ALIAS as u32 + 1)?;
                    g.a.mov(ecx, 1)?;
                    g.a.mov(rax, r8)?;
                    g.a.rep().stosb()
                },
                |g| {
                    for value in 1..5 {
                        serve(g, value.into())?;
                        call(g, entry, value)?;
                    }
                    Ok(())
                },
            )
        },
    ));
    cases.push(case(
        format!("code pages: {name} to code that a device overwrites"),
        Long,
        move |g| {
            let entry = prepare(g, way);
            g.on_host_call(|host, value| {
                let _ = host.memory.write_slice(&[value as u8], GuestAddress(FRAME[0] + 1));
            });
            program(
                g,
                |_| Ok(()),
                |g| {
                    for value in 1..5 {
                        g.host(value)?;
                        call(g, entry, value)?;
                    }
                    Ok(())
                },
            )
        },
    ));
    cases.push(case(
        format!("code pages: {name} to the same code, at one's leisure"),
        Long,
        move |g| {
            // Data beside the code changes: the page comes and goes.
            let entry = prepare(g, way);
            program(
                g,
                |_| Ok(()),
                |g| {
                    for i in 0..8 {
                        g.a.mov(ebx, ALIAS as u32 + 0x800)?;
                        g.a.mov(byte_ptr(rbx), i)?;
                        call(g, entry, 1)?;
                    }
                    Ok(())
                },
            )
        },
    ));
}

/// The source lies at two linear addresses, with another page behind it at each; or moves.
fn two_places(cases: &mut Vec<Case>, way: usize, name: &str) {
    cases.push(case(format!("code pages: {name} from a page at two addresses"), Long, move |g| {
        let entry = prepare(g, way);
        g.map(TWIN, SOURCE_FRAME, USER);
        g.map(TWIN + 0x1000, FRAME[1], USER);
        program(
            g,
            |_| Ok(()),
            |g| {
                for _ in 0..3 {
                    call(g, entry, 1)?;
                    call(g, entry - SOURCE + TWIN, 2)?;
                }
                Ok(())
            },
        )
    }));
    cases.push(case(format!("code pages: {name} from a page that moves"), Long, move |g| {
        let entry = prepare(g, way);
        g.map(TWIN + 0x1000, FRAME[1], USER);
        let places = [g.entry(SOURCE, 1), g.entry(TWIN, 1)];
        program(
            g,
            // R8 is what was mapped at the source, R9 what was mapped at its twin.
            |g| {
                g.a.mov(qword_ptr(places[0]), r8)?;
                g.a.mov(qword_ptr(places[1]), r9)?;
                Invalidate::Page.invalidate(g, SOURCE)?;
                Invalidate::Page.invalidate(g, TWIN)
            },
            |g| {
                for _ in 0..3 {
                    call(g, entry, 1)?;
                    g.a.mov(r9, SOURCE_FRAME | USER)?;
                    serve(g, 0)?;
                    call(g, entry - SOURCE + TWIN, 2)?;
                    g.a.xor(r9d, r9d)?;
                    serve(g, SOURCE_FRAME | USER)?;
                }
                Ok(())
            },
        )
    }));
}

/// Programs that share the source.
fn address_spaces(cases: &mut Vec<Case>, way: usize, name: &str) {
    const OTHER_ROOT: u64 = FRAMES + 0x10_0000;
    const NO_FLUSH: u64 = 1 << 63;
    /// A second program, in which the other target follows.
    fn second(g: &mut Guest) -> u64 {
        let table = g.copy_tables(WINDOW, OTHER_ROOT);
        let index = g.start.paging().index(1, TARGET);
        g.write64(table + index * 8, FRAME[1] | USER);
        table + index * 8
    }
    /// R8 is loaded into CR3.
    fn switch(g: &mut Guest) -> Result {
        g.a.mov(cr3, r8)
    }
    cases.push(case(format!("code pages: {name} in two programs"), Long, move |g| {
        let entry = prepare(g, way);
        second(g);
        let first = g.root;
        program(g, switch, |g| {
            for _ in 0..3 {
                call(g, entry, 1)?;
                serve(g, OTHER_ROOT)?;
                call(g, entry, 2)?;
                serve(g, first)?;
            }
            Ok(())
        })
    }));
    cases.push(case(format!("code pages: {name} in two programs with PCIDs"), Long, move |g| {
        g.needs(&PCID);
        let entry = prepare(g, way);
        second(g);
        g.change_cr4(Cr4::PCIDE.bits() as u32, 0)?;
        let first = g.root;
        program(g, switch, |g| {
            for no_flush in [0, NO_FLUSH, NO_FLUSH] {
                serve(g, first | 1 | no_flush)?;
                call(g, entry, 1)?;
                serve(g, OTHER_ROOT | 2 | no_flush)?;
                call(g, entry, 2)?;
            }
            Ok(())
        })
    }));
    cases.push(case(
        format!("code pages: {name} from a page at two addresses, and another program in between"),
        Long,
        move |g| {
            g.needs(&PCID);
            let entry = prepare(g, way);
            g.map(TWIN, SOURCE_FRAME, USER);
            g.map(TWIN + 0x1000, FRAME[1], USER);
            second(g);
            g.change_cr4(Cr4::PCIDE.bits() as u32, 0)?;
            let first = g.root;
            program(g, switch, |g| {
                for no_flush in [0, NO_FLUSH] {
                    serve(g, first | 1 | no_flush)?;
                    call(g, entry, 1)?;
                    serve(g, OTHER_ROOT | 2 | no_flush)?;
                    call(g, entry, 2)?;
                    // What it knew of the first program's jumps is not all that there is to know.
                    serve(g, first | 1 | NO_FLUSH)?;
                    call(g, entry - SOURCE + TWIN, 2)?;
                    call(g, entry, 1)?;
                }
                Ok(())
            })
        },
    ));
    cases.push(case(
        format!("code pages: {name} to a page that another program remaps"),
        Long,
        move |g| {
            // Its page is changed while the other one runs, and what is known of it is dropped when it is
            // its turn again.
            g.needs(&PCID);
            let entry = prepare(g, way);
            second(g);
            let place = g.entry(TARGET, 1);
            g.change_cr4(Cr4::PCIDE.bits() as u32, 0)?;
            let first = g.root;
            program(
                g,
                |g| {
                    g.a.mov(qword_ptr(place), r9)?;
                    g.a.mov(cr3, r8)
                },
                |g| {
                    for (frame, value) in [(0, 1), (1, 2), (0, 1)] {
                        g.a.mov(r9, FRAME[frame] | USER)?;
                        serve(g, OTHER_ROOT | 2 | NO_FLUSH)?;
                        call(g, entry, 2)?;
                        g.a.mov(r9, FRAME[frame] | USER)?;
                        serve(g, first | 1)?;
                        call(g, entry, value)?;
                    }
                    Ok(())
                },
            )
        },
    ));
    cases.push(case(
        format!("code pages: {name} to a page of a program that follows another"),
        Long,
        move |g| {
            // The first program ends, and the next one is given its root, and the frame of its code.
            let entry = prepare(g, way);
            let places = [SOURCE, TARGET, TWIN, TWIN + 0x1000].map(|linear| g.entry(linear, 1));
            program(
                g,
                |g| {
                    let next = [FRAME[1], FRAME[0], SOURCE_FRAME, FRAME[1]];
                    for (place, frame) in places.into_iter().zip(next) {
                        g.a.mov(eax, (frame | USER) as u32)?;
                        g.a.mov(qword_ptr(place), rax)?;
                    }
                    g.a.mov(rax, cr3)?;
                    g.a.mov(cr3, rax)
                },
                |g| {
                    call(g, entry, 1)?;
                    serve(g, 0)?;
                    call(g, TARGET, 1)?;
                    call(g, entry - SOURCE + TWIN, 2)
                },
            )
        },
    ));
    cases.push(case(
        format!("code pages: {name} while address spaces are used up"),
        Long,
        move |g| {
            // More loads of CR3 than a processor may have numbers for, or tags.
            let entry = prepare(g, way);
            let place = g.entry(TARGET, 1);
            program(
                g,
                |g| {
                    g.a.mov(qword_ptr(place), r8)?;
                    g.a.mov(rax, cr3)?;
                    g.a.mov(ecx, 4100)?;
                    let mut again = g.a.create_label();
                    g.a.set_label(&mut again)?;
                    g.a.mov(cr3, rax)?;
                    g.a.dec(ecx)?;
                    g.a.jne(again)
                },
                |g| {
                    for (frame, value) in [(0, 1), (1, 2), (0, 1)] {
                        serve(g, FRAME[frame] | USER)?;
                        call(g, entry, value)?;
                    }
                    Ok(())
                },
            )
        },
    ));
}

/// Instructions that begin in one page and end in the next one.
fn across(cases: &mut Vec<Case>) {
    const NEXT: u64 = TARGET + 0x1000;
    const NEXT_FRAME: [u64; 2] = [FRAMES + 0x4000, FRAMES + 0x5000];
    for how in Invalidate::all() {
        cases.push(case(
            format!("code pages: a jump to an instruction whose end is remapped, {how}"),
            Long,
            move |g| {
                prepare(g, 0);
                // JMP TARGET + 0xffe; there, MOV EAX of which the last three bytes are in the next page.
                g.write(SOURCE_FRAME, &[0xe9, 0xf9, 0x1f, 0, 0]);
                g.write(FRAME[0] + 0xffe, &[0xb8, 7]);
                for (frame, value) in NEXT_FRAME.into_iter().zip(1..) {
                    g.write(frame, &[value, 0, 0, 0xc3]);
                }
                let bits = USER | how.bits();
                let place = g.entry(NEXT, 1);
                how.prepare(g)?;
                program(
                    g,
                    |g| {
                        g.a.mov(qword_ptr(place), r8)?;
                        how.invalidate(g, NEXT)
                    },
                    |g| {
                        for i in [0, 1, 0, 1] {
                            serve(g, NEXT_FRAME[i] | bits)?;
                            call(g, SOURCE, 0x107 + 0x100 * i as u32)?;
                        }
                        serve(g, 0)?;
                        g.want(fault(PF).code(0x14).cr2(NEXT).rip(TARGET + 0xffe));
                        g.recover("back")?;
                        g.a.mov(ecx, SOURCE as u32)?;
                        g.a.call(rcx)?;
                        g.mark("back")?;
                        g.a.nop()
                    },
                )
            },
        ));
        cases.push(case(
            format!("code pages: a jump to a jump whose distance is remapped, {how}"),
            Long,
            move |g| {
                prepare(g, 0);
                // JMP TARGET + 0xfff; the opcode of a JMP is there, which leads to one of these.
                const FAR: u64 = WINDOW + 0x3_0000;
                g.write(SOURCE_FRAME, &[0xe9, 0xfa, 0x1f, 0, 0]);
                let first = FRAMES + 0x6000;
                g.map(TARGET, first, USER);
                g.write(first + 0xfff, &[0xe9]);
                for (i, frame) in NEXT_FRAME.into_iter().enumerate() {
                    let to = FAR + 0x1000 * i as u64;
                    g.write(frame, &((to - NEXT - 4) as u32).to_le_bytes());
                    g.map(to, FRAME[i], USER);
                }
                let bits = USER | how.bits();
                let place = g.entry(NEXT, 1);
                how.prepare(g)?;
                program(
                    g,
                    |g| {
                        g.a.mov(qword_ptr(place), r8)?;
                        how.invalidate(g, NEXT)
                    },
                    |g| {
                        for i in [0, 1, 0, 1] {
                            serve(g, NEXT_FRAME[i] | bits)?;
                            call(g, TARGET + 0xfff, 1 + i as u32)?;
                            call(g, SOURCE, 1 + i as u32)?;
                        }
                        Ok(())
                    },
                )
            },
        ));
    }
}

/// The target's first instruction is forbidden for a while, by something else than its page.
fn settings(cases: &mut Vec<Case>) {
    type Change = fn(&mut Guest) -> Result;
    let allow_sse: Change = |g| {
        g.change_cr0(Cr0::MP.bits() as u32, (Cr0::EM | Cr0::TS).bits() as u32)?;
        g.change_cr4((Cr4::OSFXSR | Cr4::OSXMMEXCPT).bits() as u32, 0)
    };
    let forbid_sse: Change = |g| g.change_cr0(Cr0::TS.bits() as u32, 0);
    let allow_time: Change = |g| g.change_cr4(0, Cr4::TSD.bits() as u32);
    let forbid_time: Change = |g| g.change_cr4(Cr4::TSD.bits() as u32, 0);
    // PXOR XMM0, XMM0; MOVD EAX, XMM0; RET. RDTSC; XOR EAX, EAX; RET.
    let sse: &[u8] = &[0x66, 0x0f, 0xef, 0xc0, 0x66, 0x0f, 0x7e, 0xc0, 0xc3];
    let time: &[u8] = &[0x0f, 0x31, 0x31, 0xc0, 0xc3];
    for (name, code, vector, allow, forbid) in
        [("SSE", sse, NM, allow_sse, forbid_sse), ("RDTSC", time, GP, allow_time, forbid_time)]
    {
        cases.push(case(
            format!("code pages: a jump to {name}, which is forbidden"),
            Long,
            move |g| {
                let entry = prepare(g, 0);
                g.write(FRAME[0], code);
                program(
                    g,
                    |g| {
                        let (mut forbids, mut done) = (g.a.create_label(), g.a.create_label());
                        g.a.test(r8d, r8d)?;
                        g.a.jne(forbids)?;
                        allow(g)?;
                        g.a.jmp(done)?;
                        g.a.set_label(&mut forbids)?;
                        forbid(g)?;
                        g.a.set_label(&mut done)?;
                        g.a.zero_bytes()
                    },
                    |g| {
                        for round in ["first", "second"] {
                            serve(g, 0)?;
                            call(g, entry, 0)?;
                            serve(g, 1)?;
                            g.want(fault(vector).rip(TARGET));
                            g.recover(round)?;
                            g.a.mov(ecx, entry as u32)?;
                            g.a.call(rcx)?;
                            g.mark(round)?;
                            g.a.nop()?;
                        }
                        Ok(())
                    },
                )
            },
        ));
    }
}

/// A million divisions, which take a translator more code and places to leave it than one keeps.
fn full_cache(g: &mut Guest) -> Result {
    const MUCH: u64 = WINDOW + 0x20_0000;
    const PAGES: u64 = 512;
    const FRAMES_OF_MUCH: u64 = FRAMES + 0x20_0000;
    let entry = prepare(g, 0);
    for page in 0..PAGES {
        // DIV ECX; the last instruction is a JMP to the next page, or RET.
        let mut code = [0xf7, 0xf1].repeat(2045);
        code.extend(if page + 1 < PAGES { [0xe9, 1, 0, 0, 0] } else { [0xc3; 5] });
        g.write(FRAMES_OF_MUCH + page * 0x1000, &code);
    }
    g.map_large(MUCH, FRAMES_OF_MUCH, 2, USER);
    let place = g.entry(TARGET, 1);
    program(
        g,
        |g| {
            g.a.mov(qword_ptr(place), r8)?;
            Invalidate::Page.invalidate(g, TARGET)
        },
        |g| {
            for (frame, value) in [(0, 1), (1, 2)] {
                serve(g, FRAME[frame] | USER)?;
                call(g, entry, value)?;
                g.a.xor(edx, edx)?;
                g.a.mov(eax, value)?;
                g.a.mov(ebx, MUCH as u32)?;
                g.a.mov(ecx, 1)?;
                g.a.call(rbx)?;
                g.out_eax()?;
                g.want(out(value));
                call(g, entry, value)?;
            }
            Ok(())
        },
    )
}

/// The other processor stores to the target, which the program jumps to all the time.
fn other_processor(g: &mut Guest) -> Result {
    const ASKED: u64 = USER_DATA;
    const ANSWERED: u64 = USER_DATA + 0x40;
    const LAST: i32 = 40;
    let entry = prepare(g, 0);
    Apic::X2.enable(g)?;
    g.start_ap(Apic::X2)?;
    g.wait_for(ANSWERED, 1)?;
    program(
        g,
        |_| Ok(()),
        |g| {
            g.a.mov(edi, 1)?;
            let mut next = g.a.create_label();
            g.a.set_label(&mut next)?;
            for _ in 0..4 {
                g.a.mov(ecx, entry as u32)?;
                g.a.call(rcx)?;
                let mut right = g.a.create_label();
                g.a.cmp(eax, edi)?;
                g.a.je(right)?;
                g.a.ud2()?;
                g.a.set_label(&mut right)?;
            }
            g.a.inc(edi)?;
            g.a.mov(dword_ptr(ASKED), edi)?;
            let mut wait = g.a.create_label();
            g.a.set_label(&mut wait)?;
            g.a.pause()?;
            g.a.cmp(dword_ptr(ANSWERED), edi)?;
            g.a.jne(wait)?;
            // Code that another processor changed: after a serializing instruction.
            g.a.cpuid()?;
            g.a.cmp(edi, LAST)?;
            g.a.jne(next)?;
            g.a.mov(eax, edi)?;
            g.out_eax()?;
            g.want(out(LAST as u32));
            Ok(())
        },
    )?;
    g.ap_long(0x1_8000)?;
    g.a.mov(dword_ptr(ANSWERED), 1)?;
    let mut wait = g.a.create_label();
    g.a.set_label(&mut wait)?;
    g.a.pause()?;
    g.a.mov(eax, dword_ptr(ASKED))?;
    g.a.cmp(eax, dword_ptr(ANSWERED))?;
    g.a.jbe(wait)?;
    g.a.mov(ebx, ALIAS as u32 + 1)?;
    g.a.mov(byte_ptr(rbx), al)?;
    g.a.mov(dword_ptr(ANSWERED), eax)?;
    g.a.jmp(wait)
}
