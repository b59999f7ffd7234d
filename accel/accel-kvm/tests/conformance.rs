//! The conformance suite on this host's KVM. What comes out otherwise than on the software engine
//! is a failure, shown with both outcomes; except for what a KVM without hardware virtualization
//! was seen not to do, case by case (`without_hardware.txt`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use accel::Accelerator;
use accel_kvm::KvmAccelerator;
use accel_soft::SoftAccelerator;
use conformance::Verdict;
use x86::cpuid::{CpuidResult, CpuidTable, Model, build};

/// How long a case may take that is known not to come to its end.
const SHORT: Duration = Duration::from_secs(2);

/// What a KVM that emulates ring 0 was seen to do wrong.
#[derive(Debug)]
struct Limit {
    /// Why, for a whole group of cases.
    reason: &'static str,
    /// A part of what comes out; if it differs from time to time, several with ` or ` in between.
    observed: &'static str,
}

impl Limit {
    fn explains(&self, detail: &str) -> bool {
        self.observed.split(" or ").any(|part| detail.contains(part))
    }
}

/// The list, by name of the case. Lines that begin with `#` give the reason for those that follow;
/// all others have what was observed, a tab, and the case.
fn limits() -> BTreeMap<&'static str, Limit> {
    let mut limits = BTreeMap::new();
    let mut reason = "";
    for line in include_str!("without_hardware.txt").lines() {
        if let Some(text) = line.strip_prefix("# ") {
            reason = text;
        } else if let Some((observed, name)) = line.split_once('\t') {
            limits.insert(name, Limit { reason, observed });
        }
    }
    limits
}

fn model() -> CpuidTable {
    let host = |leaf, subleaf| {
        let r = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
    };
    build(Model::Host, host, runtime::tsc::frequency_hz()).expect("every host can be itself")
}

#[test]
fn kvm_conforms() {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm here");
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let cpuid = kvm.offered(&model()).unwrap();
    let speed = kvm.measure().unwrap();
    // Only where the processor shows no hardware virtualization, and ring 0 has the speed of
    // emulation, may anything be excused.
    let emulated = accel_kvm::hardware().is_none() && !speed.is_hardware();
    let limits = if emulated { limits() } else { BTreeMap::new() };
    // CONFORMANCE=text runs the cases whose names contain it.
    let filter = std::env::var("CONFORMANCE").unwrap_or_default();

    let (mut passed, mut lacking) = (0, 0);
    let mut excused: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut stale = Vec::new();
    let mut failures = Vec::new();
    for mut case in conformance::all_cases().into_iter().filter(|c| c.name.contains(&filter)) {
        let limit = limits.get(case.name.as_str());
        case.patience = limit.map(|_| SHORT);
        let soft = SoftAccelerator::default();
        match (conformance::compare(&kvm, &soft, &cpuid, &case), limit) {
            (Verdict::Skipped(_), _) => lacking += 1,
            (Verdict::Passed, limit) => {
                passed += 1;
                stale.extend(limit.map(|_| case.name.clone()));
            }
            (Verdict::Failed(detail), Some(limit)) if limit.explains(&detail) => {
                excused.entry(limit.reason).or_default().push(case.name);
            }
            (Verdict::Failed(detail), _) => {
                let text = format!("{}\n    {detail}", case.name);
                println!("FAILED {text}");
                failures.push(text);
            }
        }
    }
    for (reason, cases) in &excused {
        println!("SKIPPED {} cases: {reason}", cases.len());
        cases.iter().for_each(|case| println!("    {case}"));
    }
    if !stale.is_empty() {
        println!("{} cases passed although they are listed as impossible here:", stale.len());
        stale.iter().for_each(|case| println!("    {case}"));
    }
    let excused: usize = excused.values().map(Vec::len).sum();
    println!(
        "kvm: {passed} passed, {} failed, {excused} skipped for what this host cannot do, {lacking} \
         for want of a feature",
        failures.len()
    );
    assert!(failures.is_empty(), "{} cases differ:\n{}", failures.len(), failures.join("\n"));
    assert!(passed > 0 || !filter.is_empty(), "nothing passed");
}

#[test]
fn a_wrong_expectation_fails() {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: there is no /dev/kvm here");
        return;
    }
    let kvm = KvmAccelerator::open().unwrap();
    let cpuid = kvm.offered(&model()).unwrap();
    for mut case in conformance::impossible_cases() {
        case.patience = Some(SHORT);
        let verdict = conformance::run_one(&kvm, &cpuid, &case);
        assert!(matches!(verdict, Verdict::Failed(_)), "{} should fail: {verdict:?}", case.name);
    }
}

#[test]
fn the_list_names_cases_that_exist() {
    let names: Vec<String> = conformance::all_cases().into_iter().map(|case| case.name).collect();
    let limits = limits();
    assert!(!limits.is_empty());
    for (name, limit) in limits {
        assert!(names.iter().any(|n| n == name), "{name} is no case");
        assert!(!limit.reason.is_empty() && limit.observed.len() > 3, "{name}: {limit:?}");
    }
}
