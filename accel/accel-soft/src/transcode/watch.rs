//! How the processors of a machine learn that translated code was changed.
//!
//! A page that holds translated code is marked ([`Page::add_code`]). Translated stores to it take
//! the slow path, since no soft TLB lets them by; the interpreter's stores look at the mark. Who
//! changes marked code tells all processors, and each forgets what it made of the page before
//! it executes another block.
//!
//! When a page gets its first mark, processors may still have it as writable in their soft TLBs.
//! It is safe to translate from once all of them have looked since ([`Watch::settled`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::context::ContextCell;
use crate::ram::Page;

/// One processor's part.
struct Watcher {
    context: Arc<ContextCell>,
    /// Pages whose code changed and that it has not yet forgotten.
    changed: Mutex<Vec<Page>>,
    has_changed: AtomicBool,
    /// Pages that became code and that it may still have as writable.
    became: Mutex<Became>,
    /// The last epoch since whose start it has forgotten what it had as writable;
    /// [`AWAY`] while it executes nothing.
    seen: AtomicU64,
}

const AWAY: u64 = u64::MAX;

/// Pages that became code.
#[derive(Default)]
pub struct Became {
    pub pages: Vec<Page>,
    /// There were more.
    pub and_more: bool,
}

/// More pages than this are not listed: a processor may be away for long.
const MAX_LISTED: usize = 4096;

/// What a machine's processors know of each other's code.
pub struct Watch {
    watchers: Box<[Watcher]>,
    /// Counts pages that became code.
    epoch: AtomicU64,
}

impl Watch {
    /// For processors with these contexts.
    pub fn new(contexts: impl Iterator<Item = Arc<ContextCell>>) -> Self {
        let watchers = contexts.map(|context| Watcher {
            context,
            changed: Mutex::new(Vec::new()),
            has_changed: AtomicBool::new(false),
            became: Mutex::default(),
            seen: AtomicU64::new(AWAY),
        });
        Self { watchers: watchers.collect(), epoch: AtomicU64::new(1) }
    }

    /// Code in `page` was changed, by whomever.
    pub fn changed(&self, page: Page) {
        for watcher in &self.watchers {
            watcher.changed.lock().unwrap_or_else(PoisonError::into_inner).push(page);
            watcher.has_changed.store(true, Ordering::SeqCst);
            watcher.context.ring();
        }
    }

    /// Whether processor `index` has changes to learn of.
    pub fn has_changed(&self, index: usize) -> bool {
        self.watchers[index].has_changed.load(Ordering::Acquire)
    }

    /// Takes them.
    pub fn take_changed(&self, index: usize) -> Vec<Page> {
        let watcher = &self.watchers[index];
        watcher.has_changed.store(false, Ordering::SeqCst);
        std::mem::take(&mut *watcher.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A page became code: everybody forgets what it has as writable.
    pub fn page_became_code(&self, index: usize, page: Page) {
        for watcher in &self.watchers {
            let mut became = watcher.became.lock().unwrap_or_else(PoisonError::into_inner);
            if became.pages.len() < MAX_LISTED {
                became.pages.push(page);
            } else {
                became.and_more = true;
            }
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
        for (i, watcher) in self.watchers.iter().enumerate() {
            if i != index {
                watcher.context.ring();
            }
        }
    }

    /// Whether all processors but `index` have seen every page that became code.
    pub fn settled(&self, index: usize) -> bool {
        let epoch = self.epoch.load(Ordering::SeqCst);
        let mut others = self.watchers.iter().enumerate().filter(|&(i, _)| i != index);
        others.all(|(_, watcher)| watcher.seen.load(Ordering::SeqCst) >= epoch)
    }

    /// Processor `index` is about to execute: calls `forget` if it must forget what it has as
    /// writable, of these pages at least. Cheap if not.
    pub fn look(&self, index: usize, forget: impl FnOnce(Became)) {
        let seen = &self.watchers[index].seen;
        let epoch = self.epoch.load(Ordering::Acquire);
        if seen.load(Ordering::Relaxed) == epoch {
            return;
        }
        // Whoever adds a page now waits for the next look.
        seen.swap(0, Ordering::SeqCst);
        let epoch = self.epoch.load(Ordering::SeqCst);
        let became = &self.watchers[index].became;
        forget(std::mem::take(&mut *became.lock().unwrap_or_else(PoisonError::into_inner)));
        seen.swap(epoch, Ordering::SeqCst);
    }

    /// Processor `index` executes nothing until it looks again.
    pub fn leave(&self, index: usize) {
        self.watchers[index].seen.swap(AWAY, Ordering::SeqCst);
    }
}
