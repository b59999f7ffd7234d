//! What this process keeps within reach when it confines itself, for the guest that it runs.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use accel::Accelerator;
use accel_soft::SoftAccelerator;
use machine::Files;
use sandbox::{Grant, Needs, Sandbox};
use vmm_api::{ConsoleConfig, Failure, GdbAddress, SandboxMode, VmConfig};

use crate::accelerators;
use crate::directory::Directory;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Has the threads of this process be confined from now on, unless the configuration forbids it.
pub fn begin(config: &VmConfig, accelerator: &dyn Accelerator) -> Result<Option<Sandbox>, Failure> {
    runtime::tsc::ask_kernel();
    if accelerators::kind(accelerator) == vmm_api::Accelerator::Soft {
        SoftAccelerator::look_around();
    }
    match config.sandbox.mode {
        SandboxMode::Off => Ok(None),
        SandboxMode::On | SandboxMode::Require => {
            Sandbox::begin(needs(config, accelerator)).map(Some).map_err(Failure::host)
        }
    }
}

/// Confines the main thread: it has opened all that the guest is made of. The value is what this host lacks
/// for that, if people should know.
pub fn complete(
    sandbox: Option<Sandbox>,
    config: &VmConfig,
    files: &Files,
    directory: &Directory,
) -> Result<Option<String>, Failure> {
    let Some(sandbox) = sandbox else { return Ok(None) };
    // Open until it has been granted.
    let own = directory.handle()?;
    let grants = grants(config, files, own.as_ref());
    let confined = sandbox.confine(&grants, folders(files)).map_err(Failure::host)?;
    match (config.sandbox.mode, confined.missing) {
        (SandboxMode::Require, Some(missing)) => {
            Err(Failure::host(format!("{missing}; --sandbox on does with what there is")))
        }
        (_, missing) => Ok(missing),
    }
}

fn needs(config: &VmConfig, accelerator: &dyn Accelerator) -> Needs {
    let consoles = [Some(&config.serial), Some(&config.serial2), config.virtio_console.as_ref()];
    let ports = config.nets.iter().flat_map(|card| &card.forwards).map(|it| it.host_port);
    Needs {
        kvm: accelerators::kind(accelerator) == vmm_api::Accelerator::Kvm,
        network: has_services(config),
        low_ports: ports.into_iter().any(|port| port < 1024),
        console_sockets: consoles
            .into_iter()
            .flatten()
            .any(|console| matches!(console, ConsoleConfig::Socket(_))),
        debugger: config.gdb.is_some(),
        folders: !config.folders.is_empty(),
    }
}

/// The files that may be opened again, made or removed while the guest runs.
fn grants(config: &VmConfig, files: &Files, own: Option<&OwnedFd>) -> Vec<Grant> {
    let mut grants: Vec<Grant> = files.backing().map(Grant::read).collect();
    grants.extend(own.map(|own| Grant::write(path_of(own))));
    grants.extend(config.sandbox.allow.iter().map(Grant::write));
    if has_services(config) {
        grants.push(Grant::read(RESOLV_CONF));
        // Services that look after it have a directory of their own, in which they replace it.
        let place = fs::canonicalize(RESOLV_CONF).ok();
        let place = place.as_deref().and_then(Path::parent);
        let is_theirs = |place: &&Path| place.starts_with("/run") && *place != Path::new("/run");
        grants.extend(place.filter(is_theirs).map(Grant::read));
    }
    // Names of other guests, in a file that is replaced as they come and go.
    let names = config.nets.iter().filter_map(|card| card.lease.as_ref()?.names.parent());
    grants.extend(names.map(Grant::read));
    if let Some(GdbAddress::Socket(path)) = config.gdb.as_ref().map(|gdb| &gdb.at) {
        grants.extend(path.parent().map(Grant::remove));
    }
    if config.hugepages {
        // What is told of a lack of them.
        grants.push(Grant::read("/sys/kernel/mm/hugepages"));
    }
    grants
}

/// The folders that the guest shares, which are open for as long as the process lives.
fn folders(files: &Files) -> Vec<Grant> {
    let grant = |(folder, readonly)| match readonly {
        true => Grant::read(path_of(&folder)),
        false => Grant::share(path_of(&folder)),
    };
    files.folders().map(grant).collect()
}

/// The very file that a descriptor stands for.
fn path_of(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Whether this process answers a guest's DHCP and DNS, and makes connections for it.
fn has_services(config: &VmConfig) -> bool {
    config.nets.iter().any(|card| card.network.is_user() || card.lease.is_some())
}

#[cfg(test)]
mod tests;
