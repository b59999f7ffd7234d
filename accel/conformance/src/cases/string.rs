//! String instructions: direction, wrapping, restart after faults and interrupts
//! (SDM Vol. 1, 7.3.9; Vol. 2, REP).

use iced_x86::code_asm::*;
use x86::state::gpr::{RCX, RDI, RSI};
use x86::vector::PF;

use crate::case::{Case, case};
use crate::expect::{Want, fault, out};
use crate::layout::{DATA, DEVICE, FRAMES, WINDOW, port};
use crate::start::Start::{Long, Prot32, Real};
use crate::tables::access;
use crate::tables::pte::{P, W};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    plain(&mut cases);
    faults(&mut cases);
    devices(&mut cases);
    cases
}

fn plain(cases: &mut Vec<Case>) {
    cases.push(case("string: REP MOVSQ copies across pages", Long, |g| {
        for i in 0..0x400u64 {
            g.write64(FRAMES + i * 8, i * 0x0101_0101 + 1);
        }
        for page in 0..2 {
            g.map(WINDOW + page * 0x1000, FRAMES + page * 0x1000, P | W);
            // The target's pages lie the other way round.
            g.map(WINDOW + 0x1_0000 + page * 0x1000, FRAMES + 0x1_1000 - page * 0x1000, P | W);
        }
        g.a.mov(esi, WINDOW as u32)?;
        g.a.mov(edi, WINDOW as u32 + 0x1_0000)?;
        g.a.mov(ecx, 0x400)?;
        g.a.rep().movsq()?;
        g.want_memory(FRAMES + 0x1_1000, 8, 1);
        g.want_memory(FRAMES + 0x1_1ff8, 8, 0x1ff * 0x0101_0101 + 1);
        g.want_memory(FRAMES + 0x1_0000, 8, 0x200 * 0x0101_0101 + 1);
        g.want_memory(FRAMES + 0x1_0ff8, 8, 0x3ff * 0x0101_0101 + 1);
        g.want_register(RCX, 0);
        g.want_register(RSI, WINDOW + 0x2000);
        g.want_register(RDI, WINDOW + 0x1_2000);
        g.exit()
    }));
    cases.push(case("string: an overlap repeats the pattern", Long, |g| {
        g.write(DATA, b"abc");
        g.a.mov(esi, DATA as u32)?;
        g.a.mov(edi, DATA as u32 + 3)?;
        g.a.mov(ecx, 9)?;
        g.a.rep().movsb()?;
        g.want_memory(DATA + 4, 8, u64::from_le_bytes(*b"bcabcabc"));
        g.exit()
    }));
    cases.push(case("string: DF runs downwards", Long, |g| {
        g.write(DATA, b"abcdefgh");
        g.a.std()?;
        g.a.mov(esi, DATA as u32 + 7)?;
        g.a.mov(edi, DATA as u32 + 8)?;
        g.a.mov(ecx, 8)?;
        g.a.rep().movsb()?;
        g.a.cld()?;
        g.want_memory(DATA + 1, 8, u64::from_le_bytes(*b"abcdefgh"));
        g.want_register(RSI, DATA - 1);
        g.exit()
    }));
    cases.push(case("string: a count of zero does nothing, not even fault", Long, |g| {
        g.a.xor(ecx, ecx)?;
        g.a.mov(esi, WINDOW as u32)?;
        g.a.mov(edi, WINDOW as u32)?;
        g.a.cmp(ecx, 1)?;
        g.a.rep().movsb()?;
        g.a.repe().cmpsb()?;
        // The flags of CMP are there still.
        g.a.setb(al)?;
        g.a.movzx(eax, al)?;
        g.out_eax()?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("string: REPE CMPSB stops at the first difference", Long, |g| {
        g.write(DATA, b"same here, different there");
        g.write(DATA + 0x40, b"same here, DIFFERENT");
        g.a.mov(esi, DATA as u32)?;
        g.a.mov(edi, DATA as u32 + 0x40)?;
        g.a.mov(ecx, 100)?;
        g.a.repe().cmpsb()?;
        g.a.seta(al)?;
        g.a.movzx(eax, al)?;
        g.out_eax()?;
        g.want(out(1));
        g.want_register(RCX, 88);
        g.want_register(RSI, DATA + 12);
        g.exit()
    }));
    cases.push(case("string: REPNE SCASB finds", Long, |g| {
        g.write(DATA + 0x1000 - 4, b"abcd-fgh");
        g.a.mov(edi, DATA as u32 + 0x1000 - 4)?;
        g.a.mov(eax, u32::from(b'-'))?;
        g.a.mov(ecx, -1)?;
        g.a.repne().scasb()?;
        g.want_register(RDI, DATA + 0x1001);
        g.want_register(RCX, 0xffff_fffa);
        g.exit()
    }));
    cases.push(case("string: a 32-bit address size uses ESI, EDI and ECX", Long, |g| {
        g.write(DATA, b"12345678");
        g.a.mov(rsi, 0xff_0000_0000u64 | DATA)?;
        g.a.mov(rdi, 0xee_0000_0000u64 | (DATA + 0x100))?;
        g.a.mov(rcx, 0xdd_0000_0008u64)?;
        g.a.db(&[0x67, 0xf3, 0xa4])?;
        g.want_memory(DATA + 0x100, 8, u64::from_le_bytes(*b"12345678"));
        g.want_register(RCX, 0);
        g.want_register(RSI, DATA + 8);
        g.want_register(RDI, DATA + 0x108);
        g.exit()
    }));
    cases.push(case("string: real mode wraps at 64 KiB", Real, |g| {
        g.a.mov(ax, 0x2000)?;
        g.a.mov(es, ax)?;
        g.a.mov(edi, 0x1234_fffe)?;
        g.a.mov(ecx, 0x5678_0004)?;
        g.a.mov(al, 0x5a)?;
        g.a.rep().stosb()?;
        g.want_memory(0x2_fffe, 2, 0x5a5a);
        g.want_memory(0x2_0000, 2, 0x5a5a);
        g.want_memory(0x3_0000, 2, 0);
        g.want_register(RDI, 0x1234_0002);
        g.want_register(RCX, 0x5678_0000);
        g.exit()
    }));
    cases.push(case("string: the source's segment can be overridden", Prot32, |g| {
        use crate::layout::sel;
        use crate::tables::segment;
        g.descriptor(sel::FREE, segment(DATA as u32, 0xff, access::DATA, 4));
        g.write32(DATA + 8, 0x7777);
        g.a.mov(eax, u32::from(sel::FREE))?;
        g.a.mov(fs, eax)?;
        g.a.mov(esi, 8)?;
        // FS LODSD.
        g.a.db(&[0x64, 0xad])?;
        g.out_eax()?;
        g.want(out(0x7777));
        g.exit()
    }));
    cases.push(case("string: LODSB leaves the rest of RAX alone", Long, |g| {
        g.write(DATA, &[0x11]);
        g.a.mov(esi, DATA as u32)?;
        g.a.mov(eax, 0x5555_5555)?;
        g.a.lodsb()?;
        g.out_eax()?;
        g.want(out(0x5555_5511));
        g.exit()
    }));
}

fn faults(cases: &mut Vec<Case>) {
    cases.push(case("string: a fault in the middle leaves the rest to do", Long, |g| {
        g.map(WINDOW, FRAMES, P | W);
        let place = g.entry(WINDOW + 0x1000, 1);
        // The handler maps the page and returns.
        g.gate(PF, "handler", access::INTERRUPT_GATE, 0);
        g.a.mov(edi, WINDOW as u32 + 0xff0)?;
        g.a.mov(ecx, 0x20)?;
        g.a.mov(al, 0xab)?;
        g.mark("rep")?;
        g.a.rep().stosb()?;
        g.want(out(0x10));
        g.want(out(WINDOW as u32 + 0x1000));
        g.want(out(g.addr32("rep")));
        g.want(out(WINDOW as u32 + 0x1000));
        g.want_memory(FRAMES + 0xff0, 8, 0xabab_abab_abab_abab);
        g.want_memory(FRAMES + 0x1008, 8, 0xabab_abab_abab_abab);
        g.want_memory(FRAMES + 0x1010, 8, 0);
        g.want_register(RCX, 0);
        g.exit()?;
        g.mark("handler")?;
        g.a.push(rax)?;
        g.a.mov(eax, ecx)?;
        g.out_eax()?;
        g.a.mov(eax, edi)?;
        g.out_eax()?;
        g.a.mov(eax, dword_ptr(rsp + 16))?;
        g.out_eax()?;
        g.a.mov(rax, cr2)?;
        g.out_eax()?;
        g.a.mov(dword_ptr(place), ((FRAMES + 0x1000) | P | W) as u32)?;
        g.a.pop(rax)?;
        g.a.add(rsp, 8)?;
        g.a.iretq()
    }));
    cases.push(case("string: the source's page is missing", Long, |g| {
        g.map(WINDOW, FRAMES, P | W);
        g.a.mov(esi, WINDOW as u32 + 0xffc)?;
        g.a.mov(edi, DATA as u32)?;
        g.a.mov(ecx, 4)?;
        g.mark("rep")?;
        g.a.rep().movsd()?;
        g.want(fault(PF).code(0).cr2(WINDOW + 0x1000).at("rep"));
        g.want_register(RDI, DATA + 4);
        g.exit()
    }));
    cases.push(case("string: an element across a missing page is not moved in part", Long, |g| {
        g.map(WINDOW, FRAMES, P | W);
        g.a.mov(esi, DATA as u32)?;
        g.write64(DATA, u64::MAX);
        g.a.mov(edi, WINDOW as u32 + 0xffc)?;
        g.mark("insn")?;
        g.a.movsq()?;
        g.want(fault(PF).code(2).cr2(WINDOW + 0x1000).at("insn"));
        g.want_memory(FRAMES + 0xffc, 4, 0);
        g.want_register(RSI, DATA);
        g.exit()
    }));
    cases.push(case("string: REPNE SCASB runs into a missing page", Long, |g| {
        g.map(WINDOW, FRAMES, P | W);
        g.a.mov(edi, WINDOW as u32 + 0xf00)?;
        g.a.mov(ecx, 0x1000)?;
        g.a.mov(al, 1)?;
        g.mark("rep")?;
        g.a.repne().scasb()?;
        g.want(fault(PF).code(0).cr2(WINDOW + 0x1000).at("rep"));
        g.want_register(RDI, WINDOW + 0x1000);
        g.exit()
    }));
    cases.push(case("string: INS does not read the port for a page that is missing", Long, |g| {
        g.map(WINDOW, FRAMES, P);
        g.a.mov(edi, WINDOW as u32)?;
        g.a.mov(edx, 0x80)?;
        g.mark("insn")?;
        g.a.insb()?;
        g.want(fault(PF).code(3).cr2(WINDOW).at("insn"));
        g.want_register(RDI, WINDOW);
        g.exit()
    }));
}

fn devices(cases: &mut Vec<Case>) {
    cases.push(case("device: loads of all sizes", Long, |g| {
        g.a.mov(ebx, DEVICE as u32)?;
        g.a.movzx(eax, byte_ptr(rbx + 3))?;
        g.out_eax()?;
        g.a.movzx(eax, word_ptr(rbx + 4))?;
        g.out_eax()?;
        g.a.mov(eax, dword_ptr(rbx + 0x10))?;
        g.out_eax()?;
        g.a.mov(rax, qword_ptr(rbx + 0x20))?;
        g.a.shr(rax, 32)?;
        g.out_eax()?;
        for value in [3, 0x504, 0x1312_1110, 0x2726_2524] {
            g.want(out(value));
        }
        g.exit()
    }));
    cases.push(case("device: stores of all sizes", Long, |g| {
        g.a.mov(ebx, DEVICE as u32)?;
        g.a.mov(rax, 0x1122_3344_5566_7788u64)?;
        g.a.mov(byte_ptr(rbx + 3), al)?;
        g.a.mov(word_ptr(rbx + 4), ax)?;
        g.a.mov(dword_ptr(rbx + 0x10), eax)?;
        g.a.mov(qword_ptr(rbx + 0x20), rax)?;
        for (at, value) in
            [(3, 0x88), (4, 0x7788), (0x10, 0x5566_7788), (0x20, 0x1122_3344_5566_7788)]
        {
            g.want(Want::Store(at, value));
        }
        g.exit()
    }));
    cases.push(case("device: an addition reads and writes", Long, |g| {
        g.a.mov(ebx, DEVICE as u32)?;
        g.a.add(dword_ptr(rbx + 4), 0x10)?;
        g.a.setb(al)?;
        g.a.movzx(eax, al)?;
        g.out_eax()?;
        g.want(Want::Store(4, 0x0706_0514));
        g.want(out(0));
        g.exit()
    }));
    cases.push(case("device: PUSH from it and POP to it", Long, |g| {
        g.a.mov(ebx, DEVICE as u32)?;
        g.a.push(qword_ptr(rbx + 8))?;
        g.a.pop(qword_ptr(rbx + 0x18))?;
        g.want(Want::Store(0x18, 0x0f0e_0d0c_0b0a_0908));
        g.exit()
    }));
    cases.push(case("device: REP STOSD stores each element once", Long, |g| {
        g.a.mov(edi, DEVICE as u32 + 0x40)?;
        g.a.mov(eax, 0x99)?;
        g.a.mov(ecx, 3)?;
        g.a.rep().stosd()?;
        for at in [0x40, 0x44, 0x48] {
            g.want(Want::Store(at, 0x99));
        }
        g.exit()
    }));
    cases.push(case("device: REP MOVSB from it to memory", Long, |g| {
        g.a.mov(esi, DEVICE as u32 + 0x40)?;
        g.a.mov(edi, DATA as u32)?;
        g.a.mov(ecx, 8)?;
        g.a.rep().movsb()?;
        g.want_memory(DATA, 8, 0x4746_4544_4342_4140);
        g.exit()
    }));
    cases.push(case("device: a MOVUPS load", Long, |g| {
        g.change_cr4(x86::state::Cr4::OSFXSR.bits() as u32, 0)?;
        g.a.mov(ebx, DEVICE as u32)?;
        g.a.movups(xmm0, xmmword_ptr(rbx + 0x30))?;
        g.a.movups(xmmword_ptr(DATA), xmm0)?;
        g.want_memory(DATA, 8, 0x3736_3534_3332_3130);
        g.want_memory(DATA + 8, 8, 0x3f3e_3d3c_3b3a_3938);
        g.exit()
    }));
    cases.push(case("ports: OUTS writes what memory holds", Long, |g| {
        g.write32(DATA, 0x11);
        g.write32(DATA + 4, 0x22);
        g.write32(DATA + 8, 0x33);
        g.a.mov(esi, DATA as u32)?;
        g.a.mov(edx, u32::from(port::OUT))?;
        g.a.mov(ecx, 3)?;
        g.a.rep().outsd()?;
        for value in [0x11, 0x22, 0x33] {
            g.want(out(value));
        }
        g.want_register(RSI, DATA + 12);
        g.exit()
    }));
    cases.push(case("ports: INS stores what the port gives", Long, |g| {
        g.a.mov(edi, DATA as u32)?;
        g.a.mov(edx, 0x80)?;
        g.a.mov(ecx, 3)?;
        g.a.rep().insw()?;
        g.want_memory(DATA, 8, 0xffff_ffff_ffff);
        g.want_register(RDI, DATA + 6);
        g.exit()
    }));
    cases.push(case("ports: nobody answers with ones", Long, |g| {
        g.a.xor(eax, eax)?;
        g.a.in_(al, 0x80)?;
        g.out_eax()?;
        g.a.in_(eax, 0x80)?;
        g.out_eax()?;
        g.want(out(0xff));
        g.want(out(0xffff_ffff));
        g.exit()
    }));
}
