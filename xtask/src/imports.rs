//! Which crate may import which. Directions only go down the house.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

/// What each floor may import, besides itself. Floors are the directories at the top of the
/// repository.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("arch", &[]),
    ("host", &[]),
    ("accel", &["arch", "host"]),
    ("device", &["arch", "host"]),
    ("vmm", &["accel", "device", "arch", "host"]),
    ("guest", &[]),
    ("mgmt", &[]),
    // Measures with the guests of the tests.
    ("xtask", &["tests"]),
    ("tests", &["guest", "vmm", "accel", "device", "arch", "host", "mgmt"]),
    ("fuzz", &["vmm", "accel", "device", "arch", "host", "mgmt"]),
];

/// Imports that a floor may not make, or may make against the table, crate by crate.
const EXCEPTIONS: &[Exception] = &[
    // Management knows a VMM only by its API. RawTerminal and disks are no part of that.
    Exception { from: "mgmt", to: "vmm-api", allowed: true },
    Exception { from: "mgmt", to: "vmm-client", allowed: true },
    Exception { from: "mgmt", to: "chardev", allowed: true },
    // Images that no guest uses are worked on here, under the locks that VMMs respect.
    Exception { from: "cli", to: "block", allowed: true },
    // Networks of the host are made by management, for any VMM to connect to.
    Exception { from: "networks", to: "links", allowed: true },
    // What runs in guests is spoken to by what people type.
    Exception { from: "cli", to: "agent-protocol", allowed: true },
    // And images hold what it reads.
    Exception { from: "images", to: "agent-protocol", allowed: true },
    // The machine is built for any accelerator: it knows their traits only.
    Exception { from: "machine", to: "accel-soft", allowed: false },
    Exception { from: "machine", to: "accel-kvm", allowed: false },
    // Configuration is for everybody and depends on nobody.
    Exception { from: "vmm-api", to: "machine", allowed: false },
    Exception { from: "vmm-client", to: "machine", allowed: false },
    Exception { from: "vmm-client", to: "vmm", allowed: false },
];

struct Exception {
    /// A floor or a crate.
    from: &'static str,
    /// A crate.
    to: &'static str,
    allowed: bool,
}

/// The workspace's crates.
pub struct House {
    /// Where each crate lies, and which of our crates it imports outside of tests.
    pub crates: BTreeMap<String, Member>,
}

/// One crate.
pub struct Member {
    /// Its directory.
    pub dir: PathBuf,
    /// The directory at the top of the repository that it lies in.
    pub floor: String,
    imports: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<PathBuf>,
}

impl House {
    /// Asks cargo for the workspace.
    pub fn load() -> anyhow::Result<Self> {
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
            .output()
            .context("cannot run cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
        let root = metadata.workspace_root;
        let crates = metadata
            .packages
            .into_iter()
            .map(|package| Ok((package.name.clone(), Member::new(package, &root)?)))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { crates })
    }
}

impl Member {
    fn new(package: Package, root: &Path) -> anyhow::Result<Self> {
        let dir = package.manifest_path.parent().context("a manifest lies nowhere")?.to_owned();
        let floor = dir
            .strip_prefix(root)?
            .components()
            .next()
            .context("a crate lies at the root")?
            .as_os_str()
            .to_string_lossy()
            .into_owned();
        let imports = package
            .dependencies
            .into_iter()
            // What tests import shapes no crate.
            .filter(|d| d.path.is_some() && d.kind.as_deref() != Some("dev"))
            .map(|d| d.name)
            .collect();
        Ok(Self { dir, floor, imports })
    }
}

/// Imports that go in a direction they may not.
pub fn check(house: &House) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, member) in &house.crates {
        for import in &member.imports {
            let Some(imported) = house.crates.get(import) else { continue };
            if !is_allowed(name, &member.floor, import, &imported.floor) {
                faults.push(format!(
                    "{}/{name} imports {}/{import}: {} may import only {}",
                    member.floor,
                    imported.floor,
                    member.floor,
                    floors_below(&member.floor).join(", "),
                ));
            }
        }
    }
    faults
}

fn floors_below(floor: &str) -> Vec<&'static str> {
    MAY_IMPORT.iter().find(|(f, _)| *f == floor).map_or_else(Vec::new, |(_, below)| below.to_vec())
}

fn is_allowed(from: &str, from_floor: &str, to: &str, to_floor: &str) -> bool {
    let exception =
        EXCEPTIONS.iter().find(|e| (e.from == from || e.from == from_floor) && e.to == to);
    match exception {
        Some(exception) => exception.allowed,
        None => from_floor == to_floor || floors_below(from_floor).contains(&to_floor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions() {
        assert!(is_allowed("machine", "vmm", "pci", "device"));
        assert!(is_allowed("cli", "mgmt", "vmm-api", "vmm"));
        assert!(!is_allowed("cli", "mgmt", "machine", "vmm"));
        assert!(!is_allowed("pci", "device", "accel", "accel"));
        assert!(!is_allowed("accel", "accel", "pci", "device"));
        assert!(!is_allowed("x86", "arch", "mem", "host"));
        assert!(!is_allowed("machine", "vmm", "accel-soft", "accel"));
        assert!(is_allowed("vmm", "vmm", "accel-soft", "accel"));
    }

    #[test]
    fn the_house_is_in_order() {
        let house = House::load().unwrap();
        assert!(house.crates.len() > 10);
        assert_eq!(check(&house), Vec::<String>::new());
    }
}
