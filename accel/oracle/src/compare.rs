//! Whether two outcomes are the same, as far as they must be.

use iced_x86::Instruction;

use crate::case::{Case, Outcome};
use crate::layout::data_linear;

const RF: u64 = 1 << 16;
/// Linux shows faults at kernel addresses as protection violations, whether or not there is a
/// page (arch/x86/mm/fault.c, `set_signal_archinfo`).
const KERNEL_HALF: u64 = 1 << 63;

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

/// What differs between the host's outcome and the engine's.
pub fn differences(
    _case: &Case,
    _insns: &[Instruction],
    host: &Outcome,
    engine: &Outcome,
) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut check = |name: &str, host: u64, engine: u64| {
        if host != engine {
            found.push(format!("{name}: host {host:#x}, engine {engine:#x}"));
        }
    };
    if engine.trap == Outcome::PANIC {
        return vec!["the engine panics".to_owned()];
    }
    let hidden = if host.trap == 14 && host.cr2 & KERNEL_HALF != 0 { 1 } else { 0 };
    if host.trap != engine.trap {
        check_trap(&mut found, host, engine);
    } else {
        check("error code", (host.error | hidden).into(), (engine.error | hidden).into());
        check("cr2", host.cr2, engine.cr2);
    }
    let mut check = |name: &str, host: u64, engine: u64| {
        if host != engine {
            found.push(format!("{name}: host {host:#x}, engine {engine:#x}"));
        }
    };
    check("rip", host.rip, engine.rip);
    check("rflags", host.rflags & !RF, engine.rflags & !RF);
    for (i, name) in GPR.iter().enumerate() {
        check(name, host.gpr[i], engine.gpr[i]);
    }
    check("fs base", host.fs_base, engine.fs_base);
    check("gs base", host.gs_base, engine.gs_base);
    for i in 0..32 {
        for q in 0..8 {
            check(&format!("zmm{i}[{q}]"), host.vector.zmm[i][q], engine.vector.zmm[i][q]);
        }
    }
    for i in 0..8 {
        check(&format!("k{i}"), host.vector.k[i], engine.vector.k[i]);
    }
    let (a, b) = (&host.vector.x87, &engine.vector.x87);
    check("mxcsr", a.mxcsr.into(), b.mxcsr.into());
    check("fcw", a.fcw.into(), b.fcw.into());
    check("fsw", a.fsw.into(), b.fsw.into());
    check("ftw", a.ftw.into(), b.ftw.into());
    for i in 0..8 {
        check(&format!("st{i} significand"), a.st[i][0], b.st[i][0]);
        check(&format!("st{i} exponent"), a.st[i][1] & 0xffff, b.st[i][1] & 0xffff);
    }
    if host.data != engine.data {
        let different = (0..host.data.len()).filter(|&i| host.data[i] != engine.data[i]);
        let (mut count, mut first) = (0, None);
        for i in different {
            count += 1;
            first.get_or_insert(i);
        }
        let at = first.unwrap_or_default() & !7;
        found.push(format!(
            "memory: {count} bytes, first near {:#x}: host {:02x?}, engine {:02x?}",
            data_linear(at),
            &host.data[at..(at + 16).min(host.data.len())],
            &engine.data[at..(at + 16).min(host.data.len())],
        ));
    }
    found
}

fn check_trap(found: &mut Vec<Difference>, host: &Outcome, engine: &Outcome) {
    let show = |o: &Outcome| format!("{}({:#x}) cr2 {:#x}", trap_name(o.trap), o.error, o.cr2);
    found.push(format!("exception: host {}, engine {}", show(host), show(engine)));
}
