//! Segments, descriptors, far transfers and call gates (SDM Vol. 3, chapters 3 and 5).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::vector::{GP, NP, SS};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::Guest;
use crate::layout::{DATA, FRAMES, GDT, sel};
use crate::start::Start::{self, Compat, Long, Prot32, Real};
use crate::tables::{access, gate, segment, size};

type Result = std::result::Result<(), IcedError>;

const WIDE: u8 = size::PAGES | size::BITS32;
const FREE: u16 = sel::FREE;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    limits(&mut cases);
    loads(&mut cases);
    questions(&mut cases);
    cases
}

/// Loads FS with a descriptor in the first free place.
fn load_fs(g: &mut Guest, descriptor: u64) -> Result {
    g.descriptor(FREE, descriptor);
    g.a.mov(eax, u32::from(FREE))?;
    g.a.mov(fs, eax)
}

fn limits(cases: &mut Vec<Case>) {
    // Descriptor, offset of a doubleword, whether it may be read and written.
    let list: [(&str, u64, u32, bool, bool); 12] = [
        ("below a byte limit", segment(DATA as u32, 0xfff, access::DATA, 4), 0xffc, true, true),
        ("across a byte limit", segment(DATA as u32, 0xfff, access::DATA, 4), 0xffd, false, false),
        ("below a page limit", segment(DATA as u32, 0, access::DATA, WIDE), 0xffc, true, true),
        ("beyond a page limit", segment(DATA as u32, 0, access::DATA, WIDE), 0x1000, false, false),
        (
            "of read-only data",
            segment(DATA as u32, 0xfff, access::DATA_READ_ONLY, 4),
            0,
            true,
            false,
        ),
        ("of readable code", segment(DATA as u32, 0xfff, access::CODE, 4), 0, true, false),
        (
            "above an expand-down limit",
            segment(0, 0xf, access::DATA_DOWN, WIDE),
            DATA as u32,
            true,
            true,
        ),
        (
            "at an expand-down limit",
            segment(0, 0x1f_ffff >> 12, access::DATA_DOWN, WIDE),
            0x2_0000,
            false,
            false,
        ),
        (
            "right above an expand-down limit",
            segment(0, 0x1_ffff >> 12, access::DATA_DOWN, WIDE),
            0x2_0000,
            true,
            true,
        ),
        (
            "below the top of 16-bit expand-down data",
            segment(DATA as u32, 0xfff, access::DATA_DOWN, 0),
            0xfffc,
            true,
            true,
        ),
        (
            "across the top of 16-bit expand-down data",
            segment(DATA as u32, 0xfff, access::DATA_DOWN, 0),
            0xfffd,
            false,
            false,
        ),
        (
            "with a base that wraps",
            segment(0xffff_f000, 0xf_ffff, access::DATA, WIDE),
            DATA as u32 + 0x1000,
            true,
            true,
        ),
    ];
    for (name, descriptor, offset, reads, writes) in list {
        cases.push(case(format!("segmentation: a load {name}"), Prot32, move |g| {
            load_fs(g, descriptor)?;
            g.a.mov(ebx, offset)?;
            if reads {
                g.a.mov(eax, dword_ptr(ebx).fs())?;
                g.out(1)?;
                g.want(out(1));
            } else {
                g.expect_fault("load", "after", |a| a.mov(eax, dword_ptr(ebx).fs()))?;
                g.want(fault(GP).code(0).at("load"));
            }
            g.exit()
        }));
        cases.push(case(format!("segmentation: a store {name}"), Prot32, move |g| {
            load_fs(g, descriptor)?;
            g.a.mov(ebx, offset)?;
            if writes {
                g.a.mov(dword_ptr(ebx).fs(), 1)?;
                g.out(1)?;
                g.want(out(1));
            } else {
                g.expect_fault("store", "after", |a| a.mov(dword_ptr(ebx).fs(), 1))?;
                g.want(fault(GP).code(0).at("store"));
            }
            g.exit()
        }));
    }
    cases.push(case("segmentation: the base is added", Prot32, |g| {
        load_fs(g, segment(DATA as u32 + 0x10, 0xfff, access::DATA, 4))?;
        g.a.mov(dword_ptr(8).fs(), 0x1234)?;
        g.want_memory(DATA + 0x18, 4, 0x1234);
        g.exit()
    }));
    cases.push(case("segmentation: a code segment's limit ends execution", Prot32, |g| {
        g.descriptor(FREE, segment(DATA as u32, 0xf, access::CODE, 4));
        g.write(DATA, &[0x90; 0x20]);
        g.a.jmp_far(FREE, 0)?;
        g.want(fault(GP).code(0).rip(0x10).cs(FREE));
        Ok(())
    }));
    cases.push(case(
        "segmentation: an instruction across the limit is not executed",
        Prot32,
        |g| {
            g.descriptor(FREE, segment(DATA as u32, 0xf, access::CODE, 4));
            g.write(DATA, &[0x90; 0xe]);
            g.write(DATA + 0xe, &[0xb8, 1, 2, 3, 4]);
            g.a.jmp_far(FREE, 0)?;
            g.want(fault(GP).code(0).rip(0xe).cs(FREE));
            Ok(())
        },
    ));
    cases.push(case("segmentation: a near jump beyond the limit faults at itself", Prot32, |g| {
        g.descriptor(FREE, segment(DATA as u32, 0xf, access::CODE, 4));
        // JMP +20H.
        g.write(DATA, &[0x90, 0xeb, 0x20]);
        g.a.jmp_far(FREE, 0)?;
        g.want(fault(GP).code(0).rip(1).cs(FREE));
        Ok(())
    }));
    cases.push(case("segmentation: code cannot be written through CS", Prot32, |g| {
        g.expect_fault("store", "after", |a| a.mov(dword_ptr(DATA).cs(), 1))?;
        g.want(fault(GP).code(0).at("store"));
        g.exit()
    }));
    cases.push(case("segmentation: a stack overflow raises #SS", Prot32, |g| {
        g.descriptor(FREE, segment(0, 0x3_f0ff, access::DATA, 4));
        g.a.mov(eax, u32::from(FREE))?;
        g.a.mov(ss, eax)?;
        g.expect_fault("push", "after", |a| a.mov(eax, dword_ptr(esp + 0xfe)))?;
        g.want(fault(SS).code(0).at("push"));
        g.exit()
    }));
    cases.push(case("segmentation: a 16-bit stack wraps at 64 KiB", Prot32, |g| {
        g.descriptor(FREE, segment(0x3_0000, 0xffff, access::DATA, 0));
        g.a.mov(eax, u32::from(FREE))?;
        g.a.mov(ss, eax)?;
        g.a.mov(esp, 0x1234_0000)?;
        g.a.push(0x77)?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.want(out(0x1234_fffc));
        g.want_memory(0x3_fffc, 4, 0x77);
        g.exit()
    }));
    cases.push(case("segmentation: real mode ends at 64 KiB", Real, |g| {
        g.a.mov(bx, 0xffff)?;
        g.expect_fault("load", "after", |a| a.mov(ax, word_ptr(bx)))?;
        g.want(fault(GP).at("load"));
        g.exit()
    }));
    cases.push(case("segmentation: real mode segments start at multiples of 16", Real, |g| {
        g.write16(DATA + 0x34, 0x7788);
        g.a.mov(ax, 0x2001)?;
        g.a.mov(es, ax)?;
        g.a.xor(eax, eax)?;
        g.a.mov(bx, 0x24)?;
        g.a.mov(ax, word_ptr(bx).es())?;
        g.out_eax()?;
        g.want(out(0x7788));
        g.exit()
    }));
    cases.push(case("segmentation: real mode reaches beyond 1 MiB", Real, |g| {
        g.write16(0x10_0010, 0x99);
        g.a.mov(ax, -1)?;
        g.a.mov(es, ax)?;
        g.a.xor(eax, eax)?;
        g.a.mov(bx, 0x20)?;
        g.a.mov(ax, word_ptr(bx).es())?;
        g.out_eax()?;
        g.want(out(0x99));
        g.exit()
    }));
    cases.push(case("segmentation: in 64-bit mode neither bases nor limits count", Long, |g| {
        g.descriptor(FREE, segment(0x1000, 0, access::DATA, size::BITS32));
        g.a.mov(eax, u32::from(FREE))?;
        g.a.mov(ds, eax)?;
        g.a.mov(es, eax)?;
        g.write32(FRAMES & 0xff_ffff, 0);
        g.a.mov(ebx, DATA as u32)?;
        g.a.mov(dword_ptr(rbx), 5)?;
        g.want_memory(DATA, 4, 5);
        g.exit()
    }));
    cases.push(case("segmentation: compatibility mode has bases and limits", Compat, |g| {
        load_fs(g, segment(DATA as u32, 0xf, access::DATA, 4))?;
        g.a.mov(dword_ptr(4).fs(), 5)?;
        g.expect_fault("store", "after", |a| a.mov(dword_ptr(0x10).fs(), 5))?;
        g.want(fault(GP).code(0).at("store"));
        g.want_memory(DATA + 4, 4, 5);
        g.exit()
    }));
}

fn loads(cases: &mut Vec<Case>) {
    let present = access::PRESENT;
    /// Vector and error code.
    type Refusal = Option<(u8, u32)>;
    let list: [(&str, u16, u64, Refusal); 10] = [
        ("FS with null", 0, 0, None),
        ("FS with null and RPL 3", 3, 0, None),
        ("FS with data", FREE, segment(0, 0xff, access::DATA, 4), None),
        ("FS with readable code", FREE, segment(0, 0xff, access::CODE, 4), None),
        ("FS with conforming code", FREE | 3, segment(0, 0xff, access::CODE_CONFORMING, 4), None),
        (
            "FS with code that cannot be read",
            FREE,
            segment(0, 0xff, access::CODE_EXECUTE_ONLY, 4),
            Some((GP, FREE as u32)),
        ),
        (
            "FS with a system segment",
            FREE,
            segment(0, 0xff, access::LDT, 0),
            Some((GP, FREE as u32)),
        ),
        (
            "FS with data that is not present",
            FREE,
            segment(0, 0xff, access::DATA & !present, 4),
            Some((NP, FREE as u32)),
        ),
        (
            "FS with an RPL above the DPL",
            FREE | 3,
            segment(0, 0xff, access::DATA, 4),
            Some((GP, FREE as u32)),
        ),
        ("FS with a selector beyond the GDT", 0x1000, 0, Some((GP, 0x1000))),
    ];
    for (name, selector, descriptor, bad) in list {
        for (start, mode) in [(Prot32, "32-bit"), (Long, "64-bit")] {
            cases.push(case(format!("segmentation {mode}: loading {name}"), start, move |g| {
                if selector & !3 == FREE {
                    g.descriptor(FREE, descriptor);
                }
                g.a.mov(ecx, u32::from(selector))?;
                match bad {
                    Some((vector, code)) => {
                        g.expect_fault("load", "after", |a| a.mov(fs, ecx))?;
                        g.want(fault(vector).code(code).at("load"));
                    }
                    None => {
                        g.a.mov(fs, ecx)?;
                        g.a.mov(eax, fs)?;
                        g.out_eax()?;
                        g.want(out(selector.into()));
                    }
                }
                g.exit()
            }));
        }
    }
    let stack: [(&str, Start, u16, u64, u8, u32); 7] = [
        ("null in 32-bit mode", Prot32, 0, 0, GP, 0),
        ("null with RPL 3 in ring 0", Long, 3, 0, GP, 0),
        (
            "read-only data",
            Prot32,
            FREE,
            segment(0, 0xff, access::DATA_READ_ONLY, 4),
            GP,
            FREE as u32,
        ),
        ("code", Prot32, FREE, segment(0, 0xff, access::CODE, 4), GP, FREE as u32),
        ("data of ring 3", Prot32, sel::UDATA, 0, GP, (sel::UDATA & !3) as u32),
        ("data with another RPL", Prot32, sel::KDATA | 1, 0, GP, sel::KDATA as u32),
        (
            "data that is not present",
            Long,
            FREE,
            segment(0, 0xff, access::DATA & !0x80, 4),
            SS,
            FREE as u32,
        ),
    ];
    for (name, start, selector, descriptor, vector, code) in stack {
        cases.push(case(format!("segmentation: loading SS with {name}"), start, move |g| {
            if selector == FREE {
                g.descriptor(FREE, descriptor);
            }
            g.a.mov(ecx, u32::from(selector))?;
            g.expect_fault("load", "after", |a| a.mov(ss, ecx))?;
            g.want(fault(vector).code(code).at("load"));
            g.exit()
        }));
    }
    cases.push(case("segmentation 64-bit: loading SS with null", Long, |g| {
        g.a.xor(ecx, ecx)?;
        g.a.mov(ss, ecx)?;
        g.a.push(5)?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.want(out(5));
        g.exit()
    }));
    cases.push(case("segmentation: a load sets the accessed bit", Prot32, |g| {
        load_fs(g, segment(0, 0xff, access::DATA, 4))?;
        g.want_memory(GDT + u64::from(FREE) + 5, 1, u64::from(access::DATA | 1));
        g.exit()
    }));
    cases.push(case("segmentation: a load that faults does not set it", Prot32, |g| {
        g.descriptor(FREE, segment(0, 0xff, access::DATA, 4));
        g.a.mov(ecx, u32::from(FREE | 3))?;
        g.expect_fault("load", "after", |a| a.mov(fs, ecx))?;
        g.want(fault(GP));
        g.want_memory(GDT + u64::from(FREE) + 5, 1, access::DATA.into());
        g.exit()
    }));
    cases.push(case("segmentation: descriptors are read when registers are loaded", Prot32, |g| {
        load_fs(g, segment(DATA as u32, 0xff, access::DATA, 4))?;
        // Spoiling it has no effect any more.
        g.a.mov(dword_ptr(GDT + u64::from(FREE)), 0)?;
        g.a.mov(dword_ptr(4).fs(), 6)?;
        g.want_memory(DATA + 4, 4, 6);
        g.exit()
    }));
    cases.push(case("segmentation: using a null segment raises #GP", Prot32, |g| {
        g.a.xor(eax, eax)?;
        g.a.mov(fs, eax)?;
        g.expect_fault("load", "after", |a| a.mov(eax, dword_ptr(DATA).fs()))?;
        g.want(fault(GP).code(0).at("load"));
        g.exit()
    }));
    cases.push(case("segmentation: LES loads both", Prot32, |g| {
        g.write32(DATA, 0x1234_5678);
        g.write16(DATA + 4, sel::UDATA);
        g.a.les(ebx, ptr(DATA))?;
        g.a.mov(eax, ebx)?;
        g.out_eax()?;
        g.a.mov(eax, es)?;
        g.out_eax()?;
        g.want(out(0x1234_5678));
        g.want(out(sel::UDATA.into()));
        g.exit()
    }));
    cases.push(case("segmentation: LFS that faults loads nothing", Long, |g| {
        g.write32(DATA, 0x1234_5678);
        g.write16(DATA + 4, 0x2000);
        g.a.mov(ebx, 7)?;
        g.expect_fault("load", "after", |a| a.lfs(ebx, ptr(DATA)))?;
        g.a.mov(eax, ebx)?;
        g.out_eax()?;
        g.want(fault(GP).code(0x2000).at("load"));
        g.want(out(7));
        g.exit()
    }));
    cases.push(case("segmentation: POP FS that faults leaves the stack alone", Long, |g| {
        g.a.push(0x2000)?;
        g.expect_fault("pop", "after", |a| a.db(&[0x0f, 0xa1]))?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.want(fault(GP).code(0x2000).at("pop"));
        g.want(out(0x2000));
        g.exit()
    }));
}

fn questions(cases: &mut Vec<Case>) {
    // Selector's RPL, descriptor; LAR's answer, LSL's answer, VERR, VERW.
    type Answers = (Option<u32>, Option<u32>, bool, bool);
    let list: [(&str, u16, u64, Answers); 9] = [
        ("data", 0, segment(0, 0x12, access::DATA, 4), (Some(0x0040_9200), Some(0x12), true, true)),
        (
            "data in pages",
            0,
            segment(0, 0x12, access::DATA, WIDE),
            (Some(0x00c0_9200), Some(0x1_2fff), true, true),
        ),
        (
            "read-only data",
            0,
            segment(0, 0x12, access::DATA_READ_ONLY, 0),
            (Some(0x9000), Some(0x12), true, false),
        ),
        (
            "code",
            0,
            segment(0, 0x12, access::CODE, 4),
            (Some(0x0040_9a00), Some(0x12), true, false),
        ),
        (
            "code that cannot be read",
            0,
            segment(0, 0x12, access::CODE_EXECUTE_ONLY, 4),
            (Some(0x0040_9800), Some(0x12), false, false),
        ),
        ("data with a high RPL", 3, segment(0, 0x12, access::DATA, 4), (None, None, false, false)),
        (
            "conforming code with a high RPL",
            3,
            segment(0, 0x12, access::CODE_CONFORMING, 4),
            (Some(0x0040_9e00), Some(0x12), true, false),
        ),
        ("an LDT", 0, segment(0, 0x12, access::LDT, 0), (Some(0x8200), Some(0x12), false, false)),
        ("an interrupt gate", 0, gate(8, 0, access::INTERRUPT_GATE, 0), (None, None, false, false)),
    ];
    for (start, mode) in [(Prot32, "32-bit"), (Long, "64-bit")] {
        for (name, rpl, descriptor, (lar, lsl, verr, verw)) in list {
            cases.push(case(
                format!("segmentation {mode}: LAR, LSL, VERR, VERW of {name}"),
                start,
                move |g| {
                    g.descriptor(FREE, descriptor);
                    g.a.mov(ecx, u32::from(FREE | rpl))?;
                    // Each shows ZF and its result, which stays as it was without ZF.
                    for which in 0..4 {
                        g.a.mov(ebx, 0x5555)?;
                        g.a.xor(edx, edx)?;
                        match which {
                            0 => g.a.lar(ebx, ecx)?,
                            1 => g.a.lsl(ebx, ecx)?,
                            2 => g.a.verr(cx)?,
                            _ => g.a.verw(cx)?,
                        }
                        g.a.sete(dl)?;
                        g.a.mov(eax, edx)?;
                        g.out_eax()?;
                        g.a.mov(eax, ebx)?;
                        g.out_eax()?;
                    }
                    for value in [lar, lsl] {
                        g.want(out(value.is_some().into()));
                        g.want(out(value.unwrap_or(0x5555)));
                    }
                    for ok in [verr, verw] {
                        g.want(out(ok.into()));
                        g.want(out(0x5555));
                    }
                    g.exit()
                },
            ));
        }
    }
    cases.push(case(
        "segmentation: a 32-bit TSS answers LAR, a 16-bit one not in long mode",
        Long,
        |g| {
            for (kind, known) in [(0x89u8, true), (0x81, false), (0x8c, true), (0x84, false)] {
                let selector = FREE + u16::from(kind & 0xf) * 16;
                g.descriptor(selector, segment(0, 0x67, kind, 0));
                g.descriptor(selector + 8, 0);
                g.a.mov(ecx, u32::from(selector))?;
                g.a.xor(eax, eax)?;
                g.a.lar(ebx, ecx)?;
                g.a.sete(al)?;
                g.out_eax()?;
                g.want(out(known.into()));
            }
            g.exit()
        },
    ));
    cases.push(case("segmentation: questions about null and far selectors", Prot32, |g| {
        for selector in [0u32, 3, 0x1000, 0xfffc] {
            g.a.mov(ecx, selector)?;
            g.a.xor(eax, eax)?;
            g.a.verr(cx)?;
            g.a.sete(al)?;
            g.out_eax()?;
            g.want(out(0));
        }
        g.exit()
    }));
    cases.push(case("segmentation: ARPL raises the RPL", Prot32, |g| {
        for (a, b, result, zf) in [(0x10u32, 3u32, 0x13, 1), (0x13, 1, 0x13, 0), (0x11, 1, 0x11, 0)]
        {
            g.a.mov(ecx, a)?;
            g.a.mov(edx, b)?;
            g.a.xor(eax, eax)?;
            g.a.arpl(cx, dx)?;
            g.a.sete(al)?;
            g.out_eax()?;
            g.a.mov(eax, ecx)?;
            g.out_eax()?;
            g.want(out(zf));
            g.want(out(result));
        }
        g.exit()
    }));
}
