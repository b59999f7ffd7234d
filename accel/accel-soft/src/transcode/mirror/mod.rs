//! The memory of one program, at its own linear addresses in this process.
//!
//! Checked loads and stores cost seven instructions each. Where the host's processor has protection keys,
//! user code can do without: the pages of the program that runs most are mapped where the program
//! has them ([`mapping`]), and its loads and stores are emitted as they are. What is not mapped faults; the
//! handler of the signal ([`fault`]) makes translated code leave, as a miss of the soft TLB does. Such a
//! program could form any address. So while its code runs, the key of everything else in this process
//! is locked (PKRU), and all that is left to it is its mirror and its own registers
//! ([`Context`](super::context::Context)).
//!
//! A mirror is a cache of translations like a TLB: what is in it was allowed by the page tables when
//! it was last looked at, is forgotten when the guest forgets it, and stores are let through only to
//! pages that are dirty already and have no translated code.

mod fault;
mod mapping;
mod pieces;
mod policy;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::ops::Range;
use std::sync::Arc;

use x86::Cpu;

use super::cache::KeyHasher;
use super::context::ContextCell;
use super::watch::Became;
use crate::env::SoftEnv;
use crate::ram::Ram;
use mapping::Mapping;
use policy::{Policy, SIGNAL};

pub use fault::release_thread;
pub use mapping::is_possible;

/// Pages that share a page table, as many as a huge page has.
const TABLE: u64 = 512;
/// User code does not go beyond this address.
const USER_END: u64 = 1 << 47;
/// No address space has this number.
const NO_SPACE: u64 = u64::MAX;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// A page that is mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mirrored {
    /// Its guest physical address.
    gpa: u64,
    writable: bool,
}

/// What a mirror shows that it did not show just before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The same program, whose page tables may have changed.
    Again,
    /// Another program.
    Another,
}

/// See the module's text. It belongs to one processor's thread.
pub struct Mirror {
    mapping: Mapping,
    policy: Policy,
    /// The address of the page tables of the program that is mirrored.
    root: Option<u64>,
    /// The number of its address space, under which all that is mirrored is valid.
    space: u64,
    /// By linear address.
    pages: Map<u64, Mirrored>,
    /// Where the pages are that are writable: linear addresses by guest physical ones.
    writable: Map<u64, Vec<u64>>,
    /// Where pages were that are forgotten, but not hidden yet: that is done before the program goes on, so
    /// that what takes the place of a page needs no more than its own mapping.
    stale: Vec<u64>,
    /// An access that the guest's kernel was asked to make possible: when the program goes on, it will
    /// be repeated.
    awaited: Option<(u64, bool)>,
}

impl Mirror {
    /// An empty mirror for the processor whose context this is; `None` if the host cannot do it.
    /// `is_eager`, for tests: whatever runs is mirrored.
    pub fn new(context: Arc<ContextCell>, is_eager: bool) -> Option<Self> {
        let mapping = Mapping::new(context)
            .inspect_err(|error| tracing::debug!(%error, "no memory is mirrored"))
            .ok()?;
        Some(Self {
            mapping,
            policy: Policy::new(is_eager),
            root: None,
            space: NO_SPACE,
            pages: Map::default(),
            writable: Map::default(),
            stale: Vec::new(),
            awaited: None,
        })
    }

    /// Makes the calling thread one that may run code for mirrored memory, which lies in `code`. `false` if
    /// it must not.
    pub fn prepare_thread(&self, code: Range<u64>) -> bool {
        fault::prepare_thread(code, self.mapping.context())
    }

    /// Whether it shows the memory of this address space.
    #[inline]
    pub fn shows(&self, space: u16) -> bool {
        self.space == u64::from(space)
    }

    /// User code is about to run: sees to it that its memory is mirrored, if it should be. What it shows
    /// from now on, if that is not what it did.
    pub fn consider(&mut self, cpu: &mut Cpu<SoftEnv>) -> Option<Shown> {
        let space = cpu.address_space();
        if self.shows(space) {
            return None;
        }
        let root = root(cpu);
        let shown = if self.root == Some(root) {
            if self.policy.is_banned(root) {
                return None;
            }
            self.at_its_cost(|mirror| mirror.look_again(cpu));
            Shown::Again
        } else if self.policy.should_take(root, self.pages.len()) {
            self.policy.take(root);
            self.clear();
            self.root = Some(root);
            tracing::debug!("mirroring the memory of the program at {root:#x}");
            Shown::Another
        } else {
            return None;
        };
        self.space = space.into();
        Some(shown)
    }

    /// Whether [`consider`](Self::consider) has something to do: it has the memory of the program that runs
    /// now, but must be made right, or should have it.
    pub fn wants_to_consider(&self, cpu: &Cpu<SoftEnv>) -> bool {
        let root = root(cpu);
        !self.shows(cpu.address_space())
            && (self.root == Some(root) || self.policy.should_take(root, self.pages.len()))
    }

    /// Code for mirrored memory is about to run: mirrors what it is known to access next, and hides what
    /// was forgotten.
    #[inline]
    pub fn anticipate(&mut self, cpu: &mut Cpu<SoftEnv>) {
        if let Some((linear, write)) = self.awaited.take()
            && self.policy.may_fill()
        {
            self.at_its_cost(|mirror| mirror.fill_around(cpu, linear, write));
            // Never twice for one fault.
            self.awaited = None;
        }
        if !self.stale.is_empty() {
            self.at_its_cost(Self::hide_stale);
        }
    }

    /// User code has run for so many ticks of the TSC.
    pub fn account(&mut self, cpu: &Cpu<SoftEnv>, ticks: u64) {
        if self.shows(cpu.address_space()) {
            self.policy.earned(ticks);
        } else {
            self.policy.ran(root(cpu), ticks);
        }
    }

    /// Does something for the program that is mirrored, which pays for it.
    fn at_its_cost<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let began = runtime::tsc::read();
        let result = work(self);
        self.policy.spent(runtime::tsc::read().wrapping_sub(began));
        result
    }

    /// Forgets the page at `linear`.
    pub fn forget_page(&mut self, linear: u64) {
        self.forget(linear & !0xfff);
    }

    /// All translations may have changed.
    pub fn doubt(&mut self) {
        self.space = NO_SPACE;
    }

    /// Forgets what it allows to store to these pages.
    pub fn forget_writes(&mut self, ram: &Ram, became: Became) {
        let frames: Vec<u64> = if became.and_more {
            self.writable.keys().copied().collect()
        } else {
            became.pages.iter().filter_map(|&page| ram.address(page)).collect()
        };
        let places = frames.iter().filter_map(|frame| self.writable.remove(frame));
        let pages: Vec<u64> = places.flatten().collect();
        pages.into_iter().for_each(|linear| self.forget(linear));
        // The program may go on without another question.
        self.hide_stale();
    }

    /// Mirrors the page at `linear`, which code for mirrored memory has missed, and what lies around
    /// it. `false` if the interpreter must carry out the access.
    pub fn fill(&mut self, cpu: &mut Cpu<SoftEnv>, linear: u64, write: bool) -> bool {
        let linear = linear & !0xfff;
        if linear >= USER_END || !self.policy.may_fill() {
            self.doubt();
            return false;
        }
        self.policy.spent(SIGNAL);
        self.at_its_cost(|mirror| {
            let is_filled = mirror.fill_around(cpu, linear, write);
            mirror.hide_stale();
            is_filled
        })
    }

    /// Mirrors the page at `linear` and what lies around it, if the access is one for translated code.
    fn fill_around(&mut self, cpu: &mut Cpu<SoftEnv>, linear: u64, write: bool) -> bool {
        let Some(page) = look(cpu, linear, write) else {
            self.awaited = Some((linear, write));
            return false;
        };
        if write && !page.writable {
            return false;
        }
        if !self.mapping.has_room(1, self.pages.len() + self.stale.len()) {
            self.overflow();
        }
        self.forget(linear);
        let Some(piece) = self.mapping.reserve(linear) else {
            self.policy.collided();
            return false;
        };
        let number = linear >> 12;
        let table = number & !(TABLE - 1);
        let first = table.max(piece.start >> 12);
        let last = (table + TABLE - 1).min((piece.end >> 12) - 1);
        let fits = |cpu: &mut Cpu<SoftEnv>, number: u64| {
            let gpa = page.gpa.wrapping_add((number << 12).wrapping_sub(linear));
            !self.pages.contains_key(&(number << 12))
                && look(cpu, number << 12, false) == Some(Mirrored { gpa, ..page })
        };
        let end = (number + 1..=last).find(|&n| !fits(cpu, n)).unwrap_or(last + 1);
        let start = (first..number).rev().find(|&n| !fits(cpu, n)).map_or(first, |n| n + 1);
        let len = ((end - start) << 12) as usize;
        let gpa = page.gpa.wrapping_sub(linear - (start << 12));
        let Some((file, offset)) = cpu.env.shared.ram.file(gpa, len) else { return false };
        if !self.mapping.map(start << 12, len, page.writable, file, offset) {
            return false;
        }
        self.stale.retain(|page| !(start..end).contains(&(page >> 12)));
        for number in start..end {
            let (linear, gpa) = (number << 12, gpa + ((number - start) << 12));
            self.pages.insert(linear, Mirrored { gpa, ..page });
            if page.writable {
                self.writable.entry(gpa).or_default().push(linear);
            }
        }
        true
    }

    /// Forgets what the page tables do not say any more.
    fn look_again(&mut self, cpu: &mut Cpu<SoftEnv>) {
        let wrong: Vec<u64> = self
            .pages
            .iter()
            .filter(|&(&linear, &page)| look(cpu, linear, false) != Some(page))
            .map(|(&linear, _)| linear)
            .collect();
        wrong.into_iter().for_each(|linear| self.forget(linear));
    }

    /// Nothing is known of the page at `linear` any more, if there is one.
    fn forget(&mut self, linear: u64) {
        let Some(page) = self.pages.remove(&linear) else { return };
        self.stale.push(linear);
        if page.writable
            && let Some(places) = self.writable.get_mut(&page.gpa)
        {
            places.retain(|&place| place != linear);
            if places.is_empty() {
                self.writable.remove(&page.gpa);
            }
        }
    }

    /// Takes away what was forgotten. Pages that lie side by side go together: the host is asked less
    /// often, and has fewer mappings meanwhile.
    fn hide_stale(&mut self) {
        let mut stale = std::mem::take(&mut self.stale);
        stale.sort_unstable();
        let runs = stale.chunk_by(|&page, &next| page + 0x1000 == next);
        if !self.mapping.has_room(runs.clone().count(), self.pages.len() + stale.len()) {
            return self.overflow();
        }
        for run in runs {
            self.mapping.unmap(run[0], run.len() << 12);
        }
        stale.clear();
        self.stale = stale;
    }

    /// Begins anew, as the host allows no more mappings.
    fn overflow(&mut self) {
        self.policy.overflowed();
        self.clear();
    }

    fn clear(&mut self) {
        self.awaited = None;
        self.mapping.clear();
        self.pages.clear();
        self.writable.clear();
        self.stale.clear();
    }
}

/// The address of the page tables that are in use, by which programs are told apart.
fn root(cpu: &Cpu<SoftEnv>) -> u64 {
    cpu.state.cr3 & 0x000f_ffff_ffff_f000
}

/// What the page tables say of the page at `linear`. Nothing becomes dirty unless for a store.
fn look(cpu: &mut Cpu<SoftEnv>, linear: u64, write: bool) -> Option<Mirrored> {
    let target = cpu.translate(linear, write)?;
    let gpa = cpu.env.shared.ram.address(target.page)?;
    Some(Mirrored { gpa, writable: target.writable && !target.page.has_code() })
}
