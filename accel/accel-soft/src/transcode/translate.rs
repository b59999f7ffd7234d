//! From guest instructions to a block of host code.
//!
//! Blocks are position-independent in the guest: what they need of their linear address they
//! take from the context's `code_base`, so that one translation serves every process that maps
//! the page. Between blocks, the status flags are in AX. Within one, they move to the host's
//! flags when an instruction produces or needs them, and back before a check destroys them.

use std::ops::Range;

use iced_x86::{
    Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use x86::View;
use x86::state::Rflags;

use super::assembler::{Alu, Assembler, Cond, Label, Mem, Reg};
use super::classify::{Kind, classify, renamable};
use super::context::{JUMP_ENTRIES, TLB_ENTRIES, VIEWS, offset};
use super::registers::{
    GUEST_RAX, GUEST_RBP, GUEST_RBX, GUEST_RSP, Home, home, is_high_byte, number, sized,
};

/// Forms addresses; then the host's address of an operand.
const ADDRESS: Reg = Reg::RBX;
/// Indexes tables; free behind a check.
const INDEX: Reg = Reg::RBP;
/// Keeps the status flags between instructions that use them.
const STATUS: Reg = Reg::RAX;

/// A block covers at most this many instructions, so that the interpreter can take over quickly.
pub const MAX_INSTRUCTIONS: usize = 64;

/// What a block was translated for besides its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// How its loads and stores look at memory. User code is what has [`View::User`].
    pub view: View,
    /// Which vector instructions may be emitted: 0 is none, 1 SSE, 2 AVX, 3 AVX-512.
    pub vectors: u8,
    /// The time stamp counter may be read.
    pub time: bool,
    /// Every access has a check of its own: for where several together cross a page.
    pub narrow: bool,
}

impl Setting {
    /// A number for each setting, below 64.
    pub fn number(self) -> u64 {
        (self.view as u64) << 2
            | u64::from(self.vectors)
            | u64::from(self.time) << 4
            | u64::from(self.narrow) << 5
    }
}

/// Why translated code is left, and where guest and host go on. `at` is the offset of the guest's
/// instruction in its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The owner of the processor asked for it, before the block.
    Attention { at: u16 },
    /// To the block at `at`, which was not there.
    Chain { at: u16 },
    /// To the address in `scratch`, with RSP moved by `stack`.
    Branch { at: u16, stack: i32 },
    /// The load or store at the linear address in `scratch` missed the soft TLB. With that
    /// filled, the check can be repeated at `retry`.
    Miss { at: u16, retry: u32, size: u8, write: bool },
    /// The interpreter executes the instruction. If it goes on at `next`, so does translated
    /// code at `resume` (0: nowhere).
    Interpret { at: u16, next: u16, resume: u32 },
}

/// A jump within the block's page that leads to the translation of `target`, or else to an exit.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Where the distance stands in the code.
    pub at: u32,
    pub target: u16,
}

/// The result of a translation. Offsets are relative to the start of the code.
#[derive(Clone, Copy, Debug)]
pub struct Translated {
    /// Where the block is entered with `code_base` set. The far entry is at 0.
    pub near: u32,
}

/// How an instruction uses its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Load,
    Store,
}

/// What there is to know of an instruction.
struct Fact {
    kind: Kind,
    is_vector: bool,
    /// The use of the memory operand, if there is one.
    access: Option<Access>,
    /// Of plain instructions, by number of the general-purpose register: read, written.
    uses: [(bool, bool); 16],
    /// It writes AH, CH, DH or BH.
    writes_high_byte: bool,
}

/// RBX holds the host's address of `base + low`, checked for `span` bytes.
#[derive(Clone, Copy, Debug)]
struct Checked {
    base: Reg,
    low: i32,
    span: i32,
    write: bool,
}

impl Checked {
    /// How far from RBX `size` bytes at `base + disp` lie, if they were checked.
    fn distance(&self, base: Reg, disp: i32, size: i32, write: bool) -> Option<i32> {
        let distance = disp.checked_sub(self.low)?;
        let fits = distance >= 0 && distance <= self.span - size;
        (self.base == base && fits && (self.write || !write)).then_some(distance)
    }

    /// The same after `delta` was added to the base.
    fn moved(self, delta: i32) -> Option<Self> {
        Some(Self { low: self.low.checked_sub(delta)?, ..self })
    }
}

/// One check covers at most this many bytes: the more, the likelier they cross a page, and then
/// the interpreter has to help.
const MAX_SPAN: i32 = 128;

/// Where the status flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// In AX.
    Kept,
    /// In the host's flags.
    Host,
    /// In both.
    Both,
}

/// Code that is needed rarely, and comes behind the block.
enum Cold {
    /// Leaves by an exit.
    Exit { from: Label, exit: usize },
    /// Looks in the second level of the soft TLB, and leaves if that has no answer either.
    Miss { from: Label, exit: usize, write: bool, start: Label },
}

/// Answers about instructions that depend on the processors.
pub trait Offer {
    /// Guest and host have it.
    fn has(&mut self, insn: &Instruction, is_vector: bool) -> bool;
}

/// Translates blocks; one after the other, with the same memory.
pub struct Translator {
    pub asm: Assembler,
    pub exits: Vec<Exit>,
    pub links: Vec<Link>,
    cold: Vec<Cold>,
    info: InstructionInfoFactory,
    encoder: Encoder,
    setting: Setting,
    status: Status,
    /// The number of the first exit.
    first_exit: u32,
    /// Where the code will lie, relative to the common code at the start of the cache.
    base: u32,
    has_vectors: bool,
    facts: Vec<Fact>,
    /// The current instruction and those behind it, by number.
    rest: Range<usize>,
    /// What the last check was good for, if RBX is still as it left it.
    cached: Option<Checked>,
    /// Exits whose place to go on is a label that is resolved at the end.
    resumes: Vec<(usize, Label)>,
}

/// Offsets in code memory of the code that all blocks use.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    pub leave: u32,
    pub load_vectors: u32,
    /// By view, for loads and stores: see [`second_level`](super::second_level).
    pub second_level: [[u32; 2]; VIEWS],
}

/// All status flags.
const ALL: u32 = {
    use iced_x86::RflagsBits as R;
    R::OF | R::SF | R::ZF | R::AF | R::CF | R::PF
};

/// The instruction is left to the interpreter.
struct Refused;

type Emit<T = ()> = Result<T, Refused>;

impl Translator {
    pub fn new() -> Self {
        Self {
            asm: Assembler::default(),
            exits: Vec::new(),
            links: Vec::new(),
            cold: Vec::new(),
            info: InstructionInfoFactory::new(),
            encoder: Encoder::new(64),
            setting: Setting { view: View::User, vectors: 0, time: false, narrow: false },
            status: Status::Kept,
            first_exit: 0,
            base: 0,
            has_vectors: false,
            facts: Vec::new(),
            rest: 0..0,
            cached: None,
            resumes: Vec::new(),
        }
    }

    /// Translates `insns`, which follow each other and were decoded as if their page lay at
    /// address 0. The code goes to `self.asm`, for offset `base` of the code memory; exits are
    /// numbered from `first_exit`. `None` if nothing but the interpreter could do.
    pub fn translate(
        &mut self,
        insns: &[Instruction],
        setting: Setting,
        base: u32,
        first_exit: u32,
        common: Common,
        offer: &mut dyn Offer,
    ) -> Option<Translated> {
        self.asm.clear();
        self.exits.clear();
        self.links.clear();
        self.cold.clear();
        self.resumes.clear();
        self.setting = setting;
        self.status = Status::Kept;
        self.first_exit = first_exit;
        self.base = base;
        let first = insns.first()?;
        let start = first.ip() as u16;

        let mut facts = std::mem::take(&mut self.facts);
        facts.clear();
        facts.extend(insns.iter().map(|insn| self.fact(insn, offer)));
        let result = self.block(insns, &facts, start, common);
        self.facts = facts;
        result
    }

    fn block(
        &mut self,
        insns: &[Instruction],
        facts: &[Fact],
        start: u16,
        common: Common,
    ) -> Option<Translated> {
        if matches!(facts.first()?.kind, Kind::Interpret | Kind::InterpretLast) {
            return None;
        }
        self.has_vectors = facts.iter().any(|fact| fact.is_vector && fact.kind == Kind::Plain);
        self.cached = None;

        // The far entry: RBX holds the instruction pointer.
        self.asm.lea(ADDRESS, Mem::Base(ADDRESS, -i32::from(start)));
        self.asm.store(Mem::Context(offset::CODE_BASE), ADDRESS);
        let near = self.asm.code.len() as u32;
        self.asm.alu32_mem_imm(Alu::Cmp, Mem::Context(offset::ATTENTION), 0);
        let attention = self.cold_exit(Exit::Attention { at: start });
        self.asm.jump_if(Cond::NotEqual, attention);
        self.make_vectors_live(common);

        let mut ends = false;
        for (i, (insn, fact)) in insns.iter().zip(facts).enumerate() {
            // The instruction behind STI is executed before an interrupt is taken, so it must
            // not begin a block.
            let is_last = i + 1 == insns.len();
            let kind = match fact.kind {
                Kind::SetInterrupt if is_last => Kind::Interpret,
                kind => kind,
            };
            self.rest = i..facts.len();
            ends = self.instruction(insn, kind, (insns, facts), common);
        }
        let last = insns.last()?;
        if !ends {
            self.jump_to(last.next_ip() as i64, last.ip() as u16);
        }
        self.finish(common)?;
        Some(Translated { near })
    }

    /// What there is to know of an instruction under the current setting.
    fn fact(&mut self, insn: &Instruction, offer: &mut dyn Offer) -> Fact {
        let kind = classify(insn);
        let is_vector = kind == Kind::Plain && uses_vectors(insn);
        let mut fact = Fact {
            kind,
            is_vector,
            access: None,
            uses: [(false, false); 16],
            writes_high_byte: false,
        };
        if !matches!(kind, Kind::Plain | Kind::Lea) {
            return fact;
        }
        if is_vector && self.setting.vectors < vector_level(insn) || !offer.has(insn, is_vector) {
            fact.kind = Kind::Interpret;
            return fact;
        }
        let info = self.info.info(insn);
        for i in 0..insn.op_count() {
            if insn.op_kind(i) == OpKind::Register && is_high_byte(insn.op_register(i)) {
                fact.writes_high_byte |= !matches!(
                    info.op_access(i),
                    OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
                );
            }
            if insn.op_kind(i) == OpKind::Memory {
                fact.access = match info.op_access(i) {
                    OpAccess::Read | OpAccess::CondRead => Some(Access::Load),
                    OpAccess::NoMemAccess if kind == Kind::Lea => None,
                    OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite => Some(Access::Store),
                    _ => {
                        fact.kind = Kind::Interpret;
                        None
                    }
                };
            }
        }
        for used in info.used_registers() {
            let reg = used.register();
            if !reg.is_gpr() {
                continue;
            }
            let (read, written) = match used.access() {
                OpAccess::None | OpAccess::NoMemAccess => continue,
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write => (reg.size() < 4, true),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite | OpAccess::CondWrite => (true, true),
            };
            let slot = &mut fact.uses[number(reg)];
            *slot = (slot.0 || read, slot.1 || written);
        }
        fact
    }

    fn make_vectors_live(&mut self, common: Common) {
        if self.has_vectors {
            self.asm.alu32_mem_imm(Alu::Cmp, Mem::Context(offset::VECTORS_LIVE), 0);
            let live = self.asm.label();
            self.asm.jump_if(Cond::NotEqual, live);
            let from = self.base as i32 + self.asm.code.len() as i32 + 5;
            self.asm.call_by(common.load_vectors as i32 - from);
            self.asm.bind(live);
        }
    }

    /// Emits one instruction; `true` if nothing follows it.
    fn instruction(
        &mut self,
        insn: &Instruction,
        kind: Kind,
        block: (&[Instruction], &[Fact]),
        common: Common,
    ) -> bool {
        // Who leaves RBX alone, or knows what becomes of it, gives this back.
        let cached = self.cached.take();
        let fact = &block.1[self.rest.start];
        let before = self.asm.code.len();
        let marks = (self.exits.len(), self.cold.len(), self.links.len(), self.resumes.len());
        let status = self.status;
        let emitted = match kind {
            Kind::Nothing => {
                self.cached = cached;
                Ok(())
            }
            Kind::Plain => self.plain(insn, fact, cached, block),
            Kind::Lea => self.lea(insn, fact, cached),
            Kind::Push => self.push(insn, cached, block),
            Kind::Pop => self.pop(insn, cached, block),
            Kind::Leave => self.leave(insn, cached, block),
            Kind::Div | Kind::Idiv => self.divide(insn, kind == Kind::Idiv),
            Kind::CompareExchange16 => self.compare_exchange_16(insn),
            Kind::BitString => self.bit_string(insn),
            Kind::ClearInterrupt if self.setting.view != View::User => {
                self.destroy_flags();
                let mask = !(Rflags::IF.bits() as i32);
                self.asm.alu32_mem_imm(Alu::And, Mem::Context(offset::RFLAGS), mask);
                Ok(())
            }
            Kind::SetInterrupt if self.setting.view != View::User => {
                self.set_interrupt(insn);
                Ok(())
            }
            Kind::SwapGs if self.setting.view != View::User => {
                self.asm.load(ADDRESS, Mem::Context(offset::GS_BASE));
                self.asm.load(INDEX, Mem::Context(offset::KERNEL_GS_BASE));
                self.asm.store(Mem::Context(offset::GS_BASE), INDEX);
                self.asm.store(Mem::Context(offset::KERNEL_GS_BASE), ADDRESS);
                Ok(())
            }
            Kind::PushFlags => {
                self.push_flags(insn, block);
                Ok(())
            }
            Kind::Selector => {
                self.selector(insn);
                Ok(())
            }
            Kind::TimeStamp if self.setting.time => {
                self.time_stamp(insn.mnemonic() == Mnemonic::Rdtscp);
                Ok(())
            }
            Kind::Pause => {
                self.asm.bytes(&[0xf3, 0x90]);
                Ok(())
            }
            Kind::Direction { down } => {
                self.destroy_flags();
                let df = Rflags::DF.bits() as i32;
                let (op, mask) = if down { (Alu::Or, df) } else { (Alu::And, !df) };
                self.asm.alu32_mem_imm(op, Mem::Context(offset::RFLAGS), mask);
                Ok(())
            }
            Kind::Jump => {
                self.keep_flags();
                self.jump_to(insn.near_branch_target() as i64, insn.ip() as u16);
                return true;
            }
            Kind::JumpIf => {
                self.jump_if(insn);
                return true;
            }
            Kind::JumpIfCounterZero => {
                self.keep_flags();
                // JRCXZ over the next jump: it reaches no further.
                self.asm.bytes(&[0xe3, 5]);
                let not_taken = self.asm.label();
                self.asm.jmp(not_taken);
                let status = self.status;
                self.jump_to(insn.near_branch_target() as i64, insn.ip() as u16);
                self.asm.bind(not_taken);
                self.status = status;
                self.jump_to(insn.next_ip() as i64, insn.ip() as u16);
                return true;
            }
            Kind::Call => self.call(insn, cached, block),
            Kind::JumpIndirect => self.jump_indirect(insn),
            Kind::CallIndirect => self.call_indirect(insn, block),
            Kind::Return => self.ret(insn, cached, block),
            Kind::ClearInterrupt
            | Kind::SetInterrupt
            | Kind::SwapGs
            | Kind::TimeStamp
            | Kind::Interpret
            | Kind::InterpretLast => Err(Refused),
        };
        let is_branch =
            matches!(kind, Kind::Call | Kind::JumpIndirect | Kind::CallIndirect | Kind::Return);
        if emitted.is_ok() {
            return is_branch;
        }
        // Takes back what was emitted. Labels stay, unused.
        self.asm.truncate(before);
        self.exits.truncate(marks.0);
        self.cold.truncate(marks.1);
        self.links.truncate(marks.2);
        self.resumes.truncate(marks.3);
        self.status = status;
        self.cached = None;
        self.interpret(insn, kind == Kind::InterpretLast || is_branch, common)
    }

    fn interpret(&mut self, insn: &Instruction, is_last: bool, common: Common) -> bool {
        self.keep_flags();
        let exit = self.exit(Exit::Interpret {
            at: insn.ip() as u16,
            next: insn.next_ip() as u16,
            resume: 0,
        });
        self.leave_by(exit, common);
        if is_last || insn.next_ip() > 0xfff {
            return true;
        }
        let resume = self.asm.here();
        self.resumes.push((exit, resume));
        self.status = Status::Kept;
        self.make_vectors_live(common);
        false
    }

    // --- Exits --------------------------------------------------------------------------------

    fn exit(&mut self, exit: Exit) -> usize {
        self.exits.push(exit);
        self.exits.len() - 1
    }

    fn cold_exit(&mut self, exit: Exit) -> Label {
        let exit = self.exit(exit);
        let from = self.asm.label();
        self.cold.push(Cold::Exit { from, exit });
        from
    }

    fn leave_by(&mut self, exit: usize, common: Common) {
        self.asm.mov_imm(INDEX, (self.first_exit + exit as u32) as i32);
        let from = self.base as i32 + self.asm.code.len() as i32 + 5;
        self.asm.jmp_by(common.leave as i32 - from);
    }

    /// Emits what comes behind the block and resolves all jumps.
    fn finish(&mut self, common: Common) -> Option<()> {
        for cold in std::mem::take(&mut self.cold) {
            match cold {
                Cold::Exit { from, exit } => {
                    self.asm.bind(from);
                    self.leave_by(exit, common);
                }
                Cold::Miss { from, exit, write, start } => {
                    let view = self.setting.view;
                    self.asm.bind(from);
                    self.asm.push_imm((self.first_exit + exit as u32) as i32);
                    let from = self.base as i32 + self.asm.code.len() as i32 + 5;
                    let second = common.second_level[view as usize][usize::from(write)];
                    self.asm.call_by(second as i32 - from);
                    self.asm.jmp(start);
                }
            }
        }
        for (exit, label) in std::mem::take(&mut self.resumes) {
            let to = self.base + self.asm.position(label)? as u32;
            match &mut self.exits[exit] {
                Exit::Interpret { resume: place, .. } | Exit::Miss { retry: place, .. } => {
                    *place = to;
                }
                _ => {}
            }
        }
        self.asm.resolve().then_some(())
    }

    // --- Status flags ---------------------------------------------------------------------------

    /// AX holds the flags from here on.
    fn keep_flags(&mut self) {
        if self.status == Status::Host {
            self.asm.save_status();
            self.status = Status::Both;
        }
    }

    /// The host's flags may be destroyed from here on.
    fn destroy_flags(&mut self) {
        self.keep_flags();
        self.status = Status::Kept;
    }

    /// The host's flags hold the guest's from here on.
    fn need_flags(&mut self) {
        if self.status == Status::Kept {
            self.asm.restore_status();
            self.status = Status::Both;
        }
    }

    /// RAX is free from here on, until flags are kept again.
    fn free_status(&mut self) {
        self.need_flags();
        self.status = Status::Host;
    }

    // --- Addresses ------------------------------------------------------------------------------

    /// Guest register `reg`, a whole one, in a host register: its own, or `temporary`.
    fn whole(&mut self, reg: Register, temporary: Reg) -> Reg {
        match home(number(reg)) {
            Home::Host(host) => host,
            Home::Memory(n) => {
                self.asm.load(temporary, Mem::Context(offset::gpr(n)));
                temporary
            }
        }
    }

    /// The memory operand as a sum of host registers. Uses RBX and RBP.
    fn sum(&mut self, insn: &Instruction) -> Emit<Mem> {
        let disp = i32::try_from(insn.memory_displacement64() as i64).map_err(|_| Refused)?;
        let (base, index) = (insn.memory_base(), insn.memory_index());
        if base == Register::RIP {
            self.asm.load(ADDRESS, Mem::Context(offset::CODE_BASE));
            return Ok(Mem::Base(ADDRESS, disp));
        }
        for reg in [base, index] {
            if reg != Register::None && !reg.is_gpr64() {
                return Err(Refused);
            }
        }
        let base = (base != Register::None).then(|| self.whole(base, ADDRESS));
        let scale = insn.memory_index_scale().trailing_zeros() as u8;
        let index = (index != Register::None).then(|| (self.whole(index, INDEX), scale));
        Ok(match (base, index) {
            (Some(base), None) => Mem::Base(base, disp),
            (base, index) => Mem::Sum { base, index, disp },
        })
    }

    /// The linear address of the memory operand, into RBX. Destroys flags if there is a segment.
    fn linear(&mut self, insn: &Instruction) -> Emit {
        match self.sum(insn)? {
            Mem::Base(base, 0) => self.asm.mov(ADDRESS, base),
            Mem::Sum { base: None, index: None, disp } => self.asm.mov_imm(ADDRESS, disp),
            sum => self.asm.lea(ADDRESS, sum),
        }
        match insn.memory_segment() {
            Register::FS => {
                self.asm.alu_mem(Alu::Add, ADDRESS, Mem::Context(offset::FS_BASE));
            }
            Register::GS => {
                self.asm.alu_mem(Alu::Add, ADDRESS, Mem::Context(offset::GS_BASE));
            }
            _ => {}
        }
        Ok(())
    }

    /// Turns the linear address in RBX into the host's. Flags must have been destroyed.
    /// `start` is where forming the address began.
    fn check(&mut self, insn: &Instruction, start: Label, size: usize, write: bool, align: bool) {
        debug_assert!(self.status == Status::Kept);
        let view = self.setting.view;
        let tag = offset::tlb_tag(view, write);
        self.asm.rorx(INDEX, ADDRESS, 12);
        self.asm.alu32_imm(Alu::And, INDEX, TLB_ENTRIES as i32 - 1);
        self.asm.alu_mem(Alu::Add, ADDRESS, Mem::ContextIndexed(INDEX, tag));
        self.asm.alu_imm(Alu::Cmp, ADDRESS, 4096 - size as i32);
        let at = insn.ip() as u16;
        let exit = self.exit(Exit::Miss { at, retry: 0, size: size as u8, write });
        self.resumes.push((exit, start));
        let miss = self.asm.label();
        self.cold.push(Cold::Miss { from: miss, exit, write, start });
        self.asm.jump_if(Cond::Above, miss);
        if align {
            // The interpreter raises what there is to raise.
            let odd = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
            self.asm.test_bl(size as u8 - 1);
            self.asm.jump_if(Cond::NotEqual, odd);
        }
        let host = offset::tlb_host(view, write);
        self.asm.alu_mem(Alu::Add, ADDRESS, Mem::ContextIndexed(INDEX, host));
    }

    /// The host's address of the memory operand, into RBX.
    fn operand(&mut self, insn: &Instruction, size: usize, write: bool, align: bool) -> Emit {
        self.destroy_flags();
        let start = self.asm.here();
        self.linear(insn)?;
        self.check(insn, start, size, write, align);
        Ok(())
    }

    /// Brings the host's address of `size` bytes at `base + disp` near RBX, together with what the
    /// next instructions access there; returns how far from RBX it is.
    fn near(
        &mut self,
        insn: &Instruction,
        (base, disp): (Reg, i32),
        (size, write): (i32, bool),
        cached: Option<Checked>,
        block: (&[Instruction], &[Fact]),
    ) -> i32 {
        if let Some(cached) = cached
            && let Some(distance) = cached.distance(base, disp, size, write)
        {
            self.cached = Some(cached);
            return distance;
        }
        let checked = self.look_ahead(base, disp, size, write, block);
        self.destroy_flags();
        let start = self.asm.here();
        match checked.low {
            0 => self.asm.mov(ADDRESS, base),
            low => self.asm.lea(ADDRESS, Mem::Base(base, low)),
        }
        self.check(insn, start, checked.span as usize, checked.write, false);
        self.cached = Some(checked);
        disp - checked.low
    }

    /// The range that one check for the current access and those behind it should cover.
    fn look_ahead(
        &self,
        base: Reg,
        disp: i32,
        size: i32,
        write: bool,
        (insns, facts): (&[Instruction], &[Fact]),
    ) -> Checked {
        if self.setting.narrow {
            return Checked { base, low: disp, span: size, write };
        }
        let (mut low, mut high, mut any_write) = (disp, disp + size, write);
        // What was added to the base since.
        let mut delta = 0i32;
        for (i, (insn, fact)) in insns.iter().zip(facts).enumerate().skip(self.rest.start) {
            let is_stack = base == GUEST_RSP;
            let mut touches = |from: i32, size: i32, write: bool| {
                let Some(from) = from.checked_add(delta) else { return false };
                let to = from.saturating_add(size);
                if from.min(low).saturating_add(MAX_SPAN) < to.max(high) {
                    return false;
                }
                low = low.min(from);
                high = high.max(to);
                any_write |= write;
                true
            };
            let goes_on = match fact.kind {
                Kind::Nothing => true,
                Kind::Push if is_stack && insn.op0_kind() != OpKind::Memory => {
                    let fits = touches(-8, 8, true);
                    delta -= 8;
                    fits
                }
                Kind::Pop if is_stack => {
                    let fits = touches(0, 8, false);
                    delta += 8;
                    fits && number(insn.op0_register()) != 4
                }
                Kind::Call if is_stack => {
                    touches(-8, 8, true);
                    false
                }
                Kind::Return if is_stack => {
                    touches(0, 8, false);
                    false
                }
                Kind::Plain => {
                    let fits = match fact.access {
                        None => true,
                        Some(access) => match based(insn) {
                            Some((b, disp)) if b == base => {
                                let size = insn.memory_size().size() as i32;
                                touches(disp, size, access == Access::Store)
                            }
                            _ => i == self.rest.start,
                        },
                    };
                    match constant_step(insn, fact, base) {
                        Some(step) => delta = delta.saturating_add(step),
                        None => return Checked { base, low, span: high - low, write: any_write },
                    }
                    fits
                }
                Kind::Lea => constant_step(insn, fact, base) == Some(0),
                _ => i == self.rest.start,
            };
            if !goes_on {
                break;
            }
        }
        Checked { base, low, span: high - low, write: any_write }
    }

    // --- Instructions that are emitted as themselves ----------------------------------------------

    fn plain(
        &mut self,
        insn: &Instruction,
        fact: &Fact,
        cached: Option<Checked>,
        block: (&[Instruction], &[Fact]),
    ) -> Emit {
        let mut host = *insn;
        host.set_code(renamable(insn.code()));
        // Repeat prefixes mean nothing here.
        host.set_has_rep_prefix(false);
        host.set_has_repne_prefix(false);

        let has_memory = fact.access.is_some();
        let write = fact.access == Some(Access::Store);
        let uses = fact.uses;
        let mut is_explicit = [false; 16];
        for i in 0..insn.op_count() {
            if insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_gpr() {
                is_explicit[number(insn.op_register(i))] = true;
            }
        }
        let is_address = |n: usize| {
            [insn.memory_base(), insn.memory_index()].iter().any(|r| r.is_gpr() && number(*r) == n)
        };
        let is_shift_by_register = is_shift(insn.mnemonic())
            && (0..insn.op_count()).any(|i| {
                insn.op_kind(i) == OpKind::Register && insn.op_register(i) == Register::CL
            });
        let implied = implicit_registers(insn);
        // Of the registers that live elsewhere, only RAX may be implied.
        for n in implied.iter().copied() {
            if n != 0 && home(n) != Home::Host(Reg(n as u8)) {
                return Err(Refused);
            }
        }
        for n in 0..16 {
            let known = is_explicit[n] || implied.contains(&n) || is_address(n);
            if uses[n] != (false, false) && !known {
                return Err(Refused);
            }
        }
        let implies_rax = implied.contains(&0);
        if implies_rax && is_explicit[0] && uses[0].1 && insn.mnemonic() == Mnemonic::Cmpxchg {
            return Err(Refused);
        }

        // Flags.
        let (reads, modifies) = flags(insn, is_shift_by_register);
        if has_memory {
            let size = insn.memory_size().size();
            let align = x86::wants_alignment(insn);
            let distance = match based(insn) {
                Some(place) if !align => {
                    self.near(insn, place, (size as i32, write), cached, block)
                }
                _ => {
                    self.operand(insn, size, write, align)?;
                    0
                }
            };
            point_at_address(&mut host, distance);
        } else {
            self.cached = cached;
        }
        if let Some(cached) = self.cached {
            self.cached = constant_step(insn, fact, cached.base).and_then(|by| cached.moved(by));
        }
        if reads != 0 || modifies != 0 && modifies != ALL {
            self.need_flags();
        }
        if implies_rax {
            if modifies == ALL && reads == 0 {
                self.status = Status::Host;
            } else {
                self.free_status();
            }
        }

        // Temporaries for registers that live in memory, and for high bytes.
        let mut free =
            [Some(INDEX), (!has_memory).then_some(ADDRESS), (!implies_rax).then_some(STATUS)]
                .into_iter()
                .flatten();
        let mut is_status_spilled = false;
        let mut renamed: Vec<(usize, Reg, bool)> = Vec::new();
        for i in 0..insn.op_count() {
            if insn.op_kind(i) != OpKind::Register {
                continue;
            }
            let reg = insn.op_register(i);
            if !reg.is_gpr() {
                continue;
            }
            let n = number(reg);
            let is_high = is_high_byte(reg);
            let to = match home(n) {
                Home::Host(host) if !is_high => host,
                place => match renamed.iter().find(|r| r.0 == n && r.2 == is_high) {
                    Some(r) => r.1,
                    None => {
                        let temporary = free.next().ok_or(Refused)?;
                        if temporary == ADDRESS {
                            self.cached = None;
                        } else if temporary == STATUS && self.status != Status::Host {
                            self.asm.store(Mem::Context(offset::STATUS), STATUS);
                            is_status_spilled = true;
                        }
                        match place {
                            Home::Host(host) => self.asm.rorx(temporary, host, 8),
                            Home::Memory(m) if uses[n].0 => {
                                self.asm.load(temporary, Mem::Context(offset::gpr(m)));
                            }
                            Home::Memory(_) => {}
                        }
                        renamed.push((n, temporary, is_high));
                        temporary
                    }
                },
            };
            // AH becomes the low byte of a register that was rotated.
            let like = if is_high { Register::AL } else { reg };
            host.set_op_register(i, sized(to, like));
        }
        if fact.writes_high_byte && renamed.iter().any(|r| r.2 && writes_both_halves(insn, r.0)) {
            return Err(Refused);
        }
        if implies_rax {
            self.asm.mov(STATUS, GUEST_RAX);
        }
        self.encode(&host)?;
        if implies_rax && uses[0].1 {
            self.asm.mov(GUEST_RAX, STATUS);
        }
        for &(n, temporary, is_high) in &renamed {
            if uses[n].1 {
                match home(n) {
                    Home::Host(host) if is_high => {
                        if fact.writes_high_byte {
                            self.asm.rorx(host, temporary, 56);
                        }
                    }
                    Home::Host(_) => {}
                    Home::Memory(m) => self.asm.store(Mem::Context(offset::gpr(m)), temporary),
                }
            }
        }
        if modifies != 0 {
            self.status = Status::Host;
        } else if is_status_spilled {
            self.asm.load(STATUS, Mem::Context(offset::STATUS));
        }
        Ok(())
    }

    fn encode(&mut self, insn: &Instruction) -> Emit {
        self.encoder.set_buffer(std::mem::take(&mut self.asm.code));
        let result = self.encoder.encode(insn, 0);
        self.asm.code = self.encoder.take_buffer();
        result.map(|_| ()).map_err(|_| Refused)
    }

    fn lea(&mut self, insn: &Instruction, fact: &Fact, cached: Option<Checked>) -> Emit {
        let reg = insn.op0_register();
        let is_wide = reg.is_gpr64();
        if !is_wide && !reg.is_gpr32() {
            return Err(Refused);
        }
        let sum = self.sum(insn)?;
        let n = number(reg);
        let to = match home(n) {
            Home::Host(host) => host,
            Home::Memory(_) => INDEX,
        };
        let uses_address = match sum {
            Mem::Base(base, _) => base == ADDRESS,
            Mem::Sum { base, .. } => base == Some(ADDRESS),
            _ => true,
        };
        if !uses_address && let Some(cached) = cached {
            self.cached = constant_step(insn, fact, cached.base).and_then(|by| cached.moved(by));
        }
        if is_wide {
            self.asm.lea(to, sum);
        } else {
            self.asm.lea32(to, sum);
        }
        if let Home::Memory(n) = home(n) {
            self.asm.store(Mem::Context(offset::gpr(n)), to);
        }
        Ok(())
    }

    // --- The stack ------------------------------------------------------------------------------

    fn push(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: (&[Instruction], &[Fact]),
    ) -> Emit {
        match insn.op0_kind() {
            OpKind::Register => {
                let at = self.near(insn, (GUEST_RSP, -8), (8, true), cached, block);
                let value = self.whole(insn.op0_register(), INDEX);
                self.asm.store(Mem::Base(ADDRESS, at), value);
            }
            OpKind::Memory => {
                self.operand(insn, 8, false, false)?;
                self.asm.load(ADDRESS, Mem::Base(ADDRESS, 0));
                self.asm.store(Mem::Context(offset::SPILL), ADDRESS);
                let at = self.near(insn, (GUEST_RSP, -8), (8, true), None, block);
                self.asm.load(INDEX, Mem::Context(offset::SPILL));
                self.asm.store(Mem::Base(ADDRESS, at), INDEX);
            }
            _ => {
                let value = insn.try_immediate(0).map_err(|_| Refused)?;
                let value = i32::try_from(value as i64).map_err(|_| Refused)?;
                let at = self.near(insn, (GUEST_RSP, -8), (8, true), cached, block);
                self.asm.store_imm(Mem::Base(ADDRESS, at), value);
            }
        }
        self.move_stack(-8);
        Ok(())
    }

    /// Adds to the guest's RSP, and nothing to what is known of memory.
    fn move_stack(&mut self, by: i32) {
        self.asm.lea(GUEST_RSP, Mem::Base(GUEST_RSP, by));
        if let Some(cached) = self.cached
            && cached.base == GUEST_RSP
        {
            self.cached = cached.moved(by);
        }
    }

    fn pop(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: (&[Instruction], &[Fact]),
    ) -> Emit {
        let at = Mem::Base(ADDRESS, self.near(insn, (GUEST_RSP, 0), (8, false), cached, block));
        match home(number(insn.op0_register())) {
            Home::Host(GUEST_RSP) => {
                self.asm.load(GUEST_RSP, at);
                self.cached = None;
                return Ok(());
            }
            Home::Host(host) => {
                self.asm.load(host, at);
                if self.cached.is_some_and(|cached| cached.base == host) {
                    self.cached = None;
                }
            }
            Home::Memory(n) => {
                self.asm.load(INDEX, at);
                self.asm.store(Mem::Context(offset::gpr(n)), INDEX);
            }
        }
        self.move_stack(8);
        Ok(())
    }

    fn leave(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: (&[Instruction], &[Fact]),
    ) -> Emit {
        let at = self.near(insn, (GUEST_RBP, 0), (8, false), cached, block);
        self.asm.lea(GUEST_RSP, Mem::Base(GUEST_RBP, 8));
        self.asm.load(GUEST_RBP, Mem::Base(ADDRESS, at));
        self.cached = None;
        Ok(())
    }

    /// PUSHFQ.
    fn push_flags(&mut self, insn: &Instruction, block: (&[Instruction], &[Fact])) {
        self.destroy_flags();
        self.asm.movzx_ah(INDEX);
        self.asm.alu32_imm(Alu::And, INDEX, 0xd5);
        self.asm.movzx_al(ADDRESS);
        self.asm.shl32(ADDRESS, 11);
        self.asm.alu32(Alu::Or, INDEX, ADDRESS);
        self.asm.load(ADDRESS, Mem::Context(offset::RFLAGS));
        self.asm.alu_imm(Alu::And, ADDRESS, !(Rflags::STATUS.bits() as i32));
        self.asm.alu(Alu::Or, ADDRESS, INDEX);
        self.asm.store(Mem::Context(offset::SPILL), ADDRESS);
        let at = self.near(insn, (GUEST_RSP, -8), (8, true), None, block);
        self.asm.load(INDEX, Mem::Context(offset::SPILL));
        self.asm.store(Mem::Base(ADDRESS, at), INDEX);
        self.move_stack(-8);
    }

    // --- Light system instructions ----------------------------------------------------------------

    /// STI. An interrupt that waits already is for the interpreter, which knows of the shadow.
    fn set_interrupt(&mut self, insn: &Instruction) {
        self.destroy_flags();
        let at = insn.ip() as u16;
        let deferred = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
        // `attention` and, behind it, `deferred`.
        self.asm.cmp_mem_zero(Mem::Context(offset::ATTENTION));
        self.asm.jump_if(Cond::NotEqual, deferred);
        self.asm.alu32_mem_imm(Alu::Or, Mem::Context(offset::RFLAGS), Rflags::IF.bits() as i32);
    }

    /// MOV from a segment register, which clears what lies above 16 bits.
    fn selector(&mut self, insn: &Instruction) {
        let number_of_segment = insn.op1_register() as usize - Register::ES as usize;
        let from = Mem::Context(offset::selector(number_of_segment));
        match home(number(insn.op0_register())) {
            Home::Host(host) => self.asm.load32(host, from),
            Home::Memory(n) => {
                self.asm.load32(ADDRESS, from);
                self.asm.store(Mem::Context(offset::gpr(n)), ADDRESS);
            }
        }
    }

    /// RDTSC and RDTSCP, with nothing that changes flags.
    fn time_stamp(&mut self, has_processor: bool) {
        self.free_status();
        if has_processor {
            // LFENCE: all that comes before is done.
            self.asm.bytes(&[0x0f, 0xae, 0xe8]);
            self.asm.load32(Reg::RCX, Mem::Context(offset::TSC_AUX));
        }
        self.asm.bytes(&[0x0f, 0x31]);
        self.asm.rorx(Reg::RDX, Reg::RDX, 32);
        self.asm.load(ADDRESS, Mem::Context(offset::TSC_OFFSET));
        self.asm.lea(STATUS, Mem::Sum { base: Some(STATUS), index: Some((Reg::RDX, 0)), disp: 0 });
        self.asm.lea(STATUS, Mem::Sum { base: Some(STATUS), index: Some((ADDRESS, 0)), disp: 0 });
        self.asm.mov32(GUEST_RAX, STATUS);
        self.asm.rorx(Reg::RDX, STATUS, 32);
        self.asm.mov32(Reg::RDX, Reg::RDX);
    }

    // --- Arithmetic that may fault, and other special cases --------------------------------------

    /// DIV and IDIV: what might raise #DE is left to the interpreter.
    fn divide(&mut self, insn: &Instruction, is_signed: bool) -> Emit {
        let size = match insn.op0_kind() {
            OpKind::Memory => insn.memory_size().size(),
            _ => insn.op0_register().size(),
        };
        self.destroy_flags();
        // The divisor, into RBX.
        if insn.op0_kind() == OpKind::Memory {
            self.operand(insn, size, false, false)?;
            if size == 8 {
                self.asm.load(ADDRESS, Mem::Base(ADDRESS, 0));
            } else {
                self.asm.load32(ADDRESS, Mem::Base(ADDRESS, 0));
            }
        } else {
            let divisor = self.whole(insn.op0_register().full_register(), ADDRESS);
            if size == 8 {
                self.asm.mov(ADDRESS, divisor);
            } else {
                self.asm.mov32(ADDRESS, divisor);
            }
        }
        let at = insn.ip() as u16;
        let odd = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
        let wide = size == 8;
        if is_signed {
            // The dividend is a sign-extended number, and the divisor neither 0 nor -1.
            self.asm.mov(INDEX, GUEST_RAX);
            if wide {
                self.asm.sar(INDEX, 63);
                self.asm.alu(Alu::Cmp, INDEX, Reg::RDX);
            } else {
                self.asm.sar32(INDEX, 31);
                self.asm.alu32(Alu::Cmp, INDEX, Reg::RDX);
            }
            self.asm.jump_if(Cond::NotEqual, odd);
            if wide {
                self.asm.lea(INDEX, Mem::Base(ADDRESS, 1));
                self.asm.alu_imm(Alu::Cmp, INDEX, 1);
            } else {
                self.asm.lea32(INDEX, Mem::Base(ADDRESS, 1));
                self.asm.alu32_imm(Alu::Cmp, INDEX, 1);
            }
            self.asm.jump_if(Cond::BelowEqual, odd);
        } else {
            // The quotient fits if the upper half is less than the divisor, which it never is
            // for 0.
            if wide {
                self.asm.alu(Alu::Cmp, Reg::RDX, ADDRESS);
            } else {
                self.asm.alu32(Alu::Cmp, Reg::RDX, ADDRESS);
            }
            self.asm.jump_if(Cond::AboveEqual, odd);
        }
        // All flags are undefined behind a division: those that the processor leaves.
        self.need_flags();
        self.status = Status::Host;
        self.asm.mov(STATUS, GUEST_RAX);
        let w: &[u8] = if wide { &[0x48, 0xf7] } else { &[0xf7] };
        self.asm.bytes(w);
        self.asm.byte(if is_signed { 0xfb } else { 0xf3 });
        self.asm.mov(GUEST_RAX, STATUS);
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B.
    fn compare_exchange_16(&mut self, insn: &Instruction) -> Emit {
        let is_wide = insn.mnemonic() == Mnemonic::Cmpxchg16b;
        let size = if is_wide { 16 } else { 8 };
        self.operand(insn, size, true, is_wide)?;
        self.free_status();
        self.asm.mov(INDEX, ADDRESS);
        self.asm.mov(STATUS, GUEST_RAX);
        self.asm.mov(ADDRESS, GUEST_RBX);
        if insn.has_lock_prefix() {
            self.asm.byte(0xf0);
        }
        if is_wide {
            self.asm.byte(0x48);
        }
        // CMPXCHG16B [RBP+0]
        self.asm.bytes(&[0x0f, 0xc7, 0x4d, 0x00]);
        if is_wide {
            self.asm.mov(GUEST_RAX, STATUS);
        } else {
            // On success EDX:EAX stay as they are, upper halves included; so they do here, if
            // only what was loaded is taken over.
            let equal = self.asm.label();
            self.asm.jump_if(Cond::Equal, equal);
            self.asm.mov32(GUEST_RAX, STATUS);
            self.asm.bind(equal);
        }
        Ok(())
    }

    /// BT, BTS, BTR, BTC of a bit string in memory.
    fn bit_string(&mut self, insn: &Instruction) -> Emit {
        let reg = insn.op1_register();
        let size = reg.size();
        if size == 2 {
            return Err(Refused);
        }
        self.destroy_flags();
        let start = self.asm.here();
        self.linear(insn)?;
        // The address moves by whole operands, as far as the signed bit offset says.
        let offset_register = self.whole(reg.full_register(), INDEX);
        if size == 8 {
            self.asm.mov(INDEX, offset_register);
            self.asm.sar(INDEX, 6);
            self.asm
                .lea(ADDRESS, Mem::Sum { base: Some(ADDRESS), index: Some((INDEX, 3)), disp: 0 });
        } else {
            self.asm.movsxd(INDEX, offset_register);
            self.asm.sar(INDEX, 5);
            self.asm
                .lea(ADDRESS, Mem::Sum { base: Some(ADDRESS), index: Some((INDEX, 2)), disp: 0 });
        }
        let write = insn.mnemonic() != Mnemonic::Bt;
        self.check(insn, start, size, write, false);
        let offset_register = self.whole(reg.full_register(), INDEX);
        self.asm.mov(INDEX, offset_register);
        self.asm.alu32_imm(Alu::And, INDEX, size as i32 * 8 - 1);
        self.need_flags();
        let mut host = *insn;
        host.set_op1_register(sized(INDEX, reg));
        // Repeat prefixes mean nothing, or elide locks.
        host.set_has_rep_prefix(false);
        host.set_has_repne_prefix(false);
        point_at_address(&mut host, 0);
        self.encode(&host)?;
        self.status = Status::Host;
        Ok(())
    }

    // --- Control flow -----------------------------------------------------------------------------

    /// Goes to `target`, an offset from the start of the page. Flags are kept.
    fn jump_to(&mut self, target: i64, at: u16) {
        self.keep_flags();
        self.status = Status::Kept;
        if let Ok(target) = u16::try_from(target)
            && target < 4096
        {
            let exit = self.exit(Exit::Chain { at: target });
            let from = self.asm.label();
            let link = self.asm.jmp(from) as u32;
            self.add_link(exit, from, link, target);
            return;
        }
        match i32::try_from(target) {
            Ok(target) => {
                self.asm.load(ADDRESS, Mem::Context(offset::CODE_BASE));
                self.asm.lea(ADDRESS, Mem::Base(ADDRESS, target));
                self.look_up(at, 0);
            }
            Err(_) => {
                let exit = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
                self.asm.jmp(exit);
            }
        }
    }

    fn add_link(&mut self, exit: usize, from: Label, link: u32, target: u16) {
        self.cold.push(Cold::Exit { from, exit });
        self.links.push(Link { at: link, target });
    }

    /// Goes to the address in RBX, with RSP moved by `stack`. Flags are kept and destroyed.
    fn look_up(&mut self, at: u16, stack: i32) {
        debug_assert!(self.status == Status::Kept);
        let view = self.setting.view;
        self.asm.mov32(INDEX, ADDRESS);
        self.asm.shr32(INDEX, 12);
        self.asm.alu32(Alu::Xor, INDEX, ADDRESS);
        self.asm.alu32_imm(Alu::And, INDEX, JUMP_ENTRIES as i32 - 1);
        self.asm.alu_mem(Alu::Cmp, ADDRESS, Mem::ContextIndexed(INDEX, offset::jump_guest(view)));
        let miss = self.cold_exit(Exit::Branch { at, stack });
        self.asm.jump_if(Cond::NotEqual, miss);
        if stack != 0 {
            self.asm.lea(GUEST_RSP, Mem::Base(GUEST_RSP, stack));
        }
        self.asm.jmp_mem(Mem::ContextIndexed(INDEX, offset::jump_host(view)));
    }

    fn jump_if(&mut self, insn: &Instruction) {
        self.need_flags();
        self.keep_flags();
        let condition = (insn.condition_code() as u8 - iced_x86::ConditionCode::o as u8) & 15;
        let target = insn.near_branch_target() as i64;
        let at = insn.ip() as u16;
        if (0..4096).contains(&target) {
            let exit = self.exit(Exit::Chain { at: target as u16 });
            let from = self.asm.label();
            let link = self.asm.jcc(condition, from) as u32;
            self.add_link(exit, from, link, target as u16);
            self.jump_to(insn.next_ip() as i64, at);
        } else {
            let taken = self.asm.label();
            self.asm.jcc(condition, taken);
            self.jump_to(insn.next_ip() as i64, at);
            self.asm.bind(taken);
            self.jump_to(target, at);
        }
    }

    /// Stores the return address at the new top of the stack.
    fn store_return_address(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: (&[Instruction], &[Fact]),
    ) {
        let at = self.near(insn, (GUEST_RSP, -8), (8, true), cached, block);
        self.asm.load(INDEX, Mem::Context(offset::CODE_BASE));
        self.asm.lea(INDEX, Mem::Base(INDEX, insn.next_ip() as i32));
        self.asm.store(Mem::Base(ADDRESS, at), INDEX);
        self.cached = None;
    }

    fn call(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: (&[Instruction], &[Fact]),
    ) -> Emit {
        let target = insn.near_branch_target() as i64;
        let is_near = (0..4096).contains(&target);
        let far = i32::try_from(target).map_err(|_| Refused)?;
        self.store_return_address(insn, cached, block);
        if is_near {
            self.asm.lea(GUEST_RSP, Mem::Base(GUEST_RSP, -8));
            self.jump_to(target, insn.ip() as u16);
        } else {
            self.destroy_flags();
            self.asm.load(ADDRESS, Mem::Context(offset::CODE_BASE));
            self.asm.lea(ADDRESS, Mem::Base(ADDRESS, far));
            self.look_up(insn.ip() as u16, -8);
        }
        Ok(())
    }

    /// The target of an indirect branch, into RBX.
    fn branch_target(&mut self, insn: &Instruction) -> Emit {
        if insn.op0_kind() == OpKind::Memory {
            self.operand(insn, 8, false, false)?;
            self.asm.load(ADDRESS, Mem::Base(ADDRESS, 0));
        } else {
            self.destroy_flags();
            let target = self.whole(insn.op0_register(), ADDRESS);
            self.asm.mov(ADDRESS, target);
        }
        Ok(())
    }

    fn jump_indirect(&mut self, insn: &Instruction) -> Emit {
        self.branch_target(insn)?;
        self.look_up(insn.ip() as u16, 0);
        Ok(())
    }

    fn call_indirect(&mut self, insn: &Instruction, block: (&[Instruction], &[Fact])) -> Emit {
        self.branch_target(insn)?;
        // What is not canonical faults before anything is stored.
        let at = insn.ip() as u16;
        let odd = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
        self.asm.mov(INDEX, ADDRESS);
        self.asm.shl(INDEX, 16);
        self.asm.sar(INDEX, 16);
        self.asm.alu(Alu::Cmp, INDEX, ADDRESS);
        self.asm.jump_if(Cond::NotEqual, odd);
        self.asm.store(Mem::Context(offset::SPILL), ADDRESS);
        self.store_return_address(insn, None, block);
        self.destroy_flags();
        self.asm.load(ADDRESS, Mem::Context(offset::SPILL));
        self.look_up(insn.ip() as u16, -8);
        Ok(())
    }

    fn ret(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: (&[Instruction], &[Fact]),
    ) -> Emit {
        let released = match insn.op_count() {
            0 => 0,
            _ => i32::from(insn.immediate16()),
        };
        let at = self.near(insn, (GUEST_RSP, 0), (8, false), cached, block);
        self.asm.load(ADDRESS, Mem::Base(ADDRESS, at));
        self.cached = None;
        self.destroy_flags();
        self.look_up(insn.ip() as u16, 8 + released);
        Ok(())
    }
}

/// Makes `[rbx + distance]` the memory operand.
fn point_at_address(host: &mut Instruction, distance: i32) {
    host.set_segment_prefix(Register::None);
    host.set_memory_base(Register::RBX);
    host.set_memory_index(Register::None);
    host.set_memory_index_scale(1);
    let is_compressed = host.code().encoding() == iced_x86::EncodingKind::EVEX;
    host.set_memory_displ_size(match i8::try_from(distance) {
        Ok(0) => 0,
        Ok(_) if !is_compressed => 1,
        _ => 8,
    });
    host.set_memory_displacement64(i64::from(distance) as u64);
}

/// The memory operand, if it is a displacement from a register that lives in one of the host's,
/// without a segment.
fn based(insn: &Instruction) -> Option<(Reg, i32)> {
    let base = insn.memory_base();
    if !base.is_gpr64()
        || insn.memory_index() != Register::None
        || matches!(insn.memory_segment(), Register::FS | Register::GS)
    {
        return None;
    }
    let disp = i32::try_from(insn.memory_displacement64() as i64).ok()?;
    // Room to add and subtract small numbers.
    if disp.unsigned_abs() > 1 << 30 {
        return None;
    }
    match home(number(base)) {
        Home::Host(host) => Some((host, disp)),
        Home::Memory(_) => None,
    }
}

/// What the instruction adds to the register whose home is `base`, if that is known.
fn constant_step(insn: &Instruction, fact: &Fact, base: Reg) -> Option<i32> {
    let n = (0..16).find(|&n| home(n) == Home::Host(base))?;
    if !fact.uses[n].1 {
        return Some(0);
    }
    let is_whole = insn.op0_kind() == OpKind::Register
        && insn.op0_register().is_gpr64()
        && number(insn.op0_register()) == n;
    if !is_whole || insn.op_count() != 2 {
        return None;
    }
    let by = match insn.mnemonic() {
        Mnemonic::Add => insn.try_immediate(1).ok()? as i64,
        Mnemonic::Sub => (insn.try_immediate(1).ok()? as i64).checked_neg()?,
        Mnemonic::Lea => match based(insn) {
            Some((b, disp)) if b == base => disp.into(),
            _ => return None,
        },
        _ => return None,
    };
    i32::try_from(by).ok().filter(|by| by.unsigned_abs() < 1 << 30)
}

fn is_shift(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    )
}

/// Status flags that an instruction reads and modifies. What leaves some flags alone under a
/// condition counts as reading them all.
fn flags(insn: &Instruction, is_shift_by_register: bool) -> (u32, u32) {
    let (reads, modifies) = (insn.rflags_read() & ALL, insn.rflags_modified() & ALL);
    if is_shift_by_register {
        return (ALL, modifies);
    }
    if is_shift(insn.mnemonic()) {
        let last = insn.op_count() - 1;
        let count = insn.try_immediate(last).unwrap_or(1) & 63;
        // A count of 0 leaves them all alone.
        let wide = matches!(insn.op0_kind(), OpKind::Memory)
            .then(|| insn.memory_size().size())
            .unwrap_or_else(|| insn.op0_register().size())
            == 8;
        if count & if wide { 63 } else { 31 } == 0 {
            return (ALL, modifies);
        }
    }
    (reads, modifies)
}

/// Numbers of the general-purpose registers that an instruction uses without naming them.
fn implicit_registers(insn: &Instruction) -> &'static [usize] {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Mul | M::Imul if insn.op_count() == 1 => &[0, 2],
        M::Div | M::Idiv | M::Cwd | M::Cdq | M::Cqo => &[0, 2],
        M::Cbw | M::Cwde | M::Cdqe | M::Cmpxchg | M::Lahf | M::Sahf => &[0],
        M::Mulx => &[2],
        M::Pcmpestri
        | M::Pcmpestrm
        | M::Vpcmpestri
        | M::Vpcmpestrm
        | M::Pcmpestri64
        | M::Pcmpestrm64
        | M::Vpcmpestri64
        | M::Vpcmpestrm64 => &[0, 1, 2],
        M::Pcmpistri | M::Pcmpistrm | M::Vpcmpistri | M::Vpcmpistrm => &[1],
        _ => &[],
    }
}

/// Whether the instruction exchanges something with the low byte of register `n`, which cannot be
/// written beside the high one.
fn writes_both_halves(insn: &Instruction, n: usize) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd | Mnemonic::Cmpxchg)
        && (0..insn.op_count()).any(|i| {
            insn.op_kind(i) == OpKind::Register && {
                let reg = insn.op_register(i);
                reg.is_gpr() && number(reg) == n && !is_high_byte(reg)
            }
        })
}

/// Whether an instruction uses vector or mask registers or MXCSR.
fn uses_vectors(insn: &Instruction) -> bool {
    use Mnemonic as M;
    // Conversions of a number in memory to an integer name none, but need MXCSR.
    if matches!(
        insn.mnemonic(),
        M::Vzeroupper
            | M::Vzeroall
            | M::Cvtss2si
            | M::Cvtsd2si
            | M::Cvttss2si
            | M::Cvttsd2si
            | M::Vcvtss2si
            | M::Vcvtsd2si
            | M::Vcvttss2si
            | M::Vcvttsd2si
            | M::Vcvtss2usi
            | M::Vcvtsd2usi
            | M::Vcvttss2usi
            | M::Vcvttsd2usi
    ) {
        return true;
    }
    (0..insn.op_count()).any(|i| {
        insn.op_kind(i) == OpKind::Register && {
            let reg = insn.op_register(i);
            reg.is_vector_register() || reg.is_k()
        }
    })
}

/// The least level of vector instructions ([`Setting::vectors`]) that has this one.
fn vector_level(insn: &Instruction) -> u8 {
    use iced_x86::EncodingKind as E;
    let has_mask = (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_k());
    match insn.code().encoding() {
        E::Legacy => 1,
        E::VEX if !has_mask => 2,
        _ => 3,
    }
}
