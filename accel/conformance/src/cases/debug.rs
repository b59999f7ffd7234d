//! Breakpoints and single-stepping (SDM Vol. 3, chapter 17).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::state::Cr4;
use x86::vector::{DB, GP, UD};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::{Guest, INTEL};
use crate::layout::{self, DATA, FRAMES, sel};
use crate::start::Start::{Long, Prot32, Real};
use crate::tables::access;

type Result = std::result::Result<(), IcedError>;

const TF: u32 = 1 << 8;
const RF: u64 = 1 << 16;
/// DR6: single step, general detect, and the four breakpoints.
const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
const B: u64 = 0xf;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    stepping(&mut cases);
    execution(&mut cases);
    data(&mut cases);
    registers(&mut cases);
    shadows(&mut cases);
    cases
}

/// Sets TF by POPF.
fn set_tf(g: &mut Guest) -> Result {
    g.a.push((TF | 2) as i32)?;
    if g.a.bitness() == 64 { g.a.popfq() } else { g.a.popfd() }
}

/// Clears TF by POPF. With TF set, both instructions are stepped.
fn clear_tf(g: &mut Guest) -> Result {
    g.a.push(2)?;
    if g.a.bitness() == 64 { g.a.popfq() } else { g.a.popfd() }
}

/// A step that ended at a mark.
fn step(g: &mut Guest, at: &'static str) {
    g.want(fault(DB).at(at).dr6(BS | B, BS).flags(u64::from(TF), u64::from(TF)));
}

/// The steps of [`clear_tf`]. POPF was begun with TF set, so it traps as well.
fn last_steps(g: &mut Guest) {
    g.want(fault(DB).dr6(BS | B, BS));
    g.want(fault(DB).dr6(BS | B, BS).flags(u64::from(TF), 0));
}

fn stepping(cases: &mut Vec<Case>) {
    for (start, mode) in [(Long, "64-bit"), (Prot32, "32-bit")] {
        cases.push(case(format!("debug {mode}: TF traps after each instruction"), start, |g| {
            g.resume(DB);
            set_tf(g)?;
            g.a.nop()?;
            g.mark("1")?;
            g.a.mov(ecx, 5)?;
            g.mark("2")?;
            clear_tf(g)?;
            g.out(1)?;
            step(g, "1");
            step(g, "2");
            last_steps(g);
            g.want(out(1));
            g.exit()
        }));
    }
    cases.push(case("debug: a taken branch is stepped to its target", Long, |g| {
        g.resume(DB);
        set_tf(g)?;
        let target = g.addr("target");
        g.a.jmp(target)?;
        g.a.ud2()?;
        g.mark("target")?;
        clear_tf(g)?;
        step(g, "target");
        last_steps(g);
        g.exit()
    }));
    cases.push(case("debug: a step that faults is no step", Long, |g| {
        g.resume(DB);
        set_tf(g)?;
        g.mark("ud2")?;
        g.a.ud2()?;
        g.want(fault(UD).at("ud2").flags(u64::from(TF), u64::from(TF)));
        Ok(())
    }));
    cases.push(case("debug: REP is stepped by iteration", Long, |g| {
        g.resume(DB);
        g.a.mov(edi, DATA as u32)?;
        g.a.mov(ecx, 3)?;
        set_tf(g)?;
        g.mark("rep")?;
        g.a.rep().stosb()?;
        g.mark("after")?;
        clear_tf(g)?;
        step(g, "rep");
        step(g, "rep");
        step(g, "after");
        last_steps(g);
        g.exit()
    }));
    cases.push(case("debug: INT n is not stepped into", Long, |g| {
        g.resume(DB);
        g.gate(0x80, "handler", access::INTERRUPT_GATE, 0);
        set_tf(g)?;
        g.a.int(0x80)?;
        g.mark("back")?;
        g.a.nop()?;
        g.mark("after")?;
        clear_tf(g)?;
        g.want(out(1));
        // IRETQ gives TF back, so the first step is that of NOP.
        step(g, "after");
        last_steps(g);
        g.exit()?;
        g.mark("handler")?;
        g.out(1)?;
        g.a.iretq()
    }));
    cases.push(case("debug: SYSCALL with TF masked is not stepped", Long, |g| {
        g.resume(DB);
        let star = u64::from(sel::KCODE64) << 32 | u64::from(sel::UCODE32) << 48;
        g.wrmsr(0xc000_0081, star)?;
        let entry = g.addr("entry");
        g.wrmsr(0xc000_0082, entry)?;
        g.wrmsr(0xc000_0084, u64::from(TF))?;
        g.mark("entry jump")?;
        g.enter_user_with_flags(2)?;
        g.a.push((TF | 2) as i32)?;
        g.a.popfq()?;
        g.a.syscall()?;
        g.mark("user")?;
        g.a.nop()?;
        g.mark("after")?;
        clear_tf(g)?;
        g.exit()?;
        g.want(out(1));
        // SYSRET gives TF back and is stepped as if it were the end of SYSCALL.
        step(g, "user");
        step(g, "after");
        last_steps(g);
        g.section(64, DATA, DATA)?;
        g.mark("entry")?;
        g.out(1)?;
        g.a.sysretq()
    }));
    cases.push(case("debug: stepping HLT wakes the processor", Long, |g| {
        g.resume(DB);
        set_tf(g)?;
        g.a.hlt()?;
        g.mark("after")?;
        clear_tf(g)?;
        step(g, "after");
        last_steps(g);
        g.exit()
    }));
    cases.push(case("debug: IRET to TF lets one instruction pass", Long, |g| {
        g.resume(DB);
        let target = g.addr("target");
        g.iret_frame64(sel::KCODE64, target, TF | 2, sel::KDATA, layout::STACK)?;
        g.a.iretq()?;
        g.mark("target")?;
        g.a.nop()?;
        g.mark("after")?;
        clear_tf(g)?;
        step(g, "after");
        last_steps(g);
        g.exit()
    }));
    cases.push(case("debug: with BTF only taken branches are stepped", Long, |g| {
        g.resume(DB);
        g.wrmsr(0x1d9, 2)?;
        g.a.xor(ecx, ecx)?;
        set_tf(g)?;
        g.a.nop()?;
        let target = g.addr("target");
        g.a.test(ecx, ecx)?;
        // Not taken, then taken.
        g.a.jne(target)?;
        g.a.je(target)?;
        g.a.ud2()?;
        g.mark("target")?;
        // The exception cleared BTF.
        clear_tf(g)?;
        step(g, "target");
        last_steps(g);
        g.exit()
    }));
    cases.push(case("debug: real mode steps, too", Real, |g| {
        g.resume(DB);
        g.a.push((TF | 2) as i32)?;
        g.a.popf()?;
        g.a.nop()?;
        g.mark("1")?;
        g.a.push(2)?;
        g.mark("2")?;
        g.a.popf()?;
        g.mark("3")?;
        g.want(fault(DB).at("1"));
        g.want(fault(DB).at("2"));
        g.want(fault(DB).at("3"));
        g.exit()
    }));
}

/// Arms breakpoint `n` at `address` with DR7's R/W and LEN.
fn arm(g: &mut Guest, n: u32, address: u32, kind: u32, len: u32) -> Result {
    let control = 1 << (n * 2) | (kind | len << 2) << (16 + n * 4);
    g.a.mov(eax, address)?;
    if g.a.bitness() == 64 {
        match n {
            0 => g.a.mov(dr0, rax)?,
            1 => g.a.mov(dr1, rax)?,
            2 => g.a.mov(dr2, rax)?,
            _ => g.a.mov(dr3, rax)?,
        }
        g.a.mov(eax, control)?;
        g.a.mov(dr7, rax)
    } else {
        match n {
            0 => g.a.mov(dr0, eax)?,
            1 => g.a.mov(dr1, eax)?,
            2 => g.a.mov(dr2, eax)?,
            _ => g.a.mov(dr3, eax)?,
        }
        g.a.mov(eax, control)?;
        g.a.mov(dr7, eax)
    }
}

/// DR7's R/W and LEN fields.
const EXECUTE: u32 = 0;
const WRITE: u32 = 1;
const IO: u32 = 2;
const ACCESS: u32 = 3;
const LEN1: u32 = 0;
const LEN2: u32 = 1;
const LEN8: u32 = 2;
const LEN4: u32 = 3;

fn execution(cases: &mut Vec<Case>) {
    for n in 0..4u32 {
        cases.push(case(format!("debug: DR{n} stops before an instruction"), Long, move |g| {
            // The handler sets RF, so that the instruction is done on return.
            g.resume(DB);
            g.set_shared(layout::DEBUG_FLAGS, RF as u32)?;
            let target = g.addr32("target");
            arm(g, n, target, EXECUTE, LEN1)?;
            g.a.nop()?;
            g.mark("target")?;
            g.a.mov(ecx, 7)?;
            g.a.mov(eax, ecx)?;
            g.out_eax()?;
            g.want(fault(DB).at("target").dr6(BS | B, 1 << n).flags(RF, 0));
            g.want(out(7));
            g.exit()
        }));
    }
    cases.push(case("debug: an instruction breakpoint on its first byte only", Long, |g| {
        let target = g.addr32("target") + 1;
        arm(g, 0, target, EXECUTE, LEN1)?;
        g.mark("target")?;
        g.a.mov(ecx, 7)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("debug: an instruction breakpoint comes before the fault", Long, |g| {
        g.resume(DB);
        g.set_shared(layout::DEBUG_FLAGS, RF as u32)?;
        let target = g.addr32("target");
        arm(g, 0, target, EXECUTE, LEN1)?;
        g.mark("target")?;
        g.a.ud2()?;
        g.want(fault(DB).at("target"));
        g.want(fault(UD).at("target").flags(RF, RF));
        Ok(())
    }));
    cases.push(case("debug: RF lasts for one instruction", Long, |g| {
        g.resume(DB);
        g.set_shared(layout::DEBUG_FLAGS, RF as u32)?;
        let target = g.addr32("target");
        arm(g, 0, target, EXECUTE, LEN1)?;
        g.a.mov(ecx, 2)?;
        g.mark("target")?;
        g.a.dec(ecx)?;
        let target = g.addr("target");
        g.a.jne(target)?;
        g.want(fault(DB).at("target"));
        g.want(fault(DB).at("target"));
        g.exit()
    }));
    cases.push(case("debug: a breakpoint on REP comes once", Long, |g| {
        g.resume(DB);
        g.set_shared(layout::DEBUG_FLAGS, RF as u32)?;
        let target = g.addr32("target");
        arm(g, 0, target, EXECUTE, LEN1)?;
        g.a.mov(edi, DATA as u32)?;
        g.a.mov(ecx, 20)?;
        g.mark("target")?;
        g.a.rep().stosb()?;
        g.want(fault(DB).at("target"));
        g.exit()
    }));
    cases.push(case("debug: disarmed breakpoints do nothing", Long, |g| {
        let target = g.addr32("target");
        arm(g, 0, target, EXECUTE, LEN1)?;
        g.a.xor(eax, eax)?;
        g.a.mov(dr7, rax)?;
        g.mark("target")?;
        g.a.nop()?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("debug: a step to a breakpoint reports both", Long, |g| {
        g.resume(DB);
        g.set_shared(layout::DEBUG_FLAGS, RF as u32)?;
        let target = g.addr32("target");
        arm(g, 1, target, EXECUTE, LEN1)?;
        set_tf(g)?;
        g.a.nop()?;
        g.mark("target")?;
        clear_tf(g)?;
        // The trap of NOP; what DR6 says of the breakpoint then is up to the processor. RF that
        // the handler sets keeps the breakpoint from being reported again.
        g.want(fault(DB).at("target").dr6(BS, BS));
        last_steps(g);
        g.exit()
    }));
}

/// A breakpoint on data that an instruction hits or not.
fn watch(
    name: &str,
    (address, kind, len): (u64, u32, u32),
    hits: bool,
    insn: fn(&mut CodeAssembler) -> Result,
) -> Case {
    case(format!("debug data: {name}"), Long, move |g| {
        g.resume(DB);
        g.change_cr4(Cr4::OSFXSR.bits() as u32, 0)?;
        arm(g, 2, address as u32, kind, len)?;
        g.a.mov(ebx, DATA as u32)?;
        g.a.mov(esi, ebx)?;
        g.a.mov(edi, DATA as u32 + 0x100)?;
        g.a.xor(ecx, ecx)?;
        insn(&mut g.a)?;
        g.mark("after")?;
        g.out(1)?;
        if hits {
            g.want(fault(DB).at("after").dr6(BS | B, 4));
        }
        g.want(out(1));
        g.exit()
    })
}

fn data(cases: &mut Vec<Case>) {
    let at = DATA;
    cases.extend([
        watch("a store hits", (at, WRITE, LEN4), true, |a| a.mov(dword_ptr(rbx), eax)),
        watch("a load does not hit a write", (at, WRITE, LEN4), false, |a| {
            a.mov(eax, dword_ptr(rbx))
        }),
        watch("a load hits an access", (at, ACCESS, LEN4), true, |a| a.mov(eax, dword_ptr(rbx))),
        watch("a store hits an access", (at, ACCESS, LEN1), true, |a| a.mov(byte_ptr(rbx), al)),
        watch("an addition to memory hits a write", (at, WRITE, LEN4), true, |a| {
            a.add(dword_ptr(rbx), eax)
        }),
        watch("the byte before does not hit", (at + 4, WRITE, LEN4), false, |a| {
            a.mov(byte_ptr(rbx + 3), al)
        }),
        watch("the byte behind does not hit", (at, WRITE, LEN4), false, |a| {
            a.mov(byte_ptr(rbx + 4), al)
        }),
        watch("an overlap from below hits", (at + 4, WRITE, LEN2), true, |a| {
            a.mov(qword_ptr(rbx - 3), rax)
        }),
        watch("the last of eight bytes hits", (at, WRITE, LEN8), true, |a| {
            a.mov(byte_ptr(rbx + 7), al)
        }),
        watch("low bits of the address are ignored", (at + 3, WRITE, LEN4), true, |a| {
            a.mov(byte_ptr(rbx), al)
        }),
        watch("a push hits", (layout::STACK - 8, WRITE, LEN8), true, |a| a.push(rax)),
        watch("a call hits", (layout::STACK - 8, WRITE, LEN8), true, |a| {
            let mut next = a.create_label();
            a.call(next)?;
            a.set_label(&mut next)?;
            a.zero_bytes()
        }),
        watch("STOSB hits", (at + 0x100, WRITE, LEN1), true, |a| a.stosb()),
        watch("the source of MOVSB hits", (at, ACCESS, LEN1), true, |a| a.movsb()),
        watch("a vector store hits", (at + 8, WRITE, LEN1), true, |a| {
            a.movups(xmmword_ptr(rbx), xmm0)
        }),
        watch("a vector load hits an access", (at + 15, ACCESS, LEN1), true, |a| {
            a.movups(xmm0, xmmword_ptr(rbx))
        }),
        watch("an x87 store hits", (at + 4, WRITE, LEN4), true, |a| a.fnstcw(word_ptr(rbx + 5))),
        watch("FXSAVE hits", (at + 0x80, WRITE, LEN4), true, |a| a.fxsave(ptr(rbx))),
        watch("a locked exchange hits", (at, WRITE, LEN4), true, |a| {
            a.lock().xadd(dword_ptr(rbx), ecx)
        }),
        watch("an exchange that fails hits a write", (at, WRITE, LEN4), true, |a| {
            a.mov(eax, 77)?;
            a.lock().cmpxchg(dword_ptr(rbx), ecx)
        }),
        watch("CMPXCHG16B hits", (at + 8, WRITE, LEN4), true, |a| {
            a.lock().cmpxchg16b(xmmword_ptr(rbx))
        }),
        watch("an instruction fetch does not hit", (layout::CODE, ACCESS, LEN8), false, |a| {
            a.nop()
        }),
    ]);
    cases.push(case("debug data: REP MOVSB stops after the iteration that hits", Long, |g| {
        g.resume(DB);
        arm(g, 0, DATA as u32 + 0x105, WRITE, LEN1)?;
        g.a.mov(esi, DATA as u32)?;
        g.a.mov(edi, DATA as u32 + 0x100)?;
        g.a.mov(ecx, 16)?;
        g.mark("rep")?;
        g.a.rep().movsb()?;
        g.a.mov(eax, edi)?;
        g.out_eax()?;
        g.want(fault(DB).at("rep").dr6(B, 1).flags(RF, RF));
        g.want(out(DATA as u32 + 0x110));
        g.exit()
    }));
    cases.push(case("debug data: two breakpoints at once", Long, |g| {
        g.resume(DB);
        g.a.mov(eax, DATA as u32)?;
        g.a.mov(dr0, rax)?;
        g.a.mov(dr3, rax)?;
        g.a.mov(eax, 1 | 1 << 6 | WRITE << 16 | ACCESS << 28)?;
        g.a.mov(dr7, rax)?;
        g.a.mov(dword_ptr(DATA), 1)?;
        g.mark("after")?;
        g.want(fault(DB).at("after").dr6(BS | B, 9));
        g.exit()
    }));
    cases.push(case("debug data: a store that faults does not hit", Long, |g| {
        g.map(layout::WINDOW, FRAMES, 1);
        arm(g, 0, layout::WINDOW as u32, WRITE, LEN4)?;
        g.a.mov(ebx, layout::WINDOW as u32)?;
        g.expect_fault("store", "after", |a| a.mov(dword_ptr(rbx), 1))?;
        g.a.mov(rax, dr6)?;
        g.a.and(eax, 0xf)?;
        g.out_eax()?;
        g.want(fault(14).at("store"));
        g.want(out(0));
        g.exit()
    }));
    cases.push(case("debug: an I/O breakpoint stops behind OUT", Long, |g| {
        g.resume(DB);
        g.change_cr4(Cr4::DE.bits() as u32, 0)?;
        arm(g, 1, 0x80, IO, LEN1)?;
        g.a.out(0x80u32, al)?;
        g.mark("after")?;
        g.a.in_(al, 0x81)?;
        g.out(1)?;
        g.want(fault(DB).at("after").dr6(BS | B, 2));
        g.want(out(1));
        g.exit()
    }));
}

fn registers(cases: &mut Vec<Case>) {
    cases.push(case("debug: DR6 and DR7 have fixed bits", Long, |g| {
        g.a.xor(eax, eax)?;
        g.a.mov(dr6, rax)?;
        g.a.mov(rax, dr6)?;
        g.a.and(eax, 0x0000_1ff0)?;
        g.out_eax()?;
        g.want(out(0xff0));
        g.a.xor(eax, eax)?;
        g.a.mov(dr7, rax)?;
        g.a.mov(rax, dr7)?;
        g.out_eax()?;
        g.want(out(0x400));
        g.exit()
    }));
    for (name, dr) in [("DR6", 6), ("DR7", 7)] {
        cases.push(case(format!("debug: {name} refuses its upper half"), Long, move |g| {
            g.a.mov(rax, 1u64 << 32)?;
            g.expect_fault("insn", "after", |a| {
                if dr == 6 { a.mov(dr6, rax) } else { a.mov(dr7, rax) }
            })?;
            g.want(fault(GP).code(0).at("insn"));
            g.exit()
        }));
    }
    cases.push(case("debug: DR4 and DR5 are DR6 and DR7", Long, |g| {
        g.a.mov(eax, 0x701)?;
        g.a.mov(dr5, rax)?;
        g.a.mov(rax, dr7)?;
        g.out_eax()?;
        g.want(out(0x701));
        g.exit()
    }));
    cases.push(case("debug: with CR4.DE there are no DR4 and DR5", Long, |g| {
        g.change_cr4(Cr4::DE.bits() as u32, 0)?;
        g.expect_fault("insn", "after", |a| a.mov(rax, dr4))?;
        g.want(fault(UD).at("insn"));
        g.exit()
    }));
    cases.push(case("debug: GD guards the debug registers", Long, |g| {
        g.a.mov(eax, 1 << 13)?;
        g.a.mov(dr7, rax)?;
        g.expect_fault("insn", "after", |a| a.mov(rax, dr0))?;
        // GD is off now.
        g.a.mov(rax, dr7)?;
        g.out_eax()?;
        g.want(fault(DB).at("insn").dr6(BD | BS, BD));
        g.want(out(0x400));
        g.exit()
    }));
    cases.push(case("debug: every #DB clears GD", Long, |g| {
        g.resume(DB);
        g.a.push((TF | 2) as i32)?;
        g.a.mov(eax, 1 << 13)?;
        g.a.mov(dr7, rax)?;
        g.a.popfq()?;
        // The handler reads DR6 unharmed.
        g.a.nop()?;
        g.mark("1")?;
        clear_tf(g)?;
        step(g, "1");
        last_steps(g);
        g.exit()
    }));
    cases.push(case("debug: DR6.BS stays until it is cleared", Long, |g| {
        g.resume(DB);
        set_tf(g)?;
        clear_tf(g)?;
        last_steps(g);
        g.a.mov(rax, dr6)?;
        g.a.and(eax, BS as i32)?;
        g.out_eax()?;
        g.want(out(BS as u32));
        g.exit()
    }));
}

fn shadows(cases: &mut Vec<Case>) {
    cases.push(case("debug: MOV SS puts the single step off", Long, |g| {
        g.resume(DB);
        g.a.mov(ecx, u32::from(sel::KDATA))?;
        set_tf(g)?;
        g.a.mov(ss, ecx)?;
        g.a.nop()?;
        g.mark("after")?;
        clear_tf(g)?;
        step(g, "after");
        last_steps(g);
        g.exit()
    }));
    cases.push(case("debug: POP SS puts the single step off", Prot32, |g| {
        g.resume(DB);
        g.a.push(i32::from(sel::KDATA))?;
        set_tf(g)?;
        g.a.pop(ss)?;
        g.a.nop()?;
        g.mark("after")?;
        clear_tf(g)?;
        step(g, "after");
        last_steps(g);
        g.exit()
    }));
    cases.push(case("debug: STI does not put the single step off", Long, |g| {
        g.resume(DB);
        set_tf(g)?;
        g.a.sti()?;
        g.mark("after")?;
        clear_tf(g)?;
        step(g, "after");
        last_steps(g);
        g.exit()
    }));
    // SDM Vol. 3, 6.8.3. AMD's processors stop there.
    cases.push(case("debug: MOV SS hides an instruction breakpoint", Long, |g| {
        g.needs(&INTEL);
        let target = g.addr32("target");
        arm(g, 0, target, EXECUTE, LEN1)?;
        g.a.mov(ecx, u32::from(sel::KDATA))?;
        g.a.mov(ss, ecx)?;
        g.mark("target")?;
        g.a.nop()?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("debug: MOV SS puts a data breakpoint off", Long, |g| {
        g.resume(DB);
        g.write16(DATA, sel::KDATA);
        arm(g, 3, DATA as u32, ACCESS, LEN2)?;
        g.a.mov(ebx, DATA as u32)?;
        g.a.mov(ss, ptr(rbx))?;
        g.a.nop()?;
        g.mark("after")?;
        g.want(fault(DB).at("after").dr6(BS | B, 8));
        g.exit()
    }));
}
