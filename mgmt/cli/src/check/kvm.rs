//! Whether /dev/kvm works, tried out.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde::Serialize;

use crate::sys::{KvmRequest, kvm_ioctl};

/// The interface version that every KVM since Linux 2.6.22 has.
const API_VERSION: i32 = 12;

/// How far one comes with /dev/kvm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kvm {
    /// There is no such file.
    Missing,
    /// The file is something else.
    NotADevice,
    /// This user may not open it.
    Forbidden,
    /// Opening fails for another reason.
    Unopenable(String),
    /// It answers wrongly or not at all.
    Foreign(String),
    /// It opens and makes no virtual machines.
    NoMachines(String),
    /// It makes virtual machines.
    Works,
}

/// Tries /dev/kvm up to making a virtual machine, which is given back at once.
pub fn probe(path: &Path) -> Kvm {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Kvm::Missing,
        Ok(metadata) if !metadata.file_type().is_char_device() => return Kvm::NotADevice,
        _ => {}
    }
    let device = match File::options().read(true).write(true).open(path) {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Kvm::Forbidden,
        Err(error) => return Kvm::Unopenable(error.to_string()),
    };
    match kvm_ioctl(device.as_fd(), KvmRequest::GetApiVersion) {
        Ok(API_VERSION) => {}
        Ok(other) => return Kvm::Foreign(format!("it has interface version {other}, not 12")),
        Err(error) => return Kvm::Foreign(error.to_string()),
    }
    match kvm_ioctl(device.as_fd(), KvmRequest::CreateVm) {
        Ok(_) => Kvm::Works,
        Err(error) => Kvm::NoMachines(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kvm_is_told() {
        assert_eq!(probe(Path::new("/nonexistent")), Kvm::Missing);
        assert_eq!(probe(Path::new("/etc/passwd")), Kvm::NotADevice);
        assert!(matches!(probe(Path::new("/dev/null")), Kvm::Foreign(_)));
    }
}
