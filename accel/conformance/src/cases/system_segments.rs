//! LDTR, TR, the bases of FS and GS, GDTR and IDTR (SDM Vol. 3, 2.4, 3.4.4, 3.5).

use iced_x86::code_asm::*;
use x86::state::Cr4;
use x86::vector::{GP, NP, UD};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::{FSGSBASE, UMIP};
use crate::layout::{DATA, GDT, LDT, USER_DATA, sel};
use crate::start::Start::{Long, Prot32, Real};
use crate::tables::{access, segment};

const FREE: u16 = sel::FREE;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    local(&mut cases);
    bases(&mut cases);
    tables(&mut cases);
    cases
}

fn local(cases: &mut Vec<Case>) {
    for (start, mode) in [(Prot32, "32-bit"), (Long, "64-bit")] {
        cases.push(case(format!("ldt {mode}: segments can be in it"), start, |g| {
            g.write64(LDT + 8, segment(DATA as u32, 0xff, access::DATA, 4));
            g.a.mov(ecx, u32::from(sel::LDT))?;
            g.a.lldt(cx)?;
            g.a.mov(ecx, 8 | 4)?;
            g.a.mov(fs, ecx)?;
            if g.a.bitness() == 64 {
                g.a.xor(ebx, ebx)?;
                g.a.mov(dword_ptr(rbx + 8).fs(), 4)?;
            } else {
                g.a.mov(dword_ptr(8).fs(), 4)?;
            }
            g.a.sldt(eax)?;
            g.out_eax()?;
            g.want(out(sel::LDT.into()));
            g.want_memory(DATA + 8, 4, 4);
            g.exit()
        }));
        cases.push(case(
            format!("ldt {mode}: without one selectors for it are refused"),
            start,
            |g| {
                g.a.xor(ecx, ecx)?;
                g.a.lldt(cx)?;
                g.a.mov(ecx, 8 | 4)?;
                g.expect_fault("load", "after", |a| a.mov(fs, ecx))?;
                g.want(fault(GP).code(8 | 4).at("load"));
                g.exit()
            },
        ));
        let bad: [(&str, u16, u64, u8, u32); 4] = [
            ("in the LDT", FREE | 4, 0, GP, (FREE | 4) as u32),
            ("that is data", sel::KDATA, 0, GP, sel::KDATA as u32),
            (
                "that is not present",
                FREE,
                segment(0, 0xff, access::LDT & !0x80, 0),
                NP,
                FREE as u32,
            ),
            ("beyond the GDT", 0x1000, 0, GP, 0x1000),
        ];
        for (name, selector, descriptor, vector, code) in bad {
            cases.push(case(format!("ldt {mode}: LLDT of one {name}"), start, move |g| {
                if selector == FREE {
                    g.descriptor(FREE, descriptor);
                    g.descriptor(FREE + 8, 0);
                }
                g.a.mov(ecx, u32::from(selector))?;
                g.expect_fault("load", "after", |a| a.lldt(cx))?;
                g.want(fault(vector).code(code).at("load"));
                g.exit()
            }));
        }
        cases.push(case(format!("tr {mode}: LTR makes the TSS busy"), start, |g| {
            g.descriptor(FREE, segment(0x7000, 0x67, access::TSS, 0));
            g.descriptor(FREE + 8, 0);
            g.a.mov(ecx, u32::from(FREE))?;
            g.a.ltr(cx)?;
            g.a.str(eax)?;
            g.out_eax()?;
            g.want(out(FREE.into()));
            g.want_memory(GDT + u64::from(FREE) + 5, 1, access::TSS_BUSY.into());
            g.exit()
        }));
        let bad: [(&str, u16, u64, u8, u32); 4] = [
            ("null", 0, 0, GP, 0),
            ("of a busy TSS", sel::TSS, 0, GP, sel::TSS as u32),
            (
                "of a TSS that is not present",
                FREE,
                segment(0, 0x67, access::TSS & !0x80, 0),
                NP,
                FREE as u32,
            ),
            ("of data", sel::KDATA, 0, GP, sel::KDATA as u32),
        ];
        for (name, selector, descriptor, vector, code) in bad {
            cases.push(case(format!("tr {mode}: LTR {name} is refused"), start, move |g| {
                if selector == FREE {
                    g.descriptor(FREE, descriptor);
                    g.descriptor(FREE + 8, 0);
                }
                g.a.mov(ecx, u32::from(selector))?;
                g.expect_fault("load", "after", |a| a.ltr(cx))?;
                g.want(fault(vector).code(code).at("load"));
                g.exit()
            }));
        }
    }
    cases.push(case("tr 64-bit: a TSS may lie anywhere", Long, |g| {
        // The upper half of the base is not canonical.
        g.descriptor(FREE, segment(0x7000, 0x67, access::TSS, 0));
        g.descriptor(FREE + 8, 0x8000);
        g.a.mov(ecx, u32::from(FREE))?;
        g.expect_fault("load", "after", |a| a.ltr(cx))?;
        g.want(fault(GP).code(FREE.into()).at("load"));
        g.exit()
    }));
}

fn bases(cases: &mut Vec<Case>) {
    cases.push(case("bases: FS and GS through their MSRs", Long, |g| {
        g.wrmsr(0xc000_0100, DATA)?;
        g.wrmsr(0xc000_0101, DATA + 0x100)?;
        g.a.xor(ebx, ebx)?;
        g.a.mov(dword_ptr(rbx + 4).fs(), 1)?;
        g.a.mov(dword_ptr(rbx + 4).gs(), 2)?;
        g.want_memory(DATA + 4, 4, 1);
        g.want_memory(DATA + 0x104, 4, 2);
        g.exit()
    }));
    cases.push(case("bases: a base in the upper half, and wrapping", Long, |g| {
        g.wrmsr(0xc000_0100, 0xffff_ffff_ffff_ff00)?;
        g.a.mov(ebx, DATA as u32 + 0x100)?;
        g.a.mov(dword_ptr(rbx).fs(), 1)?;
        g.want_memory(DATA, 4, 1);
        g.exit()
    }));
    for index in [0xc000_0100u32, 0xc000_0101, 0xc000_0102] {
        cases.push(case(
            format!("bases: MSR {index:#x} refuses what is not canonical"),
            Long,
            move |g| {
                g.a.mov(ecx, index)?;
                g.a.xor(eax, eax)?;
                g.a.mov(edx, 0x8000)?;
                g.expect_fault("wrmsr", "after", |a| a.wrmsr())?;
                g.want(fault(GP).code(0).at("wrmsr"));
                g.exit()
            },
        ));
    }
    cases.push(case("bases: SWAPGS exchanges", Long, |g| {
        g.wrmsr(0xc000_0101, 0x1111)?;
        g.wrmsr(0xc000_0102, 0x2222)?;
        g.a.swapgs()?;
        g.rdmsr(0xc000_0101)?;
        g.out_eax()?;
        g.rdmsr(0xc000_0102)?;
        g.out_eax()?;
        g.want(out(0x2222));
        g.want(out(0x1111));
        g.exit()
    }));
    cases.push(case("bases: SWAPGS is the supervisor's", Long, |g| {
        g.enter_user()?;
        g.expect_fault("insn", "after", |a| a.swapgs())?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("bases: RDFSBASE and WRGSBASE", Long, |g| {
        g.needs(&FSGSBASE);
        g.change_cr4(Cr4::FSGSBASE.bits() as u32, 0)?;
        g.enter_user()?;
        g.a.mov(rbx, USER_DATA)?;
        g.a.wrgsbase(rbx)?;
        g.a.xor(ecx, ecx)?;
        g.a.mov(dword_ptr(rcx).gs(), 9)?;
        g.a.mov(ecx, 0x1234)?;
        g.a.wrfsbase(ecx)?;
        g.a.rdfsbase(rax)?;
        g.out_eax()?;
        g.want(out(0x1234));
        g.want_memory(USER_DATA, 4, 9);
        g.exit()
    }));
    cases.push(case("bases: WRFSBASE refuses what is not canonical", Long, |g| {
        g.needs(&FSGSBASE);
        g.change_cr4(Cr4::FSGSBASE.bits() as u32, 0)?;
        g.a.mov(rbx, 1u64 << 47)?;
        g.expect_fault("insn", "after", |a| a.wrfsbase(rbx))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("bases: RDFSBASE without CR4.FSGSBASE", Long, |g| {
        g.expect_fault("insn", "after", |a| a.rdfsbase(rax))?;
        g.want(fault(UD).at("insn"));
        g.exit()
    }));
    cases.push(case("bases: loading a selector loads 32 bits of base", Long, |g| {
        g.wrmsr(0xc000_0100, 0xffff_8000_0000_0000)?;
        g.descriptor(FREE, segment(0x1234_5678, 0xff, access::DATA, 4));
        g.a.mov(ecx, u32::from(FREE))?;
        g.a.mov(fs, ecx)?;
        g.rdmsr(0xc000_0100)?;
        g.out_eax()?;
        g.a.mov(eax, edx)?;
        g.out_eax()?;
        g.want(out(0x1234_5678));
        g.want(out(0));
        g.exit()
    }));
}

fn tables(cases: &mut Vec<Case>) {
    cases.push(case("tables: SGDT and SIDT give back what was loaded", Long, |g| {
        g.write16(DATA, 0x123);
        g.write64(DATA + 2, 0xffff_8000_0000_1000);
        g.a.mov(ebx, DATA as u32)?;
        g.a.lidt(ptr(rbx))?;
        g.a.sidt(ptr(rbx + 0x20))?;
        g.a.sgdt(ptr(rbx + 0x40))?;
        g.want_memory(DATA + 0x20, 2, 0x123);
        g.want_memory(DATA + 0x22, 8, 0xffff_8000_0000_1000);
        g.want_memory(DATA + 0x40, 2, 0xfff);
        g.want_memory(DATA + 0x42, 8, GDT);
        g.exit()
    }));
    cases.push(case("tables: LGDT refuses a base that is not canonical", Long, |g| {
        g.write16(DATA, 0x123);
        g.write64(DATA + 2, 1 << 47);
        g.a.mov(ebx, DATA as u32)?;
        g.expect_fault("insn", "after", |a| a.lgdt(ptr(rbx)))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("tables: LIDT with 16 bits loads 24 bits of base", Real, |g| {
        g.write16(0x4000, 0x3ff);
        g.write32(0x4002, 0xff00_5000);
        g.a.db(&[0x0f, 0x01, 0x1e, 0x00, 0x40])?;
        g.a.db(&[0x66, 0x0f, 0x01, 0x0e, 0x10, 0x40])?;
        g.want_memory(0x4010, 2, 0x3ff);
        g.want_memory(0x4012, 4, 0x5000);
        g.exit()
    }));
    for (name, insn) in [
        ("SGDT", &[0x0f, 0x01, 0x03][..]),
        ("SIDT", &[0x0f, 0x01, 0x0b]),
        ("SLDT", &[0x0f, 0x00, 0xc0]),
        ("STR", &[0x0f, 0x00, 0xc8]),
        ("SMSW", &[0x0f, 0x01, 0xe0]),
    ] {
        cases.push(case(format!("umip: {name} is not the user's"), Long, move |g| {
            g.needs(&UMIP);
            g.change_cr4(Cr4::UMIP.bits() as u32, 0)?;
            g.enter_user()?;
            g.a.mov(ebx, USER_DATA as u32)?;
            g.expect_fault("insn", "after", |a| a.db(insn))?;
            g.want(fault(GP).code(0).at("insn"));
            g.exit()
        }));
        cases.push(case(format!("umip: without it {name} is open to all"), Long, move |g| {
            g.enter_user()?;
            g.a.mov(ebx, USER_DATA as u32)?;
            g.a.db(insn)?;
            g.out(1)?;
            g.want(out(1));
            g.exit()
        }));
    }
}
