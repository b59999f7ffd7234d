//! Files in the disk of a Debian image, which nobody mounts.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::host::TOOL_PATH;

/// The version of the newest kernel that is installed there.
///
/// # Errors
///
/// If debugfs (of e2fsprogs) is not installed, or no kernel there.
pub fn kernel_release(disk: &Path) -> io::Result<String> {
    let output = debugfs(disk, "ls -p /lib/modules")?;
    // /inode/mode/uid/gid/name/size/
    let names = output.lines().filter_map(|line| line.split('/').nth(5));
    let release = names.filter(|name| name.ends_with("-amd64")).max();
    let release = release.ok_or_else(|| io::Error::other("the image has no kernel modules"))?;
    Ok(release.to_owned())
}

/// What is in a file there; `scratch` is where it may lie meanwhile.
///
/// # Errors
///
/// If debugfs is not installed, or the file not there.
pub fn read(disk: &Path, file: &str, scratch: &Path) -> io::Result<Vec<u8>> {
    let _ = fs::remove_file(scratch);
    debugfs(disk, &format!("dump {file} {}", scratch.display()))?;
    let no_file = |e| io::Error::other(format!("the image has no {file}: {e}"));
    let contents = fs::read(scratch).map_err(no_file)?;
    fs::remove_file(scratch)?;
    Ok(contents)
}

fn debugfs(disk: &Path, request: &str) -> io::Result<String> {
    let output = Command::new("debugfs")
        .args(["-R", request])
        .arg(disk)
        .env("PATH", TOOL_PATH)
        .output()
        .map_err(|e| io::Error::other(format!("cannot run debugfs (of e2fsprogs): {e}")))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
