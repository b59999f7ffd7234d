//! What the kernel says about this machine.

use std::fs;
use std::path::Path;

use super::device_file::DeviceFile;
use serde::Serialize;
use vmm_api::HostReport;

/// The modules that serve /dev/kvm on x86-64, and the one for guests of Xen-like hosts.
pub const MODULES: [&str; 4] = ["kvm", "kvm_intel", "kvm_amd", "kvm_pvm"];

/// What is known of this machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Facts {
    /// The processor.
    pub processor: Processor,
    /// Whether a hypervisor runs this machine, and what its firmware says it is.
    pub hypervisor: Option<String>,
    /// Whether this is a container on its host's kernel.
    pub container: bool,
    /// The kernel's release.
    pub kernel: String,
    /// Those of [`MODULES`] that are loaded or built in.
    pub modules: Vec<String>,
    /// Nested paging as the loaded module uses it: EPT or NPT.
    pub nested_paging: Option<bool>,
    /// Huge pages of 2 MiB.
    pub huge_pages: HugePages,
    /// Whose /dev/kvm is.
    pub device: DeviceFile,
    /// How far one comes with /dev/kvm, how fast it is, and what follows.
    pub host: HostReport,
}

/// Huge pages of 2 MiB.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// How many are reserved.
    pub reserved: u64,
    /// How many of them nobody has yet.
    pub free: u64,
    /// When the kernel uses others for memory that is shared, as guests' is: `never`, `advise`, ...
    pub shared_memory: String,
}

impl HugePages {
    /// Takes them from what `text` reads of a file in /sys.
    fn gather(text: impl Fn(&str) -> String) -> Self {
        let number = |name: &str| -> u64 {
            let text = text(&format!("sys/kernel/mm/hugepages/hugepages-2048kB/{name}"));
            text.trim().parse().unwrap_or(0)
        };
        // The choice is in brackets: always within_size advise [never] deny force.
        let choices = text("sys/kernel/mm/transparent_hugepage/shmem_enabled");
        let chosen = choices.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        Self {
            reserved: number("nr_hugepages"),
            free: number("free_hugepages").saturating_sub(number("resv_hugepages")),
            shared_memory: chosen.map_or_else(String::new, |(choice, _)| choice.to_owned()),
        }
    }
}

/// The processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Processor {
    /// `GenuineIntel`, `AuthenticAMD`.
    pub vendor: String,
    /// Its name.
    pub model: String,
    /// How many of it Linux runs.
    pub count: usize,
    /// `vmx` or `svm`, if it has one of them.
    pub virtualization: Option<String>,
    /// The `ept` or `npt` flag.
    pub nested_paging: bool,
}

impl Facts {
    /// Reads /proc and /sys below `root`; `host` was found out by trying.
    pub fn gather(root: &Path, host: HostReport) -> Facts {
        let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let exists = |path: &str| root.join(path).exists();
        let cpuinfo = text("proc/cpuinfo");
        let flags = field(&cpuinfo, "flags");
        let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);

        let processor = Processor {
            vendor: field(&cpuinfo, "vendor_id").to_owned(),
            model: field(&cpuinfo, "model name").to_owned(),
            count: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            virtualization: ["vmx", "svm"].into_iter().find(|f| has(f)).map(str::to_owned),
            nested_paging: has("ept") || has("npt"),
        };
        let hypervisor = has("hypervisor").then(|| {
            let parts =
                [text("sys/class/dmi/id/sys_vendor"), text("sys/class/dmi/id/product_name")];
            let name: Vec<&str> =
                parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).collect();
            name.join(" ")
        });
        // A module that is built in has a directory as well, if it has parameters.
        let modules: Vec<String> = MODULES
            .into_iter()
            .filter(|module| exists(&format!("sys/module/{module}")))
            .map(str::to_owned)
            .collect();
        let nested_paging = [("kvm_intel", "ept"), ("kvm_amd", "npt")]
            .into_iter()
            .map(|(module, name)| text(&format!("sys/module/{module}/parameters/{name}")))
            .find(|value| !value.is_empty())
            .map(|value| matches!(value.trim(), "Y" | "1"));
        Facts {
            processor,
            hypervisor,
            container: exists(".dockerenv")
                || exists("run/.containerenv")
                || exists("run/systemd/container"),
            kernel: text("proc/sys/kernel/osrelease").trim().to_owned(),
            modules,
            nested_paging,
            huge_pages: HugePages::gather(text),
            device: DeviceFile::gather(root),
            host,
        }
    }
}

/// The first value of a field in /proc/cpuinfo.
fn field<'a>(cpuinfo: &'a str, name: &str) -> &'a str {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map_or("", |(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_kvm() -> HostReport {
        HostReport {
            kvm: vmm_api::KvmState::Missing,
            speed: None,
            accelerator: vmm_api::Accelerator::Soft,
            reason: "there is no /dev/kvm".into(),
            hyperv: false,
            engine: vmm_api::EnginePace::Mirrored,
        }
    }

    fn gather(files: &[(&str, &str)]) -> Facts {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Facts::gather(root.path(), no_kvm())
    }

    #[test]
    fn a_machine_with_kvm() {
        let cpuinfo = "\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) CPU
flags\t\t: fpu vmx ept sse4_2

processor\t: 1
vendor_id\t: GenuineIntel
flags\t\t: fpu
";
        let facts = gather(&[
            ("proc/cpuinfo", cpuinfo),
            ("proc/sys/kernel/osrelease", "6.1.0\n"),
            ("sys/module/kvm/parameters/x", ""),
            ("sys/module/kvm_intel/parameters/ept", "Y\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "6\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "2\n"),
            ("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always [advise] never\n"),
        ]);
        assert_eq!(facts.processor.vendor, "GenuineIntel");
        assert_eq!(facts.processor.count, 2);
        assert_eq!(facts.processor.virtualization.as_deref(), Some("vmx"));
        assert!(facts.processor.nested_paging);
        assert_eq!(facts.nested_paging, Some(true));
        assert_eq!(facts.modules, ["kvm", "kvm_intel"]);
        assert_eq!((facts.huge_pages.reserved, facts.huge_pages.free), (8, 4));
        assert_eq!(facts.huge_pages.shared_memory, "advise");
        assert_eq!((facts.hypervisor, facts.container), (None, false));
    }

    #[test]
    fn a_virtual_machine_without_kvm() {
        let facts = gather(&[
            ("proc/cpuinfo", "processor: 0\nflags: fpu hypervisor sse4_2\n"),
            ("sys/class/dmi/id/sys_vendor", "Google\n"),
            ("sys/class/dmi/id/product_name", "Google Compute Engine\n"),
            ("run/systemd/container", "docker"),
        ]);
        assert_eq!(facts.hypervisor.as_deref(), Some("Google Google Compute Engine"));
        assert_eq!(facts.processor.virtualization, None);
        assert!(facts.container);
        assert_eq!(facts.nested_paging, None);
    }

    #[test]
    fn a_machine_that_says_nothing() {
        let facts = gather(&[]);
        assert_eq!(facts.processor, Processor::default());
        assert_eq!(facts.modules, [""; 0]);
    }
}
