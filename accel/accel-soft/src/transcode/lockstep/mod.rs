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
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use accel::CpuidTable;
use iced_x86::{Instruction, Mnemonic};
use x86::state::{Rflags, SegReg, VectorState, gpr};
use x86::{Cpu, CpuState, Forgotten};

use self::shadow::ShadowEnv;
use super::engine::{Next, Transcoder, status_from_ax};
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
    /// Exits in the midst of a block where the state was compared: soft TLB misses, mostly.
    pub midway: u64,
    /// Differences in nothing but flags that the instruction leaves undefined. They are taken over.
    pub undefined: u64,
    /// Differences that came of a device that stored to RAM at the same time. They are taken over.
    pub raced: u64,
    /// Differences. Each is a defect of the transcoder or the interpreter, and ends its machine.
    pub differences: u64,
}

/// The tally of this process's machines, but for those that still run.
static TALLY: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];

/// What was compared in lockstep in this process, in all machines that are gone.
pub fn lockstep_tally() -> Tally {
    let [blocks, instructions, midway, undefined, raced, differences] =
        TALLY.each_ref().map(|number| number.load(Ordering::Relaxed));
    Tally { blocks, instructions, midway, undefined, raced, differences }
}

/// A translated block.
struct Translation {
    /// Bytes of host code.
    host_len: u64,
    /// Offset of the first instruction in its page, and of what follows the last one.
    start: u16,
    end: u16,
    /// Offsets of the instructions.
    places: Box<[u16]>,
    /// Offsets of those that are left to the interpreter in any case.
    interpreted: Box<[u16]>,
    /// The guest's code.
    bytes: Box<[u8]>,
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
    /// Vector registers, by number in [`Lockstep::vectors`].
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
    /// Translated blocks, by host address.
    blocks: BTreeMap<u64, Translation>,
    /// The host address of the block that runs.
    current: u64,
    /// The shadow's way through it.
    steps: Vec<Step>,
    vectors: Vec<VectorState>,
    /// The shadow came out of the block.
    has_left: bool,
    tally: Tally,
    difference: Option<String>,
}

impl Lockstep {
    /// For a processor of a machine.
    pub fn new(shared: Arc<Shared>, cpuid: CpuidTable, native: NativeUnit) -> Self {
        let state = CpuState::reset(0);
        Self {
            shadow: Cpu::new(state, ShadowEnv::new(shared, cpuid, native)),
            blocks: BTreeMap::new(),
            current: 0,
            steps: Vec::new(),
            vectors: Vec::new(),
            has_left: false,
            tally: Tally::default(),
            difference: None,
        }
    }

    /// Learns of a block: its host code, its guest code, and its exits.
    pub fn add(
        &mut self,
        host: u64,
        host_len: usize,
        insns: &[Instruction],
        code: &[u8],
        exits: &[Departure],
    ) {
        let (Some(first), Some(last)) = (insns.first(), insns.last()) else { return };
        let interpreted = exits.iter().filter_map(|departure| match departure.exit {
            // Those that are so under a condition do not go on.
            Exit::Interpret { at, next, .. } if next != 0 => Some(at),
            _ => None,
        });
        let translation = Translation {
            host_len: host_len as u64,
            start: first.ip() as u16,
            end: last.next_ip() as u16,
            places: insns.iter().map(|insn| insn.ip() as u16).collect(),
            interpreted: interpreted.collect(),
            bytes: code.into(),
            ends_in_time: ends_block(last),
        };
        self.blocks.insert(host, translation);
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

    /// Has the shadow execute the block, or what is left of it, that is to be entered at `host`.
    fn begin(&mut self, state: &CpuState, host: u64) {
        let Self { shadow, blocks, steps, vectors, has_left, current, .. } = self;
        steps.clear();
        vectors.clear();
        *has_left = false;
        let Some((&start, block)) = blocks.range(..=host).next_back() else {
            unreachable!("no block was translated to {host:#x}");
        };
        assert!(host - start < block.host_len, "no block was translated to {host:#x}");
        *current = start;
        shadow.env.clear();
        shadow.assume(state);
        let base = state.rip & !0xfff;
        let mut next = block.places.iter().position(|&at| base + u64::from(at) == state.rip);
        let mut expected = state.rip;
        shadow.observe(|cpu| {
            if cpu.env.is_outside() {
                // What is not the block's to do began with the last step.
                return false;
            }
            if vectors.last() != Some(&cpu.state.vector) {
                vectors.push(cpu.state.vector.clone());
            }
            steps.push(Step {
                registers: Registers::of(&cpu.state),
                vectors: vectors.len() - 1,
                stores: cpu.env.stores(),
            });
            let rip = cpu.state.rip;
            let Some(index) = next.filter(|_| rip == expected) else {
                *has_left = true;
                return false;
            };
            let Some(&at) = block.places.get(index) else {
                *has_left = true;
                return false;
            };
            next = Some(index + 1);
            let after = block.places.get(index + 1).unwrap_or(&block.end);
            expected = base + u64::from(*after);
            !block.interpreted.contains(&at)
        });
        if shadow.env.take_unmarked() {
            // A guest may count on no TLB knowing what was not marked as accessed.
            let mut all = Forgotten::default();
            all.space = true;
            shadow.follow(&all);
        }
    }

    /// Compares the processor with the shadow.
    fn compare(&mut self, found: &Registers, place: Place, vectors: &VectorState) {
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
        match place {
            Place::Behind(_) => {
                self.tally.blocks += 1;
                self.tally.instructions += last as u64;
            }
            Place::Before(_) => self.tally.midway += 1,
        }
        let Some(index) = index else {
            return self.differ("the way", last, found, vectors);
        };
        let step = &self.steps[index];
        let Some(block) = self.blocks.get(&self.current) else { return };
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
        if *vectors != self.vectors[step.vectors] {
            return self.differ("vector registers", index, found, vectors);
        }
        if self.shadow.env.wrong_byte(step.stores).is_some() {
            return self.differ("memory", index, found, vectors);
        }
        self.tally.undefined += u64::from(is_undefined);
    }

    fn differ(&mut self, what: &str, index: usize, found: &Registers, vectors: &VectorState) {
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
        let Tally { blocks, instructions, midway, undefined, raced, differences } = self.tally;
        let numbers = [blocks, instructions, midway, undefined, raced, differences];
        for (total, number) in TALLY.iter().zip(numbers) {
            total.fetch_add(number, Ordering::Relaxed);
        }
        tracing::info!(
            "lockstep: {blocks} blocks of {instructions} instructions and {midway} exits on the way \
             compared, {undefined} times undefined flags and {raced} times loads differed, \
             {differences} differences"
        );
    }
}

impl Translation {
    /// Flags that are undefined after some steps from the first on.
    fn undefined(&self, steps: &[Step]) -> u64 {
        let mut undefined = 0;
        for step in steps {
            let at = (step.registers.rip & 0xfff) as u16;
            if let Some(insn) = self.instructions().find(|insn| insn.ip() == u64::from(at)) {
                undefined =
                    undefined & !rflags(insn.rflags_modified()) | rflags(insn.rflags_undefined());
            }
        }
        undefined
    }

    fn instructions(&self) -> impl Iterator<Item = Instruction> {
        iced_x86::Decoder::with_ip(64, &self.bytes, self.start.into(), 0).into_iter()
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
}

impl Transcoder {
    /// Like `execute`, but with each block compared. `false` if there is a difference: what becomes
    /// of the machine's state does not matter then.
    pub(super) fn execute_in_lockstep(
        &mut self,
        cpu: &mut Cpu<SoftEnv>,
        mut setting: Setting,
        near: u64,
    ) -> bool {
        self.load_state(cpu);
        let mut next = Next::Enter { at: near, vectors: false };
        let mut retry = None;
        while let Next::Enter { at, vectors } = next {
            if retry != Some(at) {
                self.store_state(cpu, cpu.state.rip & 0xfff);
                if let Some(lockstep) = &mut self.lockstep {
                    lockstep.begin(&cpu.state, at);
                }
            }
            self.enter(at, vectors);
            let departure = self.departure();
            self.compare(cpu, departure);
            if self.lockstep.as_ref().is_some_and(|lockstep| lockstep.difference.is_some()) {
                return false;
            }
            next = self.after(cpu, &mut setting);
            retry = match departure.exit {
                Exit::Miss { retry, .. } => Some(self.cache_address(retry)),
                _ => None,
            };
        }
        true
    }

    /// Compares what translated code has left by an exit.
    fn compare(&mut self, cpu: &mut Cpu<SoftEnv>, Departure { exit, back }: Departure) {
        let (status, rip) = (self.context().status, cpu.state.rip);
        if let Exit::Miss { at, .. } | Exit::Interpret { at, .. } = exit {
            self.recover_flags(cpu, at, back);
        }
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
        };
        let (Place::Before(at) | Place::Behind(at)) = place;
        found.rip = at;
        // A check may be repeated: with what it left.
        context.status = status;
        cpu.state.rip = rip;
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.compare(&found, place, &cpu.state.vector);
        }
    }
}
