//! A case: a name and how to build its guest.

use iced_x86::IcedError;

use crate::guest::Guest;
use crate::start::Start;

/// Writes a guest's memory, code and expectations.
pub(crate) type Build = Box<dyn Fn(&mut Guest) -> Result<(), IcedError> + Send + Sync>;

/// One small program and what is expected of it.
pub struct Case {
    /// Subject and statement: `paging: a store to a read-only page faults`.
    pub name: String,
    pub(crate) start: Start,
    pub(crate) build: Build,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// A case that begins in the mode `start`.
pub(crate) fn case(
    name: impl Into<String>,
    start: Start,
    build: impl Fn(&mut Guest) -> Result<(), IcedError> + Send + Sync + 'static,
) -> Case {
    Case { name: name.into(), start, build: Box::new(build) }
}
