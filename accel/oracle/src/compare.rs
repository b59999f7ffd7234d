//! Whether two outcomes are the same, as far as they must be.

use iced_x86::Instruction;

use crate::case::{Case, Outcome};
use crate::excuse;
use crate::layout::data_linear;

const RF: u64 = 1 << 16;
/// Linux shows faults at kernel addresses as protection violations, whether or not there is a
/// page (arch/x86/mm/fault.c, `set_signal_archinfo`).
const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// FSW.ES. AMD saves the addresses of instruction and operand only then (APM Vol. 2, 11.4.4); the
/// opcode, which the engine does not keep, is not compared.
const ERROR_SUMMARY: u16 = 1 << 7;

/// A difference, in words.
pub type Difference = String;

pub(crate) const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// The name of an exception.
pub fn trap_name(trap: u32) -> String {
    let name = match trap {
        0 => "#DE",
        1 => "#DB",
        3 => "#BP",
        5 => "#BR",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        19 => "#XM",
        Outcome::SHUTDOWN => "shutdown",
        Outcome::ENDLESS => "no end",
        Outcome::PANIC => "panic",
        _ => return format!("exception {trap}"),
    };
    name.to_owned()
}

/// How two outcomes compare.
#[derive(Debug)]
pub enum Verdict {
    /// They are the same.
    Same,
    /// They differ, for the reason given, which is no fault of the engine.
    Excused(&'static str),
    /// They differ.
    Different(Vec<Difference>),
}

/// Compares the host's outcome with the engine's.
pub fn compare(case: &Case, insns: &[Instruction], host: &Outcome, engine: &Outcome) -> Verdict {
    let vague = insns.iter().fold(0, |mask, insn| mask | excuse::undefined_flags(insn));
    compare_but(case, insns, host, engine, vague)
}

/// The same where the flags of `vague` need not agree.
pub fn compare_but(
    case: &Case,
    insns: &[Instruction],
    host: &Outcome,
    engine: &Outcome,
    vague: u64,
) -> Verdict {
    let found = differences(case, insns, host, engine, vague);
    if found.is_empty() {
        return Verdict::Same;
    }
    let faulting = insns.iter().find(|insn| insn.ip() == engine.rip);
    let excuse = [last(insns, host), faulting]
        .into_iter()
        .flatten()
        .filter(|_| engine.trap != Outcome::PANIC)
        .find_map(|insn| excuse::whole_case(case, insn, host, engine))
        .or_else(|| excuse::sequence(case, insns, host));
    match excuse {
        Some(reason) => Verdict::Excused(reason),
        None => Verdict::Different(found),
    }
}

/// The instruction that faulted, or else the last one.
fn last<'a>(insns: &'a [Instruction], host: &Outcome) -> Option<&'a Instruction> {
    insns.iter().find(|insn| insn.ip() == host.rip).or(insns.last())
}

fn differences(
    case: &Case,
    insns: &[Instruction],
    host: &Outcome,
    engine: &Outcome,
    vague: u64,
) -> Vec<Difference> {
    let mut found = Vec::new();
    if engine.trap == Outcome::PANIC {
        return vec!["the engine panics".to_owned()];
    }
    let insn = last(insns, host);
    let undefined = vague;
    if host.trap != engine.trap {
        let show = |o: &Outcome| format!("{}({:#x}) cr2 {:#x}", trap_name(o.trap), o.error, o.cr2);
        found.push(format!("exception: host {}, engine {}", show(host), show(engine)));
    }
    let mut check = |name: &str, host: u64, engine: u64| {
        if host != engine {
            found.push(format!("{name}: host {host:#x}, engine {engine:#x}"));
        }
    };
    if host.trap == engine.trap {
        let hidden = u32::from(host.trap == 14 && host.cr2 >= TASK_SIZE);
        let hidden = if insn.is_some_and(excuse::order_is_vague) { 7 } else { hidden };
        check("error code", (host.error | hidden).into(), (engine.error | hidden).into());
        if !insn.is_some_and(|insn| excuse::cr2_agrees(insn, host.cr2, engine.cr2)) {
            check("cr2", host.cr2, engine.cr2);
        }
    }
    check("rip", host.rip, engine.rip);
    let hidden = RF | undefined;
    check("rflags", host.rflags | hidden, engine.rflags | hidden);
    for (i, name) in GPR.iter().enumerate() {
        check(name, host.gpr[i], engine.gpr[i]);
    }
    check("fs base", host.fs_base, engine.fs_base);
    check("gs base", host.gs_base, engine.gs_base);
    if host.vector.zmm != engine.vector.zmm {
        for i in 0..32 {
            let vague = insn.is_some_and(|insn| excuse::vague_above(insn, host, i));
            let count = if vague { 2 } else { 8 };
            for q in 0..count {
                let name = format!("zmm{i}[{q}]");
                check(&name, host.vector.zmm[i][q], engine.vector.zmm[i][q]);
            }
        }
    }
    for i in 0..8 {
        check(&format!("k{i}"), host.vector.k[i], engine.vector.k[i]);
    }
    let (a, b) = (&host.vector.x87, &engine.vector.x87);
    let hidden = insn.map_or(0, |insn| excuse::vague_mxcsr(case, insn, host));
    check("mxcsr", (a.mxcsr | hidden).into(), (b.mxcsr | hidden).into());
    if !insn.is_some_and(|insn| excuse::vague_x87(insn, host)) {
        check("fcw", a.fcw.into(), b.fcw.into());
        check("fsw", a.fsw.into(), b.fsw.into());
        check("ftw", a.ftw.into(), b.ftw.into());
        if a.fsw & ERROR_SUMMARY != 0 {
            // As many bits as linear addresses have; FXRSTOR may load others.
            check("fip", a.fip << 16, b.fip << 16);
            check("fdp", a.fdp << 16, b.fdp << 16);
        }
        for i in 0..8 {
            check(&format!("st{i} significand"), a.st[i][0], b.st[i][0]);
            check(&format!("st{i} exponent"), a.st[i][1] & 0xffff, b.st[i][1] & 0xffff);
        }
    }
    if host.data != engine.data {
        let different = (0..host.data.len()).filter(|&i| host.data[i] != engine.data[i]);
        let (mut count, mut first) = (0, None);
        for i in different {
            count += 1;
            first.get_or_insert(i);
        }
        let at = first.unwrap_or_default() & !7;
        let end = (at + 16).min(host.data.len());
        found.push(format!(
            "memory: {count} bytes, first near {:#x}: host {:02x?}, engine {:02x?}",
            data_linear(at),
            &host.data[at..end],
            &engine.data[at..end],
        ));
    }
    found
}
