//! Interpreter and transcoder side by side, for tests: each block of translated code is compared
//! with what the interpreter makes of the same instructions.
//!
//! Before a block is entered, a second interpreter, the *shadow*, executes its instructions from the
//! same state. It sees RAM, but its stores are kept apart ([`shadow`]); it notes its state before
//! each instruction. Then the block runs for real. Wherever it leaves, its exit names a guest
//! instruction, and registers, flags and all that was stored have to be as the shadow had them
//! there.
//!
//! Blocks are not chained and jump caches stay empty, so that each block is left at its end. What
//! the interpreter executes for the transcoder (interrupts, devices, system instructions) is not
//! compared with anything: it is the reference.

mod report;
mod shadow;
#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use accel::CpuidTable;
use iced_x86::{EncodingKind, Instruction, Mnemonic};
use x86::state::{Rflags, SegReg, VectorState, gpr};
use x86::{Cpu, CpuState, Forgotten};

use self::shadow::ShadowEnv;
use super::engine::{Next, Transcoder, status_from_ax};
use super::strings::StringOp;
use super::translate::{Departure, Exit, Setting};
use crate::env::{Shared, SoftEnv};
use crate::native::NativeUnit;

/// What was compared in lockstep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Blocks that were executed and compared, or rests of blocks behind an instruction that was
    /// interpreted.
    pub blocks: u64,
    /// Their instructions.
    pub instructions: u64,
    /// Differences in nothing but flags that the instruction leaves undefined. They are taken over.
    pub undefined: u64,
    /// Differences that came of a device that stored to RAM at the same time. They are taken over.
    pub raced: u64,
    /// Differences. Each is a defect of the transcoder or the interpreter, and ends its machine.
    pub differences: u64,
}

/// The tally of this process's machines, but for those that still run.
static TALLY: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

/// What was compared in lockstep in this process, in all machines that are gone.
pub fn lockstep_tally() -> Tally {
    let [blocks, instructions, undefined, raced, differences] =
        TALLY.each_ref().map(|number| number.load(Ordering::Relaxed));
    Tally { blocks, instructions, undefined, raced, differences }
}

/// A translated block.
struct Translation {
    /// Where its host code lies.
    host: u64,
    host_len: u64,
    /// How often it was entered, or the rest of it.
    entered: u64,
    /// It has vector instructions.
    has_vectors: bool,
    /// Its instructions, decoded as if their page lay at address 0.
    insns: Box<[Instruction]>,
    /// Offsets of those that are left to the interpreter in any case.
    interpreted: Box<[u16]>,
    /// The last instruction reads the time, which is never the same.
    ends_in_time: bool,
}

/// What of a processor's state translated code may change, besides vector registers.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Registers {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    gs_base: u64,
    kernel_gs_base: u64,
}

/// The shadow before an instruction.
struct Step {
    registers: Registers,
    /// Vector registers, by number in [`Lockstep::vectors`]. If there is none of that number, nothing
    /// changed them.
    vectors: usize,
    /// How many stores it had made.
    stores: usize,
}

/// Where translated code says that it has come to.
enum Place {
    /// To an instruction in the midst of the block, which is not executed yet.
    Before(u64),
    /// Out of the block.
    Behind(u64),
}

/// The shadow of one processor, and what it did.
pub struct Lockstep {
    shadow: Cpu<ShadowEnv>,
    /// One in so many executions of a block is compared, and as many at first.
    sample: u64,
    /// Translated blocks in the order of their host addresses, in which they are made.
    blocks: Vec<Translation>,
    /// The block that runs.
    current: usize,
    /// The current execution of it is compared.
    is_comparing: bool,
    /// The shadow has the processor's state, but for what [`Registers`] holds.
    is_alike: bool,
    /// The shadow's way through it.
    steps: Vec<Step>,
    vectors: Vec<VectorState>,
    /// The shadow came out of the block.
    has_left: bool,
    /// How many instructions of the block were compared.
    reached: usize,
    tally: Tally,
    difference: Option<String>,
}

impl Lockstep {
    /// For a processor of a machine. `sample` is 1 to compare everything.
    pub fn new(shared: Arc<Shared>, cpuid: CpuidTable, native: NativeUnit, sample: u32) -> Self {
        let state = CpuState::reset(0);
        Self {
            shadow: Cpu::new(state, ShadowEnv::new(shared, cpuid, native)),
            sample: sample.max(1).into(),
            blocks: Vec::new(),
            current: 0,
            is_comparing: false,
            is_alike: false,
            reached: 0,
            steps: Vec::new(),
            vectors: Vec::new(),
            has_left: false,
            tally: Tally::default(),
            difference: None,
        }
    }

    /// Learns of a block: its host code, its guest code, and its exits.
    pub fn add(&mut self, host: u64, host_len: usize, insns: &[Instruction], exits: &[Departure]) {
        let repeats =
            |at| insns.iter().any(|insn| insn.ip() as u16 == at && StringOp::of(insn).is_some());
        let interpreted = exits.iter().filter_map(|departure| match departure.exit {
            // Those that are so under a condition do not go on, but for string instructions.
            Exit::Interpret { at, next, .. } if next != 0 && !repeats(at) => Some(at),
            _ => None,
        });
        let translation = Translation {
            host,
            host_len: host_len as u64,
            entered: 0,
            has_vectors: insns.iter().any(has_vectors),
            insns: insns.into(),
            interpreted: interpreted.collect(),
            ends_in_time: insns.last().is_some_and(ends_block),
        };
        self.blocks.push(translation);
    }

    /// All translated code is gone.
    pub fn clear(&mut self) {
        self.blocks.clear();
    }

    /// The processor's TLB forgot this.
    pub fn forget(&mut self, forgotten: &Forgotten) {
        self.shadow.follow(forgotten);
    }

    /// What was found, once.
    pub fn take_difference(&mut self) -> Option<String> {
        self.difference.take()
    }

    /// The block at `host`, or the rest of it, is about to be entered: says whether it is to be
    /// compared.
    fn enter(&mut self, host: u64) -> bool {
        self.current = self.blocks.partition_point(|block| block.host <= host).wrapping_sub(1);
        let Some(block) = self.blocks.get_mut(self.current) else {
            unreachable!("no block was translated to {host:#x}");
        };
        assert!(host - block.host < block.host_len, "no block was translated to {host:#x}");
        self.is_comparing = block.entered < self.sample || block.entered % self.sample == 0;
        block.entered += 1;
        self.is_alike &= self.is_comparing;
        self.is_comparing
    }

    /// Has the shadow execute the block, or what is left of it.
    fn begin(&mut self, state: &CpuState) {
        let Self { shadow, blocks, steps, vectors, has_left, current, .. } = self;
        let Some(block) = blocks.get(*current) else { return };
        steps.clear();
        vectors.clear();
        *has_left = false;
        shadow.env.clear();
        if self.is_alike {
            Registers::of(state).set(&mut shadow.state);
        } else {
            shadow.assume(state);
        }
        let base = state.rip & !0xfff;
        let mut next = block.insns.iter().position(|insn| base + insn.ip() == state.rip);
        let mut expected = state.rip;
        shadow.observe(|cpu| {
            if cpu.env.is_outside() {
                // What is not the block's to do began with the last step.
                return false;
            }
            if block.has_vectors && vectors.last() != Some(&cpu.state.vector) {
                vectors.push(cpu.state.vector.clone());
            }
            steps.push(Step {
                registers: Registers::of(&cpu.state),
                vectors: vectors.len().saturating_sub(1),
                stores: cpu.env.stores(),
            });
            let rip = cpu.state.rip;
            let Some(index) = next.filter(|_| rip == expected) else {
                *has_left = true;
                return false;
            };
            let Some(insn) = block.insns.get(index) else {
                *has_left = true;
                return false;
            };
            next = Some(index + 1);
            expected = base.wrapping_add(insn.next_ip());
            // What is long is the interpreter's (`strings.rs`).
            let is_long = insn.is_string_instruction() && cpu.state.gpr[gpr::RCX] > 4096;
            !is_long && !block.interpreted.contains(&(insn.ip() as u16))
        });
        if shadow.env.take_unmarked() {
            // A guest may count on no TLB knowing what was not marked as accessed.
            let mut all = Forgotten::default();
            all.space = true;
            shadow.follow(&all);
        }
    }

    /// Compares the processor with the shadow. `vectors` is `None` if translated code had none.
    fn compare(&mut self, found: &Registers, place: Place, vectors: Option<&VectorState>) {
        let is_there = |step: &Step, rip: u64| step.registers.rip == rip;
        let last = self.steps.len().saturating_sub(1);
        let index = match place {
            Place::Behind(rip) => {
                self.steps.last().filter(|step| self.has_left && is_there(step, rip)).map(|_| last)
            }
            Place::Before(rip) => {
                let midst = &self.steps[..self.steps.len() - usize::from(self.has_left)];
                // A block that ends in the interpreter's hands goes on behind its end.
                let is_empty = midst.is_empty();
                if is_empty {
                    self.steps.first().filter(|step| is_there(step, rip)).map(|_| 0)
                } else {
                    midst.iter().position(|step| is_there(step, rip))
                }
            }
        };
        self.is_alike = false;
        let Some(index) = index else {
            return self.differ("the way", last, found, vectors);
        };
        self.reached = index;
        let step = &self.steps[index];
        let Some(block) = self.blocks.get(self.current) else { return };
        let mut found_here = *found;
        let is_time = block.ends_in_time && self.has_left && index == last && index > 0;
        if is_time && is_later(&step.registers, found) {
            for reg in [gpr::RAX, gpr::RDX] {
                found_here.gpr[reg] = step.registers.gpr[reg];
            }
        }
        let mut is_undefined = false;
        if found_here != step.registers {
            let undefined = block.undefined(&self.steps[..index]) & Rflags::STATUS.bits();
            found_here.rflags ^= (found_here.rflags ^ step.registers.rflags) & undefined;
            is_undefined = true;
        }
        if found_here != step.registers {
            return self.differ("registers", index, found, vectors);
        }
        let expected = self.vectors.get(step.vectors).unwrap_or(&self.shadow.state.vector);
        if vectors.is_some_and(|vectors| vectors != expected)
            || vectors.is_none() && block.has_vectors && *expected != self.vectors[0]
        {
            return self.differ("vector registers", index, found, vectors);
        }
        if self.shadow.env.wrong_byte(step.stores).is_some() {
            return self.differ("memory", index, found, vectors);
        }
        self.tally.undefined += u64::from(is_undefined);
        self.is_alike = matches!(place, Place::Behind(_));
    }

    /// The execution of a block has ended.
    fn end(&mut self) {
        self.tally.blocks += 1;
        self.tally.instructions += std::mem::take(&mut self.reached) as u64;
    }

    fn differ(
        &mut self,
        what: &str,
        index: usize,
        found: &Registers,
        vectors: Option<&VectorState>,
    ) {
        let stores = self.steps.get(index).map_or(0, |step| step.stores);
        let text = self.report(what, index, found, vectors);
        if self.shadow.env.has_raced(stores) {
            self.tally.raced += 1;
            tracing::debug!("a device stored to RAM at the same time, perhaps: {text}");
            return;
        }
        self.tally.differences += 1;
        self.difference = Some(text);
    }
}

impl Drop for Lockstep {
    fn drop(&mut self) {
        let Tally { blocks, instructions, undefined, raced, differences } = self.tally;
        let numbers = [blocks, instructions, undefined, raced, differences];
        for (total, number) in TALLY.iter().zip(numbers) {
            total.fetch_add(number, Ordering::Relaxed);
        }
        tracing::info!(
            "lockstep: {blocks} blocks of {instructions} instructions compared, \
             {undefined} times undefined flags and {raced} times loads differed, \
             {differences} differences"
        );
    }
}

impl Translation {
    /// Flags that are undefined after some steps from the first on.
    fn undefined(&self, steps: &[Step]) -> u64 {
        let mut undefined = 0;
        for step in steps {
            let at = step.registers.rip & 0xfff;
            if let Some(insn) = self.insns.iter().find(|insn| insn.ip() == at) {
                undefined =
                    undefined & !rflags(insn.rflags_modified()) | rflags(insn.rflags_undefined());
            }
        }
        undefined
    }
}

/// The decoder's flags as RFLAGS has them.
fn rflags(bits: u32) -> u64 {
    use iced_x86::RflagsBits as R;
    [(R::CF, 0), (R::PF, 2), (R::AF, 4), (R::ZF, 6), (R::SF, 7), (R::OF, 11)]
        .iter()
        .filter(|(flag, _)| bits & flag != 0)
        .fold(0, |flags, (_, bit)| flags | 1 << bit)
}

/// Whether an instruction has to do with vector registers. It may have BMI instructions for such.
fn has_vectors(insn: &Instruction) -> bool {
    insn.encoding() != EncodingKind::Legacy
        || matches!(insn.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr)
        || (0..insn.op_count()).any(|i| insn.op_register(i).is_vector_register())
}

/// Whether in lockstep an instruction ends its block: what it gives differs, and must not be used
/// before it was compared.
pub fn ends_block(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Rdtsc | Mnemonic::Rdtscp)
}

/// Whether RDTSC gave the processor a number that is no less than what it gave the shadow.
fn is_later(shadow: &Registers, found: &Registers) -> bool {
    let time = |registers: &Registers| {
        let [low, high] = [gpr::RAX, gpr::RDX].map(|reg| registers.gpr[reg]);
        (low >> 32 == 0 && high >> 32 == 0).then_some(high << 32 | low)
    };
    matches!((time(shadow), time(found)), (Some(before), Some(now)) if before <= now)
}

impl Registers {
    fn of(state: &CpuState) -> Self {
        Self {
            gpr: state.gpr,
            rip: state.rip,
            rflags: state.rflags,
            gs_base: state.segment(SegReg::Gs).base,
            kernel_gs_base: state.msrs.kernel_gs_base,
        }
    }

    fn set(&self, state: &mut CpuState) {
        state.gpr = self.gpr;
        state.rip = self.rip;
        state.rflags = self.rflags;
        state.seg[SegReg::Gs as usize].base = self.gs_base;
        state.msrs.kernel_gs_base = self.kernel_gs_base;
    }
}

impl Transcoder {
    /// Like `execute`, but with each block compared. `false` if there is a difference: what becomes
    /// of the machine's state does not matter then.
    pub(super) fn execute_in_lockstep(
        &mut self,
        cpu: &mut Cpu<SoftEnv>,
        setting: Setting,
        near: u64,
    ) -> bool {
        self.load_state(cpu);
        let mut next = Next::Enter { at: near, vectors: false };
        let mut retry = None;
        while let Next::Enter { at, vectors } = next {
            if retry != Some(at) {
                self.store_state(cpu, cpu.state.rip & 0xfff);
                if let Some(lockstep) = &mut self.lockstep
                    && lockstep.enter(at)
                {
                    lockstep.begin(&cpu.state);
                }
            }
            self.enter(at, vectors);
            let departure = self.departure();
            if self.lockstep.as_ref().is_some_and(|lockstep| lockstep.is_comparing) {
                self.compare(cpu, departure);
            }
            next = match &mut self.lockstep {
                Some(lockstep) if lockstep.difference.is_some() => return false,
                _ => self.after(cpu, setting),
            };
            retry = match departure.exit {
                Exit::Miss { retry, .. } => Some(self.cache_address(retry)),
                _ => None,
            };
            if let Some(lockstep) = &mut self.lockstep
                && lockstep.is_comparing
                && !matches!(next, Next::Enter { at, .. } if retry == Some(at))
            {
                lockstep.end();
            }
        }
        // The interpreter is next, most of the time.
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.is_alike = false;
        }
        true
    }

    /// Compares what translated code has left by an exit.
    fn compare(&mut self, cpu: &mut Cpu<SoftEnv>, Departure { exit, back }: Departure) {
        let (status, rip) = (self.context().status, cpu.state.rip);
        if let Exit::Miss { at, .. } | Exit::Interpret { at, .. } = exit {
            self.recover_flags(cpu, at, back);
        }
        let has_vectors = self.context().vectors_left != 0;
        let context = self.context();
        let base = context.code_base;
        let mut found = Registers {
            gpr: context.gpr,
            rip: 0,
            rflags: context.rflags & !Rflags::STATUS.bits() | status_from_ax(context.status),
            gs_base: context.gs_base,
            kernel_gs_base: context.kernel_gs_base,
        };
        let place = match exit {
            Exit::Attention { at } | Exit::Miss { at, .. } | Exit::Interpret { at, .. } => {
                Place::Before(base.wrapping_add(at.into()))
            }
            Exit::Chain { at } => Place::Behind(base.wrapping_add(at.into())),
            Exit::Branch { at, stack } => {
                let target = context.scratch;
                if (target << 16) as i64 >> 16 == target as i64 {
                    Place::Behind(target)
                } else {
                    let rsp = &mut found.gpr[gpr::RSP];
                    *rsp = rsp.wrapping_sub(stack as i64 as u64);
                    Place::Before(base.wrapping_add(at.into()))
                }
            }
            Exit::Fault | Exit::FarChain { .. } => {
                unreachable!("in lockstep, no memory is mirrored")
            }
        };
        let (Place::Before(at) | Place::Behind(at)) = place;
        found.rip = at;
        // A check may be repeated: with what it left.
        context.status = status;
        cpu.state.rip = rip;
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.compare(&found, place, has_vectors.then_some(&cpu.state.vector));
        }
    }
}
