//! 32-bit code in flat segments, and the same code once they are not flat any more: whatever relies
//! on their being so has to notice.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::vector::GP;

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::Guest;
use crate::layout::{DATA, sel};
use crate::start::Start::{self, Compat, Prot32};
use crate::tables::{access, segment, size};

type Result = std::result::Result<(), IcedError>;

const WIDE: u8 = size::PAGES | size::BITS32;
const FIRST: u16 = sel::FREE;
const SECOND: u16 = sel::FREE + 8;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, start) in [("protected", Prot32), ("compatibility", Compat)] {
        addresses(&mut cases, name, start);
        segments(&mut cases, name, start);
    }
    cases
}

fn addresses(cases: &mut Vec<Case>, mode: &str, start: Start) {
    cases.push(case(format!("flat {mode} mode: addresses wrap at 4 GiB"), start, |g| {
        g.write32(DATA, 0x1234_5678);
        g.a.mov(ebx, 0xffff_f000u32)?;
        g.a.mov(ecx, 0x400)?;
        g.a.mov(eax, dword_ptr(ebx + ecx * 4 + DATA as i32))?;
        g.out_eax()?;
        g.want(out(0x1234_5678));
        g.exit()
    }));
    cases.push(case(format!("flat {mode} mode: several addresses wrap together"), start, |g| {
        g.write32(DATA, 1);
        g.write32(DATA + 8, 2);
        g.a.mov(ebx, -16)?;
        g.a.mov(eax, dword_ptr(ebx + (DATA as i32 + 16)))?;
        g.a.add(eax, dword_ptr(ebx + (DATA as i32 + 24)))?;
        g.out_eax()?;
        g.want(out(3));
        g.exit()
    }));
    cases.push(case(format!("flat {mode} mode: an offset in FS wraps"), start, |g| {
        g.write32(DATA, 0x1234_5678);
        g.descriptor(FIRST, segment(DATA as u32 + 4, 0xf_ffff, access::DATA, WIDE));
        g.a.mov(eax, u32::from(FIRST))?;
        g.a.mov(fs, eax)?;
        g.a.mov(eax, dword_ptr(0xffff_fffcu32).fs())?;
        g.out_eax()?;
        g.want(out(0x1234_5678));
        g.exit()
    }));
    cases.push(case(format!("flat {mode} mode: short increments keep the carry"), start, |g| {
        g.a.mov(ecx, -1)?;
        g.a.xor(eax, eax)?;
        g.a.stc()?;
        g.a.inc(ecx)?;
        g.a.adc(eax, 0x10)?;
        g.a.dec(ecx)?;
        g.a.adc(eax, ecx)?;
        g.out_eax()?;
        g.want(out(0x10));
        g.exit()
    }));
    cases.push(case(format!("flat {mode} mode: the stack has slots of four bytes"), start, |g| {
        let (mut function, mut over) = (g.a.create_label(), g.a.create_label());
        g.a.mov(ebx, esp)?;
        g.a.push(0x11)?;
        g.a.push(0x22)?;
        g.a.call(function)?;
        g.a.sub(ebx, esp)?;
        g.a.lea(eax, ptr(eax + ebx))?;
        g.a.jmp(over)?;
        g.a.set_label(&mut function)?;
        g.a.push(ebp)?;
        g.a.mov(ebp, esp)?;
        g.a.mov(eax, dword_ptr(ebp + 8))?;
        g.a.shl(eax, 16)?;
        g.a.add(eax, dword_ptr(ebp + 12))?;
        g.a.leave()?;
        g.a.ret_1(4)?;
        g.a.set_label(&mut over)?;
        g.out_eax()?;
        g.want(out(0x22_0015));
        g.exit()
    }));
}

/// Runs a load twice, with the first free descriptor in the segment register and then with the
/// second.
fn twice(
    g: &mut Guest,
    load: impl FnOnce(&mut CodeAssembler) -> Result,
    set: impl FnOnce(&mut CodeAssembler) -> Result,
) -> Result {
    let mut again = g.a.create_label();
    g.recover("after")?;
    g.a.mov(ebx, DATA as u32 + 0x800)?;
    g.a.mov(ecx, u32::from(FIRST))?;
    g.a.mov(edx, 2)?;
    g.a.set_label(&mut again)?;
    set(&mut g.a)?;
    g.a.nop()?;
    g.mark("load")?;
    load(&mut g.a)?;
    g.out_eax()?;
    g.a.mov(ecx, u32::from(SECOND))?;
    g.a.dec(edx)?;
    g.a.jne(again)?;
    g.mark("after")?;
    g.exit()
}

/// Loads from a segment register, and loads it.
type Use = fn(&mut CodeAssembler) -> Result;

fn segments(cases: &mut Vec<Case>, mode: &str, start: Start) {
    let registers: [(&str, Use, Use); 3] = [
        ("ES", |a| a.mov(eax, dword_ptr(ebx).es()), |a| a.mov(es, ecx)),
        ("FS", |a| a.mov(eax, dword_ptr(ebx).fs()), |a| a.mov(fs, ecx)),
        ("GS", |a| a.mov(eax, dword_ptr(ebx).gs()), |a| a.mov(gs, ecx)),
    ];
    let all = segment(0, 0xf_ffff, access::DATA, WIDE);
    for (reg, load, set) in registers {
        cases.push(case(format!("flat {mode} mode: {reg} gets a limit"), start, move |g| {
            g.write32(DATA + 0x800, 7);
            g.descriptor(FIRST, all);
            g.descriptor(SECOND, segment(0, DATA as u32 + 0x7ff, access::DATA, 4));
            g.want(out(7));
            g.want(fault(GP).code(0).at("load"));
            twice(g, load, set)
        }));
        cases.push(case(format!("flat {mode} mode: {reg} gets another base"), start, move |g| {
            g.write32(DATA + 0x800, 7);
            g.write32(DATA + 0x900, 8);
            g.descriptor(FIRST, all);
            g.descriptor(SECOND, segment(0x100, 0xf_ffff, access::DATA, WIDE));
            g.want(out(7));
            g.want(out(8));
            twice(g, load, set)
        }));
        cases.push(case(format!("flat {mode} mode: {reg} becomes null"), start, move |g| {
            g.write32(DATA + 0x800, 7);
            g.descriptor(FIRST, all);
            let set = move |a: &mut CodeAssembler| {
                a.cmp(ecx, u32::from(SECOND))?;
                let mut keep = a.create_label();
                a.jne(keep)?;
                a.xor(ecx, ecx)?;
                a.set_label(&mut keep)?;
                set(a)
            };
            g.want(out(7));
            g.want(fault(GP).code(0).at("load"));
            twice(g, load, set)
        }));
    }
}
