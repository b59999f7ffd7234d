//! What the facts mean, and the remedy for each "no".

use std::fmt;

use serde::Serialize;
use vmm_api::{Accelerator, EnginePace, KvmState};

use super::facts::Facts;
use super::options;

/// What `lodge check` prints.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Guests can run here, in whichever way.
    pub guests_can_run: bool,
    /// Hardware virtualization through /dev/kvm works here.
    pub kvm_works: bool,
    /// What Lodge will use: `soft` or `kvm`.
    pub accelerator: &'static str,
    /// Why.
    pub reason: String,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
    /// What the findings were made of.
    pub facts: Facts,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What, in a word: stable, for programs.
    pub id: &'static str,
    /// The outcome.
    pub answer: Answer,
    /// What was found, for people.
    pub detail: String,
    /// What to do about a "no".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The outcome of one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It is there or works.
    Yes,
    /// It is not or does not.
    No,
    /// Neither good nor bad, or not to be known.
    Info,
}

pub(super) fn yes(id: &'static str, detail: impl Into<String>) -> Finding {
    Finding { id, answer: Answer::Yes, detail: detail.into(), remedy: None }
}

fn no(id: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { id, answer: Answer::No, detail: detail.into(), remedy: Some(remedy.into()) }
}

pub(super) fn info(id: &'static str, detail: impl Into<String>) -> Finding {
    Finding { id, answer: Answer::Info, detail: detail.into(), remedy: None }
}

impl Report {
    /// Judges the facts.
    pub fn of(facts: &Facts) -> Report {
        let accelerator = match facts.host.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Soft | Accelerator::Auto => "soft",
        };
        let reason = facts.host.reason.clone();
        let kvm_works = facts.host.speed.is_some_and(|speed| speed.is_hardware);
        Report {
            // The engine asks for an x86-64 processor, and this program would not run on another.
            guests_can_run: true,
            kvm_works,
            accelerator,
            reason,
            findings: vec![
                processor(facts),
                hypervisor(facts),
                virtualization(facts),
                modules(facts),
                device(facts),
                permission(facts),
                working(facts),
                speed(facts),
                nested_paging(facts),
                engine(facts),
                options::huge_pages(facts),
                options::hyperv(facts),
            ],
            facts: facts.clone(),
        }
    }
}

fn processor(facts: &Facts) -> Finding {
    let processor = &facts.processor;
    info("processor", format!("{} x {} ({})", processor.count, processor.model, processor.vendor))
}

fn hypervisor(facts: &Facts) -> Finding {
    let place = if facts.container { "in a container, " } else { "" };
    match &facts.hypervisor {
        None => info("hypervisor", format!("{place}none: this is a machine of its own")),
        Some(name) if name.is_empty() => info("hypervisor", format!("{place}on a hypervisor")),
        Some(name) => info("hypervisor", format!("{place}on a hypervisor: {name}")),
    }
}

fn virtualization(facts: &Facts) -> Finding {
    const ID: &str = "virtualization";
    match (&facts.processor.virtualization, &facts.hypervisor) {
        (Some(flag), _) => yes(ID, format!("the processor has {flag}")),
        // Software virtualization by the kernel, which shares the processor without its help.
        (None, _) if facts.host.kvm == KvmState::Works => {
            info(ID, "the processor has neither vmx nor svm, and the kernel's KVM does without")
        }
        (None, Some(_)) => no(
            ID,
            "the processor that the hypervisor shows has neither vmx nor svm",
            "switch on nested virtualization at the provider or the outer host, if it is offered, \
             or use an instance on bare metal",
        ),
        (None, None) => no(
            ID,
            "the processor has neither vmx nor svm",
            "switch on VT-x or SVM in the firmware's setup, if the processor has it",
        ),
    }
}

fn modules(facts: &Facts) -> Finding {
    const ID: &str = "modules";
    let vendor_module = facts.modules.iter().find(|module| *module != "kvm");
    if let (true, Some(_)) = (facts.modules.iter().any(|m| m == "kvm"), vendor_module) {
        return yes(ID, format!("loaded: {}", facts.modules.join(", ")));
    }
    let found = if facts.modules.is_empty() {
        "none of kvm, kvm_intel, kvm_amd and kvm_pvm is loaded".to_owned()
    } else {
        format!("only {} is loaded", facts.modules.join(", "))
    };
    let remedy = match (facts.container, facts.processor.virtualization.as_deref()) {
        (true, _) => "load the module on the container's host".to_owned(),
        (false, Some("svm")) => "modprobe kvm_amd (dmesg says why, if it refuses)".to_owned(),
        (false, Some(_)) => "modprobe kvm_intel (dmesg says why, if it refuses)".to_owned(),
        (false, None) => format!(
            "nothing here: without vmx or svm only a kernel with kvm_pvm could, and {} has none \
             loaded",
            facts.kernel
        ),
    };
    no(ID, found, remedy)
}

fn device(facts: &Facts) -> Finding {
    const ID: &str = "device";
    match facts.host.kvm {
        KvmState::Missing => no(
            ID,
            "there is no /dev/kvm",
            if facts.container {
                "give it to the container: docker run --device /dev/kvm"
            } else {
                "it appears when a kvm module is loaded"
            },
        ),
        KvmState::NotADevice => no(
            ID,
            "/dev/kvm is not a character device",
            "remove what is there and load the kvm module anew",
        ),
        KvmState::Unserved => no(
            ID,
            "/dev/kvm is there, but no kernel module serves it",
            if facts.container {
                "load the module on the container's host"
            } else {
                "it works when kvm_intel or kvm_amd is loaded"
            },
        ),
        _ => yes(ID, "/dev/kvm is there"),
    }
}

fn permission(facts: &Facts) -> Finding {
    const ID: &str = "permission";
    match &facts.host.kvm {
        KvmState::Missing | KvmState::NotADevice | KvmState::Unserved => {
            info(ID, "without /dev/kvm, not to be known")
        }
        KvmState::Forbidden => no(ID, "this user may not open /dev/kvm", facts.device.remedy()),
        KvmState::Denied => no(
            ID,
            "rules about devices (a device cgroup, or a security module) forbid to open /dev/kvm",
            if facts.container {
                "start the container with --device /dev/kvm"
            } else {
                "give the service DeviceAllow=/dev/kvm; dmesg says it if a security module refuses"
            },
        ),
        KvmState::Unopenable(why) => no(
            ID,
            format!("/dev/kvm does not open: {why}"),
            "see dmesg; the kvm module may not fit this kernel",
        ),
        _ => yes(ID, "this user may open /dev/kvm"),
    }
}

fn working(facts: &Facts) -> Finding {
    const ID: &str = "working";
    match &facts.host.kvm {
        KvmState::Works => yes(ID, "/dev/kvm makes virtual machines and runs them"),
        KvmState::Foreign(why) => no(
            ID,
            format!("/dev/kvm does not answer as KVM does: {why}"),
            "see which module serves it: lsmod, dmesg",
        ),
        KvmState::Outdated(why) => {
            no(ID, why.clone(), "use a newer kernel: Linux 5.10 has all that Lodge needs")
        }
        KvmState::NoMachines(why) => no(
            ID,
            format!("/dev/kvm runs no virtual machines: {why}"),
            "another hypervisor (VirtualBox, VMware) may hold the processor: stop it; see dmesg",
        ),
        _ => info(ID, "without an open /dev/kvm, not to be known"),
    }
}

fn speed(facts: &Facts) -> Finding {
    const ID: &str = "speed";
    let Some(speed) = facts.host.speed else {
        return info(ID, "without a working /dev/kvm, not to be known");
    };
    let found = format!(
        "a guest's kernel runs {:.1} million plain instructions a second (this processor: {:.0}), \
         and others in {:.0} ns",
        speed.ring0_mips, speed.native_mips, speed.kernel_instruction_ns
    );
    if speed.is_hardware {
        return yes(ID, found);
    }
    let remedy = match (&facts.processor.virtualization, &facts.hypervisor) {
        (Some(flag), _) => format!("see why the kvm module does not use {flag}: dmesg"),
        (None, Some(_)) => "none here: KVM emulates guests' kernels, for want of vmx or svm; switch \
                            on nested virtualization at the outer host, or leave it to Lodge's engine"
            .to_owned(),
        (None, None) => "switch on VT-x or SVM in the firmware's setup, if the processor has it"
            .to_owned(),
    };
    no(ID, found, remedy)
}

fn nested_paging(facts: &Facts) -> Finding {
    const ID: &str = "nested-paging";
    match facts.nested_paging {
        Some(true) => yes(ID, "the kvm module uses nested paging (EPT or NPT)"),
        Some(false) => no(
            ID,
            "the kvm module does without nested paging, which makes guests slow",
            "load it with ept=1 or npt=1, if the processor has EPT or NPT",
        ),
        None if facts.processor.nested_paging => info(ID, "the processor has it"),
        None if facts.modules.is_empty() => info(ID, "without a kvm module, not to be known"),
        None => info(ID, "the loaded kvm module does not say"),
    }
}

/// What Lodge's own engine is like here. Where KVM is used, it does not matter.
fn engine(facts: &Facts) -> Finding {
    const ID: &str = "engine";
    let (found, remedy) = match facts.host.engine {
        EnginePace::Mirrored => {
            return yes(
                ID,
                "guests' code runs as the host's, the busiest program's on its own memory",
            );
        }
        EnginePace::Transcoded => (
            "guests' code runs as the host's, but looks at each access to memory first: what lives on memory takes \
             about twice as long as it could",
            "a processor that shows protection keys (pku in /proc/cpuinfo), and Linux 6.12",
        ),
        EnginePace::Interpreted => (
            "guests' code is interpreted, for want of BMI2, and takes several times as long as it could",
            "a processor that shows bmi2 in /proc/cpuinfo: Intel's since Haswell, AMD's since Excavator",
        ),
    };
    if facts.host.accelerator == Accelerator::Kvm { info(ID, found) } else { no(ID, found, remedy) }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { id, answer, detail, remedy } in &self.findings {
            let mark = match answer {
                Answer::Yes => "yes",
                Answer::No => "no",
                Answer::Info => "-",
            };
            writeln!(f, "{id:<15} {mark:<4} {detail}")?;
            if let Some(remedy) = remedy {
                writeln!(f, "{:<20} remedy: {remedy}", "")?;
            }
        }
        let what = match self.accelerator {
            "kvm" => "KVM",
            _ => "its own engine (soft)",
        };
        writeln!(f, "\nGuests run here. Lodge will use {what}: {}.", self.reason)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use vmm_api::{HostReport, KvmSpeed};

    use super::*;
    use crate::check::facts::Processor;

    const FAST: KvmSpeed = KvmSpeed {
        ring0_mips: 5900.0,
        native_mips: 6000.0,
        kernel_instruction_ns: 60.0,
        is_hardware: true,
    };

    pub fn facts(kvm: KvmState) -> Facts {
        let speed = (kvm == KvmState::Works).then_some(FAST);
        let accelerator = if speed.is_some() { Accelerator::Kvm } else { Accelerator::Soft };
        let reason = "so it is".into();
        let engine = EnginePace::Mirrored;
        let host = HostReport { kvm, speed, accelerator, reason, hyperv: false, engine };
        Facts {
            processor: Processor { virtualization: Some("svm".into()), ..Processor::default() },
            hypervisor: None,
            container: false,
            kernel: "6.1.0".into(),
            modules: vec!["kvm".into(), "kvm_amd".into()],
            nested_paging: Some(true),
            huge_pages: Default::default(),
            device: Default::default(),
            host,
        }
    }

    fn answer(report: &Report, id: &str) -> Answer {
        report.findings.iter().find(|finding| finding.id == id).unwrap().answer
    }

    #[test]
    fn every_no_has_a_remedy_and_nothing_else_has() {
        let kvms = [
            KvmState::Missing,
            KvmState::NotADevice,
            KvmState::Unserved,
            KvmState::Forbidden,
            KvmState::Denied,
            KvmState::Unopenable("x".into()),
            KvmState::Foreign("x".into()),
            KvmState::Outdated("x".into()),
            KvmState::NoMachines("x".into()),
            KvmState::Works,
        ];
        for kvm in kvms {
            for container in [false, true] {
                for virtualization in [None, Some("vmx".to_owned())] {
                    for nested_paging in [None, Some(false)] {
                        let mut facts = Facts { container, nested_paging, ..facts(kvm.clone()) };
                        facts.processor.virtualization.clone_from(&virtualization);
                        facts.modules.clear();
                        for finding in Report::of(&facts).findings {
                            assert_eq!(
                                finding.answer == Answer::No,
                                finding.remedy.is_some(),
                                "{finding:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_fast_kvm_is_used() {
        let report = Report::of(&facts(KvmState::Works));
        assert!(report.kvm_works && report.guests_can_run);
        assert!(report.findings.iter().all(|finding| finding.answer != Answer::No));
        assert_eq!((report.accelerator, report.reason.as_str()), ("kvm", "so it is"));
    }

    #[test]
    fn a_kvm_without_hardware_is_too_slow() {
        let mut facts = facts(KvmState::Works);
        facts.processor.virtualization = None;
        facts.modules = vec!["kvm".into(), "kvm_pvm".into()];
        facts.nested_paging = None;
        facts.host.accelerator = Accelerator::Soft;
        facts.host.speed = Some(KvmSpeed { ring0_mips: 1.8, is_hardware: false, ..FAST });
        for hypervisor in [None, Some(String::new())] {
            facts.hypervisor = hypervisor;
            let report = Report::of(&facts);
            assert!(!report.kvm_works);
            assert_eq!(report.accelerator, "soft");
            assert_eq!(answer(&report, "virtualization"), Answer::Info);
            assert_eq!(answer(&report, "modules"), Answer::Yes);
            assert_eq!(answer(&report, "working"), Answer::Yes);
            assert_eq!(answer(&report, "nested-paging"), Answer::Info);
            let speed = report.findings.iter().find(|f| f.id == "speed").unwrap();
            assert!(
                speed.answer == Answer::No && speed.detail.contains("1.8 million"),
                "{speed:?}"
            );
            assert!(speed.remedy.is_some());
        }
    }

    #[test]
    fn a_slower_engine_says_what_it_lacks() {
        let mut facts = facts(KvmState::Missing);
        for (pace, lacks) in [(EnginePace::Transcoded, "pku"), (EnginePace::Interpreted, "bmi2")] {
            facts.host.engine = pace;
            let report = Report::of(&facts);
            let engine = report.findings.iter().find(|it| it.id == "engine").unwrap();
            assert!(report.guests_can_run && engine.answer == Answer::No);
            assert!(engine.remedy.as_deref().unwrap().contains(lacks), "{engine:?}");
        }
    }

    #[test]
    fn each_obstacle_has_its_place() {
        let report = Report::of(&facts(KvmState::Forbidden));
        assert_eq!(answer(&report, "device"), Answer::Yes);
        assert_eq!(answer(&report, "permission"), Answer::No);
        assert_eq!(answer(&report, "working"), Answer::Info);
        let report = Report::of(&facts(KvmState::Denied));
        let permission = report.findings.iter().find(|it| it.id == "permission").unwrap();
        assert_eq!(permission.answer, Answer::No);
        assert!(!permission.remedy.as_deref().unwrap().contains("adduser"), "{permission:?}");
        let report = Report::of(&facts(KvmState::Unserved));
        assert_eq!(answer(&report, "device"), Answer::No);
        assert_eq!(answer(&report, "permission"), Answer::Info);
        let report = Report::of(&facts(KvmState::NoMachines("busy".into())));
        assert_eq!(answer(&report, "permission"), Answer::Yes);
        assert_eq!(answer(&report, "working"), Answer::No);
        assert!(report.to_string().contains("busy"));
    }

    #[test]
    fn the_json_form_names_what_programs_need() {
        let json = serde_json::to_value(Report::of(&facts(KvmState::Missing))).unwrap();
        assert_eq!(json["kvm_works"], false);
        assert_eq!(json["accelerator"], "soft");
        assert_eq!(json["facts"]["host"]["kvm"], "missing");
        assert_eq!(json["findings"][4]["id"], "device");
        assert_eq!(json["findings"][4]["answer"], "no");
    }
}
