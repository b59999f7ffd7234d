//! What fuzzing found: guests that led the interpreter into states that no processor has.

mod surroundings;

use surroundings::Surroundings;
use x86::state::{Cr0, DescriptorTable, Rflags, SegReg, Segment, SegmentAttributes, gpr};
use x86::{Cpu, CpuState};

const GDT: usize = 0x1000;
const TSS: usize = 0x2000;
const OTHER_TSS: usize = 0x2100;
const CODE: usize = 0x3000;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const TASK: u16 = 0x18;
const OTHER_TASK: u16 = 0x20;

/// 32-bit protected mode, without paging, about to execute `code`.
fn protected(code: &[u8]) -> Cpu<Surroundings> {
    let env = Surroundings::new(0x1_0000);
    let descriptors: [u64; 5] = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x0000_8b00_0000_0067 | (TSS as u64) << 16,
        0x0000_8900_0000_0067 | (OTHER_TSS as u64) << 16,
    ];
    for (index, descriptor) in descriptors.into_iter().enumerate() {
        env.write(GDT + 8 * index, &descriptor.to_le_bytes());
    }
    env.write(CODE, code);
    let mut state = CpuState::reset(0);
    state.cr0 |= Cr0::PE;
    state.rip = CODE as u64;
    state.gdtr = DescriptorTable { base: GDT as u64, limit: 0x27 };
    let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    state.seg = [flat(KERNEL_DATA, SegmentAttributes::DATA32); 6];
    state.seg[SegReg::Cs as usize] = flat(KERNEL_CODE, SegmentAttributes::CODE32);
    state.tr = Segment {
        selector: TASK,
        base: TSS as u64,
        limit: 0x67,
        attributes: SegmentAttributes::TSS_BUSY,
    };
    Cpu::new(state, env)
}

/// Fills the TSS that [`OTHER_TASK`] names.
fn write_other_task(cpu: &Cpu<Surroundings>, eflags: u32) {
    let segments = [KERNEL_DATA, KERNEL_CODE, KERNEL_DATA, KERNEL_DATA, KERNEL_DATA, KERNEL_DATA];
    let word = |at: usize, value: u32| cpu.env.write(OTHER_TSS + at, &value.to_le_bytes());
    word(0x20, CODE as u32);
    word(0x24, eflags);
    for (index, selector) in segments.into_iter().enumerate() {
        word(0x48 + 4 * index, selector.into());
    }
}

/// `ljmp OTHER_TASK:0`.
const JUMP_TO_TASK: [u8; 7] = [0xea, 0, 0, 0, 0, OTHER_TASK as u8, 0];

#[test]
fn reserved_flags_of_a_tss_are_not_loaded() {
    let mut cpu = protected(&JUMP_TO_TASK);
    // All but VM and TF.
    write_other_task(&cpu, !(1 << 17 | 1 << 8));
    cpu.step();
    assert_eq!(cpu.state.tr.selector, OTHER_TASK);
    let wanted = Rflags::all() - Rflags::VM - Rflags::TF;
    assert_eq!(cpu.state.rflags, wanted.bits());
}

#[test]
fn a_block_ends_when_its_code_is_changed_by_a_store_that_misses_the_tlb() {
    // add byte [CODE + 7], 1, which makes `inc edx` of the next instruction; inc ecx; hlt
    let code = [0x80, 0x05, 7, (CODE >> 8) as u8, 0, 0, 1, 0x41, 0xf4];
    let mut cpu = protected(&code);
    cpu.state.gpr = [0; 16];
    cpu.env.polls_left.set(10);
    cpu.run();
    assert_eq!((cpu.state.gpr[gpr::RCX], cpu.state.gpr[gpr::RDX]), (0, 1));
}
