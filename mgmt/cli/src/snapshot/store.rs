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

/// All files of a snapshot, without the layers of disks.
pub fn files(guest: &Path, name: &str) -> Result<Vec<PathBuf>, Failure> {
    let directory = directory(guest, name);
    let cannot = failure::io("read", &directory);
    let entries: Result<Vec<_>, _> = fs::read_dir(&directory).and_then(Iterator::collect);
    Ok(entries.map_err(cannot)?.iter().map(fs::DirEntry::path).collect())
}

/// How much room a snapshot takes on disk, without the layers of disks, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What it has alone, and what is free again without it.
    pub own: u64,
    /// What it shares with other snapshots or with clones.
    pub shared: u64,
}

/// How much room a snapshot takes.
pub fn room(guest: &Path, name: &str) -> Room {
    let mut room = Room::default();
    for file in files(guest, name).unwrap_or_default().iter().flat_map(fs::metadata) {
        let part = if file.nlink() > 1 { &mut room.shared } else { &mut room.own };
        *part = part.saturating_add(file.blocks().saturating_mul(512));
    }
    room
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
    fn what_others_have_as_well_is_shared() {
        let home = tempfile::tempdir().unwrap();
        let guest = home.path();
        for name in ["one", "two"] {
            fs::create_dir_all(directory(guest, name)).unwrap();
            fs::write(directory(guest, name).join("memory"), [1; 8192]).unwrap();
        }
        let [one, two] = ["one", "two"].map(|name| directory(guest, name));
        fs::hard_link(one.join("memory"), two.join("memory.1")).unwrap();
        let mut names = files(guest, "two").unwrap();
        names.sort();
        assert_eq!(names, [two.join("memory"), two.join("memory.1")]);
        let (first, second) = (room(guest, "one"), room(guest, "two"));
        assert_eq!(first, Room { own: 0, shared: second.own });
        assert_eq!(second.shared, first.shared);
        remove(guest, "web", "one").unwrap();
        assert_eq!(room(guest, "two"), Room { own: second.own + second.shared, shared: 0 });
    }

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
