//! Blocks for tests: the context's layout, and a frame around the code that is tested.

// Each test program uses its part.
#![allow(dead_code)]

use checker::{Block, Checker, Field, Layout, Problem, Retry, Stubs, ViewTables, Violation};
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

pub const ATTENTION: u32 = 0;
pub const VECTORS_LIVE: u32 = 8;
/// The number of an exit, which only stubs touch.
pub const EXIT: u32 = 12;
pub const CODE_BASE: u32 = 16;
pub const SPILL: u32 = 24;
pub const GPR: u32 = 32;
pub const STATUS: u32 = 168;
pub const RFLAGS: u32 = 176;
pub const FS_BASE: u32 = 200;
pub const SELECTORS: u32 = 224;
const TSC_AUX: u32 = 248;
const TSC_OFFSET: u32 = 256;
pub const VECTORS: u32 = 264;
pub const HOST_SP: u32 = 272;
/// Whether FS and GS have limits.
pub const LIMITED: u32 = 288;
const TLB: u32 = 4472;
const TABLE: u32 = 16 * (TLB_ENTRIES + TLB_SLOTS);
const JUMP: u32 = TLB + 3 * 2 * TABLE;
pub const TLB_ENTRIES: u32 = 1024;
pub const TLB_SLOTS: u32 = 32;
pub const JUMP_ENTRIES: u32 = 4096;
/// What makes an index, twice the number of an entry.
pub const TLB_MASK: i32 = 2 * TLB_ENTRIES as i32 - 2;
pub const JUMP_MASK: i32 = 2 * JUMP_ENTRIES as i32 - 2;
/// From the first half of an entry to the second.
pub const HOST: u32 = 8;

pub const fn tables(view: u32) -> ViewTables {
    let tlb = TLB + view * 2 * TABLE;
    ViewTables {
        read: tlb,
        write: tlb + TABLE,
        jump: JUMP + view * 16 * JUMP_ENTRIES,
        jump_entries: JUMP_ENTRIES,
    }
}

/// The tables of the view that blocks here have.
pub const T: ViewTables = tables(1);

/// That of the engine.
pub fn layout() -> Layout {
    let field = |offset, size, write| Field { offset, size, writers: if write { 7 } else { 0 } };
    Layout {
        fields: vec![
            field(ATTENTION, 8, false),
            field(VECTORS_LIVE, 4, false),
            field(GPR, 16 * 8, true),
            field(CODE_BASE, 8, true),
            field(STATUS, 8, true),
            field(SPILL, 8, true),
            field(FS_BASE, 8, false),
            // Of a kernel only; blocks here have the view 1 unless they are the translator's.
            Field { offset: FS_BASE + 8, size: 16, writers: 6 },
            field(SELECTORS, 24, false),
            field(TSC_AUX, 4, false),
            field(TSC_OFFSET, 8, false),
            field(LIMITED, 8, false),
        ],
        flags: RFLAGS,
        vectors_live: VECTORS_LIVE,
        views: (0..3).map(tables).collect(),
        tlb_entries: TLB_ENTRIES,
        tlb_slots: TLB_SLOTS,
    }
}

/// Where blocks and stubs lie.
pub const CODE: u64 = 0x1000;
pub const LEAVE: u64 = 0x100;
pub const LEAVE_WITH_FLAGS: u64 = 0x104;
pub const CROSSING: u64 = 0x108;
pub const BRANCH: u64 = 0x110;
/// In the number of an exit: the stub for misses may return behind the next jump.
pub const MERGED: i32 = i32::MIN;
pub const LOAD_VECTORS: u64 = 0x120;
pub const STRINGS: [u64; 2] = [0x124, 0x126];
pub const MISSES: [u64; 2] = [0x140, 0x160];
/// The near entry of another block.
pub const OTHER: u64 = 0x800;
pub const EXITS: std::ops::Range<u32> = 7..10;
/// The exit that takes RBX for the guest's instruction pointer.
pub const BRANCH_EXIT: u32 = 9;
pub const DF: u64 = 1 << 10;

pub type Built = Result<(), IcedError>;

/// A block in the making.
pub struct Builder {
    pub a: CodeAssembler,
    pub near: CodeLabel,
    /// Leaves by the first exit.
    pub miss: CodeLabel,
    pub resume: Option<CodeLabel>,
    /// Exits and where they are retried.
    pub retry: Option<(u32, CodeLabel)>,
    pub has_end: bool,
}

/// Code, and what belongs to it.
#[derive(Clone)]
pub struct Code {
    pub bytes: Vec<u8>,
    pub near: u32,
    pub resumes: Vec<u32>,
    pub retries: Vec<Retry>,
    pub links: Vec<u32>,
}

impl Code {
    pub fn block(&self) -> Block<'_> {
        Block {
            code: &self.bytes,
            address: CODE,
            far: 0,
            near: self.near,
            resumes: &self.resumes,
            retries: &self.retries,
            exits: EXITS,
            branches: &[BRANCH_EXIT],
            links: &self.links,
            targets: &[OTHER],
            view: 1,
            flags: DF,
            time: false,
            mirrored: None,
            stubs: Stubs {
                leave: LEAVE,
                leave_with_flags: LEAVE_WITH_FLAGS,
                crossing: CROSSING,
                branch: BRANCH,
                load_vectors: LOAD_VECTORS,
                misses: MISSES,
                strings: &STRINGS,
            },
        }
    }

    pub fn check(&self) -> Result<(), Violation> {
        Checker::new(layout()).check(&self.block())
    }
}

pub fn context(offset: u32) -> AsmMemoryOperand {
    ptr(rsp + offset as i32)
}

pub fn table(index: AsmRegister64, offset: u32) -> AsmMemoryOperand {
    ptr(rsp + index * 8 + offset as i32)
}

/// Entries, `body`, and ways out behind it.
pub fn build(body: impl FnOnce(&mut Builder) -> Built) -> Code {
    try_build(body).expect("the test's code is assembled")
}

fn try_build(body: impl FnOnce(&mut Builder) -> Built) -> Result<Code, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (near, miss) = (a.create_label(), a.create_label());
    let mut b = Builder { a, near, miss, resume: None, retry: None, has_end: true };
    b.a.lea(rbx, ptr(rbx - 0x10))?;
    b.a.mov(context(CODE_BASE), rbx)?;
    b.a.set_label(&mut b.near)?;
    b.a.cmp(dword_ptr(context(ATTENTION)), 0)?;
    b.a.jne(b.miss)?;
    body(&mut b)?;
    if b.has_end {
        b.a.mov(ebp, EXITS.start + 1)?;
        b.a.jmp(LEAVE)?;
    }
    let mut miss = b.miss;
    b.a.set_label(&mut miss)?;
    b.a.mov(ebp, EXITS.start)?;
    b.a.jmp(LEAVE)?;
    let result = b.a.assemble_options(CODE, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let offset = |label: &CodeLabel| -> Result<u32, IcedError> {
        Ok((result.label_ip(label)? - CODE) as u32)
    };
    let near = offset(&b.near)?;
    let resumes = b.resume.iter().map(offset).collect::<Result<_, _>>()?;
    let retries = b
        .retry
        .iter()
        .map(|(exit, label)| Ok(Retry { exit: *exit, at: offset(label)? }))
        .collect::<Result<_, IcedError>>()?;
    Ok(Code { bytes: result.inner.code_buffer, near, resumes, retries, links: Vec::new() })
}

/// Steps of a check.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Rotate,
    Mask,
    Tag,
    Compare,
    Branch,
    Host,
}

/// The branch behind the comparison.
#[derive(Clone, Copy)]
pub enum Over {
    A,
    Ae,
    B,
    Be,
    E,
    Ne,
    G,
    S,
}

/// Puts something into a check.
pub type Insert = fn(&mut CodeAssembler) -> Built;

/// A check of an address in RBX for a store of 8 bytes, or what a test makes of one.
#[derive(Clone, Copy)]
pub struct Check {
    pub rotate: u32,
    pub mask: i32,
    pub tag: u32,
    pub limit: i32,
    pub over: Over,
    pub host: u32,
    pub without: Option<Step>,
    pub then: Option<(Step, Insert)>,
}

pub const CHECK: Check = Check {
    rotate: 11,
    mask: TLB_MASK,
    tag: T.write,
    limit: 4096 - 8,
    over: Over::A,
    host: T.write + HOST,
    without: None,
    then: None,
};

impl Check {
    /// For loads, then.
    pub fn loads(&mut self) {
        self.tag = T.read;
        self.host = T.read + HOST;
    }

    pub fn emit(self, b: &mut Builder) -> Built {
        let a = &mut b.a;
        let miss = b.miss;
        for step in [Step::Rotate, Step::Mask, Step::Tag, Step::Compare, Step::Branch, Step::Host] {
            if self.without != Some(step) {
                match step {
                    Step::Rotate => a.rorx(rbp, rbx, self.rotate)?,
                    Step::Mask => a.and(ebp, self.mask)?,
                    Step::Tag => a.add(rbx, table(rbp, self.tag))?,
                    Step::Compare => a.cmp(rbx, self.limit)?,
                    Step::Branch => match self.over {
                        Over::A => a.ja(miss)?,
                        Over::Ae => a.jae(miss)?,
                        Over::B => a.jb(miss)?,
                        Over::Be => a.jbe(miss)?,
                        Over::E => a.je(miss)?,
                        Over::Ne => a.jne(miss)?,
                        Over::G => a.jg(miss)?,
                        Over::S => a.js(miss)?,
                    },
                    Step::Host => a.add(rbx, table(rbp, self.host))?,
                }
            }
            if let Some((after, then)) = self.then
                && after == step
            {
                then(a)?;
            }
        }
        Ok(())
    }
}

/// An address in RBX, checked for a store of 8 bytes.
pub fn checked(b: &mut Builder) -> Built {
    b.a.lea(rbx, ptr(rcx + 8))?;
    CHECK.emit(b)
}

/// The same with something different.
pub fn checked_with(b: &mut Builder, change: impl FnOnce(&mut Check)) -> Built {
    let mut check = CHECK;
    change(&mut check);
    b.a.lea(rbx, ptr(rcx + 8))?;
    check.emit(b)
}

/// A slot, seen from the start of its table.
pub const fn slot(number: u32) -> u32 {
    16 * (TLB_ENTRIES + number)
}

/// Twice the number of a slot's entry.
pub const fn slot_index(number: u32) -> u32 {
    2 * (TLB_ENTRIES + number)
}

/// Where the address in RBX is in the soft TLB, in RBP.
pub fn tlb_index(b: &mut Builder) -> Built {
    b.a.rorx(rbp, rbx, 11)?;
    b.a.and(ebp, TLB_MASK)
}

/// Where the address in RBX is in the jump cache, in RBP.
pub fn jump_index(b: &mut Builder) -> Built {
    b.a.mov(ebp, ebx)?;
    b.a.shr(ebp, 12)?;
    b.a.xor(ebp, ebx)?;
    b.a.and(ebp, JUMP_MASK)
}

/// Looks the address in RBX up in the jump cache, up to the comparison's branch.
pub fn look_up(b: &mut Builder) -> Built {
    jump_index(b)?;
    b.a.cmp(rbx, table(rbp, T.jump))?;
    b.a.jne(b.miss)
}

/// Jumps to what was found.
pub fn jump(b: &mut Builder) -> Built {
    b.has_end = false;
    b.a.jmp(qword_ptr(table(rbp, T.jump + HOST)))
}

/// Asserts that a block is refused for a reason.
#[track_caller]
pub fn assert_refused(code: &Code, problem: Problem) {
    match code.check() {
        Ok(()) => panic!("accepted, though it should be refused: {problem}"),
        Err(violation) => assert_eq!(violation.problem, problem, "{violation}"),
    }
}
