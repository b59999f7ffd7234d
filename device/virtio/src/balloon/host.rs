//! The host's end of a balloon.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mem::{GuestAddress, GuestMemory};
use runtime::Event;
use serde::{Deserialize, Serialize};

use super::statistics::MemoryUse;
use crate::shared::ConfigChange;

/// How large the balloon is, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonSize {
    /// What the host wants.
    pub wanted: u32,
    /// What the guest says it is.
    pub actual: u32,
}

/// The host's end of the guest's balloon. It outlives the machine: what is wanted stays so over a reset. Any
/// thread may call.
pub struct Balloon {
    state: Mutex<State>,
    changed: Condvar,
    /// Raised while somebody waits for new statistics.
    asked: Event,
    /// Whether memory goes back to the host: not so if it was set aside for the guest.
    gives_back: bool,
}

#[derive(Default)]
struct State {
    size: BalloonSize,
    /// What the guest said last, and how often it has.
    statistics: Option<MemoryUse>,
    said: u64,
    change: Option<ConfigChange>,
    /// The host refused to take memory back; that was said.
    complained: bool,
}

impl Balloon {
    /// An empty balloon. `gives_back`: its memory, and what the guest does not use, goes back to the host.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors.
    pub fn new(gives_back: bool) -> io::Result<Self> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Ok(Self { state, changed, asked: Event::new()?, gives_back })
    }

    /// How large it is.
    pub fn size(&self) -> BalloonSize {
        self.state().size
    }

    /// Asks the guest to have it this large. It does so if it has a driver, as far and as fast as it can.
    pub fn want(&self, pages: u32) {
        let mut state = self.state();
        state.size.wanted = pages;
        if let Some(change) = &state.change {
            change.announce();
        }
    }

    /// What the guest says of its memory, new if it says so within `patience`; `None` if it has no driver.
    pub fn memory_use(&self, patience: Duration) -> Option<MemoryUse> {
        let state = self.state();
        state.statistics.as_ref()?;
        let before = state.said;
        self.asked.signal();
        let waited = self.changed.wait_timeout_while(state, patience, |it| it.said == before);
        waited.unwrap_or_else(PoisonError::into_inner).0.statistics.clone()
    }

    pub(super) fn asked(&self) -> &Event {
        &self.asked
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.state().size.actual = pages;
    }

    pub(super) fn set_statistics(&self, statistics: MemoryUse) {
        let mut state = self.state();
        state.statistics = Some(statistics);
        state.said += 1;
        self.changed.notify_all();
    }

    pub(super) fn connect(&self, change: ConfigChange) {
        self.state().change = Some(change);
    }

    /// There is no driver any more, or none yet.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.statistics = None;
        state.size.actual = 0;
        self.asked.clear();
    }

    pub(super) fn restore(&self, size: BalloonSize) {
        self.state().size = size;
    }

    /// Gives memory that the guest does without back to the host, if it is to go there.
    pub(super) fn take(&self, memory: &GuestMemory, start: GuestAddress, len: u64) {
        if !self.gives_back {
            return;
        }
        if let Err(error) = mem::give_back(memory, start, len)
            && !std::mem::replace(&mut self.state().complained, true)
        {
            tracing::warn!(
                "this host does not take memory back that the guest does without: {error}"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
