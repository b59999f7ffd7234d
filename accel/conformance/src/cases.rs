//! The cases, by subject.

mod paging;
mod tlb;

use crate::case::Case;

/// All of them.
pub fn all() -> Vec<Case> {
    [paging::cases(), tlb::cases()].into_iter().flatten().collect()
}
