//! What instructions make of registers and flags.

use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};

use crate::allowed::{is_allowed, is_repeated, needs_control, reads_implicitly};
use crate::blocks::{Block, Checker};
use crate::layout::Table;
use crate::memory::{Operand, entry, shift, sum};
use crate::state::{Flags, Kind, State, Value};
use crate::violation::Problem;

/// General-purpose registers that an instruction uses: bit by bit, by their numbers.
#[derive(Clone, Copy, Default)]
struct Uses {
    read: u16,
    written: u16,
    /// All of it is written.
    replaced: u16,
    /// It is an operand that is read, and not only for an address.
    operands: u16,
}

/// The numbers of the registers in a set.
fn numbers(mut set: u16) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let number = set.trailing_zeros();
        set &= set.wrapping_sub(1);
        (number < 16).then_some(number as usize)
    })
}

/// A general-purpose register of any size as a set.
fn set(register: Register) -> u16 {
    1 << register.full_register().number()
}

impl Checker {
    /// A string instruction that is repeated on mirrored memory.
    fn repeat(&mut self, state: &mut State, insn: &Instruction) -> Result<(), Problem> {
        // Stored are bytes of RAX, and where it faults, the guest sees the others as they are then.
        let registers = [Register::RAX, Register::RCX, Register::RSI, Register::RDI];
        if registers.iter().any(|register| state.registers[register.number()].kind.is_secret()) {
            return Err(Problem::Leak);
        }
        self.is_site(insn)?;
        for register in &registers[1..] {
            state.registers[register.number()] = self.numbers.value(Kind::Any);
        }
        Ok(())
    }

    /// Checks an instruction that does not branch, and goes over it.
    pub(crate) fn execute(
        &mut self,
        state: &mut State,
        insn: &Instruction,
        block: &Block<'_>,
    ) -> Result<(), Problem> {
        if self.is_mirrored && is_repeated(insn) {
            return self.repeat(state, insn);
        }
        if !is_allowed(insn, block.time) {
            return Err(Problem::NotAllowed);
        }
        // Operands that it names and those that it does not.
        let mut uses = Uses::default();
        let mut memory = None;
        let mut vectors = needs_control(insn.mnemonic());
        {
            let info = self.info.info(insn);
            for used in info.used_registers() {
                let register = used.register();
                let (read, written, always) = match used.access() {
                    OpAccess::None | OpAccess::NoMemAccess => continue,
                    OpAccess::Read | OpAccess::CondRead => (true, false, false),
                    OpAccess::Write => (false, true, true),
                    OpAccess::CondWrite => (true, true, false),
                    OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true, true),
                };
                if register.is_gpr() {
                    let set = set(register);
                    uses.read |= if read { set } else { 0 };
                    uses.written |= if written { set } else { 0 };
                    uses.replaced |= if always && register.size() >= 4 { set } else { 0 };
                } else if register.is_vector_register() || register.is_k() {
                    vectors = true;
                } else if written {
                    return Err(Problem::HostRegister);
                }
            }
            for i in 0..insn.op_count() {
                if insn.op_kind(i) == OpKind::Register
                    && insn.op_register(i).is_gpr()
                    && info.op_access(i) != OpAccess::Write
                {
                    uses.operands |= set(insn.op_register(i));
                }
            }
            match info.used_memory() {
                [] => {}
                [one] => memory = Some(*one),
                _ => return Err(Problem::NotAllowed),
            }
        }
        // It may only be the base of a memory operand that is accessed.
        let is_base = insn.memory_base() == Register::RSP && memory.is_some();
        let used = uses.written | uses.operands | if is_base { 0 } else { uses.read };
        if used & set(Register::RSP) != 0 {
            return Err(Problem::StackPointer);
        }
        if vectors && !state.live {
            return Err(Problem::VectorsNotLive);
        }
        let operand = match &memory {
            Some(memory) => self.access(state, insn, memory, block.flags)?,
            None => Operand::Other,
        };
        let takes_secret = takes_secret(state, insn, uses)?;

        let result = self.result(state, insn, operand);
        let new_flags = self.flags(state, insn, operand);
        for number in numbers(uses.written) {
            let value = &mut state.registers[number];
            // What is not replaced may remain in part.
            let remains = value.kind.is_secret() && uses.replaced & 1 << number == 0;
            let is_secret = takes_secret || remains;
            *value = self.numbers.value(if is_secret { Kind::Secret } else { Kind::Any });
        }
        if let Some(value) = result {
            state.registers[insn.op0_register().full_register().number()] = value;
        }
        if insn.rflags_modified() != 0 {
            state.flags = new_flags;
        }
        Ok(())
    }

    /// What the first operand, a register of 32 or 64 bits, holds afterwards, if more is known
    /// of it than that it was written.
    fn result(&mut self, state: &State, insn: &Instruction, operand: Operand) -> Option<Value> {
        if insn.op0_kind() != OpKind::Register {
            return None;
        }
        let to = insn.op0_register();
        let is_wide = to.is_gpr64();
        if !is_wide && !to.is_gpr32() {
            return None;
        }
        let read = |register: Register| state.registers[register.full_register().number()];
        let old = read(to);
        let source = (insn.op_count() > 1 && insn.op1_kind() == OpKind::Register)
            .then(|| insn.op1_register())
            .filter(|register| register.is_gpr())
            .map(read);
        let last = insn.op_count() - 1;
        let immediate = insn.try_immediate(last).ok();
        let loaded = match operand {
            Operand::Table(table, index) => Some(entry(table, index)),
            _ => None,
        };
        let kind = match insn.mnemonic() {
            Mnemonic::Mov => match (source, immediate, loaded) {
                (Some(source), ..) if is_wide => return Some(source),
                (Some(source), ..) => match source.kind {
                    // The upper half is zero already.
                    Kind::Const(_)
                    | Kind::Below(_)
                    | Kind::TlbIndex { .. }
                    | Kind::JumpIndex { .. } => return Some(source),
                    _ => Kind::Low { of: source.number },
                },
                (_, Some(value), _) => {
                    let value = if is_wide { value } else { value & u64::from(u32::MAX) };
                    u32::try_from(value).map_or(Kind::Any, Kind::Const)
                }
                (.., Some(loaded)) => loaded,
                _ => return None,
            },
            Mnemonic::Lea => return Some(self.address(state, insn, is_wide)),
            Mnemonic::Add if is_wide => match (source, immediate, loaded) {
                (Some(source), ..) => sum(old, source),
                (_, Some(by), _) => shift(old.kind, by as i64),
                (.., Some(loaded)) => sum(old, self.numbers.value(loaded)),
                _ => return None,
            },
            Mnemonic::Sub if is_wide && source.is_none() => match immediate {
                Some(by) => shift(old.kind, (by as i64).checked_neg()?),
                None => return None,
            },
            Mnemonic::Rorx if matches!(immediate, Some(11 | 12)) => {
                page(source?, immediate? as u8, is_wide)
            }
            Mnemonic::Shr if matches!(immediate, Some(11 | 12)) => {
                page(old, immediate? as u8, is_wide)
            }
            Mnemonic::Xor => match (old, source?) {
                (Value { kind: Kind::Page { of, by: 12, bits }, .. }, other)
                | (other, Value { kind: Kind::Page { of, by: 12, bits }, .. })
                    if other.number == of || other.kind == (Kind::Low { of }) =>
                {
                    Kind::Hash { of, bits: bits.min(32) }
                }
                _ => return None,
            },
            Mnemonic::And => {
                let mask = match is_wide {
                    true => u32::try_from(immediate?).ok()?,
                    false => immediate? as u32,
                };
                self.masked(old.kind, mask)
            }
            _ => return None,
        };
        Some(self.numbers.value(kind))
    }

    /// What is known of a value of which only the bits in `mask` remain.
    fn masked(&self, kind: Kind, mask: u32) -> Kind {
        // Twice the number of an entry, of which all bits are known.
        let selects = |entries: u32, bits: u8| {
            let last = entries.checked_sub(1).and_then(|last| last.checked_mul(2));
            entries.is_power_of_two()
                && last == Some(mask)
                && mask.checked_ilog2() < Some(bits.into())
        };
        match kind {
            Kind::Page { of, by: 11, bits } if selects(self.layout.tlb_entries, bits) => {
                Kind::TlbIndex { of }
            }
            Kind::Hash { of, bits } if selects(self.tables.jump_entries, bits) => {
                Kind::JumpIndex { of }
            }
            _ => mask.checked_add(1).map_or(Kind::Any, Kind::Below),
        }
    }

    /// What LEA computes.
    fn address(&mut self, state: &State, insn: &Instruction, is_wide: bool) -> Value {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let read = |register: Register| {
            let is_whole = register.is_gpr64();
            let value =
                register.is_gpr().then(|| state.registers[register.full_register().number()])?;
            Some((value, is_whole))
        };
        let operands = [read(base), read(index)];
        let is_whole = is_wide && operands.iter().flatten().all(|&(_, whole)| whole);
        // An address of code is one of the host's.
        let is_secret =
            base.is_ip() || operands.iter().flatten().any(|(value, _)| value.kind.is_secret());
        let displacement = insn.memory_displacement64() as i64;
        let kind = match operands {
            [Some((base, _)), None] if is_whole && displacement == 0 => return base,
            [Some((base, _)), None] if is_whole => shift(base.kind, displacement),
            [Some((base, _)), Some((index, _))] if is_whole && insn.memory_index_scale() == 1 => {
                shift_sum(base, index, displacement)
            }
            _ if is_secret => Kind::Secret,
            _ => Kind::Any,
        };
        self.numbers.value(kind)
    }

    /// What the status flags tell behind an instruction that changes them.
    fn flags(&self, state: &State, insn: &Instruction, operand: Operand) -> Flags {
        if insn.mnemonic() != Mnemonic::Cmp {
            return Flags::Nothing;
        }
        let register = |i: u32| {
            let is_whole = insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_gpr64();
            is_whole.then(|| state.registers[insn.op_register(i).number()])
        };
        match operand {
            Operand::VectorsLive if matches!(insn.try_immediate(1), Ok(0)) => Flags::Live,
            Operand::Table(Table::JumpGuest, Value { kind: Kind::JumpIndex { of }, .. }) => {
                match register(0).or(register(1)) {
                    Some(value) if value.number == of => Flags::Jump { of },
                    _ => Flags::Nothing,
                }
            }
            _ => match (register(0), insn.try_immediate(1)) {
                (Some(Value { number, kind: Kind::Offset { .. } }), Ok(limit)) => {
                    Flags::Offset { number, limit }
                }
                _ => Flags::Nothing,
            },
        }
    }
}

/// What is known of a value that was shifted so that the number of its page comes to its lower bits.
fn page(value: Value, by: u8, is_wide: bool) -> Kind {
    match value.kind {
        // It is needed for the whole value, of which the shifted copy shows as much.
        Kind::Low { of } if !is_wide => Kind::Page { of, by, bits: 32 - by },
        _ => Kind::Page { of: value.number, by, bits: if is_wide { 64 } else { 32 } - by },
    }
}

fn shift_sum(base: Value, index: Value, displacement: i64) -> Kind {
    let kind = sum(base, index);
    if displacement == 0 { kind } else { shift(kind, displacement) }
}

/// Secrets may be addresses of operands, and may be copied and moved on. Who reads them otherwise
/// could give them to the guest. `true` if the instruction computes with one.
fn takes_secret(state: &State, insn: &Instruction, uses: Uses) -> Result<bool, Problem> {
    let mut takes = false;
    for number in numbers(uses.read) {
        if !state.registers[number].kind.is_secret() {
            continue;
        }
        let is_address = [insn.memory_base(), insn.memory_index()]
            .iter()
            .any(|register| register.is_gpr() && set(*register) == 1 << number);
        let is_operand = uses.operands & 1 << number != 0;
        if is_address && !is_operand && !reads_implicitly(insn, number) {
            takes |= insn.mnemonic() == Mnemonic::Lea;
            continue;
        }
        if !is_followed(insn) {
            return Err(Problem::Leak);
        }
        takes = true;
    }
    Ok(takes)
}

/// Whether what the instruction makes of a secret is followed, or tells nothing of it.
fn is_followed(insn: &Instruction) -> bool {
    let is_whole = insn.op0_kind() == OpKind::Register && insn.op0_register().is_gpr64();
    match insn.mnemonic() {
        // The offset in a page is no secret.
        Mnemonic::Test => {
            use Register::{AH, BH, CH, DH};
            let is_high = matches!(insn.op0_register(), AH | BH | CH | DH);
            !is_high && insn.try_immediate(1).is_ok_and(|mask| mask < 4096)
        }
        Mnemonic::Mov | Mnemonic::Add => is_whole,
        Mnemonic::Sub => is_whole && insn.op1_kind() != OpKind::Register,
        _ => false,
    }
}
