//! How long work is shown and given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Error;

/// What a count counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Packages.
    Packages,
}

/// Someone to whom long work is shown. All calls come from the thread that does the work.
pub trait Progress {
    /// A new step begins; whatever was before it is done.
    fn step(&mut self, what: &str);
    /// The step has come this far.
    fn advance(&mut self, done: u64, total: u64, unit: Unit);
    /// Something worth knowing that stays on the screen.
    fn note(&mut self, text: &str);
}

/// Shows nothing.
pub struct Quiet;

impl Progress for Quiet {
    fn step(&mut self, _what: &str) {}
    fn advance(&mut self, _done: u64, _total: u64, _unit: Unit) {}
    fn note(&mut self, _text: &str) {}
}

/// A request, from another thread, to give up: work looks at it at least every tenth of a second
/// and then cleans up and returns [`Error::Cancelled`].
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks for the work to be given up.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether that was asked for.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
