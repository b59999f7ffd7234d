//! Delivery of exceptions and interrupts (SDM Vol. 3, chapter 6).

use crate::cpu::Cpu;
use crate::env::Env;
use crate::state::Activity;

impl<E: Env> Cpu<E> {
    /// Delivers the exception that was raised last. `state.rip` is that of the instruction that
    /// raised it (for traps, of the next one).
    pub(crate) fn deliver_raised(&mut self) {
        self.stats.exceptions += 1;
        self.state.activity = Activity::Shutdown;
    }
}
