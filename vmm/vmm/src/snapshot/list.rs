//! Which snapshots there are.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::Errno;
use vmm_api::{Failure, Snapshot};

use super::{ABOUT, SNAPSHOTS};

/// What is told of a snapshot is shorter.
const MAX_ABOUT: u64 = 1 << 20;

/// The snapshots in the guest's directory, the oldest first.
pub fn list(guest: &OwnedFd) -> Result<Vec<Snapshot>, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let cannot = |e| Failure::host(format!("cannot read the directory of snapshots: {e}"));
    let snapshots = match openat(guest, SNAPSHOTS, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        opened => opened.map_err(cannot)?,
    };
    let mut list = Vec::new();
    for entry in Dir::read_from(&snapshots).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let name = entry.file_name().to_string_lossy();
        if vmm_api::validate_name(&name).is_err() {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&snapshots, format!("{name}/{ABOUT}"), flags, Mode::empty());
        let mut text = String::new();
        // One that cannot be read is none to go on from; `lodge snapshot ls` says why.
        if let Ok(file) = file
            && File::from(file).take(MAX_ABOUT).read_to_string(&mut text).is_ok()
            && let Ok(snapshot) = serde_json::from_str::<Snapshot>(&text)
        {
            list.push(snapshot);
        }
    }
    list.sort_by_key(|snapshot| snapshot.created_ms);
    Ok(list)
}
