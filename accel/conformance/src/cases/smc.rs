//! Code that changes (SDM Vol. 3, 8.1.3 and 11.6).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use mem::GuestAddress;
use mem::vm_memory::Bytes;

use crate::case::{Case, case};
use crate::expect::out;
use crate::guest::Guest;
use crate::layout::{CODE, DATA, FRAMES, WINDOW};
use crate::start::Start::{Long, Prot32};
use crate::tables::pte::{P, W};

type Result = std::result::Result<(), IcedError>;

/// MOV EAX, 1; RET.
const ROUTINE: [u8; 6] = [0xb8, 1, 0, 0, 0, 0xc3];

/// Calls the routine at `address` and shows what it returns.
fn call(g: &mut Guest, address: u64) -> Result {
    g.a.mov(ecx, address as u32)?;
    if g.a.bitness() == 64 {
        g.a.call(rcx)?;
    } else {
        g.a.call(ecx)?;
    }
    g.out_eax()
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (start, mode) in [(Long, "64-bit"), (Prot32, "32-bit")] {
        cases.push(case(format!("smc {mode}: a store to the next instruction"), start, |g| {
            g.a.xor(eax, eax)?;
            let target = g.addr("target") + 1;
            g.a.mov(byte_ptr(target), 7)?;
            g.mark("target")?;
            g.a.mov(eax, 1)?;
            g.out_eax()?;
            g.want(out(7));
            g.exit()
        }));
        cases.push(case(
            format!("smc {mode}: a routine that is changed between calls"),
            start,
            |g| {
                g.write(DATA, &ROUTINE);
                for value in 1..=5u32 {
                    g.a.mov(byte_ptr(DATA + 1), value as i32)?;
                    call(g, DATA)?;
                    g.want(out(value));
                }
                g.exit()
            },
        ));
        cases.push(case(format!("smc {mode}: a loop that changes itself"), start, |g| {
            g.a.mov(ecx, 3)?;
            g.mark("loop")?;
            g.mark("target")?;
            g.a.mov(eax, 10)?;
            g.out_eax()?;
            let target = g.addr("target") + 1;
            g.a.inc(byte_ptr(target))?;
            g.a.dec(ecx)?;
            let again = g.addr("loop");
            g.a.jne(again)?;
            for value in [10, 11, 12] {
                g.want(out(value));
            }
            g.exit()
        }));
        cases.push(case(format!("smc {mode}: by REP STOSB"), start, |g| {
            g.write(DATA, &ROUTINE);
            call(g, DATA)?;
            g.a.mov(edi, DATA as u32 + 1)?;
            g.a.mov(al, 2)?;
            g.a.mov(ecx, 4)?;
            g.a.rep().stosb()?;
            call(g, DATA)?;
            g.want(out(1));
            g.want(out(0x0202_0202));
            g.exit()
        }));
        cases.push(case(format!("smc {mode}: by the host, as a device does"), start, |g| {
            g.write(DATA, &ROUTINE);
            g.on_host_call(|host, value| {
                let _ = host.memory.write_slice(&[value as u8], GuestAddress(DATA + 1));
            });
            for value in 1..=3u32 {
                g.host(value)?;
                call(g, DATA)?;
                g.want(out(value));
            }
            g.exit()
        }));
    }
    cases.push(case("smc: through another mapping of the page", Long, |g| {
        g.map(WINDOW, FRAMES, P | W);
        g.map(WINDOW + 0x5000, FRAMES, P | W);
        g.write(FRAMES, &ROUTINE);
        for value in 1..=3u32 {
            g.a.mov(ebx, WINDOW as u32 + 0x5001)?;
            g.a.mov(byte_ptr(rbx), value as i32)?;
            call(g, WINDOW)?;
            g.want(out(value));
        }
        g.exit()
    }));
    cases.push(case("smc: through another mapping, from within the page", Long, |g| {
        // The code that runs is mapped a second time.
        g.map(WINDOW, CODE, P | W);
        let target = g.addr("target") - CODE + WINDOW + 1;
        g.a.mov(ebx, target as u32)?;
        g.a.mov(byte_ptr(rbx), 7)?;
        // Through another linear address, a serializing instruction is needed.
        g.a.cpuid()?;
        g.mark("target")?;
        g.a.mov(eax, 1)?;
        g.out_eax()?;
        g.want(out(7));
        g.exit()
    }));
    cases.push(case("smc: an instruction across two pages, in either", Long, |g| {
        g.map(WINDOW, FRAMES, P | W);
        g.map(WINDOW + 0x1000, FRAMES + 0x1000, P | W);
        g.write(FRAMES + 0xffe, &ROUTINE);
        let at = WINDOW + 0xffe;
        call(g, at)?;
        g.a.mov(ebx, at as u32)?;
        g.a.mov(byte_ptr(rbx + 1), 2)?;
        call(g, at)?;
        g.a.mov(byte_ptr(rbx + 2), 3)?;
        call(g, at)?;
        for value in [1, 2, 0x302] {
            g.want(out(value));
        }
        g.exit()
    }));
    cases.push(case("smc: a code page that is also data", Long, |g| {
        // A counter beside the code: what executes stays right however often it is written.
        g.write(DATA, &ROUTINE);
        g.a.mov(esi, 200)?;
        g.mark("loop")?;
        g.a.mov(ecx, DATA as u32)?;
        g.a.call(rcx)?;
        g.a.add(dword_ptr(DATA + 0x80), eax)?;
        g.a.dec(esi)?;
        let again = g.addr("loop");
        g.a.jne(again)?;
        g.want_memory(DATA + 0x80, 4, 200);
        g.exit()
    }));
    cases.push(case("smc: a page that is remapped to other code", Long, |g| {
        let place = g.entry(WINDOW, 1);
        for (i, value) in [(0u64, 5u8), (1, 6)] {
            let mut routine = ROUTINE;
            routine[1] = value;
            g.write(FRAMES + i * 0x1000, &routine);
        }
        for i in [0u64, 1, 0] {
            g.a.mov(eax, ((FRAMES + i * 0x1000) | P | W) as u32)?;
            g.a.mov(qword_ptr(place), rax)?;
            g.a.mov(ebx, WINDOW as u32)?;
            g.a.invlpg(ptr(rbx))?;
            call(g, WINDOW)?;
            g.want(out(5 + i as u32));
        }
        g.exit()
    }));
    cases.push(case("smc: 32-bit and 64-bit code at one address", Long, |g| {
        use crate::layout::sel;
        // INC EAX (or a REX prefix), NOP, far RET with 32-bit operands.
        g.write(DATA, &[0x40, 0x90, 0xcb]);
        g.write32(DATA + 0x100, DATA as u32);
        g.write16(DATA + 0x104, sel::KCODE32);
        g.write16(DATA + 0x10c, sel::KCODE64);
        g.write32(DATA + 0x108, DATA as u32);
        for offset in [0x100, 0x108, 0x100] {
            g.a.xor(eax, eax)?;
            g.a.mov(ebx, DATA as u32 + offset)?;
            g.a.call(fword_ptr(rbx))?;
            g.out_eax()?;
        }
        for value in [1, 0, 1] {
            g.want(out(value));
        }
        g.exit()
    }));
    cases
}
