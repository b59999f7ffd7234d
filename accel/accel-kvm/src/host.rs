//! /dev/kvm: opening it, and what it must be able to do.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use accel::Fault;
use kvm_ioctls::{Cap, Kvm};

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

/// Opens the device and makes sure that it can do all that is needed.
pub fn open(path: &Path) -> Result<Kvm, Fault> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Fault::Unsupported(format!("{path:?} is no path")))?;
    let kvm = Kvm::new_with_path(&name).map_err(|e| cannot_open(path, e.into()))?;
    judge(path, kvm.get_api_version(), |cap| kvm.check_extension(cap))?;
    Ok(kvm)
}

fn cannot_open(path: &Path, source: io::Error) -> Fault {
    let remedy = match source.kind() {
        io::ErrorKind::NotFound => {
            "load the module (modprobe kvm_intel or kvm_amd), or choose the accelerator \"soft\""
        }
        io::ErrorKind::PermissionDenied => {
            "have this user join the group that the file belongs to (usually kvm: usermod -aG kvm \
             NAME, then log in anew), or choose the accelerator \"soft\""
        }
        _ => "`lodge check` says more; the accelerator \"soft\" needs no KVM",
    };
    Fault::Host { what: format!("cannot open {}", path.display()), source, remedy: remedy.into() }
}

/// Whether a KVM with this version and these capabilities will do.
fn judge(path: &Path, version: i32, has: impl Fn(Cap) -> bool) -> Result<(), Fault> {
    let refused = |why: String, remedy: &str| Fault::Host {
        what: format!("{} cannot be used", path.display()),
        source: io::Error::new(io::ErrorKind::Unsupported, why),
        remedy: remedy.to_owned(),
    };
    if version < 0 {
        return Err(refused(
            "it does not answer as KVM does".to_owned(),
            "see which module serves it, or choose the accelerator \"soft\"",
        ));
    }
    if version != API_VERSION {
        return Err(refused(
            format!("its interface has version {version} instead of {API_VERSION}"),
            "use a kernel of this century, or choose the accelerator \"soft\"",
        ));
    }
    let missing: Vec<&str> =
        REQUIRED.iter().filter(|(cap, _)| !has(*cap)).map(|&(_, name)| name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(refused(
        format!("this kernel's KVM lacks {}", missing.join(", ")),
        "use a newer kernel (Linux 5.10 has all that Lodge needs), or choose the accelerator \
         \"soft\"",
    ))
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

    fn message(fault: Result<(), Fault>) -> String {
        let fault = fault.unwrap_err();
        assert!(matches!(fault, Fault::Host { .. }), "{fault:?}");
        fault.to_string()
    }

    #[test]
    fn what_cannot_be_opened_is_told_with_a_remedy() {
        let missing = open(Path::new("/nonexistent/kvm")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/kvm") && missing.contains("modprobe"), "{missing}");
        let forbidden = cannot_open(Path::new("/dev/kvm"), io::ErrorKind::PermissionDenied.into());
        assert!(forbidden.to_string().contains("group"), "{forbidden}");
        let no_kvm = open(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(no_kvm.contains("does not answer as KVM"), "{no_kvm}");
    }

    #[test]
    fn old_interfaces_are_refused() {
        let path = Path::new("/dev/kvm");
        assert!(message(judge(path, 11, |_| true)).contains("version 11"));
        assert!(judge(path, 12, |_| true).is_ok());
    }

    #[test]
    fn every_missing_capability_is_named() {
        let path = Path::new("/dev/kvm");
        for &(cap, name) in REQUIRED {
            let text = message(judge(path, 12, |c| c as u32 != cap as u32));
            assert!(text.contains(name), "{text}");
            assert!(text.contains("newer kernel"), "{text}");
        }
    }
}
