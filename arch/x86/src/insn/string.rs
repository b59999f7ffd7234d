//! String instructions, in bulk where nobody can tell.
//!
//! Each iteration is an instruction boundary: registers are up to date after every element (or
//! run of elements within a page), so that a fault or an interrupt finds the instruction ready
//! to be restarted.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::operand::sized;
use crate::alu::Alu;
use crate::cpu::Cpu;
use crate::decode::{Handler, Op};
use crate::env::{Env, Word};
use crate::exception::Exec;
use crate::paging::Access;
use crate::state::gpr::{RAX, RCX, RDI, RSI};
use crate::state::{Rflags, SegReg};

/// The handler for a string instruction that moves or compares memory.
pub(crate) fn select<E: Env>(insn: &Instruction) -> Option<Handler<E>> {
    let size = insn.memory_size().size();
    match insn.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq
            if is_string(insn) =>
        {
            sized!(size, W => movs::<E, W>)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            sized!(size, W => stos::<E, W>)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            sized!(size, W => lods::<E, W>)
        }
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            sized!(size, W => scas::<E, W>)
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq
            if is_string(insn) =>
        {
            sized!(size, W => cmps::<E, W>)
        }
        _ => None,
    }
}

/// MOVSD and CMPSD are SSE2 instructions as well.
fn is_string(insn: &Instruction) -> bool {
    insn.is_string_instruction()
}

/// The bits of RSI, RDI and RCX that a string instruction uses.
pub(crate) fn address_mask(insn: &Instruction) -> u64 {
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 0xffff,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                return 0xffff_ffff;
            }
            _ => {}
        }
    }
    u64::MAX
}

fn is_repeated(insn: &Instruction) -> bool {
    insn.has_rep_prefix() || insn.has_repne_prefix()
}

/// What an iteration says of the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Go,
    /// The condition of REPE or REPNE fails.
    Stop,
}

impl<E: Env> Cpu<E> {
    /// Runs a string instruction. `step` does up to the given number of iterations (one, if the
    /// instruction is not repeated), advances RSI and RDI, and returns how many it did.
    pub(crate) fn repeat(
        &mut self,
        op: &Op<E>,
        mut step: impl FnMut(&mut Self, u64) -> Exec<(u64, Next)>,
    ) -> Exec {
        if !is_repeated(&op.insn) {
            step(self, 1)?;
            return Ok(());
        }
        let mask = address_mask(&op.insn);
        loop {
            let count = self.state.gpr[RCX] & mask;
            if count == 0 {
                return Ok(());
            }
            // Traps come after each iteration.
            let is_watched = self.flag(Rflags::TF) || self.mode.check_breakpoints;
            let most = if is_watched { 1 } else { count };
            let (done, next) = step(self, most)?;
            self.set_counter(mask, count - done);
            if next == Next::Stop || done == count {
                return Ok(());
            }
            // A boundary between iterations: events may come in. An instruction breakpoint was
            // reported before the first one (SDM Vol. 3, 17.3.1.1).
            if is_watched || self.wants_attention() {
                self.state.rip = self.insn_ip;
                self.set_flag(Rflags::RF, true);
                self.update_mode();
                return Ok(());
            }
        }
    }

    /// Moves RSI or RDI on by `count` elements of `size` bytes.
    #[inline(always)]
    pub(crate) fn advance(&mut self, reg: usize, mask: u64, size: usize, count: u64) {
        let distance = (size as u64).wrapping_mul(count);
        let old = self.state.gpr[reg];
        let new = if self.flag(Rflags::DF) {
            old.wrapping_sub(distance)
        } else {
            old.wrapping_add(distance)
        };
        self.set_masked(reg, mask, new);
    }

    /// How many elements from `linear` upwards lie in one page.
    fn room(linear: u64, size: usize) -> u64 {
        (0x1000 - (linear & 0xfff)) / size as u64
    }

    /// How many iterations may be done at once: those that wrap neither the address nor leave
    /// the page, and do not run downwards.
    fn run_length(&self, most: u64, mask: u64, reg: usize, linear: u64, size: usize) -> u64 {
        if most == 1 || self.flag(Rflags::DF) || self.mode.fast_view != self.mode.view {
            return 1;
        }
        let until_wrap = (mask - (self.state.gpr[reg] & mask)) / size as u64;
        most.min(Self::room(linear, size)).min(until_wrap).max(1)
    }
}

fn movs<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let mask = address_mask(&op.insn);
    cpu.repeat(op, |cpu, most| {
        let from = cpu.state.gpr[RSI] & mask;
        let to = cpu.state.gpr[RDI] & mask;
        let source = cpu.linear(op.seg, from, W::SIZE, Access::Read)?;
        let target = match cpu.linear(SegReg::Es, to, W::SIZE, Access::Write) {
            Ok(target) => target,
            Err(_) => {
                // The source is loaded before the target is looked at.
                cpu.read::<W>(source)?;
                cpu.linear(SegReg::Es, to, W::SIZE, Access::Write)?
            }
        };
        let run = cpu.run_length(most, mask, RSI, source, W::SIZE).min(cpu.run_length(
            most,
            mask,
            RDI,
            target,
            W::SIZE,
        ));
        let mut done = 1;
        if run > 1 && cpu.move_run(op.seg, from, to, run as usize * W::SIZE)? {
            done = run;
        } else {
            let value: W = cpu.read(source)?;
            cpu.write(target, value)?;
        }
        cpu.advance(RSI, mask, W::SIZE, done);
        cpu.advance(RDI, mask, W::SIZE, done);
        Ok((done, Next::Go))
    })
}

impl<E: Env> Cpu<E> {
    /// Moves `len` bytes upwards, within a page on both sides. `false` if they must be moved one
    /// by one: the target overlaps the source, or one of them is no RAM or out of its segment.
    fn move_run(&mut self, seg: SegReg, from: u64, to: u64, len: usize) -> Exec<bool> {
        let Ok(source) = self.linear(seg, from, len, Access::Read) else { return Ok(false) };
        let Ok(target) = self.linear(SegReg::Es, to, len, Access::Write) else {
            return Ok(false);
        };
        let view = self.mode.fast_view;
        let (Some(from), Some(to)) = (self.tlb.read(view, source), self.tlb.write(view, target))
        else {
            return Ok(false);
        };
        let (start, end) = ((source & 0xfff) as usize, (target & 0xfff) as usize);
        if from == to && end > start && end - start < len {
            return Ok(false);
        }
        let mut buffer = [0; 4096];
        self.env.load_bytes(from, start, &mut buffer[..len]);
        self.env.store_bytes(to, end, &buffer[..len]);
        if Some(to) == self.code_page {
            self.leave_block = true;
        }
        Ok(true)
    }
}

fn stos<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let mask = address_mask(&op.insn);
    let value: W = cpu.reg(RAX as u8);
    cpu.repeat(op, |cpu, most| {
        let to = cpu.state.gpr[RDI] & mask;
        let target = cpu.linear(SegReg::Es, to, W::SIZE, Access::Write)?;
        let run = cpu.run_length(most, mask, RDI, target, W::SIZE);
        cpu.write(target, value)?;
        let mut done = 1;
        if run > 1 && cpu.fill_run(to, value, run as usize)? {
            done = run;
        }
        cpu.advance(RDI, mask, W::SIZE, done);
        Ok((done, Next::Go))
    })
}

impl<E: Env> Cpu<E> {
    /// Stores `count` times `value`, within a page; see [`move_run`](Self::move_run).
    fn fill_run<W: Word>(&mut self, to: u64, value: W, count: usize) -> Exec<bool> {
        let len = count * W::SIZE;
        let Ok(target) = self.linear(SegReg::Es, to, len, Access::Write) else {
            return Ok(false);
        };
        let Some(page) = self.tlb.write(self.mode.fast_view, target) else { return Ok(false) };
        let value: u64 = value.into();
        let pattern = value.to_le_bytes();
        let mut buffer = [0; 4096];
        if pattern[..W::SIZE].iter().any(|&b| b != 0) {
            for chunk in buffer[..len].chunks_exact_mut(W::SIZE) {
                chunk.copy_from_slice(&pattern[..W::SIZE]);
            }
        }
        self.env.store_bytes(page, (target & 0xfff) as usize, &buffer[..len]);
        if Some(page) == self.code_page {
            self.leave_block = true;
        }
        Ok(true)
    }
}

fn lods<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let mask = address_mask(&op.insn);
    cpu.repeat(op, |cpu, _| {
        let from = cpu.state.gpr[RSI] & mask;
        let source = cpu.linear(op.seg, from, W::SIZE, Access::Read)?;
        let value: W = cpu.read(source)?;
        cpu.set_reg(RAX as u8, value);
        cpu.advance(RSI, mask, W::SIZE, 1);
        Ok((1, Next::Go))
    })
}

impl<E: Env> Cpu<E> {
    /// Sets the flags of a comparison and says whether REPE or REPNE goes on.
    #[inline(always)]
    fn compared<W: Word>(&mut self, op: &Op<E>, a: W, b: W) -> Next {
        let (_, flags) = Alu::sub(a, b);
        self.set_status(flags);
        if (a == b) == op.insn.has_repne_prefix() { Next::Stop } else { Next::Go }
    }
}

fn scas<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let mask = address_mask(&op.insn);
    let a: W = cpu.reg(RAX as u8);
    cpu.repeat(op, |cpu, _| {
        let at = cpu.state.gpr[RDI] & mask;
        let linear = cpu.linear(SegReg::Es, at, W::SIZE, Access::Read)?;
        let b: W = cpu.read(linear)?;
        cpu.advance(RDI, mask, W::SIZE, 1);
        Ok((1, cpu.compared(op, a, b)))
    })
}

fn cmps<E: Env, W: Word>(cpu: &mut Cpu<E>, op: &Op<E>) -> Exec {
    let mask = address_mask(&op.insn);
    cpu.repeat(op, |cpu, _| {
        let from = cpu.state.gpr[RSI] & mask;
        let to = cpu.state.gpr[RDI] & mask;
        let source = cpu.linear(op.seg, from, W::SIZE, Access::Read)?;
        let a: W = cpu.read(source)?;
        let target = cpu.linear(SegReg::Es, to, W::SIZE, Access::Read)?;
        let b: W = cpu.read(target)?;
        cpu.advance(RSI, mask, W::SIZE, 1);
        cpu.advance(RDI, mask, W::SIZE, 1);
        Ok((1, cpu.compared(op, a, b)))
    })
}
