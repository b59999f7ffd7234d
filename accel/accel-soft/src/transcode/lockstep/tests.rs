//! Wrong translations are found.

use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};
use x86::cpuid::{CpuidResult, Model, build};

use super::*;
use crate::{Execution, SoftAccelerator};

/// What is wrong with the next translations of this process.
static WRONG: AtomicU32 = AtomicU32::new(0);

const NUMBER: u32 = 1;
const PLACE: u32 = 2;
const CONDITION: u32 = 3;
const WIDTH: u32 = 4;
const FLAGS: u32 = 5;

/// Changes what the translator is given, so that what it makes is no translation of the guest's
/// code.
pub fn spoil(insns: &mut [Instruction]) {
    for insn in insns {
        let is_store = insn.op0_kind() == OpKind::Memory && insn.mnemonic() == Mnemonic::Mov;
        match WRONG.load(Ordering::Relaxed) {
            NUMBER
                if insn.mnemonic() == Mnemonic::Mov && insn.op1_kind() == OpKind::Immediate32 =>
            {
                insn.set_immediate32(insn.immediate32() ^ 0x100);
            }
            // The next eight bytes are stored to instead.
            PLACE if is_store => {
                let displacement = insn.memory_displacement64().wrapping_add(8);
                insn.set_memory_displacement64(displacement);
                insn.set_memory_displ_size(insn.memory_displ_size().max(1));
            }
            CONDITION if insn.is_jcc_short_or_near() => insn.negate_condition_code(),
            // More bytes are stored than should be.
            WIDTH if is_store && insn.memory_size() == MemorySize::UInt32 => {
                if insn.code() == iced_x86::Code::Mov_rm32_r32 {
                    insn.set_code(iced_x86::Code::Mov_rm64_r64);
                    let number = insn.op1_register() as u32 - iced_x86::Register::EAX as u32;
                    let wide = iced_x86::Register::RAX + number;
                    insn.set_op1_register(wide);
                }
            }
            // INC keeps the carry, ADD does not.
            FLAGS
                if insn.code() == iced_x86::Code::Inc_rm64
                    && insn.op0_kind() == OpKind::Register =>
            {
                let (ip, next) = (insn.ip(), insn.next_ip());
                let reg = insn.op0_register();
                if let Ok(add) = Instruction::with2(iced_x86::Code::Add_rm64_imm8, reg, 1) {
                    *insn = add;
                    insn.set_len((next - ip) as usize);
                    insn.set_ip(ip);
                    insn.set_next_ip(next);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn wrong_translations_are_found() {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    let cpuid = build(Model::Host, host, runtime::tsc::frequency_hz()).expect("a model");
    let accelerator = SoftAccelerator { execution: Execution::Lockstep { after: 0, sample: 1 } };
    let right = conformance::run_all(&accelerator, &cpuid, "");
    assert!(right.failures.is_empty(), "{right}");
    for (wrong, what) in [
        (NUMBER, " in registers\n"),
        (PLACE, " in memory\n"),
        (CONDITION, " in the way\n"),
        (WIDTH, " in memory\n"),
        (FLAGS, " in registers\n"),
    ] {
        let before = lockstep_tally().differences;
        WRONG.store(wrong, Ordering::Relaxed);
        let report = conformance::run_all(&accelerator, &cpuid, "");
        WRONG.store(0, Ordering::Relaxed);
        let text = format!("lockstep: translated code differs from the interpreter{what}");
        let found = report.failures.iter().filter(|failure| failure.detail.contains(&text)).count();
        println!("{wrong}: {found} of {} failures", report.failures.len());
        assert!(found > 0, "nobody noticed mistake {wrong}: {report}");
        assert!(lockstep_tally().differences > before);
    }
}
