//! The snapshots of a guest: a directory each, `snapshots/NAME` in the guest's.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vmm_api::{Failure, Snapshot};

use crate::failure;
use crate::guests::lock;

const SNAPSHOTS: &str = "snapshots";
const ABOUT: &str = "snapshot.json";
/// All files of a snapshot.
pub const FILES: [&str; 3] = ["state", "memory", ABOUT];

/// Where a snapshot is.
pub fn directory(guest: &Path, name: &str) -> PathBuf {
    guest.join(SNAPSHOTS).join(name)
}

/// All snapshots, the oldest first.
pub fn all(guest: &Path) -> Result<Vec<Snapshot>, Failure> {
    let mut snapshots = Vec::new();
    for name in names(guest)? {
        if vmm_api::validate_name(&name).is_ok() {
            snapshots.push(read(guest, &name)?);
        }
    }
    snapshots.sort_by_key(|snapshot| snapshot.created_ms);
    Ok(snapshots)
}

/// The snapshot of this name, or the newest, of the guest that is called `of`.
pub fn find(guest: &Path, of: &str, name: Option<&str>) -> Result<Snapshot, Failure> {
    match name {
        Some(name) => {
            vmm_api::validate_name(name).map_err(failure::config)?;
            if !directory(guest, name).is_dir() {
                return Err(no_such(of, name));
            }
            read(guest, name)
        }
        None => all(guest)?.pop().ok_or_else(|| {
            Failure::configuration(format!(
                "{of} has no snapshots: `lodge snapshot create {of}` makes one while it runs"
            ))
        }),
    }
}

/// How much room a snapshot takes on disk, without the layers of disks, in bytes.
pub fn bytes(guest: &Path, name: &str) -> u64 {
    let directory = directory(guest, name);
    let blocks = |file| fs::metadata(directory.join(file)).map_or(0, |file| file.blocks());
    FILES.iter().map(blocks).sum::<u64>().saturating_mul(512)
}

/// Removes a snapshot. What was on disks is left.
pub fn remove(guest: &Path, of: &str, name: &str) -> Result<(), Failure> {
    vmm_api::validate_name(name).map_err(failure::config)?;
    let directory = directory(guest, name);
    // Under another name, so that half of one is none.
    let leaving = directory.with_file_name(format!(".{name}.leaving"));
    let _ = fs::remove_dir_all(&leaving);
    match fs::rename(&directory, &leaving) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_such(of, name)),
        result => result.map_err(failure::io("remove", &directory))?,
    }
    fs::remove_dir_all(&leaving).map_err(failure::io("remove", &leaving))
}

/// Removes what killed programs left, unless the guest's VMM may be at work there.
pub fn sweep(guest: &Path) {
    let Some(_lock) = lock::try_existing(guest) else { return };
    for name in names(guest).unwrap_or_default() {
        if name.starts_with('.') {
            let _ = fs::remove_dir_all(guest.join(SNAPSHOTS).join(name));
        }
    }
}

fn names(guest: &Path) -> Result<Vec<String>, Failure> {
    let snapshots = guest.join(SNAPSHOTS);
    match fs::read_dir(&snapshots) {
        Ok(entries) => {
            Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failure::io("read", &snapshots)(error)),
    }
}

fn read(guest: &Path, name: &str) -> Result<Snapshot, Failure> {
    let path = directory(guest, name).join(ABOUT);
    let damaged = |why: &dyn std::fmt::Display| {
        Failure::artifact(format!(
            "the snapshot {name} is damaged: {}: {why}; remove it with `lodge snapshot rm`",
            path.display()
        ))
    };
    let text = fs::read(&path).map_err(|error| damaged(&error))?;
    let snapshot: Snapshot = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
    Ok(Snapshot { name: name.to_owned(), ..snapshot })
}

fn no_such(guest: &str, name: &str) -> Failure {
    Failure::configuration(format!(
        "{guest} has no snapshot {name}; `lodge snapshot ls {guest}` lists them"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_goes_whole_and_what_was_left_is_swept() {
        let home = tempfile::tempdir().unwrap();
        let guest = home.path();
        assert!(all(guest).unwrap().is_empty());
        for name in ["one", ".two.partial", ".three.leaving"] {
            fs::create_dir_all(directory(guest, name)).unwrap();
            fs::write(directory(guest, name).join("memory"), b"x").unwrap();
        }
        let failure = all(guest).unwrap_err();
        assert!(failure.message.contains("the snapshot one is damaged"), "{failure}");
        assert!(find(guest, "web", Some("../one")).is_err());
        assert!(find(guest, "web", Some("four")).unwrap_err().message.contains("snapshot ls web"));
        remove(guest, "web", "one").unwrap();
        assert!(remove(guest, "web", "one").is_err());
        fs::write(guest.join("lock"), b"").unwrap();
        sweep(guest);
        assert_eq!(names(guest).unwrap(), Vec::<String>::new());
    }
}
