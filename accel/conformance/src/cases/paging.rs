//! Translation, rights and faults (SDM Vol. 3, chapter 4).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::state::{Cr4, gpr};
use x86::vector::{GP, PF, SS};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::{Guest, PAGE_1G};
use crate::layout::{DATA, FRAMES, HIGH_RAM, WINDOW};
use crate::start::Start::{self, Compat, Long, Pae, Paged32};
use crate::tables::pte::{A, D, G, NX, P, PS, U, W};

type Result = std::result::Result<(), IcedError>;

/// Bits of #PF's error code.
pub(super) mod code {
    pub const P: u32 = 1;
    pub const W: u32 = 2;
    pub const U: u32 = 4;
    pub const RSVD: u32 = 8;
    pub const I: u32 = 16;
}

const PAGED: [(Start, &str); 4] =
    [(Paged32, "32-bit"), (Pae, "PAE"), (Long, "4-level"), (Compat, "compatibility mode")];

/// The same case under each kind of paging.
pub(super) fn everywhere(
    cases: &mut Vec<Case>,
    name: &str,
    build: impl Fn(&mut Guest) -> Result + Copy + Send + Sync + 'static,
) {
    for (start, mode) in PAGED {
        cases.push(case(format!("paging {mode}: {name}"), start, build));
    }
}

/// A load from `address` by the code as it is.
pub(super) fn load(g: &mut Guest, address: u64) -> Result {
    g.a.mov(ebx, address as u32)?;
    if g.a.bitness() == 64 { g.a.mov(eax, dword_ptr(rbx)) } else { g.a.mov(eax, dword_ptr(ebx)) }
}

pub(super) fn store(g: &mut Guest, address: u64, value: u32) -> Result {
    g.a.mov(ebx, address as u32)?;
    if g.a.bitness() == 64 {
        g.a.mov(dword_ptr(rbx), value)
    } else {
        g.a.mov(dword_ptr(ebx), value)
    }
}

/// A load that faults with `code`.
pub(super) fn bad_load(g: &mut Guest, address: u64, code: u32) -> Result {
    g.a.mov(ebx, address as u32)?;
    g.mark("access")?;
    if g.a.bitness() == 64 {
        g.a.mov(eax, dword_ptr(rbx))?;
    } else {
        g.a.mov(eax, dword_ptr(ebx))?;
    }
    g.want(fault(PF).code(code).cr2(address).at("access"));
    g.exit()
}

pub(super) fn bad_store(g: &mut Guest, address: u64, code: u32) -> Result {
    g.a.mov(ebx, address as u32)?;
    g.mark("access")?;
    if g.a.bitness() == 64 {
        g.a.mov(dword_ptr(rbx), 5)?;
    } else {
        g.a.mov(dword_ptr(ebx), 5)?;
    }
    g.want(fault(PF).code(code).cr2(address).at("access"));
    g.exit()
}

/// A jump to a page that may not be executed.
pub(super) fn bad_fetch(g: &mut Guest, address: u64, code: u32) -> Result {
    g.a.mov(ebx, address as u32)?;
    if g.a.bitness() == 64 {
        g.a.jmp(rbx)?;
    } else {
        g.a.jmp(ebx)?;
    }
    g.want(fault(PF).code(code).cr2(address).rip(address));
    Ok(())
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    basics(&mut cases);
    marking(&mut cases);
    large_pages(&mut cases);
    reserved(&mut cases);
    crossing(&mut cases);
    roots(&mut cases);
    cases
}

fn basics(cases: &mut Vec<Case>) {
    everywhere(cases, "a mapped page leads to its frame", |g| {
        g.map(WINDOW + 0x5000, FRAMES + 0x1000, P | W);
        g.write32(FRAMES + 0x1234, 0xfeed);
        load(g, WINDOW + 0x5234)?;
        g.out_eax()?;
        store(g, WINDOW + 0x5238, 0xbeef)?;
        g.want(out(0xfeed));
        g.want_memory(FRAMES + 0x1238, 4, 0xbeef);
        g.exit()
    });
    everywhere(cases, "a load from a page that is not present faults", |g| {
        g.entry(WINDOW + 0x1000, 1);
        bad_load(g, WINDOW + 0x1123, 0)
    });
    everywhere(cases, "a load without a page table faults", |g| bad_load(g, 0x2345_6789 & !3, 0));
    everywhere(cases, "a store to a page that is not present faults", |g| {
        bad_store(g, WINDOW + 0x1ffc, code::W)
    });
    everywhere(cases, "a fetch from a page that is not present faults", |g| {
        let reported = if g.start == Paged32 { 0 } else { code::I };
        bad_fetch(g, WINDOW + 0x1800, reported)
    });
    everywhere(cases, "the user cannot load from a supervisor page", |g| {
        g.enter_user()?;
        bad_load(g, DATA + 4, code::P | code::U)
    });
    everywhere(cases, "the user cannot store to a read-only page", |g| {
        g.map(WINDOW, FRAMES, P | U);
        g.enter_user()?;
        bad_store(g, WINDOW, code::P | code::W | code::U)
    });
    everywhere(cases, "the user may load from a read-only page", |g| {
        g.map(WINDOW, FRAMES, P | U);
        g.write32(FRAMES, 77);
        g.enter_user()?;
        load(g, WINDOW)?;
        g.out_eax()?;
        g.want(out(77));
        g.exit()
    });
    everywhere(cases, "a page is the user's only if all levels say so", |g| {
        g.map(WINDOW, FRAMES, P | W | U);
        let above = g.entry(WINDOW, 2);
        let entry = g.read(above, g.start.paging().entry_size());
        g.set_entry(above, entry & !U);
        g.enter_user()?;
        bad_load(g, WINDOW, code::P | code::U)
    });
    everywhere(cases, "a page is writable only if all levels say so", |g| {
        g.map(WINDOW, FRAMES, P | W | U);
        let above = g.entry(WINDOW, 2);
        let entry = g.read(above, g.start.paging().entry_size());
        g.set_entry(above, entry & !W);
        bad_store(g, WINDOW, code::P | code::W)
    });
    everywhere(cases, "with WP the supervisor cannot store to a read-only page", |g| {
        g.map(WINDOW, FRAMES, P);
        bad_store(g, WINDOW, code::P | code::W)
    });
    everywhere(cases, "without WP the supervisor stores to a read-only page", |g| {
        g.map(WINDOW, FRAMES, P);
        g.change_cr0(0, 1 << 16)?;
        store(g, WINDOW + 8, 99)?;
        g.want_memory(FRAMES + 8, 4, 99);
        g.exit()
    });
    everywhere(cases, "without WP the user still cannot", |g| {
        g.map(WINDOW, FRAMES, P | U);
        g.change_cr0(0, 1 << 16)?;
        g.enter_user()?;
        bad_store(g, WINDOW, code::P | code::W | code::U)
    });
    everywhere(cases, "setting WP takes effect at once", |g| {
        g.map(WINDOW, FRAMES, P);
        g.change_cr0(0, 1 << 16)?;
        store(g, WINDOW + 8, 99)?;
        g.change_cr0(1 << 16, 0)?;
        g.want_memory(FRAMES + 8, 4, 99);
        bad_store(g, WINDOW, code::P | code::W)
    });
    for (start, mode) in [(Pae, "PAE"), (Long, "4-level")] {
        cases.push(case(format!("paging {mode}: NX forbids fetches"), start, |g| {
            g.map(WINDOW, FRAMES, P | W | NX);
            bad_fetch(g, WINDOW + 0x10, code::P | code::I)
        }));
        cases.push(case(format!("paging {mode}: NX allows loads"), start, |g| {
            g.map(WINDOW, FRAMES, P | W | NX);
            g.write32(FRAMES, 7);
            load(g, WINDOW)?;
            g.out_eax()?;
            g.want(out(7));
            g.exit()
        }));
        cases.push(case(format!("paging {mode}: NX of an upper level forbids"), start, |g| {
            g.map(WINDOW, FRAMES, P | W);
            let above = g.entry(WINDOW, 2);
            let entry = g.read(above, 8);
            g.set_entry(above, entry | NX);
            bad_fetch(g, WINDOW + 0x10, code::P | code::I)
        }));
        cases.push(case(format!("paging {mode}: NX is reserved without EFER.NXE"), start, |g| {
            g.map(WINDOW, FRAMES, P | W | NX);
            g.rdmsr(0xc000_0080)?;
            g.a.and(eax, !0x800)?;
            g.a.wrmsr()?;
            bad_load(g, WINDOW, code::P | code::RSVD)
        }));
    }
}

fn marking(cases: &mut Vec<Case>) {
    everywhere(cases, "a load sets the accessed bits", |g| {
        g.map(WINDOW, FRAMES, P | W);
        let (leaf, above) = (g.entry(WINDOW, 1), g.entry(WINDOW, 2));
        let size = g.start.paging().entry_size();
        let entry = g.read(above, size);
        g.set_entry(above, entry & !A);
        load(g, WINDOW + 4)?;
        g.want_memory(leaf, size, FRAMES | P | W | A);
        g.want_memory(above, size, entry | A);
        g.exit()
    });
    everywhere(cases, "a store sets the dirty bit of the leaf", |g| {
        g.map(WINDOW, FRAMES, P | W);
        let leaf = g.entry(WINDOW, 1);
        store(g, WINDOW + 4, 1)?;
        g.want_memory(leaf, g.start.paging().entry_size(), FRAMES | P | W | A | D);
        g.exit()
    });
    everywhere(cases, "a store after a load sets the dirty bit", |g| {
        g.map(WINDOW, FRAMES, P | W);
        let leaf = g.entry(WINDOW, 1);
        load(g, WINDOW + 4)?;
        store(g, WINDOW + 4, 1)?;
        g.want_memory(leaf, g.start.paging().entry_size(), FRAMES | P | W | A | D);
        g.exit()
    });
    everywhere(cases, "a load does not set the dirty bit", |g| {
        g.map(WINDOW, FRAMES, P | W);
        let leaf = g.entry(WINDOW, 1);
        load(g, WINDOW + 4)?;
        load(g, WINDOW + 8)?;
        g.want_memory(leaf, g.start.paging().entry_size(), FRAMES | P | W | A);
        g.exit()
    });
    everywhere(cases, "a store that faults does not set the dirty bit", |g| {
        g.map(WINDOW, FRAMES, P);
        let leaf = g.entry(WINDOW, 1);
        let size = g.start.paging().entry_size();
        bad_store(g, WINDOW, code::P | code::W)?;
        g.section(g.a.bitness(), DATA, DATA)?;
        // The accessed bit may be set or not: have it set beforehand.
        g.set_entry(leaf, FRAMES | P | A);
        g.want_memory(leaf, size, FRAMES | P | A);
        Ok(())
    });
    cases.push(case("paging 4-level: a fetch sets the accessed bit", Long, |g| {
        g.map(WINDOW, FRAMES, P | W);
        g.write(FRAMES, &[0xc3]);
        let leaf = g.entry(WINDOW, 1);
        g.a.mov(ebx, WINDOW as u32)?;
        g.a.call(rbx)?;
        g.want_memory(leaf, 8, FRAMES | P | W | A);
        g.exit()
    }));
    cases.push(case(
        "paging 4-level: a locked exchange that fails sets the dirty bit",
        Long,
        |g| {
            g.map(WINDOW, FRAMES, P | W);
            let leaf = g.entry(WINDOW, 1);
            g.a.mov(ebx, WINDOW as u32)?;
            g.a.mov(eax, 5)?;
            g.a.lock().cmpxchg(dword_ptr(rbx), ecx)?;
            g.want_memory(leaf, 8, FRAMES | P | W | A | D);
            g.want_register(gpr::RAX, 0);
            g.exit()
        },
    ));
}

fn large_pages(cases: &mut Vec<Case>) {
    everywhere(cases, "a large page leads to its frame", |g| {
        g.map_large(WINDOW, FRAMES, 2, P | W);
        g.write32(FRAMES + 0x1f_f004, 0x1234);
        load(g, WINDOW + 0x1f_f004)?;
        g.out_eax()?;
        g.want(out(0x1234));
        store(g, WINDOW + 0x10_0000, 5)?;
        g.want_memory(FRAMES + 0x10_0000, 4, 5);
        let leaf = g.entry(WINDOW, 2);
        g.want_memory(leaf, g.start.paging().entry_size(), FRAMES | P | W | PS | A | D);
        g.exit()
    });
    everywhere(cases, "a read-only large page refuses stores", |g| {
        g.map_large(WINDOW, FRAMES, 2, P);
        bad_store(g, WINDOW + 0x12_3450, code::P | code::W)
    });
    cases.push(case("paging 32-bit: without PSE the PS bit means nothing", Paged32, |g| {
        g.map(WINDOW, FRAMES, P | W);
        g.write32(FRAMES, 0x77);
        let above = g.entry(WINDOW, 2);
        let entry = g.read(above, 4);
        g.set_entry(above, entry | PS);
        // The devices' large pages are gone then, which does not matter.
        g.change_cr4(0, Cr4::PSE.bits() as u32)?;
        load(g, WINDOW)?;
        g.out_eax()?;
        g.want(out(0x77));
        g.exit()
    }));
    cases.push(case("paging 32-bit: PSE-36 reaches beyond 4 GiB", Paged32, |g| {
        // Bits 20:13 of the entry are bits 39:32 of the address.
        g.map_large(WINDOW, 1 << 13, 2, P | W);
        g.write32(HIGH_RAM + 0x10, 0xabcd);
        load(g, WINDOW + 0x10)?;
        g.out_eax()?;
        g.want(out(0xabcd));
        g.exit()
    }));
    for (start, mode) in [(Pae, "PAE"), (Long, "4-level")] {
        cases.push(case(format!("paging {mode}: pages beyond 4 GiB"), start, |g| {
            g.map(WINDOW, HIGH_RAM + 0x3000, P | W);
            g.map_large(WINDOW + 0x20_0000, HIGH_RAM + 0x20_0000, 2, P | W);
            g.write32(HIGH_RAM + 0x3010, 0x11);
            load(g, WINDOW + 0x10)?;
            g.out_eax()?;
            store(g, WINDOW + 0x20_0020, 0x22)?;
            g.want(out(0x11));
            g.want_memory(HIGH_RAM + 0x20_0020, 4, 0x22);
            g.exit()
        }));
    }
    cases.push(case("paging 4-level: a 1 GiB page", Long, |g| {
        g.needs(&PAGE_1G);
        g.map_large(0x40_0000_0000, 0, 3, P | W);
        g.write32(FRAMES + 0x40, 0x51);
        g.a.mov(rbx, 0x40_0000_0000u64 + FRAMES)?;
        g.a.mov(eax, dword_ptr(rbx + 0x40))?;
        g.out_eax()?;
        g.a.mov(dword_ptr(rbx + 0x44), 6)?;
        g.want(out(0x51));
        g.want_memory(FRAMES + 0x44, 4, 6);
        let leaf = g.entry(0x40_0000_0000, 3);
        g.want_memory(leaf, 8, P | W | PS | A | D);
        g.exit()
    }));
    cases.push(case("paging 4-level: the upper half of the address space", Long, |g| {
        let high = 0xffff_8000_0000_0000u64;
        g.map(high, FRAMES, P | W);
        g.map(0xffff_ffff_ffff_f000, FRAMES + 0x1000, P | W);
        g.write32(FRAMES, 0x61);
        g.a.mov(rbx, high)?;
        g.a.mov(eax, dword_ptr(rbx))?;
        g.out_eax()?;
        g.a.mov(dword_ptr(0xffff_ffff_ffff_fff8u64), 0x62)?;
        g.want(out(0x61));
        g.want_memory(FRAMES + 0x1ff8, 4, 0x62);
        g.exit()
    }));
}

fn reserved(cases: &mut Vec<Case>) {
    let bad = |name: &str, start, level: u32, bits: u64| {
        case(format!("paging: {name} is reserved"), start, move |g| {
            if bits == 1 << 51 {
                g.needs_bit_51_reserved();
            }
            g.map(WINDOW, FRAMES, P | W);
            let place = g.entry(WINDOW, level);
            let entry = g.read(place, g.start.paging().entry_size());
            g.set_entry(place, entry | bits);
            bad_load(g, WINDOW, code::P | code::RSVD)
        })
    };
    cases.push(bad("bit 51 of a 4-level page-table entry", Long, 1, 1 << 51));
    cases.push(bad("bit 51 of a 4-level directory entry", Long, 2, 1 << 51));
    cases.push(bad("bit 13 of a 2 MiB page's entry", Long, 2, 1 << 13 | PS));
    cases.push(bad("bit 13 of a PAE 2 MiB page's entry", Pae, 2, 1 << 13 | PS));
    cases.push(bad("bit 62 of a PAE page-table entry", Pae, 1, 1 << 62));
    cases.push(bad("bit 52 of a PAE directory entry", Pae, 2, 1 << 52));
    cases.push(bad("bit 21 of a 4 MiB page's entry", Paged32, 2, 1 << 21 | PS));
    for (name, level, bit) in [
        ("PS of a PML4 entry", 4, PS),
        ("bit 51 of a PML4 entry", 4, 1 << 51),
        ("bit 51 of a 4-level pointer entry", 3, 1 << 51),
        ("bit 20 of a 1 GiB page's entry", 3, 1 << 20 | PS),
    ] {
        cases.push(case(format!("paging: {name} is reserved"), Long, move |g| {
            if bit == 1 << 51 {
                g.needs_bit_51_reserved();
            }
            let linear = 0x80_0000_0000u64;
            g.map(linear, FRAMES, P | W);
            let place = g.entry(linear, level);
            let entry = g.read(place, 8);
            g.set_entry(place, entry | bit);
            g.a.mov(rbx, linear)?;
            g.mark("access")?;
            g.a.mov(eax, dword_ptr(rbx))?;
            g.want(fault(PF).code(code::P | code::RSVD).cr2(linear).at("access"));
            g.exit()
        }));
    }
    cases.push(case("paging 4-level: bits 52 to 62 are ignored", Long, |g| {
        g.map(WINDOW, FRAMES, P | W | 0x3f0 << 52);
        g.write32(FRAMES, 0x71);
        load(g, WINDOW)?;
        g.out_eax()?;
        g.want(out(0x71));
        g.exit()
    }));
    cases.push(case("paging: a store to a page with reserved bits says so", Long, |g| {
        g.needs_bit_51_reserved();
        g.map(WINDOW, FRAMES, P | W | 1 << 51);
        bad_store(g, WINDOW, code::P | code::W | code::RSVD)
    }));
    cases.push(case(
        "paging: reserved bits of an entry that is not present are ignored",
        Long,
        |g| {
            g.map(WINDOW, FRAMES, W | 1 << 51);
            bad_load(g, WINDOW, 0)
        },
    ));
}

fn crossing(cases: &mut Vec<Case>) {
    everywhere(cases, "a load across pages puts both parts together", |g| {
        g.map(WINDOW, FRAMES + 0x3000, P | W);
        g.map(WINDOW + 0x1000, FRAMES, P | W);
        g.write16(FRAMES + 0x3ffe, 0x2211);
        g.write16(FRAMES, 0x4433);
        load(g, WINDOW + 0xffe)?;
        g.out_eax()?;
        g.want(out(0x4433_2211));
        g.exit()
    });
    everywhere(cases, "a store across pages reaches both", |g| {
        g.map(WINDOW, FRAMES + 0x3000, P | W);
        g.map(WINDOW + 0x1000, FRAMES, P | W);
        store(g, WINDOW + 0xfff, 0xaabb_ccdd)?;
        g.want_memory(FRAMES + 0x3fff, 1, 0xdd);
        g.want_memory(FRAMES, 4, 0x00aa_bbcc);
        g.exit()
    });
    everywhere(cases, "a fault of the second page reports its first byte", |g| {
        g.map(WINDOW, FRAMES, P | W);
        g.a.mov(ebx, (WINDOW + 0xffe) as u32)?;
        g.mark("access")?;
        if g.a.bitness() == 64 {
            g.a.mov(dword_ptr(rbx), -1)?;
        } else {
            g.a.mov(dword_ptr(ebx), -1)?;
        }
        g.want(fault(PF).code(code::W).cr2(WINDOW + 0x1000).at("access"));
        // Nothing is stored to the first page.
        g.want_memory(FRAMES + 0xffe, 2, 0);
        g.exit()
    });
    everywhere(cases, "a fault of the first page reports the access", |g| {
        g.map(WINDOW + 0x1000, FRAMES, P | W);
        g.a.mov(ebx, (WINDOW + 0xffe) as u32)?;
        g.mark("access")?;
        if g.a.bitness() == 64 {
            g.a.mov(dword_ptr(rbx), -1)?;
        } else {
            g.a.mov(dword_ptr(ebx), -1)?;
        }
        g.want(fault(PF).code(code::W).cr2(WINDOW + 0xffe).at("access"));
        g.want_memory(FRAMES, 2, 0);
        g.exit()
    });
    cases.push(case("paging: an addition across pages that faults changes nothing", Long, |g| {
        g.map(WINDOW, FRAMES, P | W);
        g.map(WINDOW + 0x1000, FRAMES + 0x1000, P);
        g.write64(FRAMES + 0xffc, 1);
        g.a.mov(ebx, (WINDOW + 0xffc) as u32)?;
        g.a.mov(ecx, 5)?;
        g.a.cmp(ecx, 5)?;
        g.mark("access")?;
        g.a.add(qword_ptr(rbx), rcx)?;
        let flags = 0x8d5;
        g.want(
            fault(PF).code(code::P | code::W).cr2(WINDOW + 0x1000).at("access").flags(flags, 0x44),
        );
        g.want_memory(FRAMES + 0xffc, 8, 1);
        g.exit()
    }));
    cases.push(case("paging: an instruction across pages that faults in the second", Long, |g| {
        g.map(WINDOW, FRAMES, P | W);
        // MOV EAX, imm32 with two bytes in the first page.
        g.write(FRAMES + 0xffe, &[0xb8, 1]);
        g.a.mov(ebx, (WINDOW + 0xffe) as u32)?;
        g.a.jmp(rbx)?;
        g.want(fault(PF).code(code::I).cr2(WINDOW + 0x1000).rip(WINDOW + 0xffe));
        Ok(())
    }));
    cases.push(case("paging: an instruction across pages is put together", Long, |g| {
        g.map(WINDOW, FRAMES + 0x5000, P | W);
        g.map(WINDOW + 0x1000, FRAMES, P | W);
        g.write(FRAMES + 0x5ffe, &[0xb8, 1]);
        g.write(FRAMES, &[2, 3, 4, 0xc3]);
        g.a.mov(ebx, (WINDOW + 0xffe) as u32)?;
        g.a.call(rbx)?;
        g.out_eax()?;
        g.want(out(0x0403_0201));
        g.exit()
    }));
    cases.push(case("paging: a push that faults leaves RSP alone", Long, |g| {
        g.a.mov(ebx, esp)?;
        g.a.mov(esp, (WINDOW + 0x1000) as u32)?;
        // The handler needs a stack.
        g.handle_on_ist(PF, 1);
        g.mark("access")?;
        g.a.push(rax)?;
        g.want(fault(PF).code(code::W).cr2(WINDOW + 0xff8).at("access").rsp(WINDOW + 0x1000));
        g.exit()
    }));
    cases.push(case("paging: a call that faults leaves RSP and RIP alone", Long, |g| {
        g.a.mov(esp, (WINDOW + 0x1000) as u32)?;
        g.handle_on_ist(PF, 1);
        g.mark("access")?;
        let target = g.addr("target");
        g.a.call(target)?;
        g.mark("target")?;
        g.want(fault(PF).code(code::W).cr2(WINDOW + 0xff8).at("access").rsp(WINDOW + 0x1000));
        g.exit()
    }));
}

fn roots(cases: &mut Vec<Case>) {
    cases.push(case("paging PAE: loading a reserved pointer entry raises #GP", Pae, |g| {
        let root = FRAMES;
        for i in 0..4 {
            let entry = g.read(g.root + i * 8, 8);
            g.write64(root + i * 8, entry);
        }
        // Bit 1 of a pointer entry is reserved.
        g.write64(root + 8, FRAMES | P | 2);
        g.a.mov(eax, root as u32)?;
        g.mark("access")?;
        g.a.mov(cr3, eax)?;
        g.want(fault(GP).code(0).at("access"));
        g.exit()
    }));
    cases.push(case("paging PAE: pointer entries are read when CR3 is loaded", Pae, |g| {
        // Writing the table has no effect until CR3 is loaded again.
        g.map(0x4000_0000, FRAMES, P | W);
        g.write32(FRAMES, 0x81);
        let place = g.root + 8;
        g.a.mov(dword_ptr(place), 0)?;
        load(g, 0x4000_0000)?;
        g.out_eax()?;
        g.want(out(0x81));
        g.a.mov(eax, cr3)?;
        g.a.mov(cr3, eax)?;
        bad_load(g, 0x4000_0000, 0)
    }));
    cases.push(case(
        "paging 4-level: bits of CR3 beyond the physical address raise #GP",
        Long,
        |g| {
            g.a.mov(rax, 1u64 << 60 | g.root)?;
            g.mark("access")?;
            g.a.mov(cr3, rax)?;
            g.want(fault(GP).code(0).at("access"));
            g.exit()
        },
    ));
    cases.push(case("paging 4-level: an address that is not canonical raises #GP", Long, |g| {
        g.a.mov(rbx, 0x8000_0000_0000u64)?;
        g.mark("access")?;
        g.a.mov(eax, dword_ptr(rbx))?;
        g.want(fault(GP).code(0).at("access"));
        g.exit()
    }));
    cases.push(case("paging 4-level: a stack that is not canonical raises #SS", Long, |g| {
        g.handle_on_ist(SS, 1);
        g.a.mov(rsp, 0x8000_0000_0010u64)?;
        g.mark("access")?;
        g.a.push(rax)?;
        g.want(fault(SS).code(0).at("access"));
        g.exit()
    }));
    cases.push(case("paging 4-level: an operand based on RBP that is not canonical", Long, |g| {
        g.a.mov(rbp, 0x8000_0000_0010u64)?;
        g.mark("access")?;
        g.a.mov(rax, ptr(rbp))?;
        g.want(fault(SS).code(0).at("access"));
        g.exit()
    }));
    cases.push(case("paging 4-level: an access that leaves the canonical half", Long, |g| {
        g.map(0x7fff_ffff_f000, FRAMES, P | W);
        g.a.mov(rbx, 0x7fff_ffff_fffcu64)?;
        g.mark("access")?;
        g.a.mov(rax, qword_ptr(rbx))?;
        g.want(fault(GP).code(0).at("access"));
        g.exit()
    }));
    cases.push(case("paging: global pages do not differ but for flushes", Long, |g| {
        g.map(WINDOW, FRAMES, P | W | G);
        g.write32(FRAMES, 0x55);
        load(g, WINDOW)?;
        g.out_eax()?;
        g.want(out(0x55));
        g.exit()
    }));
}
