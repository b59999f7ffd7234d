//! The run loop: fetch, decode, execute.

use core::ops::Range;

use crate::block::{Block, BlockCache, Key, MAX_BYTES, MAX_OPS};
use crate::cpu::{Cpu, is_canonical};
use crate::crossing::Crossing;
use crate::debug;
use crate::decode::{self, MAX_LEN, Op, Undecodable};
use crate::env::Env;
use crate::exception::{Exception, Exec, Raised};
use crate::paging::{self, Access, Privilege};
use crate::state::{Activity, Rflags, SegReg};

/// Why [`Cpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// [`Env::attention`] asked for it, at an instruction boundary.
    Attention,
    /// The processor is not active: it halted, or a triple fault shut it down.
    Inactive,
    /// A debugger wanted it: [`Cpu::take_debug_stop`] says why.
    Debug,
}

impl<E: Env> Cpu<E> {
    /// Executes instructions until something else is to be done.
    pub fn run(&mut self) -> Stop {
        // Taken out, so that operations can be borrowed while they change the processor.
        let mut blocks = core::mem::take(&mut self.blocks);
        let stop = loop {
            if self.state.activity != Activity::Active {
                break Stop::Inactive;
            }
            if self.wants_attention() {
                break Stop::Attention;
            }
            if self.mode.careful && self.is_debug_stopped() {
                break Stop::Debug;
            }
            if self.mode.careful && self.steps_here() {
                self.step();
            } else {
                self.run_block(&mut blocks, usize::MAX);
            }
        };
        self.blocks = blocks;
        stop
    }

    /// Executes at least one instruction, and at most `limit` of straight-line code; or delivers
    /// the exception that the first one raises. Nothing if a debugger stopped the processor.
    pub fn execute(&mut self, limit: usize) {
        if self.mode.careful && self.steps_here() {
            return self.step();
        }
        let mut blocks = core::mem::take(&mut self.blocks);
        self.run_block(&mut blocks, limit);
        self.blocks = blocks;
    }

    /// Whether the owner of the processor has something to do.
    #[inline(always)]
    pub fn wants_attention(&self) -> bool {
        self.env.attention(self.accepts_interrupt(), self.accepts_nmi())
    }

    /// Executes one instruction, or delivers the exception that it raises; unless a debugger wants
    /// to stop before it.
    pub fn step(&mut self) {
        if self.stops_before() {
            return self.update_mode();
        }
        if let Err(Raised(())) = self.try_step() {
            self.state.rip = self.insn_ip;
            self.deliver_raised();
        }
        self.stepped();
        self.update_mode();
    }

    fn try_step(&mut self) -> Exec {
        self.insn_ip = self.state.rip;
        let stack_loaded = core::mem::take(&mut self.stack_loaded);
        if !self.flag(Rflags::RF) && !stack_loaded {
            let hits = debug::execution_hits(&self.state, self.code_linear());
            if hits != 0 {
                self.state.dr6 = debug::merge_hits(self.state.dr6, hits);
                return Err(self.raise(Exception::new(crate::exception::vector::DB)));
            }
        }
        self.code_page = None;
        let (op, crossing) = self.fetch_one()?;
        let result = self.execute_one(&op, stack_loaded);
        if let Some(crossing) = crossing {
            self.crossing.keep(&crossing, op);
        }
        result
    }

    fn execute_one(&mut self, op: &Op<E>, stack_loaded: bool) -> Exec {
        self.single_step = self.flag(Rflags::TF);
        self.set_flag(Rflags::RF, false);
        self.state.interrupt_shadow = false;
        if !stack_loaded {
            self.debug_hits = 0;
        }
        self.stats.instructions += 1;
        self.state.rip = self.insn_ip.wrapping_add(op.len.into());
        (op.run)(self, op)?;
        self.step_branches_only(op);
        self.debug_trap();
        Ok(())
    }

    /// Runs the block at the instruction pointer, up to `limit` instructions.
    fn run_block(&mut self, blocks: &mut BlockCache<E>, limit: usize) {
        self.insn_ip = self.state.rip;
        let (range, page) = match self.fetch_block(blocks) {
            Ok(Some(found)) => found,
            Ok(None) => return self.step(),
            Err(Raised(())) => return self.deliver_raised(),
        };
        self.code_page = Some(page);
        self.leave_block = false;
        let mut executed = 0;
        for op in blocks.ops[range].iter().take(limit) {
            executed += 1;
            self.insn_ip = self.state.rip;
            self.state.rip = self.insn_ip.wrapping_add(op.len.into());
            if let Err(Raised(())) = (op.run)(self, op) {
                self.state.rip = self.insn_ip;
                self.deliver_raised();
                break;
            }
            if self.leave_block {
                break;
            }
        }
        if self.single_step {
            // SYSRET gave TF back.
            self.debug_trap();
        }
        self.stats.blocks += 1;
        self.stats.instructions += executed;
    }

    /// Executes instructions as long as `go_on` says so, which is asked before each of them. An
    /// exception is not delivered: it ends the run before the instruction that raises it. Nobody
    /// looks whether something waits.
    pub fn observe(&mut self, mut go_on: impl FnMut(&mut Self) -> bool) {
        let mut blocks = core::mem::take(&mut self.blocks);
        while self.state.activity == Activity::Active && self.observe_block(&mut blocks, &mut go_on)
        {
        }
        self.blocks = blocks;
    }

    /// One block of [`observe`](Self::observe); `false` at its end.
    fn observe_block(
        &mut self,
        blocks: &mut BlockCache<E>,
        go_on: &mut impl FnMut(&mut Self) -> bool,
    ) -> bool {
        if !go_on(self) {
            return false;
        }
        self.insn_ip = self.state.rip;
        let fetched = if self.mode.careful { Ok(None) } else { self.fetch_block(blocks) };
        let (range, page) = match fetched {
            Ok(Some(found)) => found,
            Ok(None) => {
                let done = self.try_step();
                if done.is_err() {
                    self.state.rip = self.insn_ip;
                }
                self.update_mode();
                return done.is_ok();
            }
            Err(Raised(())) => return false,
        };
        self.code_page = Some(page);
        self.leave_block = false;
        for (i, op) in blocks.ops[range].iter().enumerate() {
            if i > 0 && !go_on(self) {
                return false;
            }
            self.insn_ip = self.state.rip;
            self.state.rip = self.insn_ip.wrapping_add(op.len.into());
            if (op.run)(self, op).is_err() {
                self.state.rip = self.insn_ip;
                return false;
            }
            if self.leave_block {
                break;
            }
        }
        true
    }

    /// The linear address of the next instruction.
    pub(crate) fn code_linear(&self) -> u64 {
        if self.mode.code_bits == 64 {
            self.state.rip
        } else {
            self.state.segment(SegReg::Cs).base.wrapping_add(self.state.rip) & 0xffff_ffff
        }
    }

    /// Finds or decodes the block at the instruction pointer: where its operations stand, and the
    /// page it lies in. `None` if the instruction there must be fetched on its own: it crosses a
    /// page, lies outside RAM, or touches the end of the code segment.
    fn fetch_block(&mut self, blocks: &mut BlockCache<E>) -> Exec<Option<(Range<usize>, E::Page)>> {
        let linear = self.code_linear();
        let user = self.mode.cpl == 3;
        let (frame, page) = match self.tlb.code(user, linear) {
            Some(hit) => hit,
            None => match self.fetch_place(linear)? {
                (gpa, Some(page)) => (gpa & !0xfff, page),
                (_, None) => return Ok(None),
            },
        };
        let offset = (linear & 0xfff) as usize;
        let code_bits = self.mode.code_bits;
        let key = Key::new(frame | offset as u64, code_bits);
        let (range, len) = match blocks.find(key) {
            Some(block) if self.env.matches(page, offset, block.bytes()) => {
                (block.range(), block.bytes().len())
            }
            _ => match self.decode_block(blocks, key, page, offset)? {
                Some(block) => (block.range(), block.bytes().len()),
                None => return Ok(None),
            },
        };
        if code_bits != 64 {
            let last = self.state.rip + len as u64 - 1;
            if last > u64::from(self.state.segment(SegReg::Cs).limit) {
                return Ok(None);
            }
        }
        Ok(Some((range, page)))
    }

    fn decode_block(
        &mut self,
        blocks: &mut BlockCache<E>,
        key: Key,
        page: E::Page,
        offset: usize,
    ) -> Exec<Option<Block>> {
        let mut window = [0; MAX_BYTES];
        let room = window.len().min(0x1000 - offset);
        self.env.load_bytes(page, offset, &mut window[..room]);
        blocks.reserve();
        let start = blocks.ops.len();
        let mut len = 0;
        while blocks.ops.len() < start + MAX_OPS {
            let ip = self.state.rip.wrapping_add(len as u64);
            match decode::decode(self.mode.code_bits, &window[len..room], ip, self.decoder_options)
            {
                Ok(op) => {
                    len += usize::from(op.len);
                    let is_last = op.ends_block();
                    blocks.ops.push(op);
                    if is_last {
                        break;
                    }
                }
                Err(Undecodable::Fault(exception)) if len == 0 => {
                    return Err(self.raise(exception));
                }
                Err(_) => break,
            }
        }
        if len == 0 {
            return Ok(None);
        }
        self.stats.decoded += 1;
        Ok(Some(blocks.insert(key, start, &window[..len])))
    }

    /// Translates for an instruction fetch: guest physical address, and the page if it is RAM.
    pub(crate) fn fetch_place(&mut self, linear: u64) -> Exec<(u64, Option<E::Page>)> {
        if self.mode.code_bits == 64 && !is_canonical(linear) {
            return Err(self.raise(Exception::GP0));
        }
        let user = self.mode.cpl == 3;
        let privilege = if user { Privilege::User } else { Privilege::SupervisorAc };
        match paging::translate(&mut self.env, &self.state, linear, Access::Execute, privilege) {
            Ok(t) => {
                let page = self.env.ram_page(t.gpa);
                if let Some(page) = page {
                    self.tlb.fill_code(user, linear, page, &t);
                }
                Ok((t.gpa, page))
            }
            Err(code) => Err(self.raise(Exception::page_fault(linear, code))),
        }
    }

    /// Where instructions at `linear` lie, by the TLB if it knows.
    fn code_at(&mut self, linear: u64) -> Exec<(u64, Option<E::Page>)> {
        match self.tlb.code(self.mode.cpl == 3, linear) {
            Some((frame, page)) => Ok((frame | linear & 0xfff, Some(page))),
            None => self.fetch_place(linear),
        }
    }

    /// Fetches and decodes the instruction at the instruction pointer, wherever it lies.
    fn fetch_one(&mut self) -> Exec<(Op<E>, Option<Crossing>)> {
        let mut bytes = [0; MAX_LEN];
        let mut have = 0;
        let mut first = None;
        let bits = self.mode.code_bits;
        let limit = u64::from(self.state.segment(SegReg::Cs).limit);
        loop {
            // One page more than before: at most two turns are needed.
            let linear = self.code_linear().wrapping_add(have as u64);
            let linear = if bits == 64 { linear } else { linear & 0xffff_ffff };
            let mut room = (0x1000 - (linear & 0xfff) as usize).min(MAX_LEN - have);
            if bits != 64 {
                let left = (limit + 1).saturating_sub(self.state.rip + have as u64);
                room = room.min(left as usize);
                if room == 0 {
                    return Err(self.raise(Exception::GP0));
                }
            }
            let (gpa, page) = self.code_at(linear)?;
            let chunk = &mut bytes[have..have + room];
            match page {
                Some(page) => self.env.load_bytes(page, (gpa & 0xfff) as usize, chunk),
                None => {
                    for (byte, at) in chunk.iter_mut().zip(gpa..) {
                        self.env.mmio_read(at, core::slice::from_mut(byte));
                    }
                }
            }
            have += room;
            let crossing = first.map(|first| Crossing { first, bits, bytes });
            match crossing {
                None if have < MAX_LEN && self.crossing.expects(gpa, bits, &bytes[..have]) => {
                    first = Some(gpa);
                    continue;
                }
                None => {}
                Some(crossing) => {
                    if let Some(op) = self.crossing.take(&crossing) {
                        return Ok((op, Some(crossing)));
                    }
                }
            }
            match decode::decode(bits, &bytes[..have], self.state.rip, self.decoder_options) {
                Ok(op) => return Ok((op, crossing)),
                Err(Undecodable::Fault(exception)) => return Err(self.raise(exception)),
                Err(Undecodable::Incomplete) => first = Some(gpa),
            }
        }
    }
}
