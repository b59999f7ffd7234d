//! Model-specific registers, CPUID and the paravirtual clock.

use iced_x86::code_asm::*;
use x86::cpuid::MACHINE_CHECK_BANKS;
use x86::vector::GP;

use crate::case::{Case, case};
use crate::expect::{fault, out};
use crate::guest::KVM_CLOCK;
use crate::layout::{DATA, FRAMES, HIGH_RAM};
use crate::start::Start::{Long, Prot32, Real};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for index in [0x5u32, 0x3fff, 0x1_0000, 0x4b56_5000, 0xbfff_ffff, 0xc000_1000, 0xffff_ffff] {
        cases.push(case(
            format!("msr: reading the unknown {index:#x} raises #GP"),
            Long,
            move |g| {
                g.a.mov(ecx, index)?;
                g.expect_fault("insn", "after", |a| a.rdmsr())?;
                g.want(fault(GP).code(0).at("insn"));
                g.exit()
            },
        ));
        cases.push(case(
            format!("msr: writing the unknown {index:#x} raises #GP"),
            Long,
            move |g| {
                g.a.mov(ecx, index)?;
                g.a.xor(eax, eax)?;
                g.a.xor(edx, edx)?;
                g.expect_fault("insn", "after", |a| a.wrmsr())?;
                g.want(fault(GP).code(0).at("insn"));
                g.exit()
            },
        ));
    }
    for (name, index, value) in [
        ("STAR", 0xc000_0081u32, 0x1234_5678_9abc_def0u64),
        ("LSTAR", 0xc000_0082, 0xffff_8000_1234_5678),
        ("CSTAR", 0xc000_0083, 0xffff_8000_1234_5678),
        ("SFMASK", 0xc000_0084, 0x4_0700),
        ("KERNEL_GS_BASE", 0xc000_0102, 0xffff_8000_1234_5678),
        ("SYSENTER_CS", 0x174, 0x10),
        ("SYSENTER_ESP", 0x175, 0xffff_8000),
        ("SYSENTER_EIP", 0x176, 0xffff_9000),
        ("PAT", 0x277, 0x0007_0406_0001_0506),
        ("MTRR fixed 64K", 0x250, 0x0606_0606_0606_0606),
        ("MTRR base 0", 0x200, 0x8000_0006),
        ("MTRR mask 0", 0x201, 0x3f_8000_0800),
        ("MCG_STATUS", 0x17a, 0x4),
        ("MC0_CTL", 0x400, u64::MAX),
        ("MC0_STATUS, cleared,", 0x401, 0),
        ("MC0_ADDR", 0x402, 0x1234_5000),
    ] {
        cases.push(case(format!("msr: {name} holds what is written"), Long, move |g| {
            g.wrmsr(index, value)?;
            g.rdmsr(index)?;
            g.out_eax()?;
            g.a.mov(eax, edx)?;
            g.out_eax()?;
            g.want(out(value as u32));
            g.want(out((value >> 32) as u32));
            g.exit()
        }));
    }
    for (name, index, value) in [
        ("PAT with type 2", 0x277u32, 0x02u64),
        ("PAT with type 8", 0x277, 0x0800),
        ("a fixed MTRR with type 7", 0x250, 0x0700),
        ("MTRRCAP", 0xfe, 0),
        ("an MTRR base with type 2", 0x200, 0x8000_0002),
        ("an MTRR base with bit 8", 0x202, 0x8000_0106),
        ("an MTRR base with bit 63", 0x200, 1 << 63 | 6),
        ("an MTRR mask with bit 10", 0x201, 0x3f_8000_0c00),
        ("an MTRR mask with bit 63", 0x203, 1 << 63 | 0x800),
        ("the MTRR default type 2", 0x2ff, 0x802),
        ("the MTRR default type with bit 9", 0x2ff, 0xa06),
        ("MC0_CTL other than with all or nothing", 0x400, 0x5a),
        ("an error to MC0_STATUS", 0x401, 1 << 63),
        ("a second bank of machine checks", 0x404, 0),
        ("LSTAR that is not canonical", 0xc000_0082, 1 << 47),
        ("the APIC base with bit 63", 0x1b, 1 << 63 | 0xfee0_0900),
    ] {
        cases.push(case(format!("msr: writing {name} raises #GP"), Long, move |g| {
            g.a.mov(ecx, index)?;
            g.a.mov(eax, value as u32)?;
            g.a.mov(edx, (value >> 32) as u32)?;
            g.expect_fault("insn", "after", |a| a.wrmsr())?;
            g.want(fault(GP).code(0).at("insn"));
            g.exit()
        }));
    }
    cases.push(case("msr: the APIC base tells the bootstrap processor", Long, |g| {
        g.rdmsr(0x1b)?;
        g.out_eax()?;
        g.want(out(0xfee0_0900));
        g.exit()
    }));
    cases.push(case("msr: there is one bank of machine checks", Long, |g| {
        g.rdmsr(0x179)?;
        g.out_eax()?;
        g.want(out(MACHINE_CHECK_BANKS.into()));
        g.exit()
    }));
    cases.push(case("msr: real mode can read MSRs, too", Real, |g| {
        g.rdmsr(0xc000_0080)?;
        g.out_eax()?;
        g.want(out(0));
        g.exit()
    }));
    cases.push(case("cpuid: the leaves are those that were given", Prot32, |g| {
        for leaf in [0u32, 0x8000_0000, 0x4000_0000] {
            let Some(wanted) = g.cpuid.get(leaf, 0) else { continue };
            g.a.mov(eax, leaf)?;
            g.a.xor(ecx, ecx)?;
            g.a.cpuid()?;
            g.out_eax()?;
            g.a.mov(eax, ebx)?;
            g.out_eax()?;
            g.want(out(wanted.eax));
            g.want(out(wanted.ebx));
        }
        g.exit()
    }));
    cases.push(case("cpuid: OSXSAVE mirrors CR4", Long, |g| {
        if g.cpuid.get(1, 0).unwrap_or_default().ecx >> 26 & 1 == 0 {
            g.missing = Some("XSAVE");
        }
        for set in [0, 1u32 << 18] {
            g.change_cr4(set, 0)?;
            g.a.mov(eax, 1)?;
            g.a.cpuid()?;
            g.a.mov(eax, ecx)?;
            g.a.and(eax, 1 << 27)?;
            g.out_eax()?;
            g.want(out(set << 9));
        }
        g.exit()
    }));
    pv_clock(&mut cases);
    cases
}

/// KVM's clock (Linux, Documentation/virt/kvm/x86/msr.rst).
fn pv_clock(cases: &mut Vec<Case>) {
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    cases.push(case("clock: the page has an even version and a scale", Long, |g| {
        g.needs(&KVM_CLOCK);
        g.wrmsr(SYSTEM_TIME, DATA | 1)?;
        g.a.mov(ebx, DATA as u32)?;
        g.a.mov(eax, dword_ptr(rbx))?;
        g.a.and(eax, 1)?;
        g.out_eax()?;
        // tsc_to_system_mul.
        g.a.mov(eax, dword_ptr(rbx + 24))?;
        g.a.shr(eax, 31)?;
        g.out_eax()?;
        g.want(out(0));
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("clock: it advances with the TSC", Long, |g| {
        g.needs(&KVM_CLOCK);
        g.wrmsr(SYSTEM_TIME, DATA | 1)?;
        g.a.mov(ebx, DATA as u32)?;
        for i in 0..2 {
            // ((tsc - tsc_timestamp) * mul >> 32) + system_time, leaving tsc_shift, which is
            // monotonic, too.
            g.a.rdtsc()?;
            g.a.shl(rdx, 32)?;
            g.a.or(rax, rdx)?;
            g.a.sub(rax, qword_ptr(rbx + 8))?;
            g.a.mov(ecx, dword_ptr(rbx + 24))?;
            g.a.mul(rcx)?;
            g.a.shrd(rax, rdx, 32)?;
            g.a.add(rax, qword_ptr(rbx + 16))?;
            if i == 0 {
                g.a.mov(rsi, rax)?;
                // Time for the clock to move on.
                g.a.mov(ecx, 1000)?;
                g.mark("wait")?;
                g.a.dec(ecx)?;
                let wait = g.addr("wait");
                g.a.jne(wait)?;
            }
        }
        g.a.cmp(rax, rsi)?;
        g.a.seta(al)?;
        g.a.movzx(eax, al)?;
        g.out_eax()?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("clock: a page beyond 4 GiB", Long, |g| {
        g.needs(&KVM_CLOCK);
        g.map(FRAMES, HIGH_RAM, 3);
        g.wrmsr(SYSTEM_TIME, HIGH_RAM | 1)?;
        g.a.mov(ebx, FRAMES as u32)?;
        g.a.mov(eax, dword_ptr(rbx + 24))?;
        g.a.shr(eax, 31)?;
        g.out_eax()?;
        g.want(out(1));
        g.exit()
    }));
    cases.push(case("clock: the wall clock is published", Long, |g| {
        g.needs(&KVM_CLOCK);
        g.wrmsr(0x4b56_4d00, DATA)?;
        g.a.mov(ebx, DATA as u32)?;
        // Seconds since 1970, in this century.
        g.a.mov(eax, dword_ptr(rbx + 4))?;
        g.a.shr(eax, 30)?;
        g.a.test(eax, eax)?;
        g.a.setne(al)?;
        g.a.movzx(eax, al)?;
        g.out_eax()?;
        g.want(out(1));
        g.exit()
    }));
}
