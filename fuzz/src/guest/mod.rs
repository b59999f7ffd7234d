//! A processor with a little RAM, for the interpreter's targets.

mod layout;
mod surroundings;

use std::cell::RefCell;

use arbitrary::Arbitrary;
use x86::cpuid::{CpuidResult, CpuidTable, Model};
use x86::state::{Activity, Cr0, Cr4, Efer, Rflags, SegReg, SegmentAttributes};
use x86::{Cpu, CpuState, Stop};

pub use layout::{CODE, FIRST_TABLE, Mode, RAM_SIZE, code_page, page_walk_state};
pub use surroundings::Surroundings;

/// Runs of the processor end when it has asked for attention this often: once a block.
const POLLS: u32 = 100;

/// A change to the state or memory that a guest starts with. Every state that comes about is one
/// that a guest could bring about itself.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Patch {
    /// A general-purpose register.
    Register(u8, Value),
    /// The instruction pointer.
    Ip(Value),
    /// RFLAGS, of which VM stays.
    Flags(u32),
    /// A segment register's hidden part.
    Segment {
        /// Which one.
        register: u8,
        /// Its base.
        base: Value,
        /// Its limit.
        limit: Value,
        /// Type, D/B.
        attributes: u16,
    },
    /// The limits of GDT and IDT.
    TableLimits(u16, u16),
    /// DR0 to DR3, DR6, DR7.
    Debug(u8, Value),
    /// STAR, LSTAR, CSTAR, SFMASK, SYSENTER's three.
    Msr(u8, u64),
    /// A vector register's part.
    Vector(u8, u64),
    /// x87 control, status and tag words, MXCSR.
    Fpu(u16, u16, u8, u16),
    /// Eight bytes of memory.
    Memory(u16, u64),
}

/// A number as guests use them.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Value {
    /// Small, an address in RAM.
    Low(u16),
    /// Around zero.
    Near(i8),
    /// Around 2^31, 2^32, 2^47 or 2^63.
    Edge(u8, i8),
    /// Any.
    Any(u64),
}

impl Value {
    fn get(self) -> u64 {
        match self {
            Self::Low(value) => value.into(),
            Self::Near(value) => value as u64,
            Self::Edge(edge, offset) => {
                let edge = 1u64 << [16, 20, 31, 32, 47, 63][usize::from(edge) % 6];
                edge.wrapping_add(offset as u64)
            }
            Self::Any(value) => value,
        }
    }
}

/// A guest of a few instructions.
#[derive(Arbitrary, Debug)]
pub struct Program<'a> {
    /// The mode that it starts in.
    pub mode: Mode,
    /// At privilege level 3.
    pub user: bool,
    /// What is different from the usual start.
    pub patches: Vec<Patch>,
    /// How many blocks pass before an interrupt, and its vector (2: an NMI).
    pub interrupts: Vec<(u8, u8)>,
    /// What stands at [`CODE`].
    pub code: &'a [u8],
}

impl Program<'_> {
    /// The state that the guest starts with, and its RAM.
    pub fn start(&self, cpuid: &CpuidTable) -> (CpuState, Vec<u8>) {
        let (mut state, mut ram) = self.mode.start(self.user, cpuid);
        let room = &mut ram[CODE as usize..];
        let len = self.code.len().min(room.len());
        room[..len].copy_from_slice(&self.code[..len]);
        for patch in &self.patches {
            apply(patch, &mut state, &mut ram);
        }
        (state, ram)
    }
}

fn apply(patch: &Patch, state: &mut CpuState, ram: &mut [u8]) {
    let is_64bit = state.is_64bit();
    let address = |value: Value| {
        let value = value.get();
        if is_64bit { canonical(value) } else { value & 0xffff_ffff }
    };
    match *patch {
        Patch::Register(register, value) => {
            state.gpr[usize::from(register & 15)] = value.get();
        }
        Patch::Ip(value) => state.rip = address(value),
        Patch::Flags(value) => {
            let vm = state.rflags & Rflags::VM.bits();
            let known = Rflags::all().bits() & !Rflags::VM.bits();
            state.rflags = u64::from(value) & known | Rflags::FIXED.bits() | vm;
        }
        Patch::Segment { register, base, limit, attributes } => {
            let register = usize::from(register) % 6;
            if state.is_v8086() {
                // There base and selector are one (SDM Vol. 3, 20.1.1).
                let selector = base.get() as u16;
                state.seg[register].selector = selector;
                state.seg[register].base = u64::from(selector) << 4;
                return;
            }
            let segment = &mut state.seg[register];
            segment.base = match register {
                4 | 5 => address(base),
                _ if is_64bit => 0,
                _ => base.get() & 0xffff_ffff,
            };
            segment.limit = limit.get() as u32;
            let free = match register {
                1 => 0,      // CS stays what it is,
                2 => 0x4004, // SS writable,
                _ => 0x400e, // the others may be data or code.
            };
            let old = segment.attributes.0;
            segment.attributes = SegmentAttributes(old & !free | u32::from(attributes) & free);
        }
        Patch::TableLimits(gdt, idt) => {
            state.gdtr.limit = gdt;
            state.idtr.limit = idt;
        }
        Patch::Debug(index @ 0..4, value) => state.dr[usize::from(index)] = address(value),
        Patch::Debug(index, value) if index % 2 == 0 => {
            state.dr6 = value.get() & 0xe00f | 0xffff_0ff0
        }
        // Without GD, which makes the first access to a debug register the last.
        Patch::Debug(_, value) => state.dr7 = value.get() & 0xffff_03ff | 0x400,
        Patch::Msr(index, value) => {
            let msrs = &mut state.msrs;
            match index % 7 {
                0 => msrs.star = value,
                1 => msrs.lstar = canonical(value),
                2 => msrs.cstar = canonical(value),
                3 => msrs.sfmask = value & 0xffff_ffff,
                4 => msrs.sysenter_cs = value & 0xffff,
                5 => msrs.sysenter_esp = canonical(value),
                _ => msrs.sysenter_eip = canonical(value),
            }
        }
        Patch::Vector(at, value) => {
            state.vector.zmm[usize::from(at >> 3)][usize::from(at & 7)] = value
        }
        Patch::Fpu(fcw, fsw, ftw, mxcsr) => {
            let x87 = &mut state.vector.x87;
            (x87.fcw, x87.fsw, x87.ftw) = (fcw & 0x1f7f | 0x40, fsw, ftw);
            x87.mxcsr = mxcsr.into();
        }
        Patch::Memory(at, value) => {
            let at = usize::from(at);
            let len = 8.min(ram.len() - at);
            ram[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
    }
}

fn canonical(value: u64) -> u64 {
    ((value << 16) as i64 >> 16) as u64
}

/// The host's CPUID, as guests get it.
pub fn host_cpuid() -> CpuidTable {
    fn ask(leaf: u32, subleaf: u32) -> CpuidResult {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    }
    x86::cpuid::build(Model::Host, ask, 1_000_000_000).unwrap().for_processor(0, 1)
}

/// Calls `use_it` with a processor that is made once; its caches survive, as they do when a guest
/// changes everything about itself.
pub fn with_processor(use_it: impl FnOnce(&mut Cpu<Surroundings>)) {
    thread_local! {
        static CPU: RefCell<Option<Cpu<Surroundings>>> = const { RefCell::new(None) };
    }
    CPU.with_borrow_mut(|cpu| {
        let cpu = cpu
            .get_or_insert_with(|| Cpu::new(CpuState::reset(0), Surroundings::new(host_cpuid())));
        use_it(cpu);
    });
}

/// Runs `program` until it halts or has had its time, with its interrupts.
pub fn run(program: &Program<'_>) {
    with_processor(|cpu| {
        let (state, ram) = program.start(&cpu.env.cpuid);
        cpu.env.reset(&ram);
        cpu.state = state;
        cpu.state_changed();
        let mut interrupts = program.interrupts.iter();
        let mut next = interrupts.next();
        loop {
            cpu.env.polls_left.set(next.map_or(POLLS, |&(when, _)| u32::from(when) + 1));
            let stop = cpu.run();
            check(&cpu.state);
            let Some(&(_, vector)) = next else { return };
            if vector == 2 && cpu.accepts_nmi() {
                cpu.nmi();
            } else if cpu.accepts_interrupt() {
                cpu.interrupt(vector);
            } else if stop == Stop::Inactive {
                return;
            }
            check(&cpu.state);
            next = interrupts.next();
        }
    });
}

/// Runs `program` in blocks and again in single steps, which must come to the same. Without
/// paging, for stale translations may differ.
pub fn compare_with_steps(program: &Program<'_>) {
    with_processor(|cpu| {
        let (state, ram) = program.start(&cpu.env.cpuid);
        let start = |cpu: &mut Cpu<Surroundings>| {
            cpu.env.reset(&ram);
            cpu.state = state.clone();
            cpu.state_changed();
            cpu.stats.instructions = 0;
        };
        start(cpu);
        cpu.env.polls_left.set(POLLS);
        let stop = cpu.run();
        let (count, blocks) = (cpu.stats.instructions, cpu.state.clone());
        let blocks_ram = cpu.env.ram();
        let in_repetition = stop == Stop::Attention && blocks.rflags & Rflags::RF.bits() != 0;
        if in_repetition || blocks.cr0.contains(Cr0::PG) {
            return;
        }
        start(cpu);
        cpu.env.polls_left.set(u32::MAX);
        let mut uncounted = 0;
        while cpu.state.activity == Activity::Active && uncounted <= POLLS {
            if cpu.stats.instructions == count {
                if cpu.state == blocks && cpu.env.ram() == blocks_ram {
                    return;
                }
                // Faults of fetches do not count as instructions.
                uncounted += 1;
            }
            cpu.step();
        }
        assert_eq!(cpu.state, blocks, "{program:x?}");
        assert!(cpu.env.ram() == blocks_ram, "memory differs: {program:x?}");
    });
}

/// What holds in every state that instructions can lead to.
pub fn check(state: &CpuState) {
    assert_eq!(state.rflags & !Rflags::all().bits(), 0, "reserved flags: {state:#x?}");
    assert_ne!(state.rflags & Rflags::FIXED.bits(), 0, "RFLAGS bit 1: {state:#x?}");
    let paging = state.cr0.contains(Cr0::PG);
    assert!(!paging || state.cr0.contains(Cr0::PE), "paging in real mode: {state:#x?}");
    let long = paging && state.efer.contains(Efer::LME);
    assert_eq!(state.efer.contains(Efer::LMA), long, "LMA: {state:#x?}");
    assert!(!long || state.cr4.contains(Cr4::PAE), "long mode without PAE: {state:#x?}");
    if state.is_v8086() {
        assert!(state.is_protected() && !state.is_long_mode(), "VM: {state:#x?}");
    }
    if state.is_protected() && !state.is_v8086() && state.activity == Activity::Active {
        let ss = state.segment(SegReg::Ss);
        assert!(ss.attributes.is_unusable() || ss.attributes.is_writable(), "SS: {state:#x?}");
    }
    if state.is_64bit() {
        for base in [SegReg::Fs, SegReg::Gs].map(|register| state.segment(register).base) {
            assert_eq!(base, canonical(base), "base: {state:#x?}");
        }
    } else {
        assert!(state.rip >> 33 == 0, "EIP: {state:#x?}");
    }
}
