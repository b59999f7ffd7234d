//! Jumps, calls and returns.

use super::*;

impl Translator {
    /// Goes to `target`, an offset from the start of the page.
    pub(super) fn jump_to(&mut self, target: i64, at: u16) {
        self.settle_stack();
        let Ok(distance) = i32::try_from(target) else {
            self.keep_flags();
            self.status = Status::Kept;
            let exit = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
            self.asm.jmp(exit);
            return;
        };
        self.hand_flags_over();
        if let Ok(target) = u16::try_from(target)
            && target <= LAST_WHOLE
        {
            let exit = self.exit(Exit::Chain { at: target });
            let from = self.asm.label();
            let link = self.asm.jmp(from) as u32;
            self.add_link(exit, from, link, target);
            return;
        }
        self.asm.load(ADDRESS, Mem::Context(offset::CODE_BASE));
        self.asm.lea_word(ADDRESS, Mem::Base(ADDRESS, distance));
        self.go_far(at, 0);
    }

    pub(super) fn add_link(&mut self, exit: usize, from: Label, link: u32, target: u16) {
        self.cold.push(Cold::Exit { from, exit });
        self.links.push(Link { at: link, target, narrow: false });
    }

    /// Goes to the address in RBX, with RSP moved by `stack`. Flags are kept and destroyed.
    pub(super) fn look_up(&mut self, at: u16, stack: i32) {
        debug_assert!(self.status == Status::Kept);
        let cache = self.setting.jumps();
        self.settle_stack_with(stack);
        self.asm.mov32(INDEX, ADDRESS);
        self.asm.shr32(INDEX, 12);
        self.asm.alu32(Alu::Xor, INDEX, ADDRESS);
        // Twice the number of the entry, which has 16 bytes.
        self.asm.alu32_imm(Alu::And, INDEX, 2 * JUMP_ENTRIES[cache] as i32 - 2);
        self.asm.alu_mem(Alu::Cmp, ADDRESS, Mem::ContextIndexed(INDEX, offset::jump_guest(cache)));
        let exit = self.exit(Exit::Branch { at, stack });
        let from = self.asm.label();
        self.cold.push(Cold::Branch { from, exit });
        self.asm.jump_if(Cond::NotEqual, from);
        self.asm.jmp_mem(Mem::ContextIndexed(INDEX, offset::jump_host(cache)));
    }

    /// Goes to the address in RBX, which is always the same distance from the start of the page, with RSP
    /// moved by `stack`. Flags are where the next block expects them.
    fn go_far(&mut self, at: u16, stack: i32) {
        if !self.setting.mirrored {
            return self.look_up(at, stack);
        }
        debug_assert!(self.status == Status::Host);
        self.settle_stack_with(stack);
        // Leaves, until it is led elsewhere (`far_links`): the distance stands behind a MOV of the exit's
        // number and the JMP's opcode.
        let link = self.asm.code.len() as u32 + 6;
        let exit = self.exit(Exit::FarChain { at, stack, link: self.base + link });
        self.far_links.push(link);
        self.leave_by(exit);
    }

    pub(super) fn jump_if(&mut self, insn: &Instruction) {
        self.need_flags();
        if !self.setting.mirrored {
            self.keep_flags();
        }
        let condition = condition(insn);
        let target = insn.near_branch_target() as i64;
        let at = insn.ip() as u16;
        if (0..=LAST_WHOLE.into()).contains(&target) {
            let exit = self.exit(Exit::Chain { at: target as u16 });
            let from = self.asm.label();
            let link = self.asm.jcc(condition, from) as u32;
            self.add_link(exit, from, link, target as u16);
            self.jump_to(insn.next_ip() as i64, at);
        } else {
            let taken = self.asm.label();
            self.asm.jcc(condition, taken);
            self.jump_to(insn.next_ip() as i64, at);
            self.asm.bind(taken);
            self.jump_to(target, at);
        }
    }

    /// Goes elsewhere under a condition, else on with the next instruction of the block.
    pub(super) fn jump_aside_if(&mut self, insn: &Instruction) {
        self.need_flags();
        let target = insn.near_branch_target() as i64;
        let at = insn.ip() as u16;
        let from = self.asm.label();
        let link = self.asm.jcc(condition(insn), from) as u32;
        match u16::try_from(target) {
            Ok(target)
                if (self.status == Status::Both || self.setting.mirrored)
                    && target <= LAST_WHOLE =>
            {
                let exit = self.exit(Exit::Chain { at: target });
                self.add_link(exit, from, link, target);
            }
            _ => {
                let is_kept = self.status == Status::Both && !self.setting.mirrored;
                self.cold.push(Cold::Side { from, is_kept, target, at });
            }
        }
    }

    /// Stores the return address at the new top of the stack.
    pub(super) fn store_return_address(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: Code<'_>,
    ) {
        let word = self.setting.word();
        let at = self.near(insn, (gpr::RSP, -word), (word, true), cached, block);
        self.asm.load(INDEX, Mem::Context(offset::CODE_BASE));
        self.asm.lea_word(INDEX, Mem::Base(INDEX, insn.next_ip() as i32));
        self.access(insn);
        self.asm.store_word(at, INDEX);
        self.cached = None;
    }

    pub(super) fn call(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: Code<'_>,
    ) -> Emit {
        let target = insn.near_branch_target() as i64;
        let is_near = (0..=LAST_WHOLE.into()).contains(&target);
        let far = i32::try_from(target).map_err(|_| Refused)?;
        let word = self.setting.word();
        self.store_return_address(insn, cached, block);
        if is_near {
            self.move_stack(-word);
            self.jump_to(target, insn.ip() as u16);
        } else {
            self.hand_flags_over();
            self.asm.load(ADDRESS, Mem::Context(offset::CODE_BASE));
            self.asm.lea_word(ADDRESS, Mem::Base(ADDRESS, far));
            self.go_far(insn.ip() as u16, -word);
        }
        Ok(())
    }

    /// The target of an indirect branch, into RBX.
    pub(super) fn branch_target(&mut self, insn: &Instruction) -> Emit {
        if insn.op0_kind() == OpKind::Memory {
            self.operand(insn, self.setting.word() as usize, false, false)?;
            self.access(insn);
            self.asm.load_word(ADDRESS, Mem::Base(ADDRESS, 0));
        } else {
            self.destroy_flags();
            let target = self.whole(insn.op0_register(), ADDRESS);
            self.asm.mov_word(ADDRESS, target);
        }
        Ok(())
    }

    pub(super) fn jump_indirect(&mut self, insn: &Instruction) -> Emit {
        self.branch_target(insn)?;
        self.look_up(insn.ip() as u16, 0);
        Ok(())
    }

    pub(super) fn call_indirect(&mut self, insn: &Instruction, block: Code<'_>) -> Emit {
        self.branch_target(insn)?;
        if !self.setting.is_32bit {
            // What is not canonical faults before anything is stored.
            let at = insn.ip() as u16;
            let odd = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
            self.asm.mov(INDEX, ADDRESS);
            self.asm.shl(INDEX, 16);
            self.asm.sar(INDEX, 16);
            self.asm.alu(Alu::Cmp, INDEX, ADDRESS);
            self.asm.jump_if(Cond::NotEqual, odd);
        }
        self.asm.store(Mem::Context(offset::SPILL), ADDRESS);
        self.store_return_address(insn, None, block);
        self.destroy_flags();
        self.asm.load(ADDRESS, Mem::Context(offset::SPILL));
        self.look_up(insn.ip() as u16, -self.setting.word());
        Ok(())
    }

    pub(super) fn ret(
        &mut self,
        insn: &Instruction,
        cached: Option<Checked>,
        block: Code<'_>,
    ) -> Emit {
        let released = match insn.op_count() {
            0 => 0,
            _ => i32::from(insn.immediate16()),
        };
        let word = self.setting.word();
        let at = self.near(insn, (gpr::RSP, 0), (word, false), cached, block);
        self.access(insn);
        self.asm.load_word(ADDRESS, at);
        self.cached = None;
        self.destroy_flags();
        self.look_up(insn.ip() as u16, word + released);
        Ok(())
    }
}

/// A conditional jump's condition as Jcc encodes it.
fn condition(insn: &Instruction) -> u8 {
    (insn.condition_code() as u8 - iced_x86::ConditionCode::o as u8) & 15
}
