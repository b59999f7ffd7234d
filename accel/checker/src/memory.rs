//! Memory operands: fields and tables of the context, and guest memory behind a check.

use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register, UsedMemory};

use crate::blocks::Checker;
use crate::layout::Table;
use crate::state::{Kind, State, Value, bound, is_slot, slot_number};
use crate::violation::Problem;

/// Where a memory operand was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    /// There is none, or what it holds does not matter.
    Other,
    /// The field that says whether vector registers are live.
    VectorsLive,
    /// An entry of a table, by the value that indexes it.
    Table(Table, Value),
}

impl Checker {
    /// Checks an access to memory. `flags` may be changed in RFLAGS.
    pub(crate) fn access(
        &self,
        state: &State,
        insn: &Instruction,
        memory: &UsedMemory,
        flags: u64,
    ) -> Result<Operand, Problem> {
        if insn.memory_base().is_ip() {
            return Err(Problem::Unchecked);
        }
        let write = match memory.access() {
            OpAccess::Read | OpAccess::CondRead => false,
            OpAccess::Write
            | OpAccess::CondWrite
            | OpAccess::ReadWrite
            | OpAccess::ReadCondWrite => true,
            OpAccess::None | OpAccess::NoMemAccess => {
                // LEA.
                return if insn.mnemonic() == Mnemonic::Lea {
                    Ok(Operand::Other)
                } else {
                    Err(Problem::NotAllowed)
                };
            }
        };
        let size = memory.memory_size().size() as u64;
        if size == 0 {
            return Err(Problem::NotAllowed);
        }
        self.bit_offset(state, insn, size)?;
        match (memory.base(), memory.segment()) {
            (Register::RSP, Register::SS) => self.context(state, insn, memory, size, write, flags),
            (_, Register::DS | Register::SS) if self.is_mirrored => {
                self.mirrored(insn, memory).map(|()| Operand::Other)
            }
            (_, Register::DS | Register::SS) => {
                self.guest(state, memory, size, write).map(|()| Operand::Other)
            }
            _ => Err(Problem::Unchecked),
        }
    }

    /// An operand in the context.
    fn context(
        &self,
        state: &State,
        insn: &Instruction,
        memory: &UsedMemory,
        size: u64,
        write: bool,
        flags: u64,
    ) -> Result<Operand, Problem> {
        let at = memory.displacement();
        if memory.index() != Register::None {
            if !memory.index().is_gpr64() || memory.scale() != 8 || size != 8 || write {
                return Err(Problem::Context);
            }
            let index = state.registers[memory.index().number()];
            return self.table(insn, at, index);
        }
        if let Some((table, slot)) = self.layout.slot(&self.tables, at) {
            if size != 8 || write {
                return Err(Problem::Context);
            }
            let number = slot_number(slot);
            let index = Value { number, kind: Kind::TlbIndex { of: number } };
            return self.entry(insn, table, index);
        }
        let field = u64::from(self.layout.flags);
        if write && at.checked_sub(field).is_some_and(|n| n < 8) {
            return self.change_flags(insn, at == field, size, flags);
        }
        if !self.layout.allows(at, size, write, self.view) {
            return Err(Problem::Context);
        }
        let is_live_field = at == u64::from(self.layout.vectors_live) && size == 4;
        Ok(if is_live_field { Operand::VectorsLive } else { Operand::Other })
    }

    /// An entry of a table, which is read.
    fn table(&self, insn: &Instruction, at: u64, index: Value) -> Result<Operand, Problem> {
        let table = self.tables.table(at).ok_or(Problem::Context)?;
        // Only these are known to be even.
        match (table, index.kind) {
            (Table::Tag { .. } | Table::HostPage { .. }, Kind::TlbIndex { .. })
            | (Table::JumpGuest | Table::JumpHost, Kind::JumpIndex { .. }) => {}
            _ => return Err(Problem::Index),
        }
        self.entry(insn, table, index)
    }

    /// The same where the entry is known to be one.
    fn entry(&self, insn: &Instruction, table: Table, index: Value) -> Result<Operand, Problem> {
        let to_register = insn.op0_kind() == OpKind::Register && insn.op0_register().is_gpr64();
        let is_tracked = matches!(insn.mnemonic(), Mnemonic::Mov | Mnemonic::Add) && to_register;
        match table {
            Table::Tag { .. } | Table::JumpGuest => {}
            // What is read from there must stay known.
            Table::HostPage { .. } if is_tracked => {}
            Table::HostPage { .. } | Table::JumpHost => return Err(Problem::Leak),
        }
        Ok(Operand::Table(table, index))
    }

    /// AND or OR of RFLAGS with an immediate.
    fn change_flags(
        &self,
        insn: &Instruction,
        is_start: bool,
        size: u64,
        flags: u64,
    ) -> Result<Operand, Problem> {
        let immediate = insn.try_immediate(1).map_err(|_| Problem::Context)?;
        let changed = match insn.mnemonic() {
            Mnemonic::And => !immediate,
            Mnemonic::Or => immediate,
            _ => return Err(Problem::Context),
        };
        let width = match size {
            4 => u64::from(u32::MAX),
            8 => u64::MAX,
            _ => return Err(Problem::Context),
        };
        if is_start && changed & width & !flags == 0 {
            Ok(Operand::Other)
        } else {
            Err(Problem::Context)
        }
    }

    /// An operand in the guest's memory, by the guest's own address.
    fn mirrored(&self, insn: &Instruction, memory: &UsedMemory) -> Result<(), Problem> {
        let is_whole = |register: Register| register == Register::None || register.is_gpr64();
        if !is_whole(memory.base()) || !is_whole(memory.index()) {
            return Err(Problem::Unchecked);
        }
        self.is_site(insn)
    }

    /// Whether an instruction that accesses mirrored memory is listed. One that faults elsewhere would end the
    /// process.
    pub(crate) fn is_site(&self, insn: &Instruction) -> Result<(), Problem> {
        self.sites.binary_search(&insn.ip()).map_or(Err(Problem::Unchecked), |_| Ok(()))
    }

    /// An operand in the guest's memory.
    fn guest(
        &self,
        state: &State,
        memory: &UsedMemory,
        size: u64,
        write: bool,
    ) -> Result<(), Problem> {
        for register in [memory.base(), memory.index()] {
            if register != Register::None && !register.is_gpr64() {
                return Err(Problem::Unchecked);
            }
        }
        let read = |register: Register| {
            (register != Register::None).then(|| state.registers[register.number()].kind)
        };
        let scale = memory.scale();
        let kind = match (read(memory.base()), read(memory.index())) {
            (Some(base), None) => base,
            (None, Some(index)) if scale == 1 => index,
            (Some(a), Some(b)) if scale == 1 => {
                let number = |r: Register| state.registers[r.number()].number;
                sum(
                    Value { number: number(memory.base()), kind: a },
                    Value { number: number(memory.index()), kind: b },
                )
            }
            _ => return Err(Problem::Unchecked),
        };
        let displacement = memory.displacement() as i64;
        let Kind::Host { write: may_write, from, to } = kind else {
            return Err(Problem::Unchecked);
        };
        let end = i64::try_from(size).ok().and_then(|size| displacement.checked_add(size));
        if displacement < from.into() || end.is_none_or(|end| end > to.into()) {
            return Err(Problem::BeyondCheck);
        }
        if write && !may_write { Err(Problem::ReadOnly) } else { Ok(()) }
    }

    /// A bit offset in a register may reach far beyond the operand.
    fn bit_offset(&self, state: &State, insn: &Instruction, size: u64) -> Result<(), Problem> {
        let is_bit_test =
            matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
        if !is_bit_test || insn.op1_kind() != OpKind::Register {
            return Ok(());
        }
        let kind = state.registers[insn.op1_register().full_register().number()].kind;
        let bound = bound(kind, self.layout.tlb_entries, self.tables.jump_entries);
        match bound {
            Some(bound) if u64::from(bound) <= size * 8 => Ok(()),
            _ => Err(Problem::BitOffset),
        }
    }
}

/// What is known of a sum.
pub(crate) fn sum(a: Value, b: Value) -> Kind {
    match (a, b) {
        (Value { number, .. }, Value { kind: Kind::Tag { of, write }, .. })
        | (Value { kind: Kind::Tag { of, write }, .. }, Value { number, .. })
            if number == of || is_slot(of) && !a.kind.is_secret() && !b.kind.is_secret() =>
        {
            Kind::Offset { of, write, room: 0 }
        }
        (
            Value { kind: Kind::Offset { of, write, room }, .. },
            Value { kind: Kind::HostPage { of: page_of, write: page_write }, .. },
        )
        | (
            Value { kind: Kind::HostPage { of: page_of, write: page_write }, .. },
            Value { kind: Kind::Offset { of, write, room }, .. },
        ) if of == page_of && write == page_write && room > 0 => {
            Kind::Host { write, from: 0, to: room.into() }
        }
        (a, b) if a.kind.is_secret() || b.kind.is_secret() => Kind::Secret,
        _ => Kind::Any,
    }
}

/// What is known of a value with a constant added to it.
pub(crate) fn shift(kind: Kind, by: i64) -> Kind {
    match kind {
        Kind::Host { write, from, to } => {
            let moved = i32::try_from(by)
                .ok()
                .and_then(|by| Some((from.checked_sub(by)?, to.checked_sub(by)?)));
            match moved {
                Some((from, to)) => Kind::Host { write, from, to },
                None => Kind::Secret,
            }
        }
        kind if kind.is_secret() => Kind::Secret,
        _ => Kind::Any,
    }
}

/// What is known of an entry of a table.
pub(crate) fn entry(table: Table, index: Value) -> Kind {
    match (table, index.kind) {
        (Table::Tag { write }, Kind::TlbIndex { of }) => Kind::Tag { of, write },
        (Table::HostPage { write }, Kind::TlbIndex { of }) => Kind::HostPage { of, write },
        (Table::HostPage { .. } | Table::JumpHost, _) => Kind::Secret,
        (Table::Tag { .. } | Table::JumpGuest, _) => Kind::Any,
    }
}
