//! What jump caches and links between pages know, kept right.

use x86::Cpu;

use super::{Transcoder, in_next_page, may_cross};
use crate::env::SoftEnv;
use crate::transcode::cache::Key;
use crate::transcode::context::{JUMP_CACHES, MIRRORED_JUMPS};
use crate::transcode::journal::{self, has_global};
use crate::transcode::mirror::Shown;
use crate::transcode::placed_jumps::CodeTlb;
use crate::transcode::translate::Setting;

impl Transcoder {
    /// Lets branches of this setting find the block at the instruction pointer.
    pub(super) fn remember_jump(
        &mut self,
        cpu: &mut Cpu<SoftEnv>,
        setting: Setting,
        key: Key,
        far: u64,
    ) {
        if self.lockstep.is_some() {
            return;
        }
        let cache = setting.jumps();
        let rip = cpu.state.rip;
        if setting.mirrored && !self.far_links.runs(key.page(), rip & !0xfff) {
            self.unlink_far();
        }
        let mut is_global = cpu.is_code_global();
        self.code_pages.insert(rip & !0xfff);
        if may_cross(rip) {
            is_global &= in_next_page(cpu, |cpu| cpu.is_code_global());
            self.code_pages.insert((rip | 0xfff).wrapping_add(1));
        }
        is_global &= has_global(setting.view);
        let context = self.context();
        context.fill_jump(cache, rip, far, is_global);
        // A block that reaches into the next page depends on that as well.
        if !may_cross(rip) {
            let space = if is_global { journal::GLOBAL } else { context.spaces[0] };
            context.code_tlb[cache].fill(rip, space, key.page());
            context.placed_jumps.fill(key.bits(), far);
        }
    }

    /// Forgets where the first level of a jump cache leads.
    pub(super) fn clear_jumps(&mut self, cache: usize) {
        self.context().clear_jumps(cache);
    }

    /// Forgets all that jump caches know. What the code TLBs have must go as well: only pages in
    /// `code_pages` are taken out of them one by one, and `far_links` has to learn anew where code runs.
    pub(super) fn forget_jumps(&mut self) {
        self.counters.jumps_forgotten += 1;
        self.code_pages.clear();
        (0..JUMP_CACHES).for_each(|cache| self.clear_jumps(cache));
        self.forget_code_pages();
        self.context().placed_jumps.clear();
    }

    /// Forgets where jump caches lead for the page at `linear`.
    pub(super) fn forget_jumps_to(&mut self, linear: u64) {
        self.counters.jumps_forgotten += 1;
        self.context().clear_jumps_to(linear);
    }

    /// Forgets where code lies.
    pub(super) fn forget_code_pages(&mut self) {
        self.context().code_tlb.iter_mut().for_each(CodeTlb::clear);
    }

    /// The jump whose distance stands at `link` was about to go to the instruction pointer, where
    /// this block is: links it, if that may be.
    pub(super) fn link_far(&mut self, cpu: &mut Cpu<SoftEnv>, link: u32, key: Key, far: u64) {
        let rip = cpu.state.rip;
        cpu.state.rip = self.context().code_base;
        let from = cpu.code_place();
        cpu.state.rip = rip;
        let Some((from, _)) = from else { return };
        // A block that reaches into the next page depends on that as well.
        let is_lasting = self.far_links.may_link_from(from & !0xfff) && !may_cross(rip);
        let linked = self.cache.link_far(link, is_lasting.then_some(far));
        if is_lasting {
            self.far_links.add(linked, rip & !0xfff, key.page());
        }
    }

    /// Takes all links between pages back.
    pub(super) fn unlink_far(&mut self) {
        for link in self.far_links.take() {
            self.cache.unlink_far(link);
        }
    }

    /// The mirror is about to show what a program has: sees to it that links between pages are right for
    /// it.
    pub(super) fn prove_far_links(&mut self, cpu: &mut Cpu<SoftEnv>, shown: Shown) {
        let is_same = shown == Shown::Again && {
            let rip = cpu.state.rip;
            let are_right = self.far_links.targets().all(|(linear, gpa)| {
                cpu.state.rip = linear;
                cpu.code_place().is_some_and(|(found, _)| found == gpa)
            });
            cpu.state.rip = rip;
            are_right
        };
        if !is_same {
            for &link in self.far_links.retire() {
                self.cache.retire_far(link);
            }
            self.context().code_tlb[MIRRORED_JUMPS].clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcode::context::ContextCell;

    #[test]
    fn with_all_code_goes_where_it_lay() {
        let cell = ContextCell::new(0).unwrap();
        let Some(mut transcoder) = Transcoder::new(cell, 0, false, None, None).unwrap() else {
            return eprintln!("SKIPPED: this host's processor lacks what translated code needs");
        };
        for cache in 0..JUMP_CACHES {
            let context = transcoder.context();
            context.fill_jump(cache, 0x40_1010, 1, false);
            context.code_tlb[cache].fill(0x40_1000, 7, 0x5000);
        }
        transcoder.context().placed_jumps.fill(0x5010, 1);
        transcoder.forget_jumps();
        let context = transcoder.context();
        for cache in 0..JUMP_CACHES {
            assert_eq!(context.find_jump(cache, 0x40_1010), None);
            assert_eq!(context.code_tlb[cache].find(0x40_1000, [7, 0]), None);
        }
        assert_eq!(context.placed_jumps.find(0x5010), None);
    }
}
