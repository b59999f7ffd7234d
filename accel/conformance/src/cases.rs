//! The cases, by subject.

mod apic;
mod bench;
mod board;
mod code_pages;
mod contract;
mod data_pages;
mod debug;
mod debugger;
mod delivery;
mod double;
mod exception;
mod far;
mod flat;
mod hostile;
mod hyperv;
mod impossible;
mod interrupt;
mod legacy;
mod mode;
mod msr;
mod paging;
mod paravirtual;
mod pause;
mod program;
mod ret;
mod saved;
mod segmentation;
mod smap;
mod smc;
mod smp;
mod stores;
mod string;
mod system_segments;
mod task;
mod tlb;
mod tsc;

use crate::case::Case;

/// All of them.
pub fn all() -> Vec<Case> {
    [
        contract::cases(),
        pause::cases(),
        saved::cases(),
        tsc::cases(),
        paging::cases(),
        smap::cases(),
        tlb::cases(),
        code_pages::cases(),
        data_pages::cases(),
        exception::cases(),
        debug::cases(),
        debugger::cases(),
        delivery::cases(),
        double::cases(),
        ret::cases(),
        segmentation::cases(),
        far::cases(),
        flat::cases(),
        system_segments::cases(),
        task::cases(),
        mode::cases(),
        legacy::cases(),
        msr::cases(),
        string::cases(),
        smc::cases(),
        interrupt::cases(),
        apic::cases(),
        board::cases(),
        smp::cases(),
        stores::cases(),
        paravirtual::cases(),
        hyperv::cases(),
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_name_their_subject() {
        let mut names = BTreeSet::new();
        for case in super::all().into_iter().chain(super::impossible()) {
            assert!(case.name.contains(": "), "{} has no subject", case.name);
            assert!(names.insert(case.name.clone()), "{} is there twice", case.name);
        }
    }
}
