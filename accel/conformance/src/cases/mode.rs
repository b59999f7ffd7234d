//! Changes of mode, control registers, fast system calls, I/O permission (SDM Vol. 3, 2.5, 9.8,
//! 9.9, 5.8.7; Vol. 1, 19.5).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::state::{Cr4, Rflags};
use x86::vector::{GP, UD};

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::{Guest, RDTSCP};
use crate::layout::{self, CODE, DATA, STACK, USER_CODE, USER_STACK, sel};
use crate::start::Start::{self, Compat, Long, Pae, Paged32, Prot16, Prot32, Real, Reset, V8086};

type Result = std::result::Result<(), IcedError>;

const PG: u32 = 1 << 31;
const EFER: u32 = 0xc000_0080;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    journeys(&mut cases);
    control_registers(&mut cases);
    system_calls(&mut cases);
    ports(&mut cases);
    time(&mut cases);
    cases
}

/// A far JMP with a 32-bit offset in 16-bit code.
fn jmp_far_32(g: &mut Guest, selector: u16, offset: u32) -> Result {
    let mut bytes = vec![0x66, 0xea];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(selector.to_le_bytes());
    g.a.db(&bytes)
}

/// LGDT of the guest's table, by 16-bit code with DS 0.
fn load_gdt(g: &mut Guest) -> Result {
    g.write16(0x4000, 0xfff);
    g.write32(0x4002, layout::GDT as u32);
    g.a.lgdt(ptr(0x4000))
}

fn journeys(cases: &mut Vec<Case>) {
    cases.push(case("mode: RESET", Reset, |g| {
        g.a.jmp_far(0x1000, 0)?;
        g.section(16, CODE, 0)?;
        g.a.mov(ebp, edx)?;
        g.a.mov(eax, ebp)?;
        g.out_eax()?;
        let signature = g.cpuid.get(1, 0).unwrap_or_default().eax;
        g.want(out(signature));
        g.a.mov(eax, cr0)?;
        g.out_eax()?;
        g.want(out(0x6000_0010));
        g.a.mov(eax, cr4)?;
        g.out_eax()?;
        g.want(out(0));
        g.a.mov(eax, dr6)?;
        g.out_eax()?;
        g.want(out(0xffff_0ff0));
        g.a.mov(eax, dr7)?;
        g.out_eax()?;
        g.want(out(0x400));
        g.rdmsr(EFER)?;
        g.out_eax()?;
        g.want(out(0));
        g.a.xor(eax, eax)?;
        g.a.mov(ax, ds)?;
        g.out_eax()?;
        g.want(out(0));
        g.exit()
    }));
    cases.push(case("mode: real to protected and back", Real, |g| {
        load_gdt(g)?;
        g.change_cr0(1, 0)?;
        jmp_far_32(g, sel::KCODE32, DATA as u32)?;
        g.mark("real")?;
        g.a.xor(ax, ax)?;
        g.a.mov(ds, ax)?;
        g.out(3)?;
        g.exit()?;
        for value in [1, 2, 3] {
            g.want(out(value));
        }
        let real = g.addr32("real");
        g.section(32, DATA, DATA)?;
        g.a.mov(eax, u32::from(sel::KDATA))?;
        g.a.mov(ss, eax)?;
        g.a.mov(esp, STACK as u32)?;
        g.out(1)?;
        g.a.jmp_far(sel::KCODE16, 0x8000)?;
        // 16-bit protected mode, then real mode.
        g.section(16, CODE + 0x8000, 0x8000)?;
        g.out(2)?;
        g.a.mov(ax, u32::from(sel::KDATA16))?;
        g.a.mov(ss, ax)?;
        g.change_cr0(0, 1)?;
        g.a.jmp_far(0x1000, real)
    }));
    cases.push(case("mode: the mode changes with the far jump, not with PE", Real, |g| {
        load_gdt(g)?;
        g.change_cr0(1, 0)?;
        // Still 16-bit code with the old base.
        g.a.mov(ax, 0x1234)?;
        g.a.movzx(eax, ax)?;
        g.out_eax()?;
        g.want(out(0x1234));
        g.exit()
    }));
    cases.push(case("mode: unreal mode keeps limits", Real, |g| {
        g.write32(layout::FRAMES + 0x10, 0x5678);
        load_gdt(g)?;
        g.change_cr0(1, 0)?;
        g.a.mov(ax, u32::from(sel::KDATA))?;
        g.a.mov(fs, ax)?;
        g.change_cr0(0, 1)?;
        g.a.mov(ebx, layout::FRAMES as u32)?;
        g.a.mov(eax, dword_ptr(ebx + 0x10).fs())?;
        g.out_eax()?;
        // A load in real mode changes the base, and nothing else.
        g.a.mov(ax, 1)?;
        g.a.mov(fs, ax)?;
        g.a.mov(eax, dword_ptr(ebx).fs())?;
        g.out_eax()?;
        g.want(out(0x5678));
        g.want(out(0x5678));
        g.exit()
    }));
    cases.push(case("mode: long, compatibility, protected, real, and long again", Long, |g| {
        g.write32(DATA + 0x800, DATA as u32);
        g.write16(DATA + 0x804, sel::KCODE32);
        g.write16(0x4000, 0xfff);
        g.write64(0x4002, layout::GDT);
        g.out(1)?;
        g.a.mov(ebx, DATA as u32 + 0x800)?;
        g.a.jmp(fword_ptr(rbx))?;
        g.mark("long")?;
        g.a.mov(rax, 0x7_0000_0000u64)?;
        g.a.shr(rax, 32)?;
        g.out_eax()?;
        g.rdmsr(EFER)?;
        g.a.and(eax, 0x500)?;
        g.out_eax()?;
        g.exit()?;
        let long = g.addr32("long");

        g.section(32, DATA, DATA)?;
        g.out(2)?;
        g.change_cr0(0, PG)?;
        g.rdmsr(EFER)?;
        g.a.and(eax, 0x500)?;
        g.out_eax()?;
        g.rdmsr(EFER)?;
        g.a.and(eax, !0x100)?;
        g.a.wrmsr()?;
        g.change_cr4(0, Cr4::PAE.bits() as u32)?;
        g.a.jmp_far(sel::KCODE16, 0x8000)?;

        g.section(16, CODE + 0x8000, 0x8000)?;
        g.out(3)?;
        g.a.mov(ax, u32::from(sel::KDATA16))?;
        g.a.mov(ds, ax)?;
        g.a.mov(ss, ax)?;
        g.change_cr0(0, 1)?;
        g.a.jmp_far(0x1000, 0x9000)?;

        g.section(16, CODE + 0x9000, 0x9000)?;
        g.a.xor(ax, ax)?;
        g.a.mov(ds, ax)?;
        g.a.mov(ss, ax)?;
        g.out(4)?;
        g.change_cr4(Cr4::PAE.bits() as u32, 0)?;
        g.rdmsr(EFER)?;
        g.a.or(eax, 0x100)?;
        g.a.wrmsr()?;
        // Protection and paging at once.
        g.change_cr0(1 | PG, 0)?;
        jmp_far_32(g, sel::KCODE64, long)?;
        for value in [1, 2, 0x100, 3, 4, 7, 0x500] {
            g.want(out(value));
        }
        Ok(())
    }));
    cases.push(case("mode: protected to 32-bit paging and back", Paged32, |g| {
        g.change_cr0(0, PG)?;
        g.out(1)?;
        g.change_cr0(PG, 0)?;
        g.out(2)?;
        g.want(out(1));
        g.want(out(2));
        g.exit()
    }));
    cases.push(case("mode: 16-bit code in protected mode has 16-bit defaults", Prot16, |g| {
        // MOV AX, imm16 and three NOPs would be MOV EAX, imm32 in 32-bit code.
        g.a.xor(eax, eax)?;
        g.a.db(&[0xb8, 0x34, 0x12, 0x90, 0x90])?;
        g.out_eax()?;
        g.want(out(0x1234));
        g.exit()
    }));
    cases.push(case(
        "mode: 64-bit mode clears upper halves, compatibility mode keeps out",
        Long,
        |g| {
            g.a.mov(rax, -1i64 as u64)?;
            g.a.mov(eax, 5)?;
            g.a.shr(rax, 32)?;
            g.out_eax()?;
            g.want(out(0));
            g.exit()
        },
    ));
    cases.push(case("mode: virtual-8086 code sees real-mode addresses", V8086, |g| {
        g.write16(0x2_0044, 0xabcd);
        g.a.mov(ax, 0x2000)?;
        g.a.mov(ds, ax)?;
        g.a.xor(eax, eax)?;
        g.a.mov(bx, 0x44)?;
        g.a.mov(ax, word_ptr(bx))?;
        g.out_eax()?;
        g.want(out(0xabcd));
        g.exit()
    }));
}

/// A load of CR0, CR4 or EFER that raises #GP, and leaves it as it was.
fn refused_cr0(name: &str, start: Start, set: u32, clear: u32) -> Case {
    case(format!("control: CR0 {name} raises #GP"), start, move |g| {
        let wide = g.a.bitness() == 64;
        if wide {
            g.a.mov(rax, cr0)?;
        } else {
            g.a.mov(eax, cr0)?;
        }
        g.a.mov(edx, eax)?;
        g.a.or(eax, set as i32)?;
        g.a.and(eax, !clear as i32)?;
        g.expect_fault("insn", "after", |a| if wide { a.mov(cr0, rax) } else { a.mov(cr0, eax) })?;
        if wide {
            g.a.mov(rax, cr0)?;
        } else {
            g.a.mov(eax, cr0)?;
        }
        g.a.sub(eax, edx)?;
        g.out_eax()?;
        g.want(fault(GP).code(0).at("insn"));
        g.want(out(0));
        g.exit()
    })
}

fn control_registers(cases: &mut Vec<Case>) {
    cases.extend([
        refused_cr0("PG without PE", Start::Pae, 0, 1),
        refused_cr0("NW without CD", Prot32, 1 << 29, 1 << 30),
        refused_cr0("without PG in 64-bit mode", Long, 0, PG),
        refused_cr0("without PE in 64-bit mode", Long, 0, 1),
    ]);
    cases.push(case("control: CR0 bits above 31 raise #GP", Long, |g| {
        g.a.mov(rax, cr0)?;
        g.a.bts(rax, 32)?;
        g.expect_fault("insn", "after", |a| a.mov(cr0, rax))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("control: CR0.ET is always set", Prot32, |g| {
        g.change_cr0(0, 1 << 4)?;
        g.a.mov(eax, cr0)?;
        g.a.and(eax, 1 << 4)?;
        g.out_eax()?;
        g.want(out(1 << 4));
        g.exit()
    }));
    cases.push(case("control: PG with LME needs PAE", Paged32, |g| {
        g.change_cr0(0, PG)?;
        g.rdmsr(EFER)?;
        g.a.or(eax, 0x100)?;
        g.a.wrmsr()?;
        g.a.mov(eax, cr0)?;
        g.a.or(eax, PG as i32)?;
        g.expect_fault("insn", "after", |a| a.mov(cr0, eax))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    for bit in [15u32, 31, 63] {
        cases.push(case(format!("control: CR4 bit {bit} is reserved"), Long, move |g| {
            g.a.mov(rax, cr4)?;
            g.a.bts(rax, bit)?;
            g.expect_fault("insn", "after", |a| a.mov(cr4, rax))?;
            g.want(fault(GP).code(0).at("insn"));
            g.exit()
        }));
    }
    cases.push(case("control: CR4.PAE cannot be cleared in long mode", Long, |g| {
        g.want(fault(GP).code(0));
        g.change_cr4(0, Cr4::PAE.bits() as u32)?;
        g.exit()
    }));
    cases.push(case("control: EFER.LME cannot change while paging is on", Pae, |g| {
        g.rdmsr(EFER)?;
        g.a.or(eax, 0x100)?;
        g.expect_fault("insn", "after", |a| a.wrmsr())?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    for bit in [1u32, 9, 16, 31] {
        cases.push(case(format!("control: EFER bit {bit} is reserved"), Long, move |g| {
            g.rdmsr(EFER)?;
            g.a.or(eax, 1i32 << bit)?;
            g.expect_fault("insn", "after", |a| a.wrmsr())?;
            g.want(fault(GP).code(0).at("insn"));
            g.exit()
        }));
    }
    cases.push(case("control: LMSW sets PE but does not clear it", Real, |g| {
        g.a.mov(ax, 1)?;
        g.a.lmsw(ax)?;
        g.a.xor(ax, ax)?;
        g.a.lmsw(ax)?;
        g.a.xor(eax, eax)?;
        g.a.smsw(ax)?;
        g.a.and(eax, 1)?;
        g.out_eax()?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("control: SMSW shows CR0", Long, |g| {
        g.a.smsw(rax)?;
        g.out_eax()?;
        g.a.mov(eax, -1)?;
        g.a.smsw(ax)?;
        g.out_eax()?;
        g.want(out(0x8001_0031));
        g.want(out(0xffff_0031));
        g.exit()
    }));
    cases.push(case("control: CR8 refuses more than four bits", Long, |g| {
        g.a.mov(eax, 16)?;
        g.expect_fault("insn", "after", |a| a.mov(cr8, rax))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("control: CR2 holds what is written", Long, |g| {
        g.a.mov(rax, 0xffff_8000_1234_5678u64)?;
        g.a.mov(cr2, rax)?;
        g.a.mov(rax, cr2)?;
        g.out_eax()?;
        g.a.shr(rax, 32)?;
        g.out_eax()?;
        g.want(out(0x1234_5678));
        g.want(out(0xffff_8000));
        g.exit()
    }));
    cases.push(case("control: MOV from CR ignores the operand size", Long, |g| {
        // 66 MOV RAX, CR0 gives all 64 bits.
        g.a.mov(rax, -1i64 as u64)?;
        g.a.db(&[0x66, 0x0f, 0x20, 0xc0])?;
        g.out_eax()?;
        g.a.shr(rax, 32)?;
        g.out_eax()?;
        g.want(out(0x8001_0031));
        g.want(out(0));
        g.exit()
    }));
    cases.push(case("control: XSETBV without OSXSAVE raises #UD", Long, |g| {
        g.a.xor(ecx, ecx)?;
        g.a.xor(edx, edx)?;
        g.a.mov(eax, 3)?;
        g.expect_fault("insn", "after", |a| a.xsetbv())?;
        g.want(fault(UD).at("insn"));
        g.exit()
    }));
    for (name, index, value) in
        [("no x87", 0u32, 2u32), ("AVX without SSE", 0, 5), ("an unknown register", 1, 3)]
    {
        cases.push(case(format!("control: XSETBV with {name} raises #GP"), Long, move |g| {
            let has = g.cpuid.get(1, 0).unwrap_or_default().ecx >> 26 & 1;
            if has == 0 {
                g.missing = Some("XSAVE");
            }
            g.change_cr4(Cr4::OSXSAVE.bits() as u32, 0)?;
            g.a.mov(ecx, index)?;
            g.a.xor(edx, edx)?;
            g.a.mov(eax, value)?;
            g.expect_fault("insn", "after", |a| a.xsetbv())?;
            g.want(fault(GP).code(0).at("insn"));
            g.exit()
        }));
    }
}

fn system_calls(cases: &mut Vec<Case>) {
    let star = u64::from(sel::KCODE64) << 32 | u64::from(sel::UCODE32) << 48;
    cases.push(case("syscall: from ring 3 and back by SYSRETQ", Long, move |g| {
        g.wrmsr(0xc000_0081, star)?;
        g.wrmsr(0xc000_0082, DATA)?;
        g.wrmsr(0xc000_0084, 0x4_0700)?;
        g.enter_user_with_flags(0x602)?;
        g.a.stc()?;
        g.a.syscall()?;
        g.mark("after")?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.a.mov(eax, ss)?;
        g.out_eax()?;
        g.a.pushfq()?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        let after = g.addr32("after");
        for value in [sel::KCODE64.into(), sel::KDATA.into(), after, 0x603, 3, USER_STACK as u32] {
            g.want(out(value));
        }
        for value in [sel::UCODE64.into(), sel::UDATA.into(), 0x603, USER_STACK as u32] {
            g.want(out(value));
        }
        g.exit()?;
        g.section(64, DATA, DATA)?;
        g.a.mov(r10, rax)?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.a.mov(eax, ss)?;
        g.out_eax()?;
        g.a.mov(eax, ecx)?;
        g.out_eax()?;
        g.a.mov(eax, r11d)?;
        g.out_eax()?;
        // The stack is still the user's.
        g.a.mov(rbx, rsp)?;
        g.a.mov(rsp, STACK)?;
        g.a.pushfq()?;
        g.a.pop(rax)?;
        g.out_eax()?;
        g.a.mov(rsp, rbx)?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        // Give back what came with the call.
        g.a.mov(r11, 0x603u64)?;
        g.a.sysretq()
    }));
    cases.push(case("syscall: SYSRET to compatibility mode", Long, move |g| {
        g.wrmsr(0xc000_0081, star)?;
        g.a.mov(ecx, USER_CODE as u32)?;
        g.a.mov(r11d, 2)?;
        g.a.mov(rsp, USER_STACK)?;
        g.a.sysret()?;
        g.section(32, USER_CODE, USER_CODE)?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.a.mov(eax, ss)?;
        g.out_eax()?;
        g.want(out(sel::UCODE32.into()));
        g.want(out(sel::UDATA.into()));
        g.exit()
    }));
    cases.push(case("syscall: SYSRET is the supervisor's", Long, move |g| {
        g.enter_user()?;
        g.expect_fault("insn", "after", |a| a.sysretq())?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("syscall: LSTAR refuses what is not canonical", Long, |g| {
        g.a.mov(ecx, 0xc000_0082u32)?;
        g.a.xor(eax, eax)?;
        g.a.mov(edx, 0x8000)?;
        g.expect_fault("insn", "after", |a| a.wrmsr())?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("sysenter 32-bit: from ring 3 and back", Prot32, |g| {
        g.wrmsr(0x174, 0x50)?;
        g.descriptor(0x50, g.read(layout::GDT + u64::from(sel::KCODE32), 8));
        g.descriptor(0x58, g.read(layout::GDT + u64::from(sel::KDATA), 8));
        g.descriptor(0x60, g.read(layout::GDT + u64::from(sel::UCODE32 & !3), 8));
        g.descriptor(0x68, g.read(layout::GDT + u64::from(sel::UDATA & !3), 8));
        g.wrmsr(0x175, layout::STACK0)?;
        g.wrmsr(0x176, DATA)?;
        g.enter_user_with_flags(0x202)?;
        g.a.sysenter()?;
        g.section(32, DATA, DATA)?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.a.mov(eax, ss)?;
        g.out_eax()?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        g.a.pushfd()?;
        g.a.pop(eax)?;
        g.a.and(eax, 0x202)?;
        g.out_eax()?;
        for value in [0x50, 0x58, layout::STACK0 as u32, 2] {
            g.want(out(value));
        }
        g.a.mov(edx, USER_CODE as u32 + 0x800)?;
        g.a.mov(ecx, USER_STACK as u32 - 0x100)?;
        g.a.sysexit()?;
        g.section(32, USER_CODE + 0x800, USER_CODE + 0x800)?;
        g.a.mov(eax, cs)?;
        g.out_eax()?;
        g.a.mov(eax, ss)?;
        g.out_eax()?;
        g.a.mov(eax, esp)?;
        g.out_eax()?;
        for value in [0x63, 0x6b, USER_STACK as u32 - 0x100] {
            g.want(out(value));
        }
        // The TSS is gone for the I/O bitmap's sake? No: the register keeps its hidden part.
        g.exit()
    }));
    cases.push(case("sysenter 32-bit: without a code segment raises #GP", Prot32, |g| {
        g.wrmsr(0x174, 0)?;
        g.expect_fault("insn", "after", |a| a.sysenter())?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("sysenter 32-bit: SYSEXIT is the supervisor's", Prot32, |g| {
        g.wrmsr(0x174, 8)?;
        g.enter_user()?;
        g.expect_fault("insn", "after", |a| a.sysexit())?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
}

fn ports(cases: &mut Vec<Case>) {
    for (start, mode) in [(Long, "64-bit"), (Paged32, "32-bit"), (Compat, "compatibility mode")] {
        cases.push(case(format!("ports {mode}: the bitmap opens single ports"), start, |g| {
            g.open_port(0x80, 1);
            g.enter_user()?;
            g.a.in_(al, 0x80)?;
            g.expect_fault("next port", "1", |a| a.in_(al, 0x81))?;
            g.expect_fault("word", "2", |a| a.in_(ax, 0x80))?;
            g.expect_fault("doubleword", "3", |a| a.in_(eax, 0x7e))?;
            for at in ["next port", "word", "doubleword"] {
                g.want(fault(GP).code(0).at(at));
            }
            g.out(1)?;
            g.want(out(1));
            g.exit()
        }));
    }
    cases.push(case("ports: a word across two bytes of the bitmap", Long, |g| {
        g.open_port(0x87, 2);
        g.enter_user()?;
        g.a.in_(ax, 0x87)?;
        g.expect_fault("doubleword", "after", |a| a.in_(eax, 0x86))?;
        g.want(fault(GP).code(0).at("doubleword"));
        g.exit()
    }));
    cases.push(case("ports: beyond the TSS's limit all are closed", Long, |g| {
        g.open_port(0x80, 1);
        // The debug ports' bits end at byte 1fH of the bitmap.
        g.state(|state| state.tr.limit = 0x68 + 0x20);
        g.open_port(0x3f8, 1);
        g.enter_user()?;
        g.a.in_(al, 0x80)?;
        g.a.mov(edx, 0x3f8)?;
        g.expect_fault("insn", "after", |a| a.in_(al, dx))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("ports: with IOPL 3 all are open", Long, |g| {
        g.enter_user_with_flags(0x3002)?;
        g.a.in_(eax, 0x80)?;
        g.out(1)?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("ports: virtual-8086 mode obeys the bitmap whatever the IOPL", V8086, |g| {
        g.state(|state| state.rflags |= Rflags::IOPL.bits());
        g.expect_fault("insn", "after", |a| a.in_(al, 0x80))?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("ports: an open port in virtual-8086 mode", V8086, |g| {
        g.out(4)?;
        g.want(out(4));
        g.exit()
    }));
}

fn time(cases: &mut Vec<Case>) {
    cases.push(case("time: RDTSC advances", Long, |g| {
        g.a.rdtsc()?;
        g.a.mov(ebx, eax)?;
        g.a.mov(ecx, edx)?;
        g.a.rdtsc()?;
        g.a.sub(eax, ebx)?;
        g.a.sbb(edx, ecx)?;
        // Less than 2^32 ticks later, and later.
        g.a.mov(ebx, eax)?;
        g.a.mov(eax, edx)?;
        g.out_eax()?;
        g.a.test(ebx, ebx)?;
        g.a.setne(al)?;
        g.a.movzx(eax, al)?;
        g.out_eax()?;
        g.want(out(0));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("time: TSD takes RDTSC from the user", Long, |g| {
        g.change_cr4(Cr4::TSD.bits() as u32, 0)?;
        g.a.rdtsc()?;
        g.enter_user()?;
        g.expect_fault("insn", "after", |a| a.rdtsc())?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("time: TSD takes RDTSCP from the user", Long, |g| {
        g.needs(&RDTSCP);
        g.change_cr4(Cr4::TSD.bits() as u32, 0)?;
        g.enter_user()?;
        g.expect_fault("insn", "after", |a| a.rdtscp())?;
        g.want(fault(GP).code(0).at("insn"));
        g.exit()
    }));
    cases.push(case("time: RDTSCP shows TSC_AUX", Long, |g| {
        g.needs(&RDTSCP);
        g.wrmsr(0xc000_0103, 0x1234)?;
        g.a.rdtscp()?;
        g.a.mov(eax, ecx)?;
        g.out_eax()?;
        g.want(out(0x1234));
        g.exit()
    }));
    cases.push(case("time: the TSC can be set", Long, |g| {
        g.wrmsr(0x10, 0x1234_5678_0000_0000)?;
        g.a.rdtsc()?;
        g.a.mov(eax, edx)?;
        g.out_eax()?;
        g.want(out(0x1234_5678));
        g.exit()
    }));
}
