//! What is to be done when translated code has left.

use x86::Cpu;

use super::{Next, Transcoder, code_place, mode_view, second_index};
use crate::env::SoftEnv;
use crate::transcode::cache::{Block, Key};
use crate::transcode::context::SecondEntry;
use crate::transcode::journal::{self, has_global};
use crate::transcode::translate::{Departure, Exit, Setting};

impl Transcoder {
    /// The exit by which translated code has left.
    #[inline]
    pub(in crate::transcode) fn departure(&mut self) -> Departure {
        let number = self.context().exit;
        let Some(departure) = self.cache.exit(number) else {
            unreachable!("translated code left by exit {number}, which does not exist");
        };
        departure
    }

    /// Does what translated code was left for.
    pub(in crate::transcode) fn after(&mut self, cpu: &mut Cpu<SoftEnv>, setting: Setting) -> Next {
        let Departure { exit, back } = self.departure();
        match exit {
            Exit::Attention { at } => {
                self.store_state(cpu, at.into());
                Next::Look
            }
            Exit::Chain { at } => {
                self.counters.chains += 1;
                let target = self.context().code_base.wrapping_add(at.into());
                self.go_on(cpu, setting, target, None)
            }
            Exit::Branch { at, stack } | Exit::FarChain { at, stack, .. } => {
                self.counters.branches += 1;
                let target = self.context().scratch;
                if (target << 16) as i64 >> 16 != target as i64 {
                    let rsp = &mut self.context().gpr[x86::state::gpr::RSP];
                    *rsp = rsp.wrapping_sub(stack as i64 as u64);
                    self.store_state(cpu, at.into());
                    cpu.execute(1);
                    return Next::Look;
                }
                let link = match exit {
                    Exit::FarChain { link, .. } => Some(link),
                    _ => None,
                };
                self.go_on(cpu, setting, target, link)
            }
            Exit::Miss { at, retry, size, write, merged } => {
                self.counters.misses += 1;
                let linear = self.context().scratch;
                let vectors = self.context().vectors_left != 0;
                let crosses = (linear & 0xfff) + u64::from(size) > 0x1000;
                if !crosses && self.fill(cpu, linear, write) {
                    self.counters.filled += 1;
                    return Next::Enter { at: self.cache.address(retry), vectors };
                }
                self.recover_flags(cpu, at, back);
                self.store_state(cpu, at.into());
                if crosses && merged {
                    let setting = Setting { narrow: true, ..setting };
                    if let Some((gpa, page)) = code_place(cpu, setting) {
                        let key = Key::new(gpa, setting);
                        let block = match self.find(cpu, key) {
                            None => self.translate(cpu, key, page, setting),
                            found => found,
                        };
                        if let Some(Block::Code { near, .. }) = block {
                            return Next::Enter { at: near, vectors };
                        }
                    }
                }
                cpu.execute(1);
                Next::LookUp
            }
            Exit::Fault => self.after_fault(cpu),
            Exit::Interpret { at, next, resume } => {
                self.counters.interpreted += 1;
                self.recover_flags(cpu, at, back);
                self.store_state(cpu, at.into());
                let expected = (cpu.state.rip & !0xfff).wrapping_add(next.into());
                cpu.execute(1);
                if resume == 0 || cpu.state.rip != expected {
                    return Next::LookUp;
                }
                if cpu.has_forgotten_but(cpu.state.rip & !0xfff) {
                    self.forget_translations(cpu);
                }
                if !self.may_resume(cpu, setting) {
                    return Next::LookUp;
                }
                self.counters.resumed += 1;
                self.load_state(cpu);
                Next::Enter { at: self.cache.address(resume), vectors: false }
            }
        }
    }

    /// Goes on at `target` under the same setting. The branch that led there has its distance at `link`,
    /// if that may be overwritten.
    fn go_on(
        &mut self,
        cpu: &mut Cpu<SoftEnv>,
        setting: Setting,
        target: u64,
        link: Option<u32>,
    ) -> Next {
        cpu.state.rip = target;
        if let Some((gpa, _)) = code_place(cpu, setting)
            && let key = Key::new(gpa, setting)
            && let Some(Block::Code { near, far }) = self.find(cpu, key)
        {
            self.remember_jump(cpu, setting, key, far);
            if let Some(link) = link {
                self.link_far(cpu, link, key, far);
            }
            self.context().code_base = target & !0xfff;
            return Next::Enter { at: near, vectors: false };
        }
        self.context().code_base = target & !0xfff;
        self.store_state(cpu, target & 0xfff);
        Next::Look
    }

    /// Fills the soft TLB for an access at `linear`. `false` if the interpreter
    /// must carry out the access.
    fn fill(&mut self, cpu: &mut Cpu<SoftEnv>, linear: u64, write: bool) -> bool {
        let view = mode_view(cpu);
        let Some(target) = cpu.translate(linear, write) else { return false };
        let writable = target.writable && !target.page.has_code();
        if write && !writable {
            return false;
        }
        let is_global = target.global && has_global(view);
        let view = view as usize;
        let host = target.page.host();
        let context = self.context();
        context.fill_tlb(view, linear, host, write, is_global);
        let space = if is_global { journal::GLOBAL } else { context.spaces[view] };
        let tag = linear & !0xfff | space;
        let epoch = context.write_epoch;
        self.is_second_empty[view] = false;
        let entry = &mut self.second[view][second_index(view, linear)];
        let write = if writable { tag } else { SecondEntry::EMPTY.write };
        *entry = SecondEntry { read: tag, write, host, epoch };
        true
    }
}
