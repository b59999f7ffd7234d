//! Addresses, and the checks that make them the host's.

use x86::state::SegReg;

use super::*;

/// RBX holds the host's address of `base + low`, checked for `span` bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked {
    /// The number of the guest's register.
    pub(super) base: usize,
    pub(super) low: i32,
    pub(super) span: i32,
    pub(super) write: bool,
}

impl Checked {
    /// How far from RBX `size` bytes at `base + disp` lie, if they were checked.
    fn distance(&self, base: usize, disp: i32, size: i32, write: bool) -> Option<i32> {
        let distance = disp.checked_sub(self.low)?;
        let fits = distance >= 0 && distance <= self.span - size;
        (self.base == base && fits && (self.write || !write)).then_some(distance)
    }

    /// The same after `delta` was added to the base.
    pub(super) fn moved(self, delta: i32) -> Option<Self> {
        Some(Self { low: self.low.checked_sub(delta)?, ..self })
    }
}

/// The entry of the soft TLB that a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// By the address.
    Indexed,
    /// One for what the address is formed of.
    Slot(usize),
}

/// What is checked of an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    entry: Entry,
    /// So many bytes lie in the page.
    size: usize,
    write: bool,
    /// They are aligned to their number.
    align: bool,
    /// They are several accesses'.
    merged: bool,
}

impl Check {
    /// For `size` bytes at an address that is like no other.
    pub(super) fn indexed(size: usize, write: bool) -> Self {
        Self { entry: Entry::Indexed, size, write, align: false, merged: false }
    }

    /// For `size` bytes of the memory operand.
    pub(super) fn of(insn: &Instruction, size: usize, write: bool) -> Self {
        let entry = constant_address(insn).map_or(Entry::Indexed, Entry::Slot);
        Self { entry, size, write, align: false, merged: false }
    }
}

/// Twice the number of a slot's entry.
pub(super) fn slot_index(slot: usize) -> i32 {
    2 * (TLB_ENTRIES + slot) as i32
}

/// The slot for the memory operand, if its address is a constant, seen from the block or a segment's
/// base.
fn constant_address(insn: &Instruction) -> Option<usize> {
    let segment = match insn.memory_segment() {
        Register::FS => 1,
        Register::GS => 2,
        _ => 0,
    };
    let is_constant = insn.is_ip_rel_memory_operand()
        || insn.memory_base() == Register::None && insn.memory_index() == Register::None;
    let page = (insn.memory_displacement64() >> 12) as usize;
    is_constant.then(|| STACK_SLOT + 1 + (page + 11 * segment) % (TLB_SLOTS - 1))
}

/// One check covers at most this many bytes: the more, the likelier they cross a page, and then
/// the interpreter has to help.
const MAX_SPAN: i32 = 128;

impl Translator {
    /// Guest register `reg`, a whole one, in a host register: its own, or `temporary`.
    pub(super) fn whole(&mut self, reg: Register, temporary: Reg) -> Reg {
        self.register(number(reg), temporary)
    }

    /// The same by number.
    pub(super) fn register(&mut self, number: usize, temporary: Reg) -> Reg {
        match home(number) {
            Home::Host(host) => host,
            Home::Memory(n) => {
                self.asm.load(temporary, Mem::Context(offset::gpr(n)));
                temporary
            }
        }
    }

    /// The memory operand as a sum of host registers. Uses RBX and RBP.
    pub(super) fn sum(&mut self, insn: &Instruction) -> Emit<Mem> {
        let disp = i32::try_from(insn.memory_displacement64() as i64).map_err(|_| Refused)?;
        let (base, index) = (insn.memory_base(), insn.memory_index());
        if base == Register::RIP {
            self.asm.load(ADDRESS, Mem::Context(offset::CODE_BASE));
            return Ok(Mem::Base(ADDRESS, disp));
        }
        for reg in [base, index] {
            if reg != Register::None && !reg.is_gpr64() {
                return Err(Refused);
            }
        }
        let base = (base != Register::None).then(|| self.whole(base, ADDRESS));
        let scale = insn.memory_index_scale().trailing_zeros() as u8;
        let index = (index != Register::None).then(|| (self.whole(index, INDEX), scale));
        Ok(match (base, index) {
            (Some(base), None) => Mem::Base(base, disp),
            (base, index) => Mem::Sum { base, index, disp },
        })
    }

    /// The linear address of the memory operand, into RBX. Destroys flags if there is a segment.
    pub(super) fn linear(&mut self, insn: &Instruction) -> Emit {
        match self.sum(insn)? {
            Mem::Base(base, 0) => self.asm.mov_word(ADDRESS, base),
            Mem::Sum { base: None, index: None, disp } => self.asm.mov_imm_word(ADDRESS, disp),
            sum => self.asm.lea_word(ADDRESS, sum),
        }
        let (base, segment) = match insn.memory_segment() {
            Register::FS => (offset::FS_BASE, SegReg::Fs),
            Register::GS => (offset::GS_BASE, SegReg::Gs),
            // 32-bit code may not store there, nor always load.
            Register::CS if self.setting.is_32bit => return Err(Refused),
            _ => return Ok(()),
        };
        if self.setting.is_32bit {
            let at = insn.ip() as u16;
            let odd = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
            self.asm.alu32_mem_imm(Alu::Cmp, Mem::Context(offset::is_limited(segment)), 0);
            self.asm.jump_if(Cond::NotEqual, odd);
        }
        self.asm.add_mem_word(ADDRESS, Mem::Context(base));
        Ok(())
    }

    /// Turns the linear address in RBX into the host's. Flags must have been destroyed.
    /// `start` is where forming the address began.
    pub(super) fn check(&mut self, insn: &Instruction, start: Label, check: Check) {
        let Check { entry, size, write, align, merged } = check;
        debug_assert!(matches!(self.status, Status::Kept | Status::Lost));
        let view = self.setting.view;
        let tag = offset::tlb_tag(view, write);
        let host = offset::tlb_host(view, write);
        let (tag, host) = match entry {
            Entry::Indexed => {
                // Twice the number of the entry, which has 16 bytes.
                self.asm.rorx(INDEX, ADDRESS, 11);
                self.asm.alu32_imm(Alu::And, INDEX, 2 * TLB_ENTRIES as i32 - 2);
                (Mem::ContextIndexed(INDEX, tag), Mem::ContextIndexed(INDEX, host))
            }
            Entry::Slot(slot) => {
                let at = slot_index(slot) * 8;
                (Mem::Context(tag + at), Mem::Context(host + at))
            }
        };
        self.asm.alu_mem(Alu::Add, ADDRESS, tag);
        self.asm.alu_imm(Alu::Cmp, ADDRESS, 4096 - size as i32);
        let at = insn.ip() as u16;
        let exit = self.exit(Exit::Miss { at, retry: 0, size: size as u8, write, merged });
        self.resumes.push((exit, start));
        let miss = self.asm.label();
        self.cold.push(Cold::Miss { from: miss, exit, write, start, merged, entry });
        self.asm.jump_if(Cond::Above, miss);
        if align {
            // The interpreter raises what there is to raise.
            let odd = self.cold_exit(Exit::Interpret { at, next: 0, resume: 0 });
            self.asm.test_bl(size as u8 - 1);
            self.asm.jump_if(Cond::NotEqual, odd);
        }
        self.asm.alu_mem(Alu::Add, ADDRESS, host);
    }

    /// The host's address of the memory operand, into RBX.
    pub(super) fn operand(
        &mut self,
        insn: &Instruction,
        size: usize,
        write: bool,
        align: bool,
    ) -> Emit {
        self.destroy_flags();
        if !self.setting.mirrored {
            self.settle_stack();
        }
        let start = self.asm.here();
        self.linear(insn)?;
        if !self.setting.mirrored {
            self.check(insn, start, Check { align, ..Check::of(insn, size, write) });
        }
        Ok(())
    }

    /// Brings the host's address of `size` bytes at `base + disp` near RBX, together with what the
    /// next instructions access there; returns where it is. Mirrored memory needs nothing.
    pub(super) fn near(
        &mut self,
        insn: &Instruction,
        (base, disp): (usize, i32),
        (size, write): (i32, bool),
        cached: Option<Checked>,
        block: Code<'_>,
    ) -> Mem {
        if self.setting.mirrored {
            let behind = if base == gpr::RSP { self.stack } else { 0 };
            return Mem::Base(self.register(base, ADDRESS), disp + behind);
        }
        if let Some(cached) = cached
            && let Some(distance) = cached.distance(base, disp, size, write)
        {
            self.cached = Some(cached);
            return Mem::Base(ADDRESS, distance);
        }
        self.settle_stack();
        let checked = self.look_ahead(base, disp, size, write, block);
        let merged = checked.span > size;
        if merged {
            self.keep_flags();
        }
        self.destroy_flags();
        let start = self.asm.here();
        let base = self.register(base, ADDRESS);
        match checked.low {
            0 => self.asm.mov_word(ADDRESS, base),
            low => self.asm.lea_word(ADDRESS, Mem::Base(base, low)),
        }
        let entry = match checked.base {
            gpr::RSP => Entry::Slot(STACK_SLOT),
            _ => Entry::Indexed,
        };
        let Checked { span, write, .. } = checked;
        let check = Check { entry, size: span as usize, write, align: false, merged };
        self.check(insn, start, check);
        self.cached = Some(checked);
        Mem::Base(ADDRESS, disp - checked.low)
    }

    /// The range that one check for the current access and those behind it should cover.
    pub(super) fn look_ahead(
        &self,
        base: usize,
        disp: i32,
        size: i32,
        write: bool,
        code: Code<'_>,
    ) -> Checked {
        // Who goes on elsewhere, for a page is crossed, needs the flags.
        if self.setting.narrow || self.status == Status::Lost {
            return Checked { base, low: disp, span: size, write };
        }
        let word = self.setting.word();
        let (mut low, mut high, mut any_write) = (disp, disp + size, write);
        // What was added to the base since.
        let mut delta = 0i32;
        for (i, (insn, fact)) in code.insns.iter().zip(code.facts).enumerate().skip(self.rest.start)
        {
            let is_stack = base == gpr::RSP;
            let mut touches = |from: i32, size: i32, write: bool| {
                let Some(from) = from.checked_add(delta) else { return false };
                let to = from.saturating_add(size);
                if from.min(low).saturating_add(MAX_SPAN) < to.max(high) {
                    return false;
                }
                low = low.min(from);
                high = high.max(to);
                any_write |= write;
                true
            };
            let goes_on = match fact.kind {
                Kind::Nothing => true,
                Kind::Push if is_stack && insn.op0_kind() != OpKind::Memory => {
                    let fits = touches(-word, word, true);
                    delta -= word;
                    fits
                }
                Kind::Pop if is_stack => {
                    let fits = touches(0, word, false);
                    delta += word;
                    fits && number(insn.op0_register()) != gpr::RSP
                }
                Kind::Call if is_stack => {
                    touches(-word, word, true);
                    false
                }
                Kind::Return if is_stack => {
                    touches(0, word, false);
                    false
                }
                Kind::Plain => {
                    let fits = match fact.access {
                        None => true,
                        Some(access) => match based(insn) {
                            Some((b, disp)) if b == base => {
                                let size = insn.memory_size().size() as i32;
                                touches(disp, size, access == Access::Store)
                            }
                            _ => i == self.rest.start,
                        },
                    };
                    match constant_step(insn, fact, base, word) {
                        Some(step) => delta = delta.saturating_add(step),
                        None => return Checked { base, low, span: high - low, write: any_write },
                    }
                    fits
                }
                Kind::Lea => constant_step(insn, fact, base, word) == Some(0),
                _ => i == self.rest.start,
            };
            if !goes_on {
                break;
            }
        }
        Checked { base, low, span: high - low, write: any_write }
    }
}

/// Makes `[base + distance]` the memory operand.
pub(super) fn point_at(host: &mut Instruction, base: Register, distance: i32) {
    host.set_segment_prefix(Register::None);
    host.set_memory_base(base);
    host.set_memory_index(Register::None);
    host.set_memory_index_scale(1);
    let is_compressed = host.code().encoding() == iced_x86::EncodingKind::EVEX;
    host.set_memory_displ_size(match i8::try_from(distance) {
        Ok(0) => 0,
        Ok(_) if !is_compressed => 1,
        _ => 8,
    });
    host.set_memory_displacement64(i64::from(distance) as u64);
}

/// The memory operand, if it is a displacement from a register, by number, without a segment.
pub(super) fn based(insn: &Instruction) -> Option<(usize, i32)> {
    let base = insn.memory_base();
    if !base.is_gpr64()
        || insn.memory_index() != Register::None
        || matches!(insn.memory_segment(), Register::FS | Register::GS | Register::CS)
    {
        return None;
    }
    let disp = i32::try_from(insn.memory_displacement64() as i64).ok()?;
    // Room to add and subtract small numbers.
    if disp.unsigned_abs() > 1 << 30 {
        return None;
    }
    Some((number(base), disp))
}

/// What the instruction adds to register `base`, of which addresses use `word` bytes, if that is
/// known.
pub(super) fn constant_step(
    insn: &Instruction,
    fact: &Fact,
    base: usize,
    word: i32,
) -> Option<i32> {
    if !fact.uses[base].1 {
        return Some(0);
    }
    let is_whole = insn.op0_kind() == OpKind::Register
        && insn.op0_register().is_gpr()
        && insn.op0_register().size() == word as usize
        && number(insn.op0_register()) == base;
    if !is_whole || insn.op_count() != 2 {
        return None;
    }
    let by = match insn.mnemonic() {
        Mnemonic::Add => insn.try_immediate(1).ok()? as i64,
        Mnemonic::Sub => (insn.try_immediate(1).ok()? as i64).checked_neg()?,
        Mnemonic::Lea => match based(insn) {
            Some((b, disp)) if b == base => disp.into(),
            _ => return None,
        },
        _ => return None,
    };
    i32::try_from(by).ok().filter(|by| by.unsigned_abs() < 1 << 30)
}
