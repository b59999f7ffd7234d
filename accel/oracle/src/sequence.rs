//! Sequences of instructions, for what executes whole blocks of them.
//!
//! Each instruction is made as in [`crate::generate`]; here they are put together so that later
//! ones still find their operands, mostly, and branches lead forward within the sequence.

use iced_x86::{
    Code, Encoder, FlowControl, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic,
    OpAccess, OpKind, Register,
};
use x86::state::gpr::{RCX, RSP};

use crate::encode::{Encoded, MAX_LEN, decode, decoder, encode};
use crate::excuse;
use crate::generate::{Builder, Sample, target};
use crate::layout::{FILL, data_linear, data_offset};
use crate::random::Rng;
use crate::repertoire::Sequences;

const TF: u64 = 1 << 8;
/// A sequence has at most this many instructions, not counting those that support others.
const MAX_INSTRUCTIONS: u64 = 12;
/// An instruction is tried so often before another one is.
const ATTEMPTS: u32 = 6;

impl Sequences {
    /// Case `number` of `seed`.
    pub fn generate(&self, seed: u64, number: u64) -> Sample {
        let mut rng = Rng::new(seed ^ 0xb10c, number);
        let mut sequence = Sequence {
            builder: Builder::new(&mut rng, self.bits),
            info: InstructionInfoFactory::new(),
            written: 0,
            stack_moves: 0,
            focus: None,
            drift: 0,
            vague: 0,
            vague_for_good: 0,
            branches: Vec::new(),
            targets: Vec::new(),
        };
        sequence.build(self);
        sequence.finish()
    }
}

struct Sequence<'a> {
    builder: Builder<'a>,
    info: InstructionInfoFactory,
    /// General-purpose registers whose values are not known any more.
    written: u16,
    /// How far pushes and pops have moved RSP.
    stack_moves: i64,
    /// A register that many memory operands are relative to, so that they lie close together.
    focus: Option<Register>,
    /// How far it has moved from its first value.
    drift: i64,
    /// Flags that nobody knows, so that nothing may depend on them.
    vague: u64,
    /// Those of them that a branch may carry past what defines them again.
    vague_for_good: u64,
    /// Branches whose target is still to be chosen, by number.
    branches: Vec<usize>,
    /// Where targets were put into memory.
    targets: Vec<u64>,
}

impl Sequence<'_> {
    fn build(&mut self, lists: &Sequences) {
        if !self.builder.rng.one_in(100) {
            self.builder.case.rflags &= !TF;
        }
        if self.builder.rng.one_in(2) {
            self.touch();
        }
        if self.builder.rng.one_in(2) {
            let bits = self.builder.bits;
            let (first, count) = if bits == 64 { (Register::RAX, 16) } else { (Register::EAX, 8) };
            let reg = first + self.builder.rng.below(count) as u32;
            self.focus = Some(reg);
            let at = target(self.builder.rng, bits, 8);
            self.builder.set(reg.number(), at);
        }
        let count = 1 + self.builder.rng.below(MAX_INSTRUCTIONS);
        for _ in 0..count {
            if self.builder.rng.one_in(12) {
                self.nudge();
            }
            let list = match self.builder.rng.below(100) {
                0..=41 => &lists.common,
                42..=61 => &lists.integer,
                62..=83 => &lists.vector,
                84..=86 => &lists.odd,
                87..=97 => &lists.direct,
                _ => &lists.indirect,
            };
            let added = (0..ATTEMPTS).any(|_| {
                let code = match list.is_empty() {
                    true => return false,
                    false => self.builder.rng.pick(list),
                };
                self.add(code).is_some()
            });
            if !added {
                continue;
            }
            // What it leaves undefined is the host's business.
            let is_vague =
                self.builder.insns.last().is_some_and(|i| excuse::undefined_flags(i) != 0);
            if is_vague && !(0..20).any(|_| self.add(Code::Add_rm32_imm32).is_some()) {
                break;
            }
        }
    }

    /// An instruction that makes pages known to a TLB, so that what follows hits.
    fn touch(&mut self) {
        for _ in 0..1 + self.builder.rng.below(2) {
            let at = data_linear(self.builder.rng.below(0x2000) as usize) as u32;
            // OR BYTE [at], 0 or TEST BYTE [at], 0
            let mut bytes = [0; MAX_LEN];
            bytes[..3].copy_from_slice(match self.builder.rng.one_in(2) {
                true => &[0x80, 0x0c, 0x25],
                false => &[0xf6, 0x04, 0x25],
            });
            bytes[3..7].copy_from_slice(&at.to_le_bytes());
            self.push(bytes);
        }
    }

    /// Moves the register that others are relative to.
    fn nudge(&mut self) {
        let Some(reg) = self.focus.filter(|_| self.has_room()) else { return };
        let by = self.builder.rng.around_zero(15) as i64 * self.builder.rng.pick(&[1, 8, 8]);
        let bits = self.builder.bits;
        let [inc, sub, lea, add] = match bits {
            64 => [Code::Inc_rm64, Code::Sub_rm64_imm8, Code::Lea_r64_m, Code::Add_rm64_imm8],
            _ => [Code::Inc_r32, Code::Sub_rm32_imm8, Code::Lea_r32_m, Code::Add_rm32_imm8],
        };
        let (insn, by) = match self.builder.rng.below(5) {
            0 => (Instruction::with1(inc, reg), 1),
            1 => (Instruction::with2(sub, reg, -by as i32), by),
            2 => {
                let sum = MemoryOperand::with_base_displ(reg, by);
                (Instruction::with2(lea, reg, sum), by)
            }
            _ => (Instruction::with2(add, reg, by as i32), by),
        };
        if let Some(bytes) = insn.ok().and_then(|insn| assemble(&insn, bits, self.ip())) {
            self.drift += by;
            let insn = decode(bits, &bytes, self.ip());
            self.note_flags(&insn);
            self.push(bytes);
        }
    }

    fn has_room(&self) -> bool {
        self.builder.code_len + MAX_LEN < self.builder.case.code.len()
    }

    /// Makes a memory operand relative to the register of this sequence. `false` if it stays.
    fn rebase(&mut self, encoded: &mut Encoded) -> bool {
        let mut insn = encoded.insn;
        let has_memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
        let Some(reg) = self.focus.filter(|_| has_memory && self.builder.rng.percent(70)) else {
            return false;
        };
        if insn.memory_index().is_vector_register() || insn.mnemonic() == Mnemonic::Lea {
            return false;
        }
        let bits = self.builder.bits;
        let drift = if reg.number() == RSP { self.stack_moves } else { self.drift };
        let mut by = match self.builder.rng.below(4) {
            0 => self.builder.rng.around_zero(300),
            1 => 0,
            _ => self.builder.rng.around_zero(12).wrapping_mul(8),
        };
        let size = (insn.memory_size().size() as u64).max(1);
        if size > 8 && !self.builder.rng.one_in(8) {
            let at = self.builder.case.gpr[reg.number()].wrapping_add_signed(drift);
            by = by.wrapping_sub(at.wrapping_add(by) % size);
        }
        insn.set_memory_base(reg);
        insn.set_memory_index(Register::None);
        insn.set_memory_index_scale(1);
        insn.set_memory_displ_size(if by == 0 { 0 } else { 1 });
        insn.set_memory_displacement64(if bits == 64 { by } else { by & 0xffff_ffff });
        if !self.builder.rng.one_in(16) {
            insn.set_segment_prefix(Register::None);
        }
        match assemble(&insn, bits, insn.ip()) {
            Some(bytes) if decode(bits, &bytes, insn.ip()).code() == insn.code() => {
                *encoded = Encoded { bytes, insn: decode(bits, &bytes, insn.ip()) };
                true
            }
            _ => false,
        }
    }

    fn ip(&self) -> u64 {
        self.builder.case.start + self.builder.code_len as u64
    }

    fn push(&mut self, bytes: [u8; MAX_LEN]) {
        let insn = decode(self.builder.bits, &bytes, self.ip());
        let at = self.builder.code_len;
        self.builder.case.code[at..at + insn.len()].copy_from_slice(&bytes[..insn.len()]);
        self.builder.code_len += insn.len();
        self.builder.insns.push(insn);
    }

    /// Appends an instruction, unless there is no room or it would do nothing worth while.
    fn add(&mut self, code: Code) -> Option<()> {
        if !self.has_room() {
            return None;
        }
        let ip = self.ip();
        let mut encoded = encode(self.builder.rng, code, self.builder.bits, ip)?;
        let is_first = self.builder.insns.is_empty();
        let is_first = is_first && !is_branch(&encoded.insn);
        if !is_first && !may_follow(&encoded.insn) {
            return None;
        }
        let reads = excuse::architectural(encoded.insn.rflags_read());
        let pushes = matches!(
            encoded.insn.mnemonic(),
            Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq
        );
        if reads & self.vague != 0 || pushes && self.vague != 0 {
            return None;
        }
        let saved = (
            self.builder.case.gpr,
            self.builder.assigned,
            self.builder.patches,
            self.builder.case.patches,
        );
        let is_rebased = self.rebase(&mut encoded);
        if !is_rebased {
            self.builder.place(&mut encoded);
        }
        if !is_rebased && self.reach(&encoded.insn).is_some_and(|at| data_offset(at).is_none()) {
            self.move_operand(&mut encoded);
        }
        if self.locks_two_lines(&encoded.insn) && !self.builder.rng.one_in(64) {
            return None;
        }
        // The word there may be the return address of a CALL, to be repeated for ever.
        let base = encoded.insn.memory_base().full_register();
        if is_branch(&encoded.insn) && base == Register::RSP {
            return None;
        }
        if is_branch(&encoded.insn) {
            self.branches.push(self.builder.insns.len());
        } else {
            self.builder.shape(&encoded.insn);
        }
        let is_daring = self.builder.rng.one_in(8);
        let moves_focus = self.focus.is_some_and(|reg| self.writes(&encoded.insn, reg));
        if !is_daring
            && !is_branch(&encoded.insn)
            && (moves_focus || !is_rebased && !self.will_do(&encoded.insn))
        {
            (
                self.builder.case.gpr,
                self.builder.assigned,
                self.builder.patches,
                self.builder.case.patches,
            ) = saved;
            return None;
        }
        if moves_focus {
            self.focus = None;
        }
        self.note_writes(&encoded.insn);
        self.note_flags(&encoded.insn);
        self.push(encoded.bytes);
        Some(())
    }

    /// Where the memory operand lies, if that can be known.
    fn reach(&self, insn: &Instruction) -> Option<u64> {
        let has_memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
        let knows = |reg: Register| !reg.is_gpr() || self.knows(reg);
        let is_known = knows(insn.memory_base())
            && knows(insn.memory_index())
            && !insn.memory_index().is_vector_register();
        (has_memory && is_known).then(|| self.builder.operand_address(insn))
    }

    /// Whether an instruction may lock two cache lines, for which Linux makes its thread wait
    /// (`split_lock_mitigate`): a few such are enough.
    fn locks_two_lines(&self, insn: &Instruction) -> bool {
        const LINE: u64 = 64;
        let size = insn.memory_size().size() as u64;
        let locks = insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg;
        let moved = match insn.memory_base() {
            base if base.is_gpr() && base.number() == RSP => self.stack_moves,
            base if Some(base) == self.focus => self.drift,
            _ => 0,
        };
        let at = self.reach(insn).map(|at| at.wrapping_add_signed(moved));
        locks && size > 1 && at.is_none_or(|at| at % LINE + size > LINE)
    }

    fn knows(&self, reg: Register) -> bool {
        self.written >> (reg.full_register().number() & 15) & 1 == 0
    }

    /// Aims a memory operand again whose registers were taken, by its displacement.
    fn move_operand(&mut self, encoded: &mut Encoded) {
        let insn = encoded.insn;
        if insn.memory_base() == Register::RIP || insn.memory_base() == Register::EIP {
            return;
        }
        let size = (insn.memory_size().size() as u64).max(1);
        let goal = target(self.builder.rng, self.builder.bits, size);
        let rest = self.builder.operand_address(&insn).wrapping_sub(insn.memory_displacement64());
        self.builder.move_displacement(encoded, goal.wrapping_sub(rest));
    }

    /// Whether the instruction finds its operands.
    fn will_do(&mut self, insn: &Instruction) -> bool {
        let reach = self.reach(insn);
        if let Some(at) = reach {
            let size = insn.memory_size().size() as u64;
            let ends = [at, at.wrapping_add(size.max(1) - 1)];
            if !ends.iter().all(|&at| data_offset(at).is_some())
                || x86::wants_alignment(insn) && at % size.max(1) != 0
            {
                return insn.mnemonic() == Mnemonic::Lea;
            }
        }
        let uses_base = |reg: Register| insn.memory_segment() == reg;
        if uses_base(Register::FS) && self.written_bases()
            || uses_base(Register::GS) && self.written_bases()
        {
            return false;
        }
        match insn.mnemonic() {
            Mnemonic::Div | Mnemonic::Idiv => return self.builder.rng.one_in(3),
            Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
                return self.knows(insn.op0_register());
            }
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register =>
            {
                let reg = insn.op1_register().full_register().number();
                let bits = self.builder.case.gpr[reg] as i64;
                return self.written >> reg & 1 == 0 && bits.unsigned_abs() < 4096;
            }
            _ => {}
        }
        let has_rep = insn.has_rep_prefix() || insn.has_repne_prefix();
        if insn.is_string_instruction() && has_rep && self.written >> RCX & 1 != 0 {
            return self.builder.rng.one_in(8);
        }
        let written = self.written;
        let knows = |reg: Register| written >> (reg.full_register().number() & 15) & 1 == 0;
        let info = self.info.info(insn);
        let known = info.used_memory().iter().all(|memory| {
            [memory.base(), memory.index()].iter().all(|reg| !reg.is_gpr() || knows(*reg))
        });
        // A stack pointer that a calculation has made is rarely one.
        let moves_stack = info.used_registers().iter().any(|used| {
            used.register().full_register() == Register::RSP && is_write(used.access())
        }) && !insn.is_stack_instruction();
        known && !moves_stack
    }

    /// Whether an instruction changes a register in a way that is not foreseen.
    fn writes(&mut self, insn: &Instruction, reg: Register) -> bool {
        let is_stack = reg == Register::RSP && moves_stack_only(insn);
        let info = self.info.info(insn);
        !is_stack
            && info
                .used_registers()
                .iter()
                .any(|used| used.register().full_register() == reg && is_write(used.access()))
    }

    fn written_bases(&self) -> bool {
        self.builder
            .insns
            .iter()
            .any(|i| matches!(i.mnemonic(), Mnemonic::Wrfsbase | Mnemonic::Wrgsbase))
    }

    fn note_writes(&mut self, insn: &Instruction) {
        let is_simple = moves_stack_only(insn);
        if is_simple {
            self.stack_moves += i64::from(insn.stack_pointer_increment());
        }
        for used in self.info.info(insn).used_registers() {
            let reg = used.register();
            if !reg.is_gpr() || !is_write(used.access()) {
                continue;
            }
            let number = reg.full_register().number();
            if number == RSP && is_simple {
                continue;
            }
            self.written |= 1 << number;
            self.builder.assigned |= 1 << number;
        }
    }

    fn note_flags(&mut self, insn: &Instruction) {
        if is_branch(insn) {
            self.vague_for_good |= self.vague;
        }
        self.vague = vague_behind(insn, self.vague) | self.vague_for_good;
    }

    fn finish(mut self) -> Sample {
        let end = self.ip();
        // The last one first: if others go to where the same register or word says, they lead
        // past it as well, so that nothing is repeated for ever.
        for i in std::mem::take(&mut self.branches).into_iter().rev() {
            self.aim(i, end);
        }
        self.builder.finish(false)
    }

    /// Makes branch `i` lead to an instruction behind it, or to `end`.
    fn aim(&mut self, i: usize, end: u64) {
        let insn = self.builder.insns[i];
        let ahead = (self.builder.insns.len() - i) as u64;
        let to = match self.builder.rng.below(ahead) as usize {
            0 => end,
            n => self.builder.insns[i + n].ip(),
        };
        match insn.op0_kind() {
            OpKind::NearBranch64 | OpKind::NearBranch32 => self.aim_relative(i, to),
            OpKind::Register => {
                let reg = insn.op0_register().full_register().number();
                if self.written >> reg & 1 == 0 || self.builder.rng.one_in(4) {
                    self.builder.set(reg, to);
                }
            }
            OpKind::Memory => {
                let at = self.builder.operand_address(&insn);
                self.patch_target(at, to);
            }
            _ if insn.flow_control() == FlowControl::Return => {
                let moved = self.stack_moves.max(0) as u64;
                let at = self.builder.case.gpr[RSP].wrapping_add(moved);
                self.patch_target(at, to);
            }
            _ => {}
        }
    }

    /// Puts the target of an indirect branch into memory, unless there is one already.
    fn patch_target(&mut self, at: u64, to: u64) {
        if !self.targets.iter().any(|&other| other.abs_diff(at) < 8) {
            self.targets.push(at);
            self.builder.patch(at, &to.to_le_bytes()[..self.builder.bits as usize / 8]);
        }
    }

    fn aim_relative(&mut self, i: usize, to: u64) {
        let insn = self.builder.insns[i];
        let at = (insn.ip() - self.builder.case.start) as usize;
        let code = &mut self.builder.case.code[at..at + insn.len()];
        let mut decoder = decoder(self.builder.bits, code, insn.ip());
        let decoded = decoder.decode();
        let constants = decoder.get_constant_offsets(&decoded);
        let (place, size) = (constants.immediate_offset(), constants.immediate_size());
        let distance = to.wrapping_sub(insn.next_ip()) as i64;
        let distance = if size == 1 && distance > 127 { 0 } else { distance };
        code[place..place + size].copy_from_slice(&distance.to_le_bytes()[..size]);
        self.builder.insns[i] = decode(self.builder.bits, code, insn.ip());
    }
}

/// Whether RSP is moved by a fixed distance.
fn moves_stack_only(insn: &Instruction) -> bool {
    insn.is_stack_instruction()
        && insn.mnemonic() != Mnemonic::Leave
        && insn.mnemonic() != Mnemonic::Enter
        && insn.op0_register().full_register() != Register::RSP
}

/// The bytes of an instruction at `ip`.
fn assemble(insn: &Instruction, bits: u32, ip: u64) -> Option<[u8; MAX_LEN]> {
    let mut encoder = Encoder::new(bits);
    encoder.encode(insn, ip).ok()?;
    let mut bytes = [FILL; MAX_LEN];
    let code = encoder.take_buffer();
    bytes.get_mut(..code.len())?.copy_from_slice(&code);
    Some(bytes)
}

fn is_branch(insn: &Instruction) -> bool {
    insn.flow_control() != FlowControl::Next
}

fn is_write(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// Flags that nobody knows behind an instruction if those of `vague` are such before it.
fn vague_behind(insn: &Instruction, vague: u64) -> u64 {
    // What may leave flags alone, by a count of 0, defines none.
    let may_do_nothing = insn.is_string_instruction()
        || (0..insn.op_count())
            .any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i) == Register::CL)
        || (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Immediate8);
    let defined = match may_do_nothing {
        true => 0,
        false => excuse::architectural(insn.rflags_modified() & !insn.rflags_undefined()),
    };
    vague & !defined | excuse::unknown_flags(insn)
}

/// Flags that need not agree when the sequence has ended at `rip`.
pub fn vague_flags(insns: &[Instruction], rip: u64) -> u64 {
    let in_order = !insns.iter().any(is_branch);
    insns.iter().filter(|insn| !in_order || insn.ip() < rip).fold(0, |mask, insn| match in_order {
        true => vague_behind(insn, mask),
        false => mask | excuse::unknown_flags(insn),
    })
}

/// Whether an instruction may come behind others: what it does must follow from the case alone.
fn may_follow(insn: &Instruction) -> bool {
    if excuse::stores_selectors(insn) || insn.mnemonic() == Mnemonic::Xgetbv {
        return false;
    }
    // AMD's LOOPcc obey REPcc prefixes, which are reserved there.
    if insn.is_loopcc() && (insn.has_rep_prefix() || insn.has_repne_prefix()) {
        return false;
    }
    // 16-bit ones would leave the code.
    !matches!(
        insn.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
    ) || matches!(insn.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32)
}

/// The case with instruction `i` made to do nothing; branches still lead where they did.
pub fn without(sample: &Sample, i: usize) -> Sample {
    const NOP: u8 = 0x90;
    let mut new = sample.clone();
    let insn = new.insns.remove(i);
    let at = (insn.ip() - new.case.start) as usize;
    new.case.code[at..at + insn.len()].fill(NOP);
    new
}

/// The case cut off before instruction `i`.
pub fn truncated(sample: &Sample, i: usize) -> Sample {
    let mut new = sample.clone();
    let at = (new.insns[i].ip() - new.case.start) as usize;
    new.insns.truncate(i);
    new.case.code[at..].fill(FILL);
    new
}
