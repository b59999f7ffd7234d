//! Instructions that the host executes: what they have in common.
//!
//! The memory operand is loaded into a buffer, the host's processor runs the instruction on the
//! saved registers and that buffer, and the buffer is stored back if the instruction writes it.

use alloc::boxed::Box;
use alloc::vec;

use iced_x86::{
    Code, Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess, OpKind,
};

use crate::cpu::Cpu;
use crate::decode::Op;
use crate::env::{Env, NativeOperand};
use crate::exception::{Exception, Exec, vector};
use crate::features;
use crate::paging::Access;
use crate::state::{Cr4, X87State};

/// The largest memory operand that goes through the buffer.
pub(crate) const MAX_OPERAND: usize = 64;

/// What a processor keeps for instructions that the host executes.
pub(crate) struct Native {
    /// Stands in for the memory operand.
    pub operand: NativeOperand,
    /// By instruction code, whether the guest's processor model has it.
    offered: Box<[Offered]>,
}

#[derive(Clone, Copy, PartialEq)]
enum Offered {
    NotAskedYet,
    No,
    Yes,
}

impl Native {
    pub fn new() -> Self {
        Self {
            operand: NativeOperand([0; 512]),
            offered: vec![Offered::NotAskedYet; Code::values().len()].into_boxed_slice(),
        }
    }
}

/// How an instruction uses its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryUse {
    None,
    Load,
    Store,
}

/// How `insn` uses its memory operand. `None` if it does more than load or store it, or its size
/// is not that of a vector or number.
pub(crate) fn memory_use(insn: &Instruction) -> Option<MemoryUse> {
    let Some(i) = (0..insn.op_count()).find(|&i| insn.op_kind(i) == OpKind::Memory) else {
        return Some(MemoryUse::None);
    };
    if !(1..=MAX_OPERAND).contains(&insn.memory_size().size()) {
        return None;
    }
    let options =
        InstructionInfoOptions::NO_REGISTER_USAGE | InstructionInfoOptions::NO_MEMORY_USAGE;
    match InstructionInfoFactory::new().info_options(insn, options).op_access(i) {
        OpAccess::Read | OpAccess::CondRead => Some(MemoryUse::Load),
        OpAccess::Write | OpAccess::CondWrite => Some(MemoryUse::Store),
        _ => None,
    }
}

/// FSW: the exception flags, IE to PE; FCW masks them in the same places.
const FSW_EXCEPTIONS: u16 = 0x3f;
/// FSW: error summary, and its old twin, busy.
const FSW_SUMMARY: u16 = 0x8080;

/// Whether an x87 exception waits for the next instruction that looks.
pub(crate) fn x87_pending(x87: &X87State) -> bool {
    x87.fsw & !x87.fcw & FSW_EXCEPTIONS != 0
}

/// Makes FSW's error summary follow from its flags and FCW's masks, as the processor does after
/// every load of either.
pub(crate) fn update_x87_summary(x87: &mut X87State) {
    x87.fsw &= !FSW_SUMMARY;
    if x87_pending(x87) {
        x87.fsw |= FSW_SUMMARY;
    }
}

impl<E: Env> Cpu<E> {
    /// #UD unless the guest's processor model has the instruction.
    #[inline(always)]
    pub(crate) fn require_offered(&mut self, op: &Op<E>) -> Exec {
        let code = op.insn.code();
        let is_known = self.native.offered.get(code as usize) == Some(&Offered::Yes);
        if is_known || self.is_offered(code) { Ok(()) } else { Err(self.raise(Exception::UD)) }
    }

    #[cold]
    pub(crate) fn is_offered(&mut self, code: Code) -> bool {
        let env = &self.env;
        let Some(slot) = self.native.offered.get_mut(code as usize) else {
            return false;
        };
        if *slot == Offered::NotAskedYet {
            let has = features::has_instruction(code, |leaf, subleaf| env.cpuid(leaf, subleaf));
            *slot = if has { Offered::Yes } else { Offered::No };
        }
        *slot == Offered::Yes
    }

    /// Raises #MF if an x87 exception waits. With CR0.NE clear, a PC would report it through
    /// the interrupt controller (IRQ 13) instead; no system since MS-DOS asks for that, and this
    /// processor, which has no FERR# pin, raises #MF then, too.
    #[inline(always)]
    pub(crate) fn check_x87_pending(&mut self) -> Exec {
        if x87_pending(&self.state.vector.x87) {
            return Err(self.raise(Exception::new(vector::MF)));
        }
        Ok(())
    }

    /// Has the host execute the instruction.
    #[inline(always)]
    pub(crate) fn execute_native(&mut self, op: &Op<E>) -> Exec {
        let result = self.env.execute_native(&op.insn, &mut self.state, &mut self.native.operand);
        match result {
            Ok(()) => Ok(()),
            Err(exception) => self.native_exception(exception),
        }
    }

    #[cold]
    fn native_exception(&mut self, exception: Exception) -> Exec {
        // SDM Vol. 3, 2.5: without OSXMMEXCPT, #XM becomes #UD.
        let is_unhandled =
            exception.vector == vector::XM && !self.state.cr4.contains(Cr4::OSXMMEXCPT);
        Err(self.raise(if is_unhandled { Exception::UD } else { exception }))
    }

    /// Loads `len` bytes, at most [`MAX_OPERAND`], into the operand buffer.
    #[inline(always)]
    pub(crate) fn load_operand(&mut self, linear: u64, len: usize) -> Exec {
        let offset = (linear & 0xfff) as usize;
        if offset + len <= 0x1000
            && let Some(page) = self.tlb.read(self.mode.fast_view, linear)
        {
            let data = &mut self.native.operand.0;
            match len {
                // One access where the size allows it: other processors must not see it torn.
                4 => data[..4].copy_from_slice(&self.env.load::<u32>(page, offset).to_le_bytes()),
                8 => data[..8].copy_from_slice(&self.env.load::<u64>(page, offset).to_le_bytes()),
                16 => self.env.load_bytes(page, offset, &mut data[..16]),
                32 => self.env.load_bytes(page, offset, &mut data[..32]),
                64 => self.env.load_bytes(page, offset, &mut data[..64]),
                _ => self.env.load_bytes(page, offset, &mut data[..len]),
            }
            return Ok(());
        }
        self.load_operand_slow(linear, len)
    }

    #[cold]
    #[inline(never)]
    fn load_operand_slow(&mut self, linear: u64, len: usize) -> Exec {
        self.check_access(linear, len, Access::Read)?;
        let mut data = [0; MAX_OPERAND];
        self.read_bytes(linear, &mut data[..len])?;
        self.native.operand.0[..len].copy_from_slice(&data[..len]);
        Ok(())
    }

    /// Runs `execute`, which fills the operand buffer, and stores `len` bytes of it. Faults of
    /// the store come before `execute` is called; if it says `false`, nothing is stored.
    #[inline(always)]
    pub(crate) fn store_operand(
        &mut self,
        linear: u64,
        len: usize,
        execute: impl FnOnce(&mut Self) -> Exec<bool>,
    ) -> Exec {
        let offset = (linear & 0xfff) as usize;
        if offset + len <= 0x1000
            && let Some(page) = self.tlb.write(self.mode.fast_view, linear)
        {
            if !execute(self)? {
                return Ok(());
            }
            let data = &self.native.operand.0;
            match *data {
                [a, b, c, d, ..] if len == 4 => {
                    self.env.store(page, offset, u32::from_le_bytes([a, b, c, d]));
                }
                [a, b, c, d, e, f, g, h, ..] if len == 8 => {
                    let value = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
                    self.env.store(page, offset, value);
                }
                _ => match len {
                    16 => self.env.store_bytes(page, offset, &data[..16]),
                    32 => self.env.store_bytes(page, offset, &data[..32]),
                    64 => self.env.store_bytes(page, offset, &data[..64]),
                    _ => self.env.store_bytes(page, offset, &data[..len]),
                },
            }
            if Some(page) == self.code_page {
                self.leave_block = true;
            }
            return Ok(());
        }
        self.check_access(linear, len, Access::Write)?;
        let span = self.probe_write(linear, len)?;
        if execute(self)? {
            let data = self.native.operand.0;
            self.store_span(&span, &data[..len]);
        }
        Ok(())
    }
}
