//! Each vector: when it is raised, its error code, and where it returns to (SDM Vol. 3, 6.15).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::state::{Cr0, Cr4};
use x86::vector::{AC, BP, BR, DB, DE, GP, MF, NM, OF, SS, UD, XM};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::{AMD, Guest};
use crate::layout::{DATA, DEVICE, USER_DATA, WINDOW, sel};
use crate::start::Start::{self, Compat, Long, Paged32, Prot16, Prot32, Real, V8086};
use crate::tables::access;

type Result = std::result::Result<(), IcedError>;

const AC_FLAG: u32 = 1 << 18;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    arithmetic(&mut cases);
    traps(&mut cases);
    undefined(&mut cases);
    device_not_available(&mut cases);
    floating_point(&mut cases);
    alignment(&mut cases);
    privileged(&mut cases);
    priorities(&mut cases);
    cases
}

const PLAIN: [(Start, &str); 4] =
    [(Real, "real mode"), (Prot16, "16-bit"), (Prot32, "32-bit"), (Long, "64-bit")];

fn arithmetic(cases: &mut Vec<Case>) {
    for (start, mode) in PLAIN {
        cases.push(case(format!("exception {mode}: #DE for a division by zero"), start, |g| {
            g.a.xor(ecx, ecx)?;
            g.a.mov(eax, 7)?;
            g.a.cdq()?;
            g.expect_fault("division", "after", |a| a.div(ecx))?;
            // The operands are as they were.
            g.out_eax()?;
            g.want(fault(DE).code(0).at("division"));
            g.want(out(7));
            g.exit()
        }));
        cases.push(case(format!("exception {mode}: #DE for a quotient too large"), start, |g| {
            g.a.mov(edx, 0x8000_0000u32)?;
            g.a.xor(eax, eax)?;
            g.a.mov(ecx, -1)?;
            g.expect_fault("division", "after", |a| a.idiv(ecx))?;
            g.want(fault(DE).code(0).at("division"));
            g.exit()
        }));
        cases.push(case(format!("exception {mode}: #UD for UD2"), start, |g| {
            g.expect_fault("ud2", "after", |a| a.ud2())?;
            g.want(fault(UD).code(0).at("ud2"));
            g.exit()
        }));
        cases.push(case(format!("exception {mode}: INT3 returns behind itself"), start, |g| {
            g.resume(BP);
            g.a.int3()?;
            g.mark("after")?;
            g.out(1)?;
            g.want(fault(BP).code(0).at("after"));
            g.want(out(1));
            g.exit()
        }));
    }
    cases.push(case("exception: AAM by zero raises #DE", Prot32, |g| {
        g.expect_fault("aam", "after", |a| a.aam(0))?;
        g.want(fault(DE).at("aam"));
        g.exit()
    }));
    cases.push(case("exception: #DE of the user comes from ring 3", Long, |g| {
        g.enter_user()?;
        g.a.xor(ecx, ecx)?;
        g.mark("division")?;
        g.a.div(ecx)?;
        g.want(
            fault(DE).at("division").cs(sel::UCODE64).ss(sel::UDATA).rsp(crate::layout::USER_STACK),
        );
        Ok(())
    }));
}

fn traps(cases: &mut Vec<Case>) {
    cases.push(case("exception: INTO with OF returns behind itself", Prot32, |g| {
        g.resume(OF);
        g.a.mov(al, 0x7f)?;
        g.a.add(al, 1)?;
        g.a.db(&[0xce])?; // INTO
        g.mark("after")?;
        g.out(1)?;
        g.want(fault(OF).code(0).at("after"));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("exception: INTO without OF does nothing", Prot32, |g| {
        g.a.xor(eax, eax)?;
        g.a.db(&[0xce])?; // INTO
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("exception: BOUND out of range raises #BR at itself", Prot32, |g| {
        g.write32(DATA, 5);
        g.write32(DATA + 4, 10);
        g.a.mov(ebx, DATA as u32)?;
        for (value, low) in [(5, true), (10, true), (11, false), (4, false), (-1, false)] {
            g.a.mov(eax, value)?;
            if low {
                g.a.bound(eax, ptr(ebx))?;
                g.out_eax()?;
                g.want(out(value as u32));
            } else {
                let (at, after) = match value {
                    11 => ("11", "after 11"),
                    4 => ("4", "after 4"),
                    _ => ("-1", "after -1"),
                };
                g.expect_fault(at, after, |a| a.bound(eax, ptr(ebx)))?;
                g.want(fault(BR).code(0).at(at));
            }
        }
        g.exit()
    }));
    for (start, mode) in PLAIN {
        cases.push(case(format!("exception {mode}: INT1 is a trap"), start, |g| {
            g.resume(DB);
            g.a.int1()?;
            g.mark("after")?;
            g.out(1)?;
            g.want(fault(DB).at("after"));
            g.want(out(1));
            g.exit()
        }));
    }
    cases.push(case("exception: faults set RF in the flags they save", Long, |g| {
        g.expect_fault("ud2", "after", |a| a.ud2())?;
        g.want(fault(UD).at("ud2").flags(1 << 16, 1 << 16));
        g.resume(BP);
        g.a.int3()?;
        g.want(fault(BP).flags(1 << 16, 0));
        g.exit()
    }));
    cases.push(case("exception: flags are saved as they were", Long, |g| {
        g.a.push(0xcd7)?;
        g.a.popfq()?;
        g.expect_fault("ud2", "after", |a| a.ud2())?;
        g.want(fault(UD).flags(0xffff, 0xcd7));
        g.exit()
    }));
    cases.push(case(
        "exception: INT n clears TF, NT and, through an interrupt gate, IF",
        Long,
        |g| {
            g.gate(0x80, "handler", access::INTERRUPT_GATE, 0);
            g.gate(0x81, "handler", access::TRAP_GATE, 0);
            for vector in [0x80, 0x81] {
                g.a.push(0x4202)?;
                g.a.popfq()?;
                g.a.int(vector)?;
                // NT would make the next IRETQ fault: the handler's is without it.
                g.a.push(2)?;
                g.a.popfq()?;
            }
            g.want(out(2));
            g.want(out(0x202));
            g.exit()?;
            g.mark("handler")?;
            g.a.pushfq()?;
            g.a.pop(rax)?;
            g.out_eax()?;
            g.a.and(qword_ptr(rsp + 16), !0x4000)?;
            g.a.iretq()
        },
    ));
}

/// Opcodes that some mode does not have.
fn undefined(cases: &mut Vec<Case>) {
    let mut add = |name: &str, start: Start, bytes: &'static [u8]| {
        cases.push(case(format!("exception: #UD for {name}"), start, move |g| {
            // Memory operands point to something harmless.
            g.a.mov(ebx, DATA as u32)?;
            g.a.mov(eax, DATA as u32)?;
            g.expect_fault("insn", "after", |a| a.db(bytes))?;
            g.want(fault(UD).code(0).at("insn"));
            g.exit()
        }));
    };
    add("PUSH ES in 64-bit mode", Long, &[0x06]);
    add("POP DS in 64-bit mode", Long, &[0x1f]);
    add("DAA in 64-bit mode", Long, &[0x27]);
    add("AAA in 64-bit mode", Long, &[0x37]);
    add("PUSHA in 64-bit mode", Long, &[0x60]);
    add("a far CALL with an immediate in 64-bit mode", Long, &[0x9a, 0, 0, 0, 0, 8, 0]);
    add("INTO in 64-bit mode", Long, &[0xce]);
    add("AAM in 64-bit mode", Long, &[0xd4, 10]);
    add("a far JMP with an immediate in 64-bit mode", Long, &[0xea, 0, 0, 0, 0, 8, 0]);
    add("opcode 82 in 64-bit mode", Long, &[0x82, 0xc0, 1]);
    add("SWAPGS outside 64-bit mode", Prot32, &[0x0f, 0x01, 0xf8]);
    add("LOCK before MOV", Long, &[0xf0, 0x89, 0x03]);
    add("LOCK before ADD to a register", Long, &[0xf0, 0x01, 0xc0]);
    add("LOCK before CMP", Long, &[0xf0, 0x39, 0x03]);
    add("LOCK before BT", Long, &[0xf0, 0x0f, 0xa3, 0x03]);
    add("LOCK before ADD from memory", Long, &[0xf0, 0x03, 0x03]);
    add("MOV to CS", Long, &[0x8e, 0xc8]);
    add("MOV to segment register 6", Long, &[0x8e, 0xf0]);
    add("MOV from CR1", Long, &[0x0f, 0x20, 0xc8]);
    add("MOV to CR5", Long, &[0x0f, 0x22, 0xe8]);
    add("MOV from CR7", Prot32, &[0x0f, 0x20, 0xf8]);
    add("LEA with a register", Long, &[0x8d, 0xc0]);
    add("CMPXCHG8B with a register", Long, &[0x0f, 0xc7, 0xc8]);
    add("LES in 64-bit mode", Long, &[0xc4, 0x03]);
    add("a group FF with 7", Long, &[0xff, 0xf8]);
    add("a group FE with 2", Long, &[0xfe, 0xd0]);
    add("POP with group number 1", Long, &[0x8f, 0xc8]);
    add("UD0", Long, &[0x0f, 0xff, 0xc0]);
    add("UD1", Long, &[0x0f, 0xb9, 0xc0]);
    add("LLDT in real mode", Real, &[0x0f, 0x00, 0xd0]);
    add("STR in real mode", Real, &[0x0f, 0x00, 0xc8]);
    add("VERR in real mode", Real, &[0x0f, 0x00, 0xe0]);
    add("LAR in real mode", Real, &[0x0f, 0x02, 0xc0]);
    add("ARPL in real mode", Real, &[0x63, 0xc0]);
    add("SYSCALL in real mode", Real, &[0x0f, 0x05]);
    add("SLDT in virtual-8086 mode", V8086, &[0x0f, 0x00, 0xc0]);
    add("LSL in virtual-8086 mode", V8086, &[0x0f, 0x03, 0xc0]);
    add("VMXON where VMX is not offered", Long, &[0xf3, 0x0f, 0xc7, 0x33]);
    cases.push(case("exception: #GP for an instruction of 16 bytes", Long, |g| {
        g.expect_fault("insn", "after", |a| {
            a.db(&[0x66; 15])?;
            a.db(&[0x90])
        })?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("exception: an instruction of 15 bytes is fine", Long, |g| {
        g.a.db(&[0x66; 14])?;
        g.a.db(&[0x90])?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("exception: SYSCALL without EFER.SCE raises #UD", Long, |g| {
        g.rdmsr(0xc000_0080)?;
        g.a.and(eax, !1)?;
        g.a.wrmsr()?;
        g.expect_fault("insn", "after", |a| a.syscall())?;
        g.want(fault(UD).at("insn"));
        g.exit()
    }));
}

fn device_not_available(cases: &mut Vec<Case>) {
    const FLUSH: [u8; 2] = [0xd9, 0xd0]; // FNOP
    const SSE: [u8; 3] = [0x0f, 0x57, 0xc0]; // XORPS XMM0, XMM0
    const MMX: [u8; 3] = [0x0f, 0xef, 0xc0]; // PXOR MM0, MM0
    const WAIT: [u8; 1] = [0x9b];
    let (mp, em, ts) = (Cr0::MP, Cr0::EM, Cr0::TS);
    let none = Cr0::empty();
    for (name, insn, bits, vector) in [
        ("x87 with TS raises #NM", &FLUSH[..], ts, Some(NM)),
        ("x87 with EM raises #NM", &FLUSH, em, Some(NM)),
        ("x87 with MP alone is fine", &FLUSH, mp, None),
        ("SSE with TS raises #NM", &SSE, ts, Some(NM)),
        ("SSE with EM raises #UD", &SSE, em, Some(UD)),
        ("SSE with EM and TS raises #UD", &SSE, em | ts, Some(UD)),
        ("SSE with OSFXSR is fine", &SSE, none, None),
        ("MMX with EM raises #UD", &MMX, em, Some(UD)),
        ("MMX with TS raises #NM", &MMX, ts, Some(NM)),
        ("WAIT with TS and MP raises #NM", &WAIT, ts | mp, Some(NM)),
        ("WAIT with TS alone is fine", &WAIT, ts, None),
        ("WAIT with MP alone is fine", &WAIT, mp, None),
    ] {
        cases.push(case(format!("exception: {name}"), Long, move |g| {
            g.change_cr4(Cr4::OSFXSR.bits() as u32, 0)?;
            g.a.fninit()?;
            g.change_cr0(bits.bits() as u32, 0)?;
            if let Some(vector) = vector {
                g.expect_fault("insn", "after", |a| a.db(insn))?;
                g.want(fault(vector).code(0).at("insn"));
            } else {
                g.a.db(insn)?;
            }
            g.out(1)?;
            g.want(out(1));
            g.exit()
        }));
    }
    cases.push(case("exception: SSE without OSFXSR raises #UD", Long, |g| {
        g.expect_fault("insn", "after", |a| a.xorps(xmm0, xmm0))?;
        g.want(fault(UD).at("insn"));
        g.exit()
    }));
    cases.push(case("exception: CLTS ends #NM", Long, |g| {
        g.change_cr0(Cr0::TS.bits() as u32, 0)?;
        g.a.clts()?;
        g.a.fninit()?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
}

fn floating_point(cases: &mut Vec<Case>) {
    cases.push(case("exception: an x87 error waits for the next instruction", Long, |g| {
        g.a.fninit()?;
        // Unmask the division by zero.
        g.write16(DATA, 0x37b);
        g.a.mov(ebx, DATA as u32)?;
        g.a.fldcw(word_ptr(rbx))?;
        g.a.fld1()?;
        g.a.fldz()?;
        g.a.fdivp(st1, st0)?;
        g.out(1)?;
        g.want(out(1));
        g.expect_fault("wait", "after", |a| a.wait())?;
        g.want(fault(MF).code(0).at("wait"));
        g.a.fnclex()?;
        g.a.wait()?;
        g.out(2)?;
        g.want(out(2));
        g.exit()
    }));
    for (name, handled, vector) in [("#XM", true, XM), ("#UD without OSXMMEXCPT", false, UD)] {
        cases.push(case(format!("exception: an SSE error raises {name}"), Long, move |g| {
            let handled = if handled { Cr4::OSXMMEXCPT } else { Cr4::empty() };
            g.change_cr4((Cr4::OSFXSR | handled).bits() as u32, 0)?;
            // Unmask the division by zero.
            g.write32(DATA, 0x1d80);
            g.a.mov(ebx, DATA as u32)?;
            g.a.ldmxcsr(dword_ptr(rbx))?;
            g.a.xorps(xmm1, xmm1)?;
            g.a.mov(eax, 0x3f80_0000u32)?;
            g.a.movd(xmm0, eax)?;
            g.expect_fault("division", "after", |a| a.divss(xmm0, xmm1))?;
            g.a.movd(eax, xmm0)?;
            g.out_eax()?;
            g.a.stmxcsr(dword_ptr(rbx))?;
            g.want(fault(vector).code(0).at("division"));
            g.want(out(0x3f80_0000));
            g.want_memory(DATA, 4, 0x1d84);
            g.exit()
        }));
    }
    cases.push(case("exception: LDMXCSR with reserved bits raises #GP", Long, |g| {
        g.change_cr4(Cr4::OSFXSR.bits() as u32, 0)?;
        g.write32(DATA, 0x1_1f80);
        g.a.mov(ebx, DATA as u32)?;
        g.expect_fault("insn", "after", |a| a.ldmxcsr(dword_ptr(rbx)))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("exception: MOVAPS from an odd address raises #GP", Long, |g| {
        g.change_cr4(Cr4::OSFXSR.bits() as u32, 0)?;
        g.a.mov(ebx, DATA as u32 + 8)?;
        g.expect_fault("insn", "after", |a| a.movaps(xmm0, xmmword_ptr(rbx)))?;
        g.want(fault(GP).code(0).at("insn"));
        g.a.movups(xmm0, xmmword_ptr(rbx))?;
        g.exit()
    }));
    cases.push(case("exception: FXSAVE to an odd address raises #GP", Long, |g| {
        g.change_cr4(Cr4::OSFXSR.bits() as u32, 0)?;
        g.a.mov(ebx, DATA as u32 + 4)?;
        g.expect_fault("insn", "after", |a| a.fxsave(ptr(rbx)))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
}

fn alignment(cases: &mut Vec<Case>) {
    let mut add = |name: &str, am: bool, flags: u32, build: fn(&mut Guest) -> Result| {
        cases.push(case(format!("exception #AC: {name}"), Long, move |g| {
            if am {
                g.change_cr0(Cr0::AM.bits() as u32, 0)?;
            }
            g.change_cr4(Cr4::OSFXSR.bits() as u32, 0)?;
            g.enter_user_with_flags(2 | flags)?;
            g.a.mov(ebx, USER_DATA as u32 + 1)?;
            build(g)?;
            g.out(1)?;
            g.want(out(1));
            g.exit()
        }));
    };
    macro_rules! faults {
        ($name:literal, $a:ident => $insn:expr) => {
            add($name, true, AC_FLAG, |g| {
                g.expect_fault("insn", "after", |$a| $insn)?;
                g.want(fault(AC).code(0).at("insn").cs(sel::UCODE64));
                Ok(())
            });
        };
    }
    faults!("a word", a => a.mov(ax, word_ptr(rbx)));
    faults!("a doubleword", a => a.mov(eax, dword_ptr(rbx + 1)));
    faults!("a quadword that is stored", a => a.mov(qword_ptr(rbx + 3), rax));
    faults!("an addition to memory", a => a.add(dword_ptr(rbx), eax));
    faults!("an x87 load", a => a.fld(qword_ptr(rbx + 3)));
    faults!("eight bytes into a vector register", a => a.movq(xmm0, qword_ptr(rbx)));
    // Intel's processors do not check accesses of 16 bytes and more.
    add("an unaligned vector load", true, AC_FLAG, |g| {
        g.needs(&AMD);
        g.expect_fault("insn", "after", |a| a.movups(xmm0, xmmword_ptr(rbx)))?;
        g.want(fault(AC).code(0).at("insn").cs(sel::UCODE64));
        Ok(())
    });
    add("aligned accesses are fine", true, AC_FLAG, |g| {
        g.a.mov(al, byte_ptr(rbx))?;
        g.a.mov(ax, word_ptr(rbx + 1))?;
        g.a.mov(eax, dword_ptr(rbx + 3))?;
        g.a.mov(rax, qword_ptr(rbx + 7))?;
        g.a.push(rax)?;
        g.a.pop(rax)
    });
    add("without AM nothing is checked", false, AC_FLAG, |g| g.a.mov(eax, dword_ptr(rbx)));
    add("without AC nothing is checked", true, 0, |g| g.a.mov(eax, dword_ptr(rbx)));
    add("a push on an odd stack", true, AC_FLAG, |g| {
        g.a.sub(rsp, 1)?;
        g.expect_fault("insn", "after", |a| a.push(rax))?;
        g.want(fault(AC).code(0).at("insn"));
        Ok(())
    });
    add("MOVAPS raises #GP all the same", true, AC_FLAG, |g| {
        g.expect_fault("insn", "after", |a| a.movaps(xmm0, xmmword_ptr(rbx)))?;
        g.want(fault(GP).code(0).at("insn"));
        Ok(())
    });
    cases.push(case("exception #AC: the supervisor is not checked", Long, |g| {
        g.change_cr0(Cr0::AM.bits() as u32, 0)?;
        g.a.push((2 | AC_FLAG) as i32)?;
        g.a.popfq()?;
        g.a.mov(ebx, DATA as u32 + 1)?;
        g.a.mov(eax, dword_ptr(rbx))?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
}

/// Instructions that only CPL 0 may execute.
fn privileged(cases: &mut Vec<Case>) {
    const PRIVILEGED: [(&str, &[u8]); 22] = [
        ("HLT", &[0xf4]),
        ("CLTS", &[0x0f, 0x06]),
        ("INVD", &[0x0f, 0x08]),
        ("WBINVD", &[0x0f, 0x09]),
        ("INVLPG", &[0x0f, 0x01, 0x3b]),
        ("LGDT", &[0x0f, 0x01, 0x13]),
        ("LIDT", &[0x0f, 0x01, 0x1b]),
        ("LMSW", &[0x0f, 0x01, 0xf0]),
        ("LLDT", &[0x0f, 0x00, 0xd0]),
        ("LTR", &[0x0f, 0x00, 0xd8]),
        ("MOV from CR0", &[0x0f, 0x20, 0xc0]),
        ("MOV to CR3", &[0x0f, 0x22, 0xd8]),
        ("MOV from DR7", &[0x0f, 0x21, 0xf8]),
        ("MOV to DR0", &[0x0f, 0x23, 0xc0]),
        ("RDMSR", &[0x0f, 0x32]),
        ("WRMSR", &[0x0f, 0x30]),
        ("CLI", &[0xfa]),
        ("STI", &[0xfb]),
        ("IN", &[0xe4, 0x80]),
        ("OUT", &[0xe6, 0x80]),
        ("INS", &[0x6c]),
        ("OUTS", &[0x6e]),
    ];
    for (start, mode) in [(Long, "64-bit"), (Paged32, "32-bit"), (Compat, "compatibility mode")] {
        for (name, bytes) in PRIVILEGED {
            cases.push(case(
                format!("privilege {mode}: {name} is not the user's"),
                start,
                move |g| {
                    g.enter_user()?;
                    g.a.mov(ebx, USER_DATA as u32)?;
                    g.a.mov(edi, ebx)?;
                    g.a.mov(esi, ebx)?;
                    g.a.mov(edx, 0x80)?;
                    g.mark("insn")?;
                    g.a.db(bytes)?;
                    g.want(fault(GP).code(0).at("insn"));
                    g.exit()
                },
            ));
        }
    }
    for (name, bytes) in [
        ("HLT", &[0xf4][..]),
        ("LGDT", &[0x0f, 0x01, 0x17]),
        ("MOV from CR0", &[0x0f, 0x20, 0xc0]),
        ("MOV to DR0", &[0x0f, 0x23, 0xc0]),
        ("CLI", &[0xfa]),
        ("STI", &[0xfb]),
        ("PUSHF", &[0x9c]),
        ("POPF", &[0x9d]),
        ("INT n", &[0xcd, 0x80]),
        ("INT 3 in two bytes", &[0xcd, 0x03]),
        ("IRET", &[0xcf]),
        ("IN", &[0xe4, 0x80]),
        ("CLTS", &[0x0f, 0x06]),
        ("RDMSR", &[0x0f, 0x32]),
    ] {
        cases.push(case(
            format!("privilege virtual-8086: {name} with IOPL 0 raises #GP"),
            V8086,
            move |g| {
                g.expect_fault("insn", "after", |a| a.db(bytes))?;
                g.want(fault(GP).code(0).at("insn").cs(0x1000).flags(1 << 17, 1 << 17));
                g.exit()
            },
        ));
    }
}

fn priorities(cases: &mut Vec<Case>) {
    cases.push(case("priority: #NM before the page fault of the operand", Long, |g| {
        g.change_cr0(Cr0::TS.bits() as u32, 0)?;
        g.a.mov(ebx, WINDOW as u32)?;
        g.expect_fault("insn", "after", |a| a.fld(qword_ptr(rbx)))?;
        g.want(fault(NM).at("insn"));
        g.exit()
    }));
    cases.push(case("priority: #UD before the page fault of the operand", Long, |g| {
        g.a.mov(ebx, WINDOW as u32)?;
        g.expect_fault("insn", "after", |a| a.db(&[0xf0, 0x8b, 0x03]))?;
        g.want(fault(UD).at("insn"));
        g.exit()
    }));
    cases.push(case("priority: #UD for an unknown control register before #GP", Long, |g| {
        g.enter_user()?;
        g.expect_fault("insn", "after", |a| a.db(&[0x0f, 0x22, 0xc8]))?;
        g.want(fault(UD).at("insn"));
        g.exit()
    }));
    cases.push(case("priority: #GP for the segment before #PF", Paged32, |g| {
        g.a.xor(eax, eax)?;
        g.a.mov(fs, eax)?;
        g.a.mov(ebx, WINDOW as u32)?;
        g.expect_fault("insn", "after", |a| a.mov(eax, dword_ptr(ebx).fs()))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("priority: the operand's page fault before #DE", Long, |g| {
        g.a.xor(eax, eax)?;
        g.a.xor(edx, edx)?;
        g.a.mov(ebx, WINDOW as u32)?;
        g.expect_fault("insn", "after", |a| a.div(dword_ptr(rbx)))?;
        g.want(fault(14).code(0).cr2(WINDOW).at("insn"));
        g.exit()
    }));
    cases.push(case("priority: IN without permission does not reach the port", Long, |g| {
        g.enter_user()?;
        g.a.mov(ebx, USER_DATA as u32)?;
        g.expect_fault("insn", "after", |a| a.in_(al, 0x20))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("priority: a device is not read if the second page faults", Long, |g| {
        // The device's page, then nothing.
        g.map(WINDOW, DEVICE, 3);
        g.a.mov(ebx, (WINDOW + 0xffe) as u32)?;
        g.expect_fault("insn", "after", |a| a.mov(dword_ptr(rbx), -1))?;
        g.want(fault(14).code(2).cr2(WINDOW + 0x1000).at("insn"));
        g.exit()
    }));
    cases.push(case("priority: #SS for the stack before the page fault", Prot32, |g| {
        use crate::tables::{segment, size};
        g.descriptor(sel::FREE, segment(0, 0xffff, access::DATA, size::BITS32));
        g.a.mov(eax, u32::from(sel::FREE))?;
        g.a.mov(ss, eax)?;
        g.a.mov(ebp, 0x2_0000)?;
        g.a.mov(esp, 0xf000)?;
        g.expect_fault("insn", "after", |a| a.mov(eax, dword_ptr(ebp)))?;
        g.want(fault(SS).code(0).at("insn"));
        g.exit()
    }));
}
