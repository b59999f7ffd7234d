//! Goes through a block: entries, branches, the places where ways meet.

use std::ops::Range;

use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    OpKind, Register,
};

use crate::layout::{Layout, Table, ViewTables};
use crate::state::{Flags, Kind, Number, Numbers, RBP, RBX, State, is_slot};
use crate::violation::{Problem, Violation};

/// A block of translated code and what belongs to it.
///
/// Addresses are those of the host, or any others that have the same distances. The code is
/// position-independent, so that they need not be known.
#[derive(Clone, Debug)]
pub struct Block<'a> {
    /// The instructions.
    pub code: &'a [u8],
    /// The address of the first.
    pub address: u64,
    /// Where the block is entered through the jump cache, with the guest's instruction pointer in
    /// RBX: an offset in the block, as all places in it.
    pub far: u32,
    /// Where other blocks enter it.
    pub near: u32,
    /// Other places where it is entered, with the guest's registers loaded anew.
    pub resumes: &'a [u32],
    /// Places where it is entered again after some of its exits.
    pub retries: &'a [Retry],
    /// The numbers of its exits.
    pub exits: Range<u32>,
    /// Those of its exits that take RBX for the guest's instruction pointer.
    pub branches: &'a [u32],
    /// Distances of jumps that will be overwritten, to lead to other blocks' near entries.
    pub links: &'a [u32],
    /// Addresses of other blocks' near entries that it may lead to now.
    pub targets: &'a [u64],
    /// The view of memory that its accesses have: an index of [`Layout::views`].
    pub view: usize,
    /// Flags in RFLAGS that it may change.
    pub flags: u64,
    /// Whether it may read the time stamp counter.
    pub time: bool,
    /// Where it accesses the guest's memory without a check, if it may do that, in ascending order.
    /// Such a block runs while protection keys hide all memory but the guest program's and what is to
    /// be seen of the context, with vector registers live from the start. An access that faults
    /// is recognized by its place.
    pub mirrored: Option<&'a [u32]>,
    /// Code that is always there.
    pub stubs: Stubs<'a>,
}

/// Who leaves by the exit is let in again at `at`, with the guest's vector registers loaded if
/// they were when it left. RBX is taken for the linear address that missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The number of the exit.
    pub exit: u32,
    /// An offset in the block.
    pub at: u32,
}

/// Addresses of code that blocks go to besides each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stubs<'a> {
    /// Jumped to in order to leave, with the number of an exit in EBP. It keeps RAX and the
    /// registers that are the guest's for the guest to see.
    pub leave: u64,
    /// The same, but it makes RAX of the status flags.
    pub leave_with_flags: u64,
    /// Jumped to in order to leave with the number of an exit that one of `misses` put in the
    /// context, and the linear address in RBX.
    pub crossing: u64,
    /// Jumped to in order to go where the guest's instruction pointer in RBX says, with the number
    /// of an exit in EBP. It finds translated code there, or leaves by the exit.
    pub branch: u64,
    /// Called to load the guest's vector registers. It changes RBX and status flags.
    pub load_vectors: u64,
    /// Called if a load, or a store, of the block's view missed the soft TLB, with the number of
    /// an exit on the stack, the index of the entry in RBP, and the linear address with its tag
    /// added in RBX. They leave by the exit, or fill the entry, take the number off the stack and
    /// return; RBX, RBP and status flags are lost. If bit 31 of the number is set, they may return
    /// behind the 5 bytes that follow the call instead, with the linear address in RBX, and what is
    /// there may jump to `crossing`.
    pub misses: [u64; 2],
    /// Called to repeat a string instruction, with the number of an exit in EBP. They leave by the exit, or
    /// return with the guest's registers moved on; RBX, RBP and status flags are lost.
    pub strings: &'a [u64],
}

/// In the number of an exit that is pushed for one of [`Stubs::misses`]: it may return elsewhere.
const MERGED: u32 = 1 << 31;

/// More than this is no block.
const MAX_LENGTH: usize = 1 << 20;

/// Which ways lead to an instruction besides those that are followed.
mod entry {
    pub const FAR: u8 = 1;
    pub const NEAR: u8 = 2;
    pub const RESUME: u8 = 4;
    pub const RETRY: u8 = 8;
    /// A branch that stands behind it.
    pub const BACK: u8 = 16;
    /// No entry: a jump that will be linked.
    pub const LINKED: u8 = 32;
}

/// What is known of an instruction besides itself.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    marks: u8,
    /// One more than the index of the state in which branches from above come to it.
    pending: u32,
    /// It is entered from below with vector registers taken to be live.
    live: bool,
}

/// Checks blocks, one after the other, with the same memory.
pub struct Checker {
    pub(crate) layout: Layout,
    pub(crate) info: InstructionInfoFactory,
    pub(crate) numbers: Numbers,
    pub(crate) tables: ViewTables,
    pub(crate) view: usize,
    /// Accesses to the guest's memory need no check where they are listed.
    pub(crate) is_mirrored: bool,
    /// The addresses of those that are.
    pub(crate) sites: Vec<u64>,
    insns: Vec<Instruction>,
    places: Vec<Place>,
    /// For each offset, one more than the index of the instruction that begins there.
    index_at: Vec<u32>,
    pending: Vec<State>,
    /// For each retry, whether vector registers were live on all ways to its exit, and whether
    /// they are taken to be live where it leads.
    retries: Vec<(Retry, bool, Option<bool>)>,
}

impl Checker {
    /// A checker for contexts of this layout.
    pub fn new(layout: Layout) -> Self {
        let none = ViewTables { read: 0, write: 0, jump: 0, jump_entries: 0 };
        Self {
            layout,
            info: InstructionInfoFactory::new(),
            numbers: Numbers::default(),
            tables: none,
            view: 0,
            is_mirrored: false,
            sites: Vec::new(),
            insns: Vec::new(),
            places: Vec::new(),
            index_at: Vec::new(),
            pending: Vec::new(),
            retries: Vec::new(),
        }
    }

    /// Checks a block. An error says why it must not run.
    pub fn check(&mut self, block: &Block<'_>) -> Result<(), Violation> {
        let at_start = |problem| Violation { offset: 0, problem };
        if block.code.len() > MAX_LENGTH {
            return Err(at_start(Problem::TooLong));
        }
        self.tables = match self.layout.views.get(block.view) {
            Some(&tables) => tables,
            None => return Err(at_start(Problem::NoSuchView)),
        };
        self.view = block.view;
        self.is_mirrored = block.mirrored.is_some();
        self.sites.clear();
        let sites = block.mirrored.unwrap_or_default();
        self.sites.extend(sites.iter().map(|&site| block.address.wrapping_add(site.into())));
        self.numbers = Numbers::default();
        self.decode(block)?;
        self.mark(block)?;
        // The instructions do not change any more.
        let insns = std::mem::take(&mut self.insns);
        let result = self.follow(block, &insns);
        self.insns = insns;
        result
    }

    /// Decodes the whole block, one instruction behind the other.
    fn decode(&mut self, block: &Block<'_>) -> Result<(), Violation> {
        self.insns.clear();
        self.index_at.clear();
        self.index_at.resize(block.code.len(), 0);
        let mut decoder = Decoder::with_ip(64, block.code, block.address, DecoderOptions::NONE);
        while decoder.can_decode() {
            let offset = decoder.position();
            let index = self.insns.len();
            self.insns.push(Instruction::default());
            let insn = &mut self.insns[index];
            decoder.decode_out(insn);
            if insn.is_invalid() {
                let problem = Problem::Undecodable;
                return Err(Violation { offset: offset as u32, problem });
            }
            self.index_at[offset] = index as u32 + 1;
        }
        self.places.clear();
        self.places.resize(self.insns.len(), Place::default());
        Ok(())
    }

    /// The index of the instruction at an offset.
    fn index(&self, offset: u64) -> Option<usize> {
        let offset = usize::try_from(offset).ok()?;
        (*self.index_at.get(offset)? as usize).checked_sub(1)
    }

    /// Marks the instructions that are entered from elsewhere, or from below.
    fn mark(&mut self, block: &Block<'_>) -> Result<(), Violation> {
        self.retries.clear();
        self.retries.extend(block.retries.iter().map(|&retry| (retry, true, None)));
        let entries = [(block.far, entry::FAR), (block.near, entry::NEAR)]
            .into_iter()
            .chain(block.resumes.iter().map(|&at| (at, entry::RESUME)))
            .chain(block.retries.iter().map(|retry| (retry.at, entry::RETRY)));
        for (offset, mark) in entries {
            let index = self.index(offset.into());
            let index = index.ok_or(Violation { offset, problem: Problem::EntryIntoMiddle })?;
            self.places[index].marks |= mark;
        }
        for &offset in block.links {
            let violation = Violation { offset, problem: Problem::NoLink };
            // The distance is what a jump ends with.
            let end = u64::from(offset) + 4;
            let index = match self.index(end) {
                Some(next) => next.checked_sub(1),
                None if end == block.code.len() as u64 => self.insns.len().checked_sub(1),
                None => None,
            };
            let index = index.ok_or(violation)?;
            let code = self.insns[index].code();
            if code != Code::Jmp_rel32_64 && !self.insns[index].is_jcc_near() {
                return Err(violation);
            }
            self.places[index].marks |= entry::LINKED;
        }
        for from in 0..self.insns.len() {
            let insn = &self.insns[from];
            if insn.op0_kind() != OpKind::NearBranch64 {
                continue;
            }
            let target = insn.near_branch_target().wrapping_sub(block.address);
            if let Some(to) = self.index(target)
                && to <= from
            {
                self.places[to].marks |= entry::BACK;
            }
        }
        Ok(())
    }

    /// Follows all ways through the block, from its start to its end.
    fn follow(&mut self, block: &Block<'_>, insns: &[Instruction]) -> Result<(), Violation> {
        self.pending.clear();
        let mut state: Option<State> = None;
        let mut offset = 0;
        for (index, insn) in insns.iter().enumerate() {
            offset = insn.ip().wrapping_sub(block.address) as u32;
            let found = |problem| Violation { offset, problem };
            let Place { marks, pending, .. } = self.places[index];
            if let Some(slot) = (pending as usize).checked_sub(1) {
                let (tlb, jump) = (self.layout.tlb_entries, self.tables.jump_entries);
                match &mut state {
                    Some(state) => {
                        state.merge(&self.pending[slot], tlb, jump, &mut self.numbers);
                    }
                    None => state = Some(self.pending[slot].clone()),
                }
            }
            if marks & !entry::LINKED != 0 {
                if state.as_ref().is_some_and(State::leaks) {
                    return Err(found(Problem::Leak));
                }
                let entered = self.enter(marks, offset, state.as_ref());
                self.places[index].live = entered.live;
                state = Some(entered);
            }
            // Nothing leads to it.
            let Some(now) = &mut state else { continue };
            let goes_on = if is_push(insn) {
                // Only for the call that takes it off the stack.
                let next = insns.get(index + 1).ok_or(found(Problem::FallsOff))?;
                if miss_stub(next, block).is_none() {
                    return Err(found(Problem::NotAllowed));
                }
                true
            } else if let Some(write) = miss_stub(insn, block) {
                // No way leads here but over the push.
                let before = index.checked_sub(1).filter(|_| marks == 0 && pending == 0);
                let pushed = before.map(|before| &insns[before]).filter(|insn| is_push(insn));
                let pushed = pushed.ok_or(found(Problem::NotAllowed))?.immediate(0) as u32;
                self.miss(now, write, pushed & !MERGED, block).map_err(found)?;
                if pushed & MERGED != 0 {
                    // It may return behind the next instruction, too.
                    let next = insns.get(index + 1).filter(|next| next.len() == 5);
                    let next = next.ok_or(found(Problem::NotAllowed))?;
                    let mut crossing = State { has_missed: true, ..now.clone() };
                    crossing.registers[RBX] = self.numbers.value(Kind::Any);
                    self.go(&crossing, next.next_ip(), index, false, block).map_err(found)?;
                }
                true
            } else if insn.flow_control() == FlowControl::Next {
                self.execute(now, insn, block).map_err(found)?;
                true
            } else {
                self.branch(now, insn, index, block).map_err(found)?
            };
            if !goes_on {
                state = None;
            }
        }
        match state {
            Some(_) => Err(Violation { offset, problem: Problem::FallsOff }),
            None => Ok(()),
        }
    }

    /// What is known where the block is entered. `before` is what holds if it is come to from
    /// above.
    fn enter(&mut self, marks: u8, offset: u32, before: Option<&State>) -> State {
        use entry::{BACK, FAR, NEAR, RESUME, RETRY};
        // RBX holds an address of the guest's for who comes from elsewhere, but what the last block
        // left in it at the near entry, and anything from below.
        let is_rbx_secret = marks & (NEAR | BACK) != 0
            || before.is_some_and(|state| state.registers[RBX].kind.is_secret());
        // Whether vector registers are live on the way from above is taken for granted on ways
        // from below and behind an exit, too. Whether they are is seen there.
        let mut live = self.is_mirrored
            || marks & (FAR | NEAR | RESUME) == 0 && before.is_none_or(|state| state.live);
        if marks & RETRY != 0 {
            let here = || self.retries.iter().filter(|r| r.0.at == offset);
            live &= here().all(|&(_, left_live, _)| left_live);
            for (retry, _, taken) in &mut self.retries {
                if retry.at == offset {
                    *taken = Some(live);
                }
            }
        }
        State::entry(&mut self.numbers, is_rbx_secret, live)
    }

    /// Follows a branch. `true` if execution may go on behind it.
    fn branch(
        &mut self,
        state: &mut State,
        insn: &Instruction,
        index: usize,
        block: &Block<'_>,
    ) -> Result<bool, Problem> {
        let is_linked = self.places[index].marks & entry::LINKED != 0;
        // Other lengths have prefixes, of which processors make different things.
        match (insn.code(), insn.len()) {
            (Code::Jmp_rel8_64, 2) | (Code::Jmp_rel32_64, 5) => {
                self.go(state, insn.near_branch_target(), index, is_linked, block)?;
                Ok(false)
            }
            (_, 2) if insn.is_jcc_short() && insn.op0_kind() == OpKind::NearBranch64 => {
                self.conditional(state, insn, index, is_linked, block)
            }
            (Code::Jrcxz_rel8_64, 2) => {
                self.go(state, insn.near_branch_target(), index, is_linked, block)?;
                Ok(true)
            }
            (_, 6) if insn.is_jcc_near() && insn.op0_kind() == OpKind::NearBranch64 => {
                self.conditional(state, insn, index, is_linked, block)
            }
            (Code::Call_rel32_64, 5) if insn.near_branch_target() == block.stubs.load_vectors => {
                state.registers[RBX] = self.numbers.value(Kind::Secret);
                state.flags = Flags::Nothing;
                state.live = true;
                Ok(true)
            }
            (Code::Call_rel32_64, 5)
                if block.stubs.strings.contains(&insn.near_branch_target()) =>
            {
                if state.leaks() {
                    return Err(Problem::Leak);
                }
                self.leave(state, false, block)?;
                *state = State::entry(&mut self.numbers, true, state.live);
                Ok(true)
            }
            (Code::Jmp_rm64, _) if insn.op0_kind() == OpKind::Memory => {
                let start = insn.ip().wrapping_sub(block.address) as usize;
                self.jump_through_cache(state, insn, &block.code[start..])?;
                Ok(false)
            }
            _ => Err(Problem::NotAllowed),
        }
    }

    fn conditional(
        &mut self,
        state: &mut State,
        insn: &Instruction,
        index: usize,
        is_linked: bool,
        block: &Block<'_>,
    ) -> Result<bool, Problem> {
        let condition = insn.condition_code();
        let mut taken = state.clone();
        learn(&mut taken, condition);
        self.go(&taken, insn.near_branch_target(), index, is_linked, block)?;
        learn(state, opposite(condition));
        Ok(true)
    }

    /// Follows a jump in state `state`.
    fn go(
        &mut self,
        state: &State,
        target: u64,
        from: usize,
        is_linked: bool,
        block: &Block<'_>,
    ) -> Result<(), Problem> {
        if is_linked && state.leaks() {
            return Err(Problem::Leak);
        }
        let offset = target.wrapping_sub(block.address);
        if offset < block.code.len() as u64 {
            let to = self.index(offset).ok_or(Problem::IntoMiddle)?;
            if to <= from {
                // Nothing else is taken for granted there.
                return match self.places[to].live && !state.live {
                    true => Err(Problem::VectorsNotLive),
                    false if state.leaks() => Err(Problem::Leak),
                    false => Ok(()),
                };
            }
            match (self.places[to].pending as usize).checked_sub(1) {
                Some(slot) => {
                    let (tlb, jump) = (self.layout.tlb_entries, self.tables.jump_entries);
                    self.pending[slot].merge(state, tlb, jump, &mut self.numbers);
                }
                None => {
                    self.pending.push(state.clone());
                    self.places[to].pending = self.pending.len() as u32;
                }
            }
            return Ok(());
        }
        if state.leaks() {
            return Err(Problem::Leak);
        }
        if target == block.stubs.leave || target == block.stubs.leave_with_flags {
            return self.leave(state, false, block);
        }
        if target == block.stubs.crossing {
            return match state.registers[RBX].kind.is_secret() {
                _ if !state.has_missed => Err(Problem::WrongExit),
                true => Err(Problem::Leak),
                false => Ok(()),
            };
        }
        if target == block.stubs.branch {
            return self.leave(state, true, block);
        }
        if block.targets.contains(&target) { Ok(()) } else { Err(Problem::Outside) }
    }

    /// The block is left by an exit. `branches` is whether RBX is an address even if the exit does
    /// not say so.
    fn leave(&mut self, state: &State, branches: bool, block: &Block<'_>) -> Result<(), Problem> {
        let Kind::Const(number) = state.registers[RBP].kind else {
            return Err(Problem::WrongExit);
        };
        let is_address = branches
            || block.branches.contains(&number)
            || block.retries.iter().any(|retry| retry.exit == number);
        // The guest would see it in RIP, or in CR2.
        if is_address && state.registers[RBX].kind.is_secret() {
            return Err(Problem::Leak);
        }
        self.leave_by(state, number, block)
    }

    fn leave_by(&mut self, state: &State, number: u32, block: &Block<'_>) -> Result<(), Problem> {
        if !block.exits.contains(&number) {
            return Err(Problem::WrongExit);
        }
        for (retry, left_live, taken) in &mut self.retries {
            if retry.exit == number {
                *left_live &= state.live;
                if *taken == Some(true) && !state.live {
                    return Err(Problem::VectorsNotLive);
                }
            }
        }
        Ok(())
    }

    /// A call of the stub that looks further for a page, with the number of an exit pushed.
    fn miss(
        &mut self,
        state: &mut State,
        write: bool,
        exit: u32,
        block: &Block<'_>,
    ) -> Result<(), Problem> {
        match (state.registers[RBX].kind, state.registers[RBP].kind) {
            (Kind::Offset { of, write: tag_write, .. }, Kind::TlbIndex { of: index_of })
                if of == index_of && write == tag_write => {}
            (Kind::Offset { of, write: tag_write, .. }, Kind::Const(index))
                if is_slot(of)
                    && index == 2 * (self.layout.tlb_entries + (Number::MAX - of))
                    && write == tag_write => {}
            _ => return Err(Problem::Index),
        }
        if state.leaks() {
            return Err(Problem::Leak);
        }
        self.leave_by(state, exit, block)?;
        // Tables have changed: nothing that was found in them holds any more.
        *state = State::entry(&mut self.numbers, true, state.live);
        Ok(())
    }

    /// JMP to what the jump cache has for the address in RBX.
    fn jump_through_cache(
        &self,
        state: &State,
        insn: &Instruction,
        bytes: &[u8],
    ) -> Result<(), Problem> {
        // Perhaps REX, the opcode: an operand size prefix means different things to different
        // processors.
        let is_plain = matches!(bytes, [0xff, ..] | [0x40..=0x4f, 0xff, ..]);
        let index = insn.memory_index();
        if !is_plain
            || insn.memory_segment() != Register::SS
            || insn.memory_base() != Register::RSP
            || !index.is_gpr64()
            || insn.memory_index_scale() != 8
            || self.tables.table(insn.memory_displacement64()) != Some(Table::JumpHost)
        {
            return Err(Problem::NotAllowed);
        }
        let address = state.registers[RBX];
        let index = state.registers[index.number()];
        if state.found != Some(address.number)
            || index.kind != (Kind::JumpIndex { of: address.number })
            || address.kind.is_secret()
        {
            return Err(Problem::UncheckedJump);
        }
        if state.leaks() { Err(Problem::Leak) } else { Ok(()) }
    }
}

/// Whether the number of an exit may be what the instruction pushes. Other lengths have prefixes.
fn is_push(insn: &Instruction) -> bool {
    matches!((insn.code(), insn.len()), (Code::Pushq_imm8, 2) | (Code::Pushq_imm32, 5))
}

/// Whether the instruction calls one of the stubs for misses: that for stores?
fn miss_stub(insn: &Instruction, block: &Block<'_>) -> Option<bool> {
    if insn.code() != Code::Call_rel32_64 || insn.len() != 5 {
        return None;
    }
    let [read, write] = block.stubs.misses;
    match insn.near_branch_target() {
        target if target == read => Some(false),
        target if target == write => Some(true),
        _ => None,
    }
}

/// What is known from flags if a condition holds.
fn learn(state: &mut State, condition: ConditionCode) {
    use ConditionCode as C;
    match (state.flags, condition) {
        // Below or equal; below.
        (Flags::Offset { number, limit }, C::be) => state.learn_room(number, room(limit)),
        (Flags::Offset { number, limit }, C::b) => {
            // Nothing is below 0: this way is never gone.
            state.learn_room(number, room(limit.saturating_sub(1)));
        }
        (Flags::Jump { of }, C::e) => state.found = Some(of),
        (Flags::Live, C::ne) => state.live = true,
        _ => {}
    }
}

/// Bytes in a page behind the offset `limit`.
fn room(limit: u64) -> u16 {
    4096u64.saturating_sub(limit) as u16
}

fn opposite(condition: ConditionCode) -> ConditionCode {
    use ConditionCode as C;
    match condition {
        C::a => C::be,
        C::be => C::a,
        C::ae => C::b,
        C::b => C::ae,
        C::e => C::ne,
        C::ne => C::e,
        // Nothing is learned from others.
        _ => C::None,
    }
}
