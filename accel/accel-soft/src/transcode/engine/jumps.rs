//! What jump caches and links between pages know, kept right.

use x86::Cpu;

use super::{Transcoder, in_next_page, may_cross};
use crate::env::SoftEnv;
use crate::transcode::cache::Key;
use crate::transcode::context::{
    JUMP_CACHES, MIRRORED_JUMPS, SECOND_JUMPS, SecondJump, jump_hash, places_of_page,
};
use crate::transcode::journal::{self, Journal, has_global};
use crate::transcode::mirror::Shown;
use crate::transcode::translate::Setting;

/// Entries of jump caches that Rust code alone fills.
pub(super) struct FilledJumps {
    /// Of the first level of [`MIRRORED_JUMPS`].
    mirrored: Journal<4096>,
    /// Of the second levels; each fills two.
    second: [Journal<4096>; JUMP_CACHES],
}

impl Default for FilledJumps {
    fn default() -> Self {
        Self { mirrored: Journal::EMPTY, second: [const { Journal::EMPTY }; JUMP_CACHES] }
    }
}

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
        let first = context.fill_jump(cache, rip, far, is_global);
        let spaces = if is_global { context.global_jump_spaces } else { context.jump_spaces };
        let (entries, filled) = self.second_jumps(cache);
        let index = jump_hash(rip) % SECOND_JUMPS[cache];
        if entries[index].guest != rip {
            entries[index ^ 1] = entries[index];
        }
        entries[index] = SecondJump { guest: rip, space: spaces[cache], host: far };
        filled.note(index);
        if cache == MIRRORED_JUMPS {
            self.filled.mirrored.note(first);
        }
    }

    /// Forgets where the first level of a jump cache leads.
    pub(super) fn clear_jumps(&mut self, cache: usize) {
        // SAFETY: as in `context`; the tables are no part of `self`.
        let context = unsafe { &mut *self.context.get() };
        let is_done = cache == MIRRORED_JUMPS
            && self.filled.mirrored.drain(|index| context.clear_mirrored_jump(index));
        if !is_done {
            context.clear_jumps(cache);
        }
    }

    pub(super) fn forget_jumps(&mut self) {
        self.counters.jumps_forgotten += 1;
        self.code_pages.clear();
        (0..JUMP_CACHES).for_each(|cache| self.clear_jumps(cache));
        self.forget_second_jumps();
    }

    /// Forgets where jump caches lead for the page at `linear`.
    pub(super) fn forget_jumps_to(&mut self, linear: u64) {
        self.counters.jumps_forgotten += 1;
        self.context().clear_jumps_to(linear);
        for cache in 0..JUMP_CACHES {
            let (entries, _) = self.second_jumps(cache);
            for guest in places_of_page(linear) {
                let index = jump_hash(guest) % entries.len();
                for index in [index, index ^ 1] {
                    let entry = &mut entries[index];
                    if entry.guest & !1 == guest {
                        *entry = SecondJump::EMPTY;
                    }
                }
            }
        }
    }

    pub(super) fn forget_second_jumps(&mut self) {
        (0..JUMP_CACHES).for_each(|cache| self.forget_second_jumps_of(cache));
    }

    fn forget_second_jumps_of(&mut self, cache: usize) {
        let (entries, filled) = self.second_jumps(cache);
        let is_done = filled.drain(|index| {
            entries[index] = SecondJump::EMPTY;
            entries[index ^ 1] = SecondJump::EMPTY;
        });
        if !is_done {
            entries.fill(SecondJump::EMPTY);
        }
    }

    /// The second level of a jump cache, and which of its entries were filled.
    fn second_jumps(&mut self, cache: usize) -> (&mut [SecondJump], &mut Journal<4096>) {
        // SAFETY: as in `context`; the tables are no part of `self`.
        let context = unsafe { &mut *self.context.get() };
        let entries = match cache {
            MIRRORED_JUMPS => context.mirrored_jumps.as_mut_slice(),
            view => &mut self.second_jumps[view],
        };
        (entries, &mut self.filled.second[cache])
    }

    /// Says by what the second levels of jump caches tell branches apart from now on.
    pub(super) fn tag_jumps(&mut self) {
        let settings = self.settings.map(|setting| setting.map_or(0, Setting::number) << 32);
        let context = self.context();
        // All views are of the same one.
        let space = context.spaces[0];
        context.jump_spaces = settings.map(|setting| setting | space);
        context.global_jump_spaces = settings.map(|setting| setting | journal::GLOBAL);
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
            self.unlink_far();
            self.far_links.forget();
            self.forget_second_jumps_of(MIRRORED_JUMPS);
        }
    }
}
