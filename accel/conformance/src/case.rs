//! A case: a name and how to build its guest.

use std::time::Duration;

use accel::{Accelerator, CpuidTable};
use iced_x86::IcedError;

use crate::guest::Guest;
use crate::start::Start;

/// Writes a guest's memory, code and expectations.
pub(crate) type Build = Box<dyn Fn(&mut Guest) -> Result<(), IcedError> + Send + Sync>;

/// Looks at the accelerator from the VMM's side: an error says what is wrong.
pub(crate) type Check =
    Box<dyn Fn(&dyn Accelerator, &CpuidTable) -> std::result::Result<(), String> + Send + Sync>;

/// Finds out what the accelerator does not offer that a check is about.
pub(crate) type Lacks = fn(&dyn Accelerator, &CpuidTable) -> Result<Option<&'static str>, String>;

/// What a case does.
pub(crate) enum Body {
    /// A guest runs from the mode given.
    Guest(Start, Build),
    /// The VMM's side of the traits. Skipped if the accelerator lacks what it is about.
    Host(Lacks, Check),
}

/// One small program and what is expected of it.
pub struct Case {
    /// Subject and statement: `paging: a store to a read-only page faults`.
    pub name: String,
    /// Given up after this time instead of two minutes.
    pub patience: Option<Duration>,
    pub(crate) body: Body,
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
    Case { name: name.into(), patience: None, body: Body::Guest(start, Box::new(build)) }
}

/// A case about the traits themselves.
pub(crate) fn check(
    name: &str,
    check: impl Fn(&dyn Accelerator, &CpuidTable) -> Result<(), String> + Send + Sync + 'static,
) -> Case {
    check_where(|_, _| Ok(None), &format!("contract: {name}"), check)
}

/// A case about something that not every accelerator offers.
pub(crate) fn check_where(
    lacks: Lacks,
    name: &str,
    check: impl Fn(&dyn Accelerator, &CpuidTable) -> Result<(), String> + Send + Sync + 'static,
) -> Case {
    Case { name: name.to_owned(), patience: None, body: Body::Host(lacks, Box::new(check)) }
}
