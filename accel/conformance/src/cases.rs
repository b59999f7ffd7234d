//! The cases, by subject.

mod debug;
mod delivery;
mod exception;
mod paging;
mod ret;
mod segmentation;
mod task;
mod tlb;

use crate::case::Case;

/// All of them.
pub fn all() -> Vec<Case> {
    [
        paging::cases(),
        tlb::cases(),
        exception::cases(),
        debug::cases(),
        delivery::cases(),
        ret::cases(),
        segmentation::cases(),
        task::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
