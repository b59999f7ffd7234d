//! Arithmetic that may fault, and other instructions that need more than new names.

use super::*;

impl Translator {
    /// DIV and IDIV: what might raise #DE is left to the interpreter.
    pub(super) fn divide(&mut self, insn: &Instruction, is_signed: bool) -> Emit {
        let size = match insn.op0_kind() {
            OpKind::Memory => insn.memory_size().size(),
            _ => insn.op0_register().size(),
        };
        self.destroy_flags();
        // The divisor, into RBX.
        if insn.op0_kind() == OpKind::Memory {
            self.operand(insn, size, false, false)?;
            self.access(insn);
            if size == 8 {
                self.asm.load(ADDRESS, Mem::Base(ADDRESS, 0));
            } else {
                self.asm.load32(ADDRESS, Mem::Base(ADDRESS, 0));
            }
        } else {
            let divisor = self.whole(insn.op0_register().full_register(), ADDRESS);
            if size == 8 {
                self.asm.mov(ADDRESS, divisor);
            } else {
                self.asm.mov32(ADDRESS, divisor);
            }
        }
        let at = insn.ip() as u16;
        let odd = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
        let wide = size == 8;
        if is_signed {
            // The dividend is a sign-extended number, and the divisor neither 0 nor -1.
            self.asm.mov(INDEX, GUEST_RAX);
            if wide {
                self.asm.sar(INDEX, 63);
                self.asm.alu(Alu::Cmp, INDEX, Reg::RDX);
            } else {
                self.asm.sar32(INDEX, 31);
                self.asm.alu32(Alu::Cmp, INDEX, Reg::RDX);
            }
            self.asm.jump_if(Cond::NotEqual, odd);
            if wide {
                self.asm.lea(INDEX, Mem::Base(ADDRESS, 1));
                self.asm.alu_imm(Alu::Cmp, INDEX, 1);
            } else {
                self.asm.lea32(INDEX, Mem::Base(ADDRESS, 1));
                self.asm.alu32_imm(Alu::Cmp, INDEX, 1);
            }
            self.asm.jump_if(Cond::BelowEqual, odd);
        } else {
            // The quotient fits if the upper half is less than the divisor, which it never is
            // for 0.
            if wide {
                self.asm.alu(Alu::Cmp, Reg::RDX, ADDRESS);
            } else {
                self.asm.alu32(Alu::Cmp, Reg::RDX, ADDRESS);
            }
            self.asm.jump_if(Cond::AboveEqual, odd);
        }
        // All flags are undefined behind a division: those that the processor leaves.
        self.need_flags();
        self.status = Status::Host;
        self.asm.mov(STATUS, GUEST_RAX);
        let w: &[u8] = if wide { &[0x48, 0xf7] } else { &[0xf7] };
        self.asm.bytes(w);
        self.asm.byte(if is_signed { 0xfb } else { 0xf3 });
        self.asm.mov(GUEST_RAX, STATUS);
        Ok(())
    }

    /// REP MOVS and REP STOS, by common code.
    pub(super) fn repeat(&mut self, insn: &Instruction, op: StringOp) -> Emit {
        if insn.next_ip() > 0xfff {
            return Err(Refused);
        }
        self.destroy_flags();
        // Sees to it that the soft TLB has the first bytes. It does no harm if there are none to be moved: what
        // is not there, or not to be had, is the interpreter's.
        let pointers = [(gpr::RDI, true), (gpr::RSI, false)];
        for &(pointer, write) in &pointers[..1 + usize::from(op.moves)] {
            let start = self.asm.here();
            let pointer = self.register(pointer, ADDRESS);
            self.asm.mov_word(ADDRESS, pointer);
            self.check(insn, start, Check::indexed(1 << op.scale, write));
        }
        let exit = self.interpreted(insn);
        let stub = self.common.strings[self.setting.view as usize][op.number()];
        self.call_with_exit(exit, stub);
        self.resume_behind(exit);
        Ok(())
    }

    /// CMPXCHG8B and CMPXCHG16B.
    pub(super) fn compare_exchange_16(&mut self, insn: &Instruction) -> Emit {
        let is_wide = insn.mnemonic() == Mnemonic::Cmpxchg16b;
        let size = if is_wide { 16 } else { 8 };
        self.operand(insn, size, true, is_wide)?;
        self.free_status();
        self.asm.mov(INDEX, ADDRESS);
        self.asm.mov(STATUS, GUEST_RAX);
        self.asm.mov(ADDRESS, GUEST_RBX);
        self.access(insn);
        if insn.has_lock_prefix() {
            self.asm.byte(0xf0);
        }
        if is_wide {
            self.asm.byte(0x48);
        }
        // CMPXCHG16B [RBP+0]
        self.asm.bytes(&[0x0f, 0xc7, 0x4d, 0x00]);
        if is_wide {
            self.asm.mov(GUEST_RAX, STATUS);
        } else {
            // On success EDX:EAX stay as they are, upper halves included; so they do here, if
            // only what was loaded is taken over.
            let equal = self.asm.label();
            self.asm.jump_if(Cond::Equal, equal);
            self.asm.mov32(GUEST_RAX, STATUS);
            self.asm.bind(equal);
        }
        Ok(())
    }

    /// BT, BTS, BTR, BTC of a bit string in memory.
    pub(super) fn bit_string(&mut self, insn: &Instruction) -> Emit {
        let reg = insn.op1_register();
        let size = reg.size();
        if size == 2 {
            return Err(Refused);
        }
        self.destroy_flags();
        let start = self.asm.here();
        self.linear(insn)?;
        // The address moves by whole operands, as far as the signed bit offset says.
        let offset_register = self.whole(reg.full_register(), INDEX);
        if size == 8 {
            self.asm.mov(INDEX, offset_register);
            self.asm.sar(INDEX, 6);
            self.asm
                .lea(ADDRESS, Mem::Sum { base: Some(ADDRESS), index: Some((INDEX, 3)), disp: 0 });
        } else {
            self.asm.movsxd(INDEX, offset_register);
            self.asm.sar(INDEX, 5);
            self.asm.lea_word(
                ADDRESS,
                Mem::Sum { base: Some(ADDRESS), index: Some((INDEX, 2)), disp: 0 },
            );
        }
        let write = insn.mnemonic() != Mnemonic::Bt;
        if !self.setting.mirrored {
            self.check(insn, start, Check::of(insn, size, write));
        }
        let offset_register = self.whole(reg.full_register(), INDEX);
        self.asm.mov(INDEX, offset_register);
        self.asm.alu32_imm(Alu::And, INDEX, size as i32 * 8 - 1);
        self.need_flags();
        let mut host = *insn;
        host.set_op1_register(sized(INDEX, reg));
        // Repeat prefixes mean nothing, or elide locks.
        host.set_has_rep_prefix(false);
        host.set_has_repne_prefix(false);
        point_at(&mut host, Register::RBX, 0);
        self.access(insn);
        self.encode(&host)?;
        self.status = Status::Host;
        Ok(())
    }
}
