//! Blocks are found, or made.

use iced_x86::{FlowControl, Instruction};
use x86::Cpu;

use super::{HEAT, MAX_INSTRUCTION_BYTES, Transcoder, in_next_page, may_cross};
use crate::env::{Shared, SoftEnv};
use crate::ram::Page;
use crate::transcode::cache::{Block, Emitted, Key};
use crate::transcode::lockstep;
use crate::transcode::translate::{MAX_INSTRUCTIONS, Offer, Setting, Translator};

/// A block covers at most this many bytes of guest code.
const MAX_BYTES: usize = 512;

impl Transcoder {
    /// The block at the instruction pointer, which is at `key`.
    pub(super) fn find(&mut self, cpu: &mut Cpu<SoftEnv>, key: Key) -> Option<Block> {
        match self.cache.find(key) {
            Some(Block::Crossing) => {
                let (second, _) = in_next_page(cpu, Cpu::code_place)?;
                self.cache.find_crossing(key, second)
            }
            found => found,
        }
    }

    pub(super) fn find_or_translate(
        &mut self,
        cpu: &mut Cpu<SoftEnv>,
        key: Key,
        page: Page,
        setting: Setting,
    ) -> Option<Block> {
        if let Some(block) = self.find(cpu, key) {
            return Some(block);
        }
        // What is mirrored is a program that runs much.
        let threshold = if setting.mirrored { self.threshold / 8 } else { self.threshold };
        let heat = &mut self.heat[key.hash() % HEAT];
        if *heat < threshold {
            *heat += 1;
            return None;
        }
        self.translate(cpu, key, page, setting)
    }

    pub(super) fn translate(
        &mut self,
        cpu: &mut Cpu<SoftEnv>,
        key: Key,
        page: Page,
        setting: Setting,
    ) -> Option<Block> {
        if self.cache.is_restless(key.page()) {
            return None;
        }
        let rip = cpu.state.rip;
        let offset = (rip & 0xfff) as usize;
        if !self.mark(cpu, page, offset) {
            return None;
        }
        let mut bytes = [0; MAX_BYTES];
        let bytes = &mut bytes[..MAX_BYTES.min(0x1000 - offset)];
        page.load_bytes(offset, bytes);
        let mut insns = std::mem::take(&mut self.insns);
        insns.clear();
        let mut len = 0;
        while insns.len() < MAX_INSTRUCTIONS {
            let next = key.at((offset + len) as u16);
            if len > 0 && matches!(self.cache.find(next), Some(Block::Code { .. })) {
                break;
            }
            let Some(insn) = cpu.decode(&bytes[len..], (offset + len) as u64) else { break };
            len += insn.len();
            insns.push(insn);
            let goes_on = match insn.flow_control() {
                FlowControl::Next if self.lockstep.is_some() => !lockstep::ends_block(&insn),
                FlowControl::Next => true,
                // Where the code behind a conditional jump was executed, too, it is made one with
                // what comes before.
                FlowControl::ConditionalBranch => {
                    let next = key.at((offset + len) as u16);
                    setting.mirrored || self.heat[next.hash() % HEAT] >= self.threshold / 4
                }
                _ => false,
            };
            if !goes_on || len == bytes.len() {
                break;
            }
        }
        let mut second = None;
        if insns.is_empty()
            && may_cross(rip)
            && let Some((gpa, next_page)) = in_next_page(cpu, Cpu::code_place)
        {
            if !self.mark(cpu, next_page, 0) {
                self.insns = insns;
                return None;
            }
            let mut both = [0; MAX_INSTRUCTION_BYTES];
            let (first, rest) = both.split_at_mut(bytes.len());
            first.copy_from_slice(bytes);
            next_page.load_bytes(0, rest);
            if let Some(insn) = cpu.decode(&both, offset as u64)
                && let Some(reach) = insn.len().checked_sub(bytes.len())
            {
                next_page.add_code(0, reach);
                if !next_page.matches(0, &both[bytes.len()..insn.len()]) {
                    self.insns = insns;
                    return None;
                }
                insns.push(insn);
                second = Some(gpa);
                len = bytes.len();
            }
        }
        page.add_code(offset, len);
        if !page.matches(offset, &bytes[..len]) {
            // It changed between the look and the mark.
            self.insns = insns;
            return None;
        }
        let (base, first_exit) = match self.cache.next_place() {
            Some(place) => place,
            None => {
                tracing::debug!(fill = ?self.cache.fill(), "the cache of translated code is full");
                self.counters.flushed += 1;
                self.cache.clear();
                self.far_links.forget();
                if let Some(lockstep) = &mut self.lockstep {
                    lockstep.clear();
                }
                self.forget_jumps();
                self.cache.next_place()?
            }
        };
        let common = self.cache.common;
        #[cfg(test)]
        lockstep::tests::spoil(&mut insns);
        let translated =
            self.translator.translate(&insns, setting, base, first_exit, common, &mut Offers(cpu));
        self.insns = insns;
        let Some(translated) = translated else {
            self.cache.insert_interpreted(key);
            return Some(Block::Interpret);
        };
        if let Some(proof) = &mut self.proof
            && let Err(violation) =
                proof.check(&self.translator, &translated, setting, base, first_exit, common)
        {
            self.counters.refused += 1;
            let code = &self.translator.asm.code;
            tracing::error!(%violation, rip = cpu.state.rip, ?code, "a translation is refused");
            self.cache.insert_interpreted(key);
            return Some(Block::Interpret);
        }
        self.counters.translated += 1;
        let Translator { asm, exits, links, sites, .. } = &self.translator;
        let mut links = links.as_slice();
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.add(self.cache.address(base), asm.code.len(), &self.insns, exits);
            links = &[];
        }
        let emitted = Emitted { code: &asm.code, exits, links, sites };
        self.cache.insert(key, second, &translated, &emitted)
    }

    /// Notices stores to code at `offset` in a page from here on: first those of this processor,
    /// then, when all have seen it, those of the others. `false` as long as they have not.
    fn mark(&mut self, cpu: &mut Cpu<SoftEnv>, page: Page, offset: usize) -> bool {
        let Shared { watch, ram, .. } = &*cpu.env.shared;
        let index = cpu.env.index;
        if page.add_code(offset, 1) {
            watch.page_became_code(index, page);
            watch.look(index, |pages| self.forget_writes(ram, pages));
        }
        let is_settled = watch.settled(index);
        self.counters.unsettled += u64::from(!is_settled);
        is_settled
    }
}

/// Which instructions guest and host have.
struct Offers<'a>(&'a mut Cpu<SoftEnv>);

impl Offer for Offers<'_> {
    fn has(&mut self, insn: &Instruction, is_vector: bool) -> bool {
        self.0.env.host_has(insn) && (!is_vector || self.0.offers(insn.code()))
    }
}
