//! The system in which Lodge runs in the lab: Debian's kernel with its own KVM modules, and an
//! initial RAM disk with Lodge's programs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use guest_tests::cpio::Archive;
use guest_tests::debian_disk;
use serde_json::Value;

use super::deviations;
use super::machine::Machine;

/// The image whose kernel, modules and disk are used.
const IMAGE: &str = "debian:12";
const DISK_MODULES: &[&str] = &[
    "kernel/drivers/virtio/virtio_ring",
    "kernel/drivers/virtio/virtio",
    "kernel/drivers/virtio/virtio_pci_modern_dev",
    "kernel/drivers/virtio/virtio_pci_legacy_dev",
    "kernel/drivers/virtio/virtio_pci",
    "kernel/drivers/block/virtio_blk",
];
const KVM_MODULES: &[&str] = &["kernel/virt/lib/irqbypass", "kernel/arch/x86/kvm/kvm"];

const INIT: &str = include_str!("../../lab/init.sh");
const SMALL: &str = include_str!("../../lab/small.sh");
const COUNTER: &str = include_str!("../../lab/counter.sh");
const JOBS: &[(&str, &str)] = &[
    ("conformance", include_str!("../../lab/conformance.sh")),
    ("boot", include_str!("../../lab/boot.sh")),
    ("move", include_str!("../../lab/move.sh")),
    ("measure", include_str!("../../lab/measure.sh")),
    ("shell", include_str!("../../lab/shell.sh")),
];

/// What a lab is made of.
pub struct System {
    /// The kernel, of the system as of the guests in it.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// Debian's disk, which nobody writes to.
    pub disk: PathBuf,
    /// The password of Debian's root.
    pub root_password: String,
}

impl System {
    /// Makes one for `machine` in `dir`, with `lodge` and the `lodge-vmm` beside it, and the runner of the conformance
    /// suite.
    pub fn make(
        machine: Machine,
        dir: &Path,
        lodge: &Path,
        conform: &Path,
    ) -> anyhow::Result<System> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let facts = inspect(lodge)?;
        let path = |name: &str| -> anyhow::Result<PathBuf> {
            let path = facts["paths"][name].as_str();
            Ok(path.with_context(|| format!("the image {IMAGE} has no {name}"))?.into())
        };
        let (kernel, disk) = (path("kernel")?, path("disk")?);
        let logins = facts["manifest"]["logins"].as_array().map_or(&[][..], Vec::as_slice);
        let root = logins.iter().find(|login| login["user"] == "root");
        let root_password = root.and_then(|login| login["password"].as_str());
        let root_password = root_password.context("nobody can log in as root")?.to_owned();

        let busybox = which("busybox")?;
        let release = debian_disk::kernel_release(&disk)?;
        let module = |name: &str| {
            let from = format!("/lib/modules/{release}/{name}.ko");
            Ok(debian_disk::read(&disk, &from, &dir.join("module.ko"))?)
        };
        let mut small = Archive::default();
        begin(&mut small, SMALL, &busybox)?;
        add_modules(&mut small, "modules", DISK_MODULES, module)?;
        let mut counter = Archive::default();
        begin(&mut counter, COUNTER, &busybox)?;

        let mut system = Archive::default();
        begin(&mut system, INIT, &busybox)?;
        system.directory("lab");
        let mut modules: Vec<&str> = DISK_MODULES.iter().chain(KVM_MODULES).copied().collect();
        modules.push(machine.kvm_module());
        add_modules(&mut system, "lab/modules", &modules, module)?;
        let vmm = lodge.with_file_name("lodge-vmm");
        add_programs(
            &mut system,
            dir,
            &[("lodge", lodge), ("lodge-vmm", &vmm), ("conform", conform)],
        )?;
        for (name, script) in JOBS {
            system.program(&format!("lab/{name}.sh"), script.as_bytes());
        }
        let skipped = deviations::left_out(machine).join("\n") + "\n";
        system.program("lab/skipped", skipped.as_bytes());
        system.program("lab/small.img", &small.finish());
        system.program("lab/counter.img", &counter.finish());
        system.program("lab/vmlinuz", &read(&kernel)?);
        system.program("lab/initrd.img", &read(&path("initrd")?)?);
        let initrd = dir.join("lab.img");
        fs::write(&initrd, system.finish())
            .with_context(|| format!("cannot write {}", initrd.display()))?;
        Ok(System { kernel, initrd, disk, root_password })
    }
}

/// What every system begins with.
fn begin(archive: &mut Archive, init: &str, busybox: &Path) -> anyhow::Result<()> {
    archive.console();
    archive.directory("bin");
    archive.program("bin/busybox", &read(busybox)?);
    archive.program("init", init.as_bytes());
    Ok(())
}

/// Adds modules and the order in which they are loaded.
fn add_modules(
    archive: &mut Archive,
    directory: &str,
    modules: &[&str],
    load: impl Fn(&str) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<()> {
    archive.directory(directory);
    let mut order = String::new();
    for module in modules {
        let name = module.rsplit('/').next().unwrap_or(module);
        archive.program(&format!("{directory}/{name}.ko"), &load(module)?);
        order.push_str(name);
        order.push('\n');
    }
    archive.program(&format!("{directory}/order"), order.as_bytes());
    Ok(())
}

/// Adds programs, without what only debuggers want, and the libraries that they need.
fn add_programs(
    archive: &mut Archive,
    dir: &Path,
    programs: &[(&str, &Path)],
) -> anyhow::Result<()> {
    let mut libraries = BTreeSet::new();
    for (name, program) in programs {
        let stripped = dir.join(name);
        let status = Command::new("strip").arg("-o").arg(&stripped).arg(program).status();
        if !status.context("cannot run strip (of binutils)")?.success() {
            bail!("{} cannot be stripped", program.display());
        }
        archive.program(&format!("lab/{name}"), &read(&stripped)?);
        libraries.extend(libraries_of(program)?);
    }
    let mut directories = BTreeSet::new();
    for library in &libraries {
        let ancestors: Vec<_> = library.ancestors().skip(1).collect();
        for directory in ancestors.into_iter().rev() {
            let name = directory.to_string_lossy();
            let name = name.trim_start_matches('/');
            if !name.is_empty() && directories.insert(name.to_owned()) {
                archive.directory(name);
            }
        }
        let name = library.to_string_lossy();
        archive.program(name.trim_start_matches('/'), &read(library)?);
    }
    Ok(())
}

/// The shared libraries that a program needs, its loader included (ldd(1)).
fn libraries_of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.lines().filter_map(|line| {
        line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
    });
    Ok(paths.collect())
}

/// Where tools for file systems are, which `PATH` may leave out.
const TOOL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a program is.
pub fn which(name: &str) -> anyhow::Result<PathBuf> {
    let candidates = TOOL_PATH.split(':').map(|directory| Path::new(directory).join(name));
    let mut found = candidates.filter(|path| path.is_file());
    found.next().with_context(|| format!("there is no {name}: run scripts/install-lab-deps"))
}

/// What `lodge` says about the image.
fn inspect(lodge: &Path) -> anyhow::Result<Value> {
    let output = Command::new(lodge)
        .args(["image", "inspect", IMAGE])
        .output()
        .with_context(|| format!("cannot run {}", lodge.display()))?;
    if !output.status.success() {
        bail!(
            "there is no image {IMAGE}: {} image build {IMAGE} ({})",
            lodge.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
