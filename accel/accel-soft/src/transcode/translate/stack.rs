//! PUSH, POP, LEAVE and PUSHFQ.

use super::*;

impl Translator {
    pub(super) fn push(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: Code<'_>,
    ) -> Emit {
        match insn.op0_kind() {
            OpKind::Register => {
                let at = self.near(insn, (gpr::RSP, -8), (8, true), cached, block);
                let value = self.whole(insn.op0_register(), INDEX);
                self.access(insn);
                self.asm.store(at, value);
            }
            OpKind::Memory => {
                self.operand(insn, 8, false, false)?;
                self.access(insn);
                self.asm.load(ADDRESS, Mem::Base(ADDRESS, 0));
                self.asm.store(Mem::Context(offset::SPILL), ADDRESS);
                let at = self.near(insn, (gpr::RSP, -8), (8, true), None, block);
                self.asm.load(INDEX, Mem::Context(offset::SPILL));
                self.access(insn);
                self.asm.store(at, INDEX);
            }
            _ => {
                let value = insn.try_immediate(0).map_err(|_| Refused)?;
                let value = i32::try_from(value as i64).map_err(|_| Refused)?;
                let at = self.near(insn, (gpr::RSP, -8), (8, true), cached, block);
                self.access(insn);
                self.asm.store_imm(at, value);
            }
        }
        self.move_stack(-8);
        Ok(())
    }

    /// Adds to the guest's RSP, and nothing to what is known of memory.
    pub(super) fn move_stack(&mut self, by: i32) {
        self.asm.lea(GUEST_RSP, Mem::Base(GUEST_RSP, by));
        if let Some(cached) = self.cached
            && cached.base == gpr::RSP
        {
            self.cached = cached.moved(by);
        }
    }

    pub(super) fn pop(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: Code<'_>,
    ) -> Emit {
        let at = self.near(insn, (gpr::RSP, 0), (8, false), cached, block);
        let number = number(insn.op0_register());
        if self.cached.is_some_and(|cached| cached.base == number) {
            self.cached = None;
        }
        self.access(insn);
        match home(number) {
            Home::Host(GUEST_RSP) => {
                self.asm.load(GUEST_RSP, at);
                return Ok(());
            }
            Home::Host(host) => {
                self.asm.load(host, at);
            }
            Home::Memory(n) => {
                self.asm.load(INDEX, at);
                self.asm.store(Mem::Context(offset::gpr(n)), INDEX);
            }
        }
        self.move_stack(8);
        Ok(())
    }

    pub(super) fn leave(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: Code<'_>,
    ) -> Emit {
        let at = self.near(insn, (gpr::RBP, 0), (8, false), cached, block);
        self.access(insn);
        self.asm.load(INDEX, at);
        self.asm.lea(GUEST_RSP, Mem::Base(GUEST_RBP, 8));
        self.asm.mov(GUEST_RBP, INDEX);
        self.cached = None;
        Ok(())
    }

    /// PUSHFQ.
    pub(super) fn push_flags(&mut self, insn: &Instruction, block: Code<'_>) {
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
        let at = self.near(insn, (gpr::RSP, -8), (8, true), None, block);
        self.asm.load(INDEX, Mem::Context(offset::SPILL));
        self.access(insn);
        self.asm.store(at, INDEX);
        self.move_stack(-8);
    }
}
