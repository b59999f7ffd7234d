//! Instructions that are emitted as themselves.

use super::*;

impl Translator {
    pub(super) fn plain(
        &mut self,
        insn: &Instruction,
        fact: &Fact,
        cached: Option<Checked>,
        block: Code<'_>,
    ) -> Emit {
        let mut host = *insn;
        host.set_code(renamable(insn.code()));
        // Repeat prefixes mean nothing here.
        host.set_has_rep_prefix(false);
        host.set_has_repne_prefix(false);

        let has_memory = fact.access.is_some();
        let write = fact.access == Some(Access::Store);
        let uses = fact.uses;
        let mut is_explicit = [false; 16];
        for i in 0..insn.op_count() {
            if insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_gpr() {
                is_explicit[number(insn.op_register(i))] = true;
            }
        }
        let is_address = |n: usize| {
            [insn.memory_base(), insn.memory_index()].iter().any(|r| r.is_gpr() && number(*r) == n)
        };
        let implied = implicit_registers(insn);
        // Of the registers that live elsewhere, only RAX may be implied.
        for n in implied.iter().copied() {
            if n != 0 && home(n) != Home::Host(Reg(n as u8)) {
                return Err(Refused);
            }
        }
        for n in 0..16 {
            let known = is_explicit[n] || implied.contains(&n) || is_address(n);
            if uses[n] != (false, false) && !known {
                return Err(Refused);
            }
        }
        let implies_rax = implied.contains(&0);
        if implies_rax && is_explicit[0] && uses[0].1 && insn.mnemonic() == Mnemonic::Cmpxchg {
            return Err(Refused);
        }

        // Flags.
        let (reads, modifies) = flags(insn);
        if has_memory && self.setting.mirrored {
            self.point_at_mirror(&mut host, insn)?;
        } else if has_memory {
            let size = insn.memory_size().size();
            let align = x86::wants_alignment(insn);
            let distance = match based(insn) {
                Some(place) if !align => {
                    match self.near(insn, place, (size as i32, write), cached, block) {
                        Mem::Base(ADDRESS, distance) => distance,
                        _ => return Err(Refused),
                    }
                }
                _ => {
                    self.operand(insn, size, write, align)?;
                    0
                }
            };
            point_at(&mut host, Register::RBX, distance);
        } else {
            self.cached = cached;
        }
        if let Some(cached) = self.cached {
            self.cached = self.moved(cached, insn, fact);
        }
        if reads != 0 || modifies != 0 && modifies != ALL {
            self.need_flags();
        }
        if implies_rax {
            // Where it may fault, the flags that it overwrites are still needed.
            let may_fault = has_memory && self.setting.mirrored;
            if modifies == ALL && reads == 0 && !may_fault {
                self.status = Status::Host;
            } else {
                self.free_status();
            }
        }

        let left = if has_memory || implied.iter().any(|&n| matches!(home(n), Home::Memory(_))) {
            None
        } else {
            leave_operand(&mut host, fact, |insn| self.has_form(insn))
        };

        // Temporaries for registers that live in memory, and for high bytes.
        let mut free =
            [Some(INDEX), (!has_memory).then_some(ADDRESS), (!implies_rax).then_some(STATUS)]
                .into_iter()
                .flatten();
        let mut is_status_spilled = false;
        let mut renamed: Vec<(usize, Reg, bool)> = Vec::new();
        for i in 0..insn.op_count() {
            if insn.op_kind(i) != OpKind::Register || left == Some(i) {
                continue;
            }
            let reg = insn.op_register(i);
            if !reg.is_gpr() {
                continue;
            }
            let n = number(reg);
            let is_high = is_high_byte(reg);
            let to = match home(n) {
                Home::Host(host) if !is_high => host,
                place => match renamed.iter().find(|r| r.0 == n && r.2 == is_high) {
                    Some(r) => r.1,
                    None => {
                        let temporary = free.next().ok_or(Refused)?;
                        if temporary == ADDRESS {
                            self.cached = None;
                        } else if temporary == STATUS && self.status != Status::Host {
                            self.asm.store(Mem::Context(offset::STATUS), STATUS);
                            is_status_spilled = true;
                        }
                        match place {
                            Home::Host(host) => self.asm.rorx(temporary, host, 8),
                            Home::Memory(m) if uses[n].0 => {
                                self.asm.load(temporary, Mem::Context(offset::gpr(m)));
                            }
                            Home::Memory(_) => {}
                        }
                        renamed.push((n, temporary, is_high));
                        temporary
                    }
                },
            };
            // AH becomes the low byte of a register that was rotated.
            let like = if is_high { Register::AL } else { reg };
            host.set_op_register(i, sized(to, like));
        }
        if fact.writes_high_byte && renamed.iter().any(|r| r.2 && writes_both_halves(insn, r.0)) {
            return Err(Refused);
        }
        if implies_rax {
            self.asm.mov(STATUS, GUEST_RAX);
        }
        if has_memory {
            self.access_with(insn, is_status_spilled);
        }
        self.encode(&host)?;
        if implies_rax && uses[0].1 {
            self.asm.mov(GUEST_RAX, STATUS);
        }
        for &(n, temporary, is_high) in &renamed {
            if uses[n].1 {
                match home(n) {
                    Home::Host(host) if is_high => {
                        if fact.writes_high_byte {
                            self.asm.rorx(host, temporary, 56);
                        }
                    }
                    Home::Host(_) => {}
                    Home::Memory(m) => self.asm.store(Mem::Context(offset::gpr(m)), temporary),
                }
            }
        }
        if modifies != 0 {
            self.status = Status::Host;
        } else if is_status_spilled {
            self.asm.load(STATUS, Mem::Context(offset::STATUS));
        }
        Ok(())
    }

    /// What was checked, after an instruction that leaves RBX alone.
    fn moved(&self, cached: Checked, insn: &Instruction, fact: &Fact) -> Option<Checked> {
        cached.moved(constant_step(insn, fact, cached.base, self.setting.word())?)
    }

    /// Whether there is such an instruction. (iced's descriptions of all instructions would say so, too, but take
    /// more than half a megabyte once anybody looks at them.)
    fn has_form(&mut self, insn: &Instruction) -> bool {
        let len = self.asm.code.len();
        let has_form = self.encode(insn).is_ok();
        self.asm.code.truncate(len);
        has_form
    }

    pub(super) fn encode(&mut self, insn: &Instruction) -> Emit {
        self.encoder.set_buffer(std::mem::take(&mut self.asm.code));
        let result = self.encoder.encode(insn, 0);
        self.asm.code = self.encoder.take_buffer();
        result.map(|_| ()).map_err(|_| Refused)
    }

    pub(super) fn lea(&mut self, insn: &Instruction, fact: &Fact, cached: Option<Checked>) -> Emit {
        let reg = insn.op0_register();
        let is_wide = reg.is_gpr64();
        if !is_wide && !reg.is_gpr32() {
            return Err(Refused);
        }
        let sum = self.sum(insn)?;
        let n = number(reg);
        let to = match home(n) {
            Home::Host(host) => host,
            Home::Memory(_) => INDEX,
        };
        let uses_address = match sum {
            Mem::Base(base, _) => base == ADDRESS,
            Mem::Sum { base, .. } => base == Some(ADDRESS),
            _ => true,
        };
        if !uses_address && let Some(cached) = cached {
            self.cached = self.moved(cached, insn, fact);
        }
        if is_wide {
            self.asm.lea(to, sum);
        } else {
            self.asm.lea32(to, sum);
        }
        if let Home::Memory(n) = home(n) {
            self.asm.store(Mem::Context(offset::gpr(n)), to);
        }
        Ok(())
    }
}

pub(super) fn is_shift(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    )
}

/// Status flags that an instruction reads and modifies. What leaves some flags alone under a
/// condition counts as reading them all.
pub(super) fn flags(insn: &Instruction) -> (u32, u32) {
    let (reads, modifies) = (insn.rflags_read() & ALL, insn.rflags_modified() & ALL);
    if is_shift(insn.mnemonic()) {
        let last = insn.op_count() - 1;
        if insn.op_kind(last) == OpKind::Register && insn.op_register(last) == Register::CL {
            return (ALL, modifies);
        }
        let count = insn.try_immediate(last).unwrap_or(1) & 63;
        // A count of 0 leaves them all alone.
        let wide = matches!(insn.op0_kind(), OpKind::Memory)
            .then(|| insn.memory_size().size())
            .unwrap_or_else(|| insn.op0_register().size())
            == 8;
        if count & if wide { 63 } else { 31 } == 0 {
            return (ALL, modifies);
        }
    }
    (reads, modifies)
}

/// Numbers of the general-purpose registers that an instruction uses without naming them.
pub(super) fn implicit_registers(insn: &Instruction) -> &'static [usize] {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Mul | M::Imul if insn.op_count() == 1 => &[0, 2],
        M::Div | M::Idiv | M::Cwd | M::Cdq | M::Cqo => &[0, 2],
        M::Cbw | M::Cwde | M::Cdqe | M::Cmpxchg | M::Lahf | M::Sahf => &[0],
        M::Mulx => &[2],
        M::Pcmpestri
        | M::Pcmpestrm
        | M::Vpcmpestri
        | M::Vpcmpestrm
        | M::Pcmpestri64
        | M::Pcmpestrm64
        | M::Vpcmpestri64
        | M::Vpcmpestrm64 => &[0, 1, 2],
        M::Pcmpistri | M::Pcmpistrm | M::Vpcmpistri | M::Vpcmpistrm => &[1],
        _ => &[],
    }
}

/// Whether the instruction exchanges something with the low byte of register `n`, which cannot be
/// written beside the high one.
pub(super) fn writes_both_halves(insn: &Instruction, n: usize) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd | Mnemonic::Cmpxchg)
        && (0..insn.op_count()).any(|i| {
            insn.op_kind(i) == OpKind::Register && {
                let reg = insn.op_register(i);
                reg.is_gpr() && number(reg) == n && !is_high_byte(reg)
            }
        })
}
