//! What this machine has for the options of guests that not every machine can serve.

use vmm_api::KvmState;

use super::facts::Facts;
use super::report::{Finding, info, yes};

/// Huge pages, for `--hugepages` and without.
pub fn huge_pages(facts: &Facts) -> Finding {
    const ID: &str = "huge-pages";
    let pages = &facts.huge_pages;
    let by_itself = match pages.shared_memory.as_str() {
        "always" | "force" | "within_size" | "advise" => "the kernel uses them for guests' memory",
        "" => "the kernel does not say whether it uses them for guests' memory",
        _ => {
            "the kernel uses none for guests' memory by itself (never in \
             /sys/kernel/mm/transparent_hugepage/shmem_enabled)"
        }
    };
    let (free, reserved) = (pages.free, pages.reserved);
    let found = format!("{free} of {reserved} reserved ones are free for --hugepages; {by_itself}");
    if free > 0 { yes(ID, found) } else { info(ID, found) }
}

/// Hyper-V's enlightenments, for `--hyperv`.
pub fn hyperv(facts: &Facts) -> Finding {
    const ID: &str = "hyperv";
    match (&facts.host.kvm, facts.host.hyperv) {
        (_, true) => {
            yes(ID, "KVM serves Hyper-V's enlightenments: --hyperv works with --accel kvm")
        }
        (KvmState::Works, false) => {
            info(ID, "the kernel's KVM serves no enlightenments of Hyper-V's for --hyperv")
        }
        _ => info(ID, "without KVM, there are no enlightenments of Hyper-V's for --hyperv"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::HugePages;
    use super::super::report::{Answer, tests::facts};
    use super::*;

    #[test]
    fn huge_pages_are_counted() {
        let mut facts = facts(KvmState::Works);
        facts.huge_pages =
            HugePages { reserved: 512, free: 100, shared_memory: "advise".to_owned() };
        let finding = huge_pages(&facts);
        assert_eq!(finding.answer, Answer::Yes);
        assert!(finding.detail.starts_with("100 of 512"), "{}", finding.detail);
        facts.huge_pages = HugePages::default();
        assert_eq!(huge_pages(&facts).answer, Answer::Info);
    }

    #[test]
    fn enlightenments_are_kvms() {
        let mut facts = facts(KvmState::Works);
        assert_eq!(hyperv(&facts).answer, Answer::Info);
        facts.host.hyperv = true;
        assert_eq!(hyperv(&facts).answer, Answer::Yes);
    }
}
