//! When changes of the page tables must be seen (SDM Vol. 3, 4.10.4). Where the processor may
//! use a stale translation or a fresh one, there is no case.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::state::Cr4;
use x86::vector::{GP, PF};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::{Guest, INVPCID, PCID};
use crate::layout::{DATA, FRAMES, WINDOW};
use crate::start::Start::{Long, Pae, Paged32, Prot32};
use crate::tables::pte::{A, D, G, P, PS, U, W};

type Result = std::result::Result<(), IcedError>;

/// Two frames with different content, the first one mapped and in the TLB. Returns where its
/// entry is.
fn prepare(g: &mut Guest, bits: u64) -> std::result::Result<u64, IcedError> {
    g.write32(FRAMES, 1);
    g.write32(FRAMES + 0x1000, 2);
    g.map(WINDOW, FRAMES, bits);
    show(g)?;
    g.want(out(1));
    Ok(g.entry(WINDOW, 1))
}

/// Shows what the window leads to.
fn show(g: &mut Guest) -> Result {
    g.a.mov(ebx, WINDOW as u32)?;
    if g.a.bitness() == 64 {
        g.a.mov(eax, dword_ptr(rbx))?;
    } else {
        g.a.mov(eax, dword_ptr(ebx))?;
    }
    g.out_eax()
}

/// Maps the second frame in place of the first.
fn remap(g: &mut Guest, place: u64, bits: u64) -> Result {
    g.a.mov(dword_ptr(place), ((FRAMES + 0x1000) | bits) as u32)
}

fn invlpg(g: &mut Guest, address: u64) -> Result {
    g.a.mov(ebx, address as u32)?;
    if g.a.bitness() == 64 { g.a.invlpg(ptr(rbx)) } else { g.a.invlpg(ptr(ebx)) }
}

fn reload_cr3(g: &mut Guest) -> Result {
    if g.a.bitness() == 64 {
        g.a.mov(rax, cr3)?;
        g.a.mov(cr3, rax)
    } else {
        g.a.mov(eax, cr3)?;
        g.a.mov(cr3, eax)
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (start, mode) in [(Paged32, "32-bit"), (Pae, "PAE"), (Long, "4-level")] {
        cases.push(case(format!("tlb {mode}: INVLPG"), start, |g| {
            let place = prepare(g, P | W)?;
            remap(g, place, P | W)?;
            invlpg(g, WINDOW + 0x800)?;
            show(g)?;
            g.want(out(2));
            g.exit()
        }));
        cases.push(case(format!("tlb {mode}: INVLPG of a global page"), start, |g| {
            g.change_cr4(Cr4::PGE.bits() as u32, 0)?;
            let place = prepare(g, P | W | G)?;
            remap(g, place, P | W | G)?;
            invlpg(g, WINDOW)?;
            show(g)?;
            g.want(out(2));
            g.exit()
        }));
        cases.push(case(format!("tlb {mode}: loading CR3"), start, |g| {
            let place = prepare(g, P | W)?;
            remap(g, place, P | W)?;
            reload_cr3(g)?;
            show(g)?;
            g.want(out(2));
            g.exit()
        }));
        cases.push(case(format!("tlb {mode}: clearing CR4.PGE drops global pages"), start, |g| {
            g.change_cr4(Cr4::PGE.bits() as u32, 0)?;
            let place = prepare(g, P | W | G)?;
            remap(g, place, P | W | G)?;
            g.change_cr4(0, Cr4::PGE.bits() as u32)?;
            show(g)?;
            g.want(out(2));
            g.exit()
        }));
        cases.push(case(format!("tlb {mode}: INVLPG of any part of a large page"), start, |g| {
            g.write32(FRAMES, 1);
            let other = if g.start == Paged32 { 0 } else { FRAMES + 0x20_0000 };
            let at = if g.start == Paged32 { WINDOW + 0x2_0000 } else { WINDOW };
            g.write32(FRAMES + 0x20_0000, 2);
            g.write32(FRAMES + 0x2_0000, 1);
            g.write32(DATA, 2);
            g.map_large(WINDOW, FRAMES, 2, P | W);
            let place = g.entry(WINDOW, 2);
            for value in [1, 2] {
                g.a.mov(ebx, at as u32)?;
                if g.a.bitness() == 64 {
                    g.a.mov(eax, dword_ptr(rbx))?;
                } else {
                    g.a.mov(eax, dword_ptr(ebx))?;
                }
                g.out_eax()?;
                g.want(out(value));
                if value == 1 {
                    g.a.mov(dword_ptr(place), (other | P | W | PS) as u32)?;
                    invlpg(g, WINDOW + 0x1f_0000)?;
                }
            }
            g.exit()
        }));
        cases.push(case(format!("tlb {mode}: a page that becomes present is found"), start, |g| {
            // Faults are not cached: no invalidation is needed.
            let place = g.entry(WINDOW, 1);
            g.write32(FRAMES + 0x1000, 2);
            g.want(fault(PF).code(0).cr2(WINDOW));
            g.recover("mapped")?;
            show(g)?;
            g.mark("mapped")?;
            remap(g, place, P | W)?;
            show(g)?;
            g.want(out(2));
            g.exit()
        }));
        cases.push(case(format!("tlb {mode}: a fault drops the translation"), start, |g| {
            // SDM Vol. 3, 4.10.4.1: a page fault invalidates what it was about, so that more
            // rights need no INVLPG.
            g.map(WINDOW, FRAMES, P);
            let place = g.entry(WINDOW, 1);
            g.a.mov(ebx, WINDOW as u32)?;
            for value in [1, 2] {
                if g.a.bitness() == 64 {
                    g.a.mov(eax, dword_ptr(rbx))?;
                } else {
                    g.a.mov(eax, dword_ptr(ebx))?;
                }
                g.mark(if value == 1 { "store" } else { "again" })?;
                if value == 1 {
                    g.recover("more")?;
                }
                if g.a.bitness() == 64 {
                    g.a.mov(dword_ptr(rbx), 7)?;
                } else {
                    g.a.mov(dword_ptr(ebx), 7)?;
                }
                if value == 1 {
                    g.mark("more")?;
                    g.a.or(dword_ptr(place), W as i32)?;
                }
            }
            g.want(fault(PF).code(3).cr2(WINDOW));
            g.want_memory(FRAMES, 4, 7);
            g.exit()
        }));
        cases.push(case(format!("tlb {mode}: INVLPG after clearing the dirty bit"), start, |g| {
            g.map(WINDOW, FRAMES, P | W);
            let place = g.entry(WINDOW, 1);
            let size = g.start.paging().entry_size();
            let store = |g: &mut Guest| {
                g.a.mov(ebx, WINDOW as u32)?;
                if g.a.bitness() == 64 {
                    g.a.mov(dword_ptr(rbx), 7)
                } else {
                    g.a.mov(dword_ptr(ebx), 7)
                }
            };
            store(g)?;
            g.a.and(dword_ptr(place), !(D as i32))?;
            invlpg(g, WINDOW)?;
            store(g)?;
            g.want_memory(place, size, FRAMES | P | W | A | D);
            g.exit()
        }));
        cases.push(case(format!("tlb {mode}: translations that were executed"), start, |g| {
            // Two routines at one linear address, one after the other.
            g.write(FRAMES, &[0xb8, 1, 0, 0, 0, 0xc3]);
            g.write(FRAMES + 0x1000, &[0xb8, 2, 0, 0, 0, 0xc3]);
            g.map(WINDOW, FRAMES, P | W);
            let place = g.entry(WINDOW, 1);
            for value in [1, 2] {
                g.a.mov(ecx, WINDOW as u32)?;
                if g.a.bitness() == 64 {
                    g.a.call(rcx)?;
                } else {
                    g.a.call(ecx)?;
                }
                g.out_eax()?;
                g.want(out(value));
                remap(g, place, P | W)?;
                invlpg(g, WINDOW)?;
            }
            g.exit()
        }));
        cases.push(case(format!("tlb {mode}: taking a page from the user"), start, |g| {
            g.map(WINDOW, FRAMES, P | W | U);
            let place = g.entry(WINDOW, 1);
            g.gate(0x80, "again", 0xee, 0);
            g.enter_user()?;
            show(g)?;
            g.want(out(0));
            g.a.int(0x80)?;
            g.mark("user")?;
            g.a.mov(ebx, WINDOW as u32)?;
            g.mark("load")?;
            if g.a.bitness() == 64 {
                g.a.mov(eax, dword_ptr(rbx))?;
            } else {
                g.a.mov(eax, dword_ptr(ebx))?;
            }
            g.want(fault(PF).code(5).cr2(WINDOW).at("load"));
            let (bits, linear) = (g.a.bitness(), DATA + 0x1000);
            g.section(bits, linear, linear)?;
            g.mark("again")?;
            g.a.and(dword_ptr(place), !(U as i32))?;
            invlpg(g, WINDOW)?;
            if bits == 64 { g.a.iretq() } else { g.a.iretd() }
        }));
    }
    cases.push(case("tlb 32-bit: INVLPG adds the segment's base and wraps", Paged32, |g| {
        use crate::layout::sel;
        use crate::tables::{access, segment, size};
        let place = prepare(g, P | W)?;
        let wide = size::PAGES | size::BITS32;
        g.descriptor(sel::FREE, segment(0xf000_0000, 0xf_ffff, access::DATA, wide));
        remap(g, place, P | W)?;
        g.a.mov(eax, u32::from(sel::FREE))?;
        g.a.mov(fs, eax)?;
        g.a.mov(ebx, 0x1000_0000 + WINDOW as u32)?;
        g.a.invlpg(ptr(ebx).fs())?;
        show(g)?;
        g.want(out(2));
        g.exit()
    }));
    cases.push(case("tlb: turning paging off and on", Paged32, |g| {
        let place = prepare(g, P | W)?;
        remap(g, place, P | W)?;
        g.change_cr0(0, 1 << 31)?;
        g.change_cr0(1 << 31, 0)?;
        show(g)?;
        g.want(out(2));
        g.exit()
    }));
    cases.push(case("tlb: without paging nothing is translated", Prot32, |g| {
        g.write32(WINDOW, 0x42);
        show(g)?;
        g.want(out(0x42));
        g.exit()
    }));
    pcid(&mut cases);
    cases
}

/// A second set of page tables that differs in the window only, in 4-level paging: returns its
/// root.
fn second_root(g: &mut Guest) -> u64 {
    let root = FRAMES + 0x10_0000;
    g.map(WINDOW, FRAMES, P | W);
    let table = g.copy_tables(WINDOW, root);
    let index = g.start.paging().index(1, WINDOW);
    g.write64(table + index * 8, (FRAMES + 0x1000) | P | W);
    root
}

fn load_cr3(g: &mut Guest, value: u64) -> Result {
    g.a.mov(rax, value)?;
    g.a.mov(cr3, rax)
}

fn invpcid(g: &mut Guest, kind: u32, pcid: u64, address: u64) -> Result {
    g.a.mov(ebx, DATA as u32)?;
    g.a.mov(rax, pcid)?;
    g.a.mov(qword_ptr(rbx), rax)?;
    g.a.mov(rax, address)?;
    g.a.mov(qword_ptr(rbx + 8), rax)?;
    g.a.mov(ecx, kind)?;
    g.a.invpcid(rcx, ptr(rbx))
}

const NO_FLUSH: u64 = 1 << 63;

fn pcid(cases: &mut Vec<Case>) {
    let mut add = |name: &str, build: fn(&mut Guest) -> Result| {
        cases.push(case(format!("tlb PCID: {name}"), Long, move |g| {
            g.needs(&PCID);
            g.write32(FRAMES, 1);
            g.write32(FRAMES + 0x1000, 2);
            g.change_cr4(Cr4::PCIDE.bits() as u32, 0)?;
            build(g)
        }));
    };
    add("address spaces do not mix", |g| {
        let second = second_root(g);
        let first = g.root;
        for _ in 0..2 {
            load_cr3(g, first | 1)?;
            show(g)?;
            load_cr3(g, second | 2)?;
            show(g)?;
            load_cr3(g, first | 1 | NO_FLUSH)?;
            show(g)?;
            load_cr3(g, second | 2 | NO_FLUSH)?;
            show(g)?;
        }
        for value in [1, 2, 1, 2, 1, 2, 1, 2] {
            g.want(out(value));
        }
        g.exit()
    });
    add("address spaces do not mix, however much was loaded", |g| {
        let second = second_root(g);
        let first = g.root;
        for no_flush in [0, NO_FLUSH] {
            for (value, root) in [(1u32, first), (2, second)] {
                load_cr3(g, root | u64::from(value) | no_flush)?;
                show(g)?;
                g.want(out(value));
                g.a.mov(ebx, 0x20_0000)?;
                g.a.mov(ecx, 300)?;
                let mut next = g.a.create_label();
                g.a.set_label(&mut next)?;
                g.a.mov(eax, dword_ptr(rbx))?;
                g.a.add(ebx, 0x1000)?;
                g.a.dec(ecx)?;
                g.a.jnz(next)?;
            }
        }
        g.exit()
    });
    add("loading CR3 without the no-flush bit drops the PCID's translations", |g| {
        g.map(WINDOW, FRAMES, P | W);
        let (root, place) = (g.root, g.entry(WINDOW, 1));
        load_cr3(g, root | 5)?;
        show(g)?;
        load_cr3(g, root | 6)?;
        remap(g, place, P | W)?;
        load_cr3(g, root | 5)?;
        show(g)?;
        g.want(out(1));
        g.want(out(2));
        g.exit()
    });
    add("INVPCID 0 drops one address of another PCID", |g| {
        g.needs(&INVPCID);
        g.map(WINDOW, FRAMES, P | W);
        let (root, place) = (g.root, g.entry(WINDOW, 1));
        load_cr3(g, root | 5)?;
        show(g)?;
        load_cr3(g, root | 6)?;
        remap(g, place, P | W)?;
        invpcid(g, 0, 5, WINDOW)?;
        load_cr3(g, root | 5 | NO_FLUSH)?;
        show(g)?;
        g.want(out(1));
        g.want(out(2));
        g.exit()
    });
    add("INVPCID 1 drops another PCID", |g| {
        g.needs(&INVPCID);
        g.map(WINDOW, FRAMES, P | W);
        let (root, place) = (g.root, g.entry(WINDOW, 1));
        load_cr3(g, root | 5)?;
        show(g)?;
        load_cr3(g, root | 6)?;
        remap(g, place, P | W)?;
        invpcid(g, 1, 5, 0)?;
        load_cr3(g, root | 5 | NO_FLUSH)?;
        show(g)?;
        g.want(out(1));
        g.want(out(2));
        g.exit()
    });
    add("INVPCID 1 drops the current PCID", |g| {
        g.needs(&INVPCID);
        g.map(WINDOW, FRAMES, P | W);
        let (root, place) = (g.root, g.entry(WINDOW, 1));
        load_cr3(g, root | 5)?;
        show(g)?;
        remap(g, place, P | W)?;
        invpcid(g, 1, 5, 0)?;
        show(g)?;
        g.want(out(1));
        g.want(out(2));
        g.exit()
    });
    add("INVPCID 2 drops everything", |g| invpcid_all(g, 2));
    add("INVPCID 3 drops all PCIDs", |g| invpcid_all(g, 3));
    add("INVPCID refuses an unknown type", |g| {
        g.needs(&INVPCID);
        g.want(fault(GP).code(0));
        invpcid(g, 4, 0, 0)?;
        g.exit()
    });
    add("INVPCID refuses reserved bits", |g| {
        g.needs(&INVPCID);
        g.want(fault(GP).code(0));
        invpcid(g, 1, 0x1000, 0)?;
        g.exit()
    });
    add("clearing CR4.PCIDE drops everything", |g| {
        g.map(WINDOW, FRAMES, P | W);
        let (root, place) = (g.root, g.entry(WINDOW, 1));
        load_cr3(g, root)?;
        show(g)?;
        remap(g, place, P | W)?;
        g.change_cr4(0, Cr4::PCIDE.bits() as u32)?;
        show(g)?;
        g.want(out(1));
        g.want(out(2));
        g.exit()
    });
    add("INVLPG drops the current PCID's global and other translations", |g| {
        g.change_cr4(Cr4::PGE.bits() as u32, 0)?;
        g.map(WINDOW, FRAMES, P | W | G);
        let (root, place) = (g.root, g.entry(WINDOW, 1));
        load_cr3(g, root | 5)?;
        show(g)?;
        load_cr3(g, root | 6)?;
        remap(g, place, P | W | G)?;
        invlpg(g, WINDOW)?;
        load_cr3(g, root | 5 | NO_FLUSH)?;
        show(g)?;
        g.want(out(1));
        g.want(out(2));
        g.exit()
    });
    cases.push(case("tlb PCID: CR4.PCIDE needs CR3's low bits clear", Long, |g| {
        g.needs(&PCID);
        let root = g.root;
        load_cr3(g, root | 0x18)?;
        g.want(fault(GP).code(0));
        g.change_cr4(Cr4::PCIDE.bits() as u32, 0)?;
        g.exit()
    }));
    cases.push(case("tlb PCID: CR4.PCIDE needs long mode", Pae, |g| {
        g.needs(&PCID);
        g.want(fault(GP).code(0));
        g.change_cr4(Cr4::PCIDE.bits() as u32, 0)?;
        g.exit()
    }));
}

fn invpcid_all(g: &mut Guest, kind: u32) -> Result {
    g.needs(&INVPCID);
    g.map(WINDOW, FRAMES, P | W);
    let (root, place) = (g.root, g.entry(WINDOW, 1));
    load_cr3(g, root | 5)?;
    show(g)?;
    load_cr3(g, root | 6)?;
    remap(g, place, P | W)?;
    invpcid(g, kind, 0, 0)?;
    load_cr3(g, root | 5 | NO_FLUSH)?;
    show(g)?;
    g.want(out(1));
    g.want(out(2));
    g.exit()
}
