//! Operands in mirrored memory, which are where the guest says.

use super::*;

impl Translator {
    /// Makes the memory operand of `host` that of `insn`, by the host's registers. Uses RBX.
    pub(super) fn point_at_mirror(&mut self, host: &mut Instruction, insn: &Instruction) -> Emit {
        let has_segment = matches!(insn.memory_segment(), Register::FS | Register::GS);
        let sum = if has_segment {
            self.in_segment(insn)?;
            Mem::Base(ADDRESS, 0)
        } else {
            self.sum(insn)?
        };
        match sum {
            Mem::Base(base, disp) => point_at(host, sized(base, Register::RAX), disp),
            // RBP is for other operands.
            Mem::Sum { index: Some((INDEX, _)), .. } => {
                self.asm.lea(ADDRESS, sum);
                point_at(host, Register::RBX, 0);
            }
            Mem::Sum { base, index, disp } => {
                let register =
                    |reg: Option<Reg>| reg.map_or(Register::None, |reg| sized(reg, Register::RAX));
                point_at(host, register(base), disp);
                host.set_memory_index(register(index.map(|(reg, _)| reg)));
                host.set_memory_index_scale(index.map_or(1, |(_, scale)| 1 << scale));
                if base.is_none() {
                    host.set_memory_displ_size(8);
                }
            }
            Mem::Context(_) | Mem::ContextIndexed(..) => return Err(Refused),
        }
        Ok(())
    }

    /// The linear address of an operand relative to FS or GS, into RBX. Keeps flags.
    pub(super) fn in_segment(&mut self, insn: &Instruction) -> Emit {
        let segment = match insn.memory_segment() {
            Register::FS => offset::FS_BASE,
            _ => offset::GS_BASE,
        };
        let disp = i32::try_from(insn.memory_displacement64() as i64).map_err(|_| Refused)?;
        let (base, index) = (insn.memory_base(), insn.memory_index());
        if [base, index].iter().any(|&reg| reg != Register::None && !reg.is_gpr64()) {
            return Err(Refused);
        }
        self.asm.load(ADDRESS, Mem::Context(segment));
        let scale = insn.memory_index_scale().trailing_zeros() as u8;
        for (reg, scale) in [(base, 0), (index, scale)] {
            if reg != Register::None {
                let reg = self.whole(reg, INDEX);
                let index = Some((reg, scale));
                self.asm.lea(ADDRESS, Mem::Sum { base: Some(ADDRESS), index, disp: 0 });
            }
        }
        if disp != 0 {
            self.asm.lea(ADDRESS, Mem::Base(ADDRESS, disp));
        }
        Ok(())
    }

    /// REP MOVS and REP STOS, upwards: programs that want it otherwise are not mirrored.
    pub(super) fn repeat_in_mirror(&mut self, insn: &Instruction, op: StringOp) -> Emit {
        /// Nothing interrupts them but a page that is missing.
        const MOST: i32 = 1 << 20;
        if insn.next_ip() > 0xfff {
            return Err(Refused);
        }
        self.destroy_flags();
        let exit = self.interpreted(insn);
        let from = self.asm.label();
        self.cold.push(Cold::Exit { from, exit });
        self.asm.alu_imm(Alu::Cmp, Reg::RCX, MOST);
        self.asm.jump_if(Cond::Above, from);
        if op.moves {
            self.access(insn);
            self.asm.repeat(true, op.scale);
        } else {
            self.asm.store(Mem::Context(offset::STATUS), STATUS);
            self.asm.mov(STATUS, GUEST_RAX);
            self.access_with(insn, true);
            self.asm.repeat(false, op.scale);
            self.asm.load(STATUS, Mem::Context(offset::STATUS));
        }
        self.resume_behind(exit);
        Ok(())
    }

    /// Has a block left when it is entered while the processor has something else to do. The status flags are
    /// the host's, and stay.
    pub(super) fn poll(&mut self, start: u16) {
        self.asm.load(ADDRESS, Mem::Context(offset::POLL));
        self.sites.push(Site {
            host: self.asm.code.len() as u32,
            at: start,
            status: Status::Host,
            is_spilled: false,
            back: 0,
            stack: 0,
            is_poll: true,
        });
        self.asm.load32(ADDRESS, Mem::Base(ADDRESS, 0));
    }

    /// The next instruction of the host accesses memory for `insn`.
    pub(super) fn access(&mut self, insn: &Instruction) {
        self.access_with(insn, false);
    }

    /// The same; `is_spilled` if the status flags are in the context.
    pub(super) fn access_with(&mut self, insn: &Instruction, is_spilled: bool) {
        if self.setting.mirrored {
            let back = if self.status == Status::Lost { self.back } else { 0 };
            self.is_lost |= self.status == Status::Lost && back == 0;
            self.sites.push(Site {
                host: self.asm.code.len() as u32,
                at: insn.ip() as u16,
                status: self.status,
                is_spilled,
                back,
                stack: (self.stack / self.setting.word()) as i8,
                is_poll: false,
            });
        }
    }
}
