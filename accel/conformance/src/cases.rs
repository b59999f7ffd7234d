//! The cases, by subject.

mod apic;
mod debug;
mod delivery;
mod exception;
mod hostile;
mod impossible;
mod interrupt;
mod mode;
mod msr;
mod paging;
mod ret;
mod segmentation;
mod smc;
mod smp;
mod string;
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
        mode::cases(),
        msr::cases(),
        string::cases(),
        smc::cases(),
        interrupt::cases(),
        apic::cases(),
        smp::cases(),
        hostile::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Those that must fail.
pub fn impossible() -> Vec<Case> {
    impossible::cases()
}
