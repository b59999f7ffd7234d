//! PUSH, POP, LEAVE and PUSHFQ.

use super::*;

/// By so many words at most, either way, the host's register may be behind the guest's RSP.
pub(super) const MOST_BEHIND: i32 = 7;

/// Whether an instruction can do with a register that is behind RSP.
pub(super) fn leaves_alone(insn: &Instruction, fact: &Fact) -> bool {
    match fact.kind {
        Kind::Nothing | Kind::Call | Kind::Return => true,
        Kind::Push => match insn.op0_kind() {
            OpKind::Register => number(insn.op0_register()) != gpr::RSP,
            kind => kind != OpKind::Memory,
        },
        Kind::Pop => number(insn.op0_register()) != gpr::RSP,
        Kind::Plain | Kind::Lea => fact.uses[gpr::RSP] == (false, false),
        _ => false,
    }
}

impl Translator {
    pub(super) fn push(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: Code<'_>,
    ) -> Emit {
        let word = self.setting.word();
        match insn.op0_kind() {
            OpKind::Register => {
                let at = self.near(insn, (gpr::RSP, -word), (word, true), cached, block);
                let value = self.whole(insn.op0_register(), INDEX);
                self.access(insn);
                self.asm.store_word(at, value);
            }
            OpKind::Memory => {
                self.operand(insn, word as usize, false, false)?;
                self.access(insn);
                self.asm.load_word(ADDRESS, Mem::Base(ADDRESS, 0));
                self.asm.store(Mem::Context(offset::SPILL), ADDRESS);
                let at = self.near(insn, (gpr::RSP, -word), (word, true), None, block);
                self.asm.load(INDEX, Mem::Context(offset::SPILL));
                self.access(insn);
                self.asm.store_word(at, INDEX);
            }
            _ => {
                let value = insn.try_immediate(0).map_err(|_| Refused)?;
                // A word of 64 bits has it sign-extended.
                let value = value as i32;
                let at = self.near(insn, (gpr::RSP, -word), (word, true), cached, block);
                self.access(insn);
                self.asm.store_imm_word(at, value);
            }
        }
        self.move_stack(-word);
        Ok(())
    }

    /// Adds to the guest's RSP, and nothing to what is known of memory. Pushes and pops mostly come several
    /// together, and then the host's register is changed once for all of them: else each would have to wait
    /// for the one before. Sites know how far it is behind.
    pub(super) fn move_stack(&mut self, by: i32) {
        self.stack += by;
        if self.stack.abs() > MOST_BEHIND * self.setting.word() {
            self.settle_stack();
        }
        if let Some(cached) = self.cached
            && cached.base == gpr::RSP
        {
            self.cached = cached.moved(by);
        }
    }

    /// The guest's RSP is in the host's register from here on. Flags are kept.
    pub(super) fn settle_stack(&mut self) {
        self.settle_stack_with(0);
    }

    /// The same with `by` added.
    pub(super) fn settle_stack_with(&mut self, by: i32) {
        let by = std::mem::take(&mut self.stack) + by;
        if by != 0 {
            self.asm.lea_word(GUEST_RSP, Mem::Base(GUEST_RSP, by));
        }
    }

    pub(super) fn pop(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: Code<'_>,
    ) -> Emit {
        let word = self.setting.word();
        let at = self.near(insn, (gpr::RSP, 0), (word, false), cached, block);
        let number = number(insn.op0_register());
        if self.cached.is_some_and(|cached| cached.base == number) {
            self.cached = None;
        }
        self.access(insn);
        match home(number) {
            Home::Host(GUEST_RSP) => {
                self.asm.load_word(GUEST_RSP, at);
                return Ok(());
            }
            Home::Host(host) => {
                self.asm.load_word(host, at);
            }
            Home::Memory(n) => {
                self.asm.load_word(INDEX, at);
                self.asm.store(Mem::Context(offset::gpr(n)), INDEX);
            }
        }
        self.move_stack(word);
        Ok(())
    }

    pub(super) fn leave(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: Code<'_>,
    ) -> Emit {
        let word = self.setting.word();
        let at = self.near(insn, (gpr::RBP, 0), (word, false), cached, block);
        self.asm.mov(INDEX, GUEST_RBP);
        self.access(insn);
        self.asm.load_word(GUEST_RBP, at);
        self.asm.lea_word(GUEST_RSP, Mem::Base(INDEX, word));
        self.cached = None;
        Ok(())
    }

    /// PUSHFQ and PUSHFD.
    pub(super) fn push_flags(&mut self, insn: &Instruction, block: Code<'_>) {
        let word = self.setting.word();
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
        let at = self.near(insn, (gpr::RSP, -word), (word, true), None, block);
        self.asm.load(INDEX, Mem::Context(offset::SPILL));
        self.access(insn);
        self.asm.store_word(at, INDEX);
        self.move_stack(-word);
    }
}
