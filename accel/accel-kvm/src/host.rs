//! /dev/kvm: opening it, and what it must be able to do.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use accel::Fault;
use kvm_bindings::{
    KVM_CAP_TSC_CONTROL, KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_VCPU_ATTRIBUTES, KVM_MAX_CPUID_ENTRIES,
};
use kvm_ioctls::{Cap, Kvm};

use crate::cpuid::Supported;

/// The version of KVM's interface since Linux 2.6.22 (Documentation/virt/kvm/api.rst, 4.1).
pub const API_VERSION: i32 = 12;

/// What the accelerator cannot do without, with the name under which KVM's documentation knows it.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// KVM, and what it can do.
pub struct Host {
    /// The device.
    pub kvm: Kvm,
    /// Capabilities (`KVM_CAP_*`) that it is said not to have, for tests.
    pub without: Vec<u32>,
    supported: OnceLock<Supported>,
}

impl Host {
    /// A KVM that was opened.
    pub fn new(kvm: Kvm) -> Self {
        Self { kvm, without: Vec::new(), supported: OnceLock::new() }
    }

    /// The processor that KVM offers to guests.
    pub fn supported(&self) -> Result<&Supported, Fault> {
        if let Some(supported) = self.supported.get() {
            return Ok(supported);
        }
        let supported = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|e| failed("KVM does not say which processor it offers", e))?;
        let supported = Supported::new(&supported, self.has(KVM_CAP_TSC_DEADLINE_TIMER));
        Ok(self.supported.get_or_init(|| supported))
    }

    /// What KVM says of one of `KVM_CAP_*`: zero if it does not have it, else one or more.
    pub fn capability(&self, cap: u32) -> u32 {
        if self.without.contains(&cap) {
            return 0;
        }
        u32::try_from(self.kvm.check_extension_raw(cap.into())).unwrap_or(0)
    }

    /// Whether guests' TSCs can have another rate than the host's. Where their offsets cannot be set,
    /// they could not go on from a saved state to the tick.
    pub fn scales_tsc(&self) -> bool {
        self.has(KVM_CAP_TSC_CONTROL) && self.has(KVM_CAP_VCPU_ATTRIBUTES)
    }

    /// Whether KVM has it.
    pub fn has(&self, cap: u32) -> bool {
        self.capability(cap) > 0
    }
}

/// Why this host's KVM cannot be used.
#[derive(Debug)]
pub enum Obstacle {
    /// There is no such file.
    Missing(PathBuf),
    /// The file is something else.
    NotADevice(PathBuf),
    /// The file is there, but no module serves it: systemd makes it before one is loaded.
    Unserved(PathBuf),
    /// This user may not open it.
    Forbidden(PathBuf),
    /// Rules about devices forbid it, of a container or service, which no group changes.
    Denied(PathBuf),
    /// Opening fails for another reason.
    Unopenable(PathBuf, io::Error),
    /// It does not answer as KVM does.
    Foreign(PathBuf),
    /// Its interface has another version than 12.
    Version(i32),
    /// It lacks these capabilities.
    Lacks(Vec<&'static str>),
}

impl Obstacle {
    fn what(&self) -> String {
        match self {
            Self::Missing(path)
            | Self::NotADevice(path)
            | Self::Unserved(path)
            | Self::Forbidden(path)
            | Self::Denied(path)
            | Self::Unopenable(path, _) => format!("cannot open {}", path.display()),
            Self::Foreign(path) => format!("cannot use {}", path.display()),
            Self::Version(_) | Self::Lacks(_) => "cannot use this kernel's KVM".to_owned(),
        }
    }

    fn why(&self) -> io::Error {
        match self {
            Self::Missing(_) => io::Error::from_raw_os_error(libc::ENOENT),
            Self::NotADevice(_) => io::Error::other("it is not a device"),
            Self::Unserved(_) => io::Error::other("no kernel module serves it"),
            Self::Forbidden(_) => io::Error::from_raw_os_error(libc::EACCES),
            Self::Denied(_) => io::Error::from_raw_os_error(libc::EPERM),
            Self::Unopenable(_, error) => match error.raw_os_error() {
                Some(number) => io::Error::from_raw_os_error(number),
                None => io::Error::other(error.to_string()),
            },
            Self::Foreign(_) => io::Error::other("it does not answer as KVM does"),
            Self::Version(version) => io::Error::other(format!(
                "its interface has version {version} instead of {API_VERSION}"
            )),
            Self::Lacks(names) => io::Error::other(format!("it lacks {}", names.join(", "))),
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Missing(_) => {
                "load the module (modprobe kvm_intel or kvm_amd), or choose the accelerator \"soft\""
            }
            Self::Unserved(_) => {
                "load the module (modprobe kvm_intel or kvm_amd; if it refuses, dmesg says why, and \
                 `lodge check` what to do), or choose the accelerator \"soft\""
            }
            Self::Forbidden(_) => {
                "have this user join the group that the file belongs to (usually kvm: usermod -aG \
                 kvm NAME, then log in anew), or choose the accelerator \"soft\""
            }
            Self::Denied(_) => {
                "rules about devices (a device cgroup, or a security module) keep this container or \
                 service from it: start the container with --device /dev/kvm, give the service \
                 DeviceAllow=/dev/kvm, or choose the accelerator \"soft\""
            }
            Self::NotADevice(_) | Self::Foreign(_) => {
                "see what is there and which module serves it, or choose the accelerator \"soft\""
            }
            Self::Unopenable(..) => {
                "`lodge check` says more; the accelerator \"soft\" needs no KVM"
            }
            Self::Version(_) | Self::Lacks(_) => {
                "use a newer kernel (Linux 5.10 has all that Lodge needs), or choose the \
                 accelerator \"soft\""
            }
        }
    }
}

/// What and why, without the remedy.
impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what(), self.why())
    }
}

impl std::error::Error for Obstacle {}

impl From<Obstacle> for Fault {
    fn from(obstacle: Obstacle) -> Self {
        Self::Host {
            what: obstacle.what(),
            source: obstacle.why(),
            remedy: obstacle.remedy().to_owned(),
        }
    }
}

/// Opens the device and makes sure that it can do all that is needed.
pub fn open(path: &Path) -> Result<Kvm, Obstacle> {
    let own = || path.to_owned();
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Obstacle::Missing(own()));
        }
        Ok(metadata) if !metadata.file_type().is_char_device() => {
            return Err(Obstacle::NotADevice(own()));
        }
        _ => {}
    }
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Obstacle::Missing(own()))?;
    let kvm = Kvm::new_with_path(&name).map_err(|error| unopened(own(), error))?;
    let version = kvm.get_api_version();
    if version < 0 {
        return Err(Obstacle::Foreign(own()));
    }
    judge(version, |cap| kvm.check_extension(cap))?;
    Ok(kvm)
}

/// Why the file does not open.
fn unopened(path: PathBuf, error: kvm_ioctls::Error) -> Obstacle {
    match error.errno() {
        libc::ENOENT => Obstacle::Missing(path),
        libc::ENODEV | libc::ENXIO => Obstacle::Unserved(path),
        libc::EACCES => Obstacle::Forbidden(path),
        libc::EPERM => Obstacle::Denied(path),
        _ => Obstacle::Unopenable(path, error.into()),
    }
}

/// Whether a KVM with this version and these capabilities will do.
fn judge(version: i32, has: impl Fn(Cap) -> bool) -> Result<(), Obstacle> {
    if version != API_VERSION {
        return Err(Obstacle::Version(version));
    }
    let missing: Vec<&str> =
        REQUIRED.iter().filter(|(cap, _)| !has(*cap)).map(|&(_, name)| name).collect();
    if missing.is_empty() { Ok(()) } else { Err(Obstacle::Lacks(missing)) }
}

/// A system call on a virtual machine or processor failed.
pub fn failed(what: impl Into<String>, error: kvm_ioctls::Error) -> Fault {
    Fault::Host {
        what: what.into(),
        source: error.into(),
        remedy: "dmesg may say more; the accelerator \"soft\" needs no KVM".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(obstacle: Obstacle) -> String {
        let fault = Fault::from(obstacle);
        assert!(matches!(fault, Fault::Host { .. }), "{fault:?}");
        fault.to_string()
    }

    #[test]
    fn what_cannot_be_opened_is_told_with_a_remedy() {
        let missing = message(open(Path::new("/nonexistent/kvm")).unwrap_err());
        assert!(missing.contains("/nonexistent/kvm") && missing.contains("modprobe"), "{missing}");
        let forbidden = message(Obstacle::Forbidden("/dev/kvm".into()));
        assert!(forbidden.contains("group"), "{forbidden}");
        assert!(matches!(open(Path::new("/dev/null")), Err(Obstacle::Foreign(_))));
        assert!(matches!(open(Path::new("/etc/passwd")), Err(Obstacle::NotADevice(_))));
    }

    #[test]
    fn each_failure_to_open_has_its_obstacle() {
        let why = |errno| unopened("/dev/kvm".into(), kvm_ioctls::Error::new(errno));
        assert!(matches!(why(libc::ENOENT), Obstacle::Missing(_)));
        assert!(matches!(why(libc::EACCES), Obstacle::Forbidden(_)));
        let denied = message(why(libc::EPERM));
        assert!(denied.contains("--device /dev/kvm") && !denied.contains("group kvm"), "{denied}");
        assert!(denied.contains("not permitted"), "{denied}");
        assert!(matches!(why(libc::EMFILE), Obstacle::Unopenable(..)));
        for errno in [libc::ENODEV, libc::ENXIO] {
            let unserved = message(why(errno));
            assert!(unserved.contains("no kernel module serves it"), "{unserved}");
            assert!(unserved.contains("modprobe"), "{unserved}");
        }
    }

    #[test]
    fn old_interfaces_are_refused() {
        let old = judge(11, |_| true).unwrap_err();
        assert!(message(old).contains("version 11"));
        assert!(judge(12, |_| true).is_ok());
    }

    #[test]
    fn every_missing_capability_is_named() {
        for &(cap, name) in REQUIRED {
            let text = message(judge(12, |c| c as u32 != cap as u32).unwrap_err());
            assert!(text.contains(name), "{text}");
            assert!(text.contains("newer kernel"), "{text}");
        }
    }
}
