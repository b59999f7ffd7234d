//! From guest instructions to a block of host code.
//!
//! Blocks are position-independent in the guest: what they need of their linear address they
//! take from the context's `code_base`, so that one translation serves every process that maps
//! the page. Between blocks, the status flags are in AX. Within one, they move to the host's
//! flags when an instruction produces or needs them, and back before a check destroys them. Where
//! memory is mirrored, there are hardly any checks: there, they are in the host's flags between blocks,
//! too, but for branches that look in the jump cache.

mod address;
mod branch;
mod dead_flags;
mod exits;
mod fact;
mod in_context;
mod legacy;
mod mirrored;
mod plain;
mod special;
mod stack;
mod status;
mod system;

use std::ops::Range;

use iced_x86::{
    Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use x86::View;
use x86::state::{Rflags, gpr};

use super::assembler::{Alu, Assembler, Cond, Label, Mem, Reg};
use super::classify::{Kind, classify, renamable};
use super::context::{
    JUMP_CACHES, JUMP_ENTRIES, MIRRORED_JUMPS, STACK_SLOT, TLB_ENTRIES, TLB_SLOTS, VIEWS, offset,
};
use super::lost_flags;
use super::registers::{
    GUEST_RAX, GUEST_RBP, GUEST_RBX, GUEST_RSP, Home, home, is_high_byte, number, sized,
};
use super::sites::Site;
use super::strings::{STRING_OPS, StringOp};

use address::{Check, Checked, Entry, based, constant_step, point_at, slot_index};
use dead_flags::{Back, FlagUse};
use fact::{Access, Fact};
use in_context::leave_operand;

/// Forms addresses; then the host's address of an operand.
const ADDRESS: Reg = Reg::RBX;
/// Indexes tables; free behind a check.
const INDEX: Reg = Reg::RBP;
/// Keeps the status flags between instructions that use them.
const STATUS: Reg = Reg::RAX;

/// A block covers at most this many instructions, so that the interpreter can take over quickly.
pub const MAX_INSTRUCTIONS: usize = 64;

/// An instruction behind this offset may reach into the next page: jump caches alone can find it.
const LAST_WHOLE: u16 = 0x1000 - 15;

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
    /// 32-bit code in flat segments: addresses and what the stack holds have 4 bytes.
    pub is_32bit: bool,
    /// Memory is mirrored ([`mirror`](super::mirror)): loads and stores use the guest's linear
    /// addresses as they are. Only for 64-bit programs.
    pub mirrored: bool,
}

impl Setting {
    /// What is in the number of a setting that is narrow.
    pub const NARROW: u8 = 1 << 5;
    /// The same of one that is for mirrored memory.
    pub const MIRRORED: u8 = 1 << 7;

    /// The number of the jump cache that leads to code of this setting.
    pub fn jumps(self) -> usize {
        if self.mirrored { MIRRORED_JUMPS } else { self.view as usize }
    }

    /// A number for each setting, below 256.
    pub fn number(self) -> u64 {
        (self.view as u64) << 2
            | u64::from(self.vectors)
            | u64::from(self.time) << 4
            | if self.narrow { u64::from(Self::NARROW) } else { 0 }
            | u64::from(self.is_32bit) << 6
            | if self.mirrored { u64::from(Self::MIRRORED) } else { 0 }
    }

    /// How many bytes an address and a slot of the stack have.
    pub fn word(self) -> i32 {
        if self.is_32bit { 4 } else { 8 }
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
    /// To the address in `scratch`. RSP was moved by `stack` for it.
    Branch { at: u16, stack: i32 },
    /// The same for a direct branch to another page in code for mirrored memory, whose distance stands
    /// at `link` in code memory: with that overwritten, it goes there by itself.
    FarChain { at: u16, stack: i32, link: u32 },
    /// The load or store at the linear address in `scratch` missed the soft TLB. With that
    /// filled, the check can be repeated at `retry`.
    /// If it was a check for several accesses, they may cross a page together.
    Miss { at: u16, retry: u32, size: u8, write: bool, merged: bool },
    /// The interpreter executes the instruction. If it goes on at `next`, so does translated
    /// code at `resume` (0: nowhere).
    Interpret { at: u16, next: u16, resume: u32 },
    /// An access to mirrored memory faulted (`fault` in the context).
    Fault,
}

/// An exit with what is to be known of the status flags there: if `back` is not 0, they were given
/// up, and are those that the instruction `back` bytes before that of the exit left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    pub exit: Exit,
    pub back: u8,
}

/// A jump within the block's page that leads to the translation of `target`, or else to an exit.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Where the distance stands in the code.
    pub at: u32,
    pub target: u16,
    /// To the narrow translation ([`Setting::narrow`]).
    pub narrow: bool,
}

/// How far behind the far entry of a block for mirrored memory the status flags are out of AX: jumps that
/// know where they lead enter it there.
pub const WITH_FLAGS: u32 = 3;

/// The result of a translation. Offsets are relative to the start of the code.
#[derive(Clone, Copy, Debug)]
pub struct Translated {
    /// Where the block is entered with `code_base` set. The far entry is at 0.
    pub near: u32,
}

/// Where the status flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// In AX.
    Kept,
    /// In the host's flags.
    Host,
    /// In both.
    Both,
    /// Nowhere: nobody will read them. Where the block is left, they are computed again.
    Lost,
}

/// Code that is needed rarely, and comes behind the block.
#[derive(Clone, Copy)]
enum Cold {
    /// Goes to `target`, an offset from the start of the page. The status flags are kept, or the
    /// host's.
    Side { from: Label, is_kept: bool, target: i64, at: u16 },
    /// Leaves by an exit.
    Exit { from: Label, exit: usize },
    /// Looks in the second level of the jump cache, and leaves if that has no answer either.
    Branch { from: Label, exit: usize },
    /// Looks in the second level of the soft TLB, and leaves if that has no answer either.
    Miss { from: Label, exit: usize, write: bool, start: Label, merged: bool, entry: Entry },
}

/// The instructions of a block, and what there is to know of them.
#[derive(Clone, Copy)]
struct Code<'a> {
    insns: &'a [Instruction],
    facts: &'a [Fact],
}

/// Answers about instructions that depend on the processors.
pub trait Offer {
    /// Guest and host have it.
    fn has(&mut self, insn: &Instruction, is_vector: bool) -> bool;
}

/// Translates blocks; one after the other, with the same memory.
pub struct Translator {
    pub asm: Assembler,
    pub exits: Vec<Departure>,
    pub links: Vec<Link>,
    /// Where the distances of jumps to other pages stand ([`Exit::FarChain`]).
    pub far_links: Vec<u32>,
    pub sites: Vec<Site>,
    cold: Vec<Cold>,
    info: InstructionInfoFactory,
    encoder: Encoder,
    setting: Setting,
    status: Status,
    /// Which flags may be given up before the current instruction.
    back: Back,
    /// Flags were given up that an exit needs.
    is_lost: bool,
    /// The number of the first exit.
    first_exit: u32,
    /// Where the code will lie, relative to the common code at the start of the cache.
    base: u32,
    common: Common,
    has_vectors: bool,
    facts: Vec<Fact>,
    /// 32-bit instructions as 64-bit code says them; kept for its memory.
    widened: Vec<Instruction>,
    /// The current instruction and those behind it, by number.
    rest: Range<usize>,
    /// What is to be added to RSP for the pushes and pops that were emitted ([`stack`]): in the host's
    /// register it is as before them.
    stack: i32,
    /// What the last check was good for, if RBX is still as it left it.
    cached: Option<Checked>,
    /// Exits whose place to go on is a label that is resolved at the end.
    resumes: Vec<(usize, Label)>,
}

/// Offsets in code memory of the code that all blocks use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Common {
    pub leave: u32,
    /// The same for code for mirrored memory.
    pub leave_mirrored: u32,
    /// The same with the status flags in the host's.
    pub leave_with_flags: u32,
    /// Leaves by the exit whose number is in the context.
    pub crossing: u32,
    pub load_vectors: u32,
    /// By view, for loads and stores: see [`second_level`](super::second_level).
    pub second_level: [[u32; 2]; VIEWS],
    /// By jump cache, for branches.
    pub second_jumps: [u32; JUMP_CACHES],
    /// By view and operation: see [`strings`](super::strings).
    pub strings: [[u32; STRING_OPS]; VIEWS],
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
            far_links: Vec::new(),
            sites: Vec::new(),
            cold: Vec::new(),
            info: InstructionInfoFactory::new(),
            encoder: Encoder::new(64),
            setting: Setting {
                view: View::User,
                vectors: 0,
                time: false,
                narrow: false,
                is_32bit: false,
                mirrored: false,
            },
            status: Status::Kept,
            back: 0,
            is_lost: false,
            first_exit: 0,
            base: 0,
            common: Common::default(),
            has_vectors: false,
            facts: Vec::new(),
            widened: Vec::new(),
            rest: 0..0,
            stack: 0,
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
        self.setting = setting;
        self.first_exit = first_exit;
        self.base = base;
        self.common = common;
        self.asm.set_word(setting.word());
        let first = insns.first()?;
        let start = first.ip() as u16;

        let mut widened = std::mem::take(&mut self.widened);
        widened.clear();
        let insns = if setting.is_32bit {
            widened.extend(insns.iter().map(legacy::widen));
            &widened
        } else {
            insns
        };
        let mut facts = std::mem::take(&mut self.facts);
        facts.clear();
        facts.extend(insns.iter().map(|insn| self.fact(insn, offer)));
        dead_flags::find(insns, &mut facts);
        let mut result = self.block(insns, &facts, start);
        if self.is_lost {
            facts.iter_mut().for_each(|fact| fact.back = 0);
            result = self.block(insns, &facts, start);
        }
        self.facts = facts;
        self.widened = widened;
        result
    }

    fn block(&mut self, insns: &[Instruction], facts: &[Fact], start: u16) -> Option<Translated> {
        self.has_vectors = facts.iter().any(|fact| fact.is_vector && fact.kind == Kind::Plain);
        self.stack = 0;
        self.cached = None;
        self.asm.clear();
        self.exits.clear();
        self.links.clear();
        self.far_links.clear();
        self.sites.clear();
        self.cold.clear();
        self.resumes.clear();
        self.status = Status::Kept;
        self.back = 0;
        self.is_lost = false;

        // The far entry: RBX holds the instruction pointer.
        if self.setting.mirrored {
            self.asm.restore_status();
            debug_assert!(self.asm.code.len() == WITH_FLAGS as usize);
            self.status = Status::Host;
        }
        self.asm.lea(ADDRESS, Mem::Base(ADDRESS, -i32::from(start)));
        self.asm.store(Mem::Context(offset::CODE_BASE), ADDRESS);
        let near = self.asm.code.len() as u32;
        if self.setting.mirrored {
            self.poll(start);
        } else {
            self.asm.alu32_mem_imm(Alu::Cmp, Mem::Context(offset::ATTENTION), 0);
            let attention = self.cold_exit(Exit::Attention { at: start });
            self.asm.jump_if(Cond::NotEqual, attention);
        }
        self.make_vectors_live();

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
            self.back = fact.back;
            ends = self.instruction(insn, kind, Code { insns, facts });
        }
        let last = insns.last()?;
        if !ends {
            self.jump_to(last.next_ip() as i64, last.ip() as u16);
        }
        self.finish()?;
        Some(Translated { near })
    }

    fn make_vectors_live(&mut self) {
        // They always are while memory is mirrored.
        if self.has_vectors && !self.setting.mirrored {
            self.asm.alu32_mem_imm(Alu::Cmp, Mem::Context(offset::VECTORS_LIVE), 0);
            let live = self.asm.label();
            self.asm.jump_if(Cond::NotEqual, live);
            let from = self.base as i32 + self.asm.code.len() as i32 + 5;
            self.asm.call_by(self.common.load_vectors as i32 - from);
            self.asm.bind(live);
        }
    }

    /// Emits one instruction; `true` if nothing follows it.
    fn instruction(&mut self, insn: &Instruction, kind: Kind, block: Code<'_>) -> bool {
        // Who leaves RBX alone, or knows what becomes of it, gives this back.
        let cached = self.cached.take();
        let fact = &block.facts[self.rest.start];
        if !stack::leaves_alone(insn, fact) {
            self.settle_stack();
        }
        let stack = self.stack;
        let before = self.asm.code.len();
        let marks = (self.exits.len(), self.cold.len(), self.links.len(), self.resumes.len());
        let mirrored_marks = (self.sites.len(), self.far_links.len());
        let status = self.status;
        let is_last = self.rest.len() == 1;
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
            // In this view, AC is clear: kernels make sure of it when they are entered.
            Kind::ClearAlignmentCheck if self.setting.view == View::Supervisor => {
                self.cached = cached;
                Ok(())
            }
            Kind::FaultAddress if self.setting.view != View::User => {
                self.load_from_context(insn.op0_register(), offset::CR2);
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
            Kind::Repeat(op) if self.setting.mirrored => self.repeat_in_mirror(insn, op),
            Kind::Repeat(op) if !self.setting.is_32bit => self.repeat(insn, op),
            // The flag is out of the reach of code for mirrored memory.
            Kind::Direction { .. } if self.setting.mirrored => Err(Refused),
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
            Kind::JumpIf if is_last => {
                self.jump_if(insn);
                return true;
            }
            Kind::JumpIf => {
                self.jump_aside_if(insn);
                self.cached = cached;
                Ok(())
            }
            Kind::JumpIfCounterZero => {
                self.hand_flags_over();
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
            | Kind::ClearAlignmentCheck
            | Kind::FaultAddress
            | Kind::TimeStamp
            | Kind::Repeat(_)
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
        self.sites.truncate(mirrored_marks.0);
        self.far_links.truncate(mirrored_marks.1);
        self.status = status;
        self.stack = stack;
        self.cached = None;
        self.interpret(insn, kind == Kind::InterpretLast || is_branch)
    }

    fn interpret(&mut self, insn: &Instruction, is_last: bool) -> bool {
        self.settle_stack();
        self.keep_flags();
        let exit = self.interpreted(insn);
        self.leave_by(exit);
        if is_last || insn.next_ip() > 0xfff {
            return true;
        }
        self.resume_behind(exit);
        false
    }

    /// An exit to have the interpreter execute the instruction.
    fn interpreted(&mut self, insn: &Instruction) -> usize {
        self.exit(Exit::Interpret { at: insn.ip() as u16, next: insn.next_ip() as u16, resume: 0 })
    }

    /// The interpreter has executed the instruction for which the block was left by this exit.
    fn resume_behind(&mut self, exit: usize) {
        let resume = self.asm.here();
        self.resumes.push((exit, resume));
        self.status = Status::Kept;
        self.make_vectors_live();
    }
}
