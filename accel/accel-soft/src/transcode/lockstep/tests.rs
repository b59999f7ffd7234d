//! Wrong translations are found.

use std::sync::atomic::{AtomicU32, Ordering};

use accel::{Accelerator, CpuBus, Exit, Fault, VmResources};
use iced_x86::OpKind;
use iced_x86::code_asm::*;
use mem::RamRange;
use mem::vm_memory::{Bytes, GuestAddress};
use runtime::{Clock, Timers};
use x86::cpuid::{CpuidResult, Model, build};
use x86::state::{Cr0, Cr4, Efer, Sections, SegmentAttributes};

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
            WIDTH if is_store && insn.code() == iced_x86::Code::Mov_rm32_r32 => {
                insn.set_code(iced_x86::Code::Mov_rm64_r64);
                let number = insn.op1_register() as u32 - iced_x86::Register::EAX as u32;
                insn.set_op1_register(iced_x86::Register::RAX + number);
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

/// RAM of the little machine, and what lies in it.
const MEMORY: u64 = 0x10_0000;
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0xa000;

struct NoBus;

impl CpuBus for NoBus {
    fn mmio_read(&self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn port_read(&self, _: u16, _: &mut [u8]) {}
    fn port_write(&self, _: u16, _: &[u8]) {}
}

/// 64-bit code that stores, jumps and computes, and ends in a triple fault.
fn guest_code() -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).expect("an assembler");
    let mut assemble = || -> Result<Vec<u8>, iced_x86::IcedError> {
        let (mut again, mut skip) = (asm.create_label(), asm.create_label());
        asm.mov(ecx, 10)?;
        asm.mov(edi, DATA as u32)?;
        asm.mov(rax, 0x1122_3344_5566_7788u64)?;
        asm.set_label(&mut again)?;
        asm.mov(dword_ptr(rdi + 16), eax)?;
        asm.stc()?;
        asm.inc(rax)?;
        asm.adc(rdx, rax)?;
        asm.test(al, 1)?;
        asm.jz(skip)?;
        asm.push(rdx)?;
        asm.set_label(&mut skip)?;
        asm.dec(ecx)?;
        asm.jnz(again)?;
        asm.rdtsc()?;
        asm.mulsd(xmm0, xmm1)?;
        asm.ud2()?;
        asm.assemble(CODE)
    };
    assemble().expect("instructions that exist")
}

/// Runs the guest; the error is what was found.
fn run(cpuid: &CpuidTable) -> Result<Exit, Fault> {
    let memory = mem::allocate(&[RamRange { start: 0, len: MEMORY }]).expect("memory");
    let write = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).expect("RAM");
    // 1 GiB, the same at both ends: P, R/W, PS (SDM Vol. 3, 4.5.4).
    write(TABLES, &(TABLES + 0x1003).to_le_bytes());
    write(TABLES + 0x1000, &0x83u64.to_le_bytes());
    write(CODE, &guest_code());
    let clock = Arc::new(Clock::new());
    let timers = Arc::new(Timers::new(clock.clone()).expect("timers"));
    let accelerator = SoftAccelerator { execution: Execution::Lockstep { after: 0, sample: 1 } };
    let resources =
        VmResources { memory, clock, timers, cpus: 1, cpuid: cpuid.clone(), hyperv: false };
    let vm = accelerator.create_vm(resources)?;
    let mut vcpu = vm.take_vcpu(0)?;
    let state = vcpu.load(Sections::all())?;
    state.cr0 = Cr0::PE | Cr0::PG | Cr0::WP | Cr0::NE | Cr0::ET;
    state.cr3 = TABLES;
    state.cr4 = Cr4::PAE | Cr4::OSFXSR;
    state.efer = Efer::LME | Efer::LMA;
    state.seg[SegReg::Cs as usize].attributes = SegmentAttributes::CODE64;
    state.seg[SegReg::Cs as usize].base = 0;
    state.idtr.limit = 0;
    state.rip = CODE;
    state.gpr[gpr::RSP] = DATA + 0x800;
    vcpu.store(Sections::all())?;
    vcpu.run(&NoBus)
}

#[test]
fn wrong_translations_are_found() {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    let cpuid = build(Model::Host, host, runtime::tsc::frequency_hz()).expect("a model");
    let right = run(&cpuid).expect("no difference");
    assert_eq!(right, Exit::TripleFault);
    let tally = lockstep_tally();
    // Ten turns of eight or nine, three before them and two behind; UD2 is left to the interpreter.
    assert_eq!((tally.instructions, tally.differences), (90, 0), "{tally:?}");
    for (wrong, what) in [
        (NUMBER, " in registers\n"),
        (PLACE, " in memory\n"),
        (CONDITION, " in the way\n"),
        (WIDTH, " in memory\n"),
        (FLAGS, " in registers\n"),
    ] {
        let before = lockstep_tally().differences;
        WRONG.store(wrong, Ordering::Relaxed);
        let result = run(&cpuid);
        WRONG.store(0, Ordering::Relaxed);
        let Err(Fault::Wrong(report)) = result else {
            panic!("nobody noticed mistake {wrong}: {result:?} {:?}", lockstep_tally());
        };
        let text = format!("lockstep: translated code differs from the interpreter{what}");
        assert!(report.contains(&text) && report.contains("host code:\n"), "{wrong}: {report}");
        assert_eq!(lockstep_tally().differences, before + 1);
        assert_eq!(lockstep_tally().raced, 0);
    }
}
