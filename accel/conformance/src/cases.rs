//! The cases, by subject.

mod debug;
mod exception;
mod paging;
mod tlb;

use crate::case::Case;

/// All of them.
pub fn all() -> Vec<Case> {
    [paging::cases(), tlb::cases(), exception::cases(), debug::cases()]
        .into_iter()
        .flatten()
        .collect()
}
