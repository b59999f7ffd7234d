//! The native unit: runs single vector and x87 instructions of the guest on the host's processor.
//!
//! Guest and host speak the same language, so nobody needs to write floating-point arithmetic:
//! for each distinct instruction a small stub is generated, which loads just the registers that
//! the instruction reads from the guest's state, runs it, and stores what it wrote. The memory
//! operand is a buffer; the interpreter has moved the data and made the checks.

mod plan;
mod stub;
#[cfg(test)]
mod tests;

use std::io;
use std::ptr::NonNull;

use iced_x86::{Code, EncodingKind, Instruction};
use x86::cpuid::CpuidResult;
use x86::state::{Rflags, X87State};
use x86::{CpuState, Exception, NativeOperand, features, vector};

use crate::code_memory::CodeMemory;
use crate::zeroed::{Table, Zero};
use plan::{Environment, Plan};
use stub::{Frame, HOST_MXCSR, Width};

/// Room for stubs; a guest that uses more distinct instructions has them generated again.
const CODE_SIZE: usize = 1 << 20;
/// Slots of the table of stubs, a power of two.
const SLOTS: usize = 1 << 13;
/// How far from its first slot an instruction may lie.
const MAX_PROBES: usize = 8;

/// MXCSR and, at other places, FCW: exception flags IE, DE, ZE, OE, UE, PE.
const FLAGS: u32 = 0x3f;
/// MXCSR: the masks, in the order of the flags.
const MASKS: u32 = FLAGS << 7;
/// Flags of exceptions that are found before the operation is carried out.
const PRE_COMPUTATION: u32 = 0x07;
const UNDERFLOW: u32 = 1 << 4;
const FLUSH_TO_ZERO: u32 = 1 << 15;

/// What tells one instruction from another, addresses apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    /// Code, registers, immediates.
    operands: u64,
    /// Mask register, zeroing, rounding, SAE, broadcast; bit 15 is always set, so that no key is
    /// that of an empty slot.
    modifiers: u16,
}

impl Key {
    const EMPTY: Self = Self { operands: 0, modifiers: 0 };

    #[inline(always)]
    fn of(insn: &Instruction) -> Self {
        let regs = (insn.op0_register() as u64 & 0xff)
            | (insn.op1_register() as u64 & 0xff) << 8
            | (insn.op2_register() as u64 & 0xff) << 16
            | (insn.op3_register() as u64 & 0xff) << 24;
        // Where there is no second immediate, iced keeps the displacement in its place.
        let second = match insn.code() {
            Code::Extrq_xmm_imm8_imm8 | Code::Insertq_xmm_xmm_imm8_imm8 => insn.immediate8_2nd(),
            _ => 0,
        };
        let operands = insn.code() as u64
            | regs << 16
            | u64::from(insn.immediate8()) << 48
            | u64::from(second) << 56;
        let modifiers = 1 << 15
            | insn.op_mask().number() as u16 & 7
            | u16::from(insn.zeroing_masking()) << 3
            | u16::from(insn.suppress_all_exceptions()) << 4
            | u16::from(insn.is_broadcast()) << 5
            | (insn.rounding_control() as u16 & 7) << 6;
        Self { operands, modifiers }
    }

    #[inline(always)]
    fn slot(self) -> usize {
        let mixed =
            (self.operands ^ u64::from(self.modifiers) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 51) as usize % SLOTS
    }
}

type Entry = unsafe extern "sysv64" fn(*mut u8, *mut NativeOperand, *mut Frame);

#[derive(Clone, Copy)]
struct Stub {
    /// `None` for an instruction that is refused.
    entry: Option<Entry>,
    environment: Environment,
    uses_flags: bool,
}

impl Stub {
    const REFUSED: Self = Self { entry: None, environment: Environment::None, uses_flags: false };
}

/// A slot of the table of stubs. An empty one is zero.
#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    stub: Stub,
}

impl Slot {
    const EMPTY: Self = Self { key: Key::EMPTY, stub: Stub::REFUSED };
}

// SAFETY: a key is numbers, an entry that is zero is none, the environment has a value of number 0, and
// `uses_flags` is false.
unsafe impl Zero for Slot {}

/// An FXSAVE area.
#[repr(C, align(64))]
struct FxsaveArea {
    x87: X87State,
    rest: [u8; 352],
}

/// Runs single instructions on the host. Each processor has its own.
pub struct NativeUnit {
    code: CodeMemory,
    slots: Table<Slot>,
    frame: Frame,
    fxsave: Box<FxsaveArea>,
    width: Width,
    /// The host's answers to CPUID, which is slow where the host is itself a guest.
    cpuid: Vec<((u32, u32), CpuidResult)>,
}

impl NativeUnit {
    /// Makes a unit; fails if the host gives no executable memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            code: CodeMemory::new(CODE_SIZE)?,
            slots: Table::new(SLOTS)?,
            frame: Frame { mxcsr: 0, host_mxcsr: HOST_MXCSR, rflags: 0 },
            fxsave: Box::new(FxsaveArea {
                x87: x86::state::VectorState::default().x87,
                rest: [0; 352],
            }),
            width: Width::of_host(),
            cpuid: Vec::new(),
        })
    }

    /// Runs one x87, MMX, SSE or AVX instruction; see [`x86::Env::execute_native`], which this
    /// implements. An MMX instruction finds TOP at 0. Anything but such an instruction, or one
    /// that this host does not have, is #UD.
    #[inline]
    pub fn execute(
        &mut self,
        insn: &Instruction,
        state: &mut CpuState,
        memory: &mut NativeOperand,
    ) -> Result<(), Exception> {
        let stub = self.find(insn);
        let Some(entry) = stub.entry else {
            return Err(Exception::UD);
        };
        if stub.uses_flags {
            self.frame.rflags = state.rflags & Rflags::STATUS.bits() | Rflags::FIXED.bits();
        }
        match stub.environment {
            Environment::None => self.call(entry, state, memory),
            Environment::Mxcsr => {
                let guest = state.vector.x87.mxcsr;
                if guest & MASKS == MASKS {
                    self.frame.mxcsr = guest & 0xffff;
                    self.call(entry, state, memory);
                    state.vector.x87.mxcsr = self.frame.mxcsr;
                } else {
                    self.execute_unmasked(entry, state, memory)?;
                }
            }
            Environment::QuietMxcsr => {
                self.frame.mxcsr = state.vector.x87.mxcsr & 0xffff | MASKS;
                self.call(entry, state, memory);
            }
            Environment::X87 => self.execute_x87(entry, state, memory)?,
        }
        if stub.uses_flags {
            let status = Rflags::STATUS.bits();
            state.rflags = state.rflags & !status | self.frame.rflags & status;
        }
        Ok(())
    }

    #[inline(always)]
    fn call(&mut self, entry: Entry, state: &mut CpuState, memory: &mut NativeOperand) {
        // SAFETY: a stub for other than x87 instructions takes the guest's state, of which it
        // accesses registers at their offsets, the operand, of which it accesses no more than its
        // 512 bytes (`Plan::new`), and the frame. `find` returns only stubs whose code is still
        // there.
        unsafe { entry(std::ptr::from_mut(state).cast(), memory, &mut self.frame) }
    }

    /// Runs an instruction while the guest wants to hear of some exceptions: on copies and with
    /// everything masked, to see first what it would raise (SDM Vol. 1, 11.5.3).
    #[cold]
    fn execute_unmasked(
        &mut self,
        entry: Entry,
        state: &mut CpuState,
        memory: &mut NativeOperand,
    ) -> Result<(), Exception> {
        let guest = state.vector.x87.mxcsr & 0xffff;
        let unmasked = !(guest >> 7) & FLAGS;
        let mut control = guest & !FLAGS | MASKS;
        let mut raised = 0;
        if unmasked & UNDERFLOW != 0 {
            // An unmasked underflow is raised for every tiny result, a masked one only if it is
            // inexact as well. Flushing to zero, which masking alone makes effective, reports all.
            self.frame.mxcsr = control | FLUSH_TO_ZERO;
            self.call(entry, &mut state.clone(), &mut memory.clone());
            raised |= self.frame.mxcsr & UNDERFLOW;
            control &= !FLUSH_TO_ZERO;
        }
        let (mut new_state, mut new_memory) = (state.clone(), *memory);
        self.frame.mxcsr = control;
        self.call(entry, &mut new_state, &mut new_memory);
        raised |= self.frame.mxcsr & FLAGS;
        if raised & unmasked != 0 {
            if raised & unmasked & PRE_COMPUTATION != 0 {
                raised &= PRE_COMPUTATION;
            }
            state.vector.x87.mxcsr |= raised;
            return Err(Exception::new(vector::XM));
        }
        *state = new_state;
        *memory = new_memory;
        state.vector.x87.mxcsr |= raised;
        Ok(())
    }

    fn execute_x87(
        &mut self,
        entry: Entry,
        state: &mut CpuState,
        memory: &mut NativeOperand,
    ) -> Result<(), Exception> {
        let guest = &mut state.vector.x87;
        if guest.fsw & !guest.fcw & FLAGS as u16 != 0 {
            // The host would raise it, too, but as a signal to this process.
            return Err(Exception::new(vector::MF));
        }
        let (mxcsr, mxcsr_mask) = (guest.mxcsr, guest.mxcsr_mask);
        self.fxsave.x87 = X87State { mxcsr: HOST_MXCSR, ..*guest };
        // SAFETY: a stub for x87 instructions takes an FXSAVE area, aligned to 64 bytes, whose
        // MXCSR is valid; for the rest as in `call`. It leaves no exception pending.
        unsafe { entry(std::ptr::from_mut(&mut *self.fxsave).cast(), memory, &mut self.frame) };
        *guest = X87State { mxcsr, mxcsr_mask, ..self.fxsave.x87 };
        Ok(())
    }

    /// The stub for an instruction, made now if need be.
    #[inline(always)]
    fn find(&mut self, insn: &Instruction) -> Stub {
        let key = Key::of(insn);
        let slot = self.slots[key.slot()];
        if slot.key == key { slot.stub } else { self.find_slow(key, insn) }
    }

    #[inline(never)]
    fn find_slow(&mut self, key: Key, insn: &Instruction) -> Stub {
        let probes = (0..MAX_PROBES).map(|i| (key.slot() + i) % SLOTS);
        for at in probes.clone() {
            if self.slots[at].key == key {
                return self.slots[at].stub;
            }
        }
        let stub = self.generate(insn);
        let free = probes.clone().find(|&at| self.slots[at].key == Key::EMPTY);
        // With no slot free, the first makes room; its code is lost until all is cleared.
        let at = free.unwrap_or(key.slot());
        self.slots[at] = Slot { key, stub };
        stub
    }

    fn generate(&mut self, insn: &Instruction) -> Stub {
        if !self.host_has(insn) {
            return Stub::REFUSED;
        }
        let Some(plan) = Plan::new(insn) else {
            tracing::debug!(code = ?insn.code(), "not an instruction for the native unit");
            return Stub::REFUSED;
        };
        let code = match stub::emit(&plan, self.width) {
            Ok(code) => code,
            Err(error) => {
                tracing::debug!(code = ?insn.code(), %error, "cannot encode a guest's instruction");
                return Stub::REFUSED;
            }
        };
        let entry = self.code.add(&code).or_else(|| {
            self.slots.fill(Slot::EMPTY);
            self.code.clear();
            self.code.add(&code)
        });
        let Some(entry) = entry else {
            return Stub::REFUSED;
        };
        Stub {
            entry: Some(entry_point(entry)),
            environment: plan.environment,
            uses_flags: plan.reads_flags || plan.writes_flags,
        }
    }

    /// Whether host and operating system can run the instruction.
    pub fn host_has(&mut self, insn: &Instruction) -> bool {
        let enabled = match insn.code().encoding() {
            EncodingKind::Legacy => true,
            EncodingKind::VEX => is_x86_feature_detected!("avx"),
            EncodingKind::EVEX => is_x86_feature_detected!("avx512bw"),
            _ => false,
        };
        let cache = std::cell::RefCell::new(&mut self.cpuid);
        enabled
            && features::has_instruction(insn.code(), |leaf, subleaf| {
                let mut cache = cache.borrow_mut();
                if let Some((_, answer)) = cache.iter().find(|(at, _)| *at == (leaf, subleaf)) {
                    return *answer;
                }
                let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
                let answer = CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx };
                cache.push(((leaf, subleaf), answer));
                answer
            })
    }
}

/// Code as a function.
fn entry_point(code: NonNull<u8>) -> Entry {
    // SAFETY: the code was emitted as a function of this signature, and lies in executable memory.
    unsafe { std::mem::transmute::<*mut u8, Entry>(code.as_ptr()) }
}
