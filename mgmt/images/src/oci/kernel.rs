//! The kernel of guests that are made of OCI images: Debian's, from the image of Debian in the store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::build::{disk, host_command};
use crate::{Cancel, Error, Image, Store};

/// What init loads, with all that these depend on: disk, network, the socket of the agent, the power
/// button, memory that is given back, random numbers, and what programs ask for.
const MODULES: [&str; 12] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "button",
    "evdev",
    "virtio_balloon",
    "virtio_rng",
    "virtio_console",
    "overlay",
    "fuse",
    "virtiofs",
];
const ELF: &[u8] = b"\x7fELF";

/// A kernel, and where its modules are.
pub(super) struct Kernel {
    image: Image,
    file: PathBuf,
    sum: String,
}

/// A module.
#[derive(Debug)]
pub(super) struct Module {
    /// The name of its file, which ends in `.ko`.
    pub(super) name: String,
    pub(super) contents: Vec<u8>,
}

impl Kernel {
    /// The kernel of the first image of Debian that is in the store.
    pub(super) fn find(store: &Store) -> Result<Kernel, Error> {
        let images = crate::releases().filter_map(|name| store.get(&name.parse().ok()?).ok());
        for image in images {
            if let (Some(file), Some(artifact)) = (image.kernel(), &image.manifest().kernel) {
                let sum = artifact.sha256.clone();
                return Ok(Kernel { image, file, sum });
            }
        }
        Err(Error::NoKernel)
    }

    /// Its SHA-256 sum.
    pub(super) fn sum(&self) -> &str {
        &self.sum
    }

    /// Puts the kernel itself to another place in the store.
    pub(super) fn copy_to(&self, path: &Path) -> Result<(), Error> {
        // No hard link: whatever is done to one image does not touch another.
        fs::copy(&self.file, path).map_err(Error::io("copy", &self.file)).map(drop)
    }

    /// The modules to load, in this order.
    pub(super) fn modules(&self, cancel: &Cancel) -> Result<Vec<Module>, Error> {
        let listing = self.debugfs("ls -p /lib/modules")?;
        let listing = String::from_utf8_lossy(&listing);
        let missing = || self.damaged("its disk has no kernel modules where Debian has them");
        let version = version(&listing).ok_or_else(missing)?;
        let directory = format!("/lib/modules/{version}");
        let dependencies = self.debugfs(&format!("cat {directory}/modules.dep"))?;
        let paths = order(&String::from_utf8_lossy(&dependencies));
        let mut modules = Vec::new();
        for path in paths {
            cancel.check()?;
            let contents = self.debugfs(&format!("cat {directory}/{path}"))?;
            if !contents.starts_with(ELF) {
                return Err(self.damaged(&format!("its disk has no module {path}")));
            }
            let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
            modules.push(Module { name, contents });
        }
        Ok(modules)
    }

    /// What debugfs(8) prints, which reads file systems without any privilege.
    fn debugfs(&self, request: &str) -> Result<Vec<u8>, Error> {
        let mut disk = self.image.disk().into_os_string();
        if self.image.manifest().cmdline.contains(disk::PARTITION_DEVICE) {
            disk.push(format!("?offset={}", disk::PARTITION_OFFSET));
        }
        let output = host_command("debugfs")
            .args(["-R", request])
            .arg(disk)
            .stderr(Stdio::null())
            .output()
            .map_err(Error::io("start", "debugfs".as_ref()))?;
        Ok(output.stdout)
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Damaged { name: self.image.name().to_string(), what: what.to_owned() }
    }
}

/// The kernel's version: the only directory in a listing of lines such as `/1181/040755/0/0/6.1.0//`.
fn version(listing: &str) -> Option<&str> {
    let mut names = listing.lines().filter_map(|line| line.split('/').nth(5));
    let is_version = |name: &&str| {
        name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+_".contains(&byte))
    };
    names.rfind(is_version)
}

/// The files of all modules that are wanted and their dependencies, those first that others need
/// (modules.dep(5)). What is missing is built into the kernel.
fn order(dependencies: &str) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    for wanted in MODULES {
        let is_it = |path: &str| {
            let name = path.rsplit('/').next().unwrap_or(path);
            name.strip_suffix(".ko").is_some_and(|name| name.replace('-', "_") == wanted)
        };
        let line = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| is_it(path));
        let Some((path, needs)) = line else { continue };
        for path in needs.split_whitespace().rev().chain([path]) {
            let is_plain = !path.contains("..") && !path.contains(['"', '\'', '<']);
            if is_plain && !paths.iter().any(|known| known == path) {
                paths.push(path.to_owned());
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_behind_what_they_need() {
        let text = "kernel/drivers/virtio/virtio_pci.ko: kernel/v/virtio_pci_legacy_dev.ko \
            kernel/v/virtio.ko kernel/v/virtio_ring.ko\n\
            kernel/v/virtio_ring.ko:\n\
            kernel/net/virtio_net.ko: kernel/net/net_failover.ko kernel/net/failover.ko \
            kernel/v/virtio.ko kernel/v/virtio_ring.ko\n\
            kernel/drivers/acpi/button.ko:\n";
        assert_eq!(
            order(text),
            [
                "kernel/v/virtio_ring.ko",
                "kernel/v/virtio.ko",
                "kernel/v/virtio_pci_legacy_dev.ko",
                "kernel/drivers/virtio/virtio_pci.ko",
                "kernel/net/failover.ko",
                "kernel/net/net_failover.ko",
                "kernel/net/virtio_net.ko",
                "kernel/drivers/acpi/button.ko",
            ]
        );
        assert!(order("nonsense\n: :\nbutton.ko\n").is_empty());
    }

    #[test]
    fn the_version_is_found_in_a_listing() {
        let listing = "/1180/040755/0/0/.//\n/1062/040755/0/0/..//\n\
            /1181/040755/0/0/6.1.0-57-cloud-amd64//\n";
        assert_eq!(version(listing), Some("6.1.0-57-cloud-amd64"));
        assert_eq!(version("/1/2\n\n"), None);
    }
}
