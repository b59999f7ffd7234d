//! The lock of a guest's directory. Whoever runs a guest, or changes its files, holds it: the VMM
//! inherits it from the `lodge` that starts it, and the kernel releases it when the last of them
//! ends, in whatever way. So it is the one truth about whether a guest runs.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmm_api::Failure;

use crate::failure;

/// What the names of directories begin with that are being removed. No guest has such a name.
pub const REMOVED_PREFIX: &str = ".removed-";
/// The name of the file that is locked.
const LOCK: &str = "lock";
/// Who only looks holds the lock for a moment; who wants it waits as long.
const MOMENT: Duration = Duration::from_millis(500);

/// Takes the lock of a guest's directory, making both; `None` if someone else has it.
pub fn take(directory: &Path) -> Result<Option<File>, Failure> {
    let guests = directory.parent().unwrap_or(directory);
    with_patience(directory, || {
        fs::create_dir_all(guests).map_err(|error| {
            Failure::host(format!(
                "{} cannot be created: {error}; choose another place for Lodge's files with \
                 LODGE_HOME",
                guests.display()
            ))
        })?;
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            // Another guest was the last one, and has ended just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(failure::io("create", directory)(error))
            }
            _ => open(directory, true),
        }
    })
}

/// Takes the lock of a guest that is there. The first `None`: it is not; the second: someone else
/// has it.
pub fn take_existing(directory: &Path) -> Result<Option<Option<File>>, Failure> {
    if !directory.is_dir() {
        return Ok(None);
    }
    let mut gone = false;
    let lock = with_patience(directory, || {
        let file = open(directory, directory.is_dir())?;
        gone = file.is_none() && !directory.is_dir();
        if gone { Err(Failure::configuration("it is gone")) } else { Ok(file) }
    });
    if gone { Ok(None) } else { lock.map(Some) }
}

/// Removes a guest's directory, whose lock the caller holds. It goes in one step: who comes meanwhile makes
/// one of its own.
pub fn remove(directory: &Path) -> io::Result<()> {
    static REMOVED: AtomicU32 = AtomicU32::new(0);
    let number = REMOVED.fetch_add(1, Ordering::Relaxed);
    let gone = directory.with_file_name(format!("{REMOVED_PREFIX}{}-{number}", std::process::id()));
    fs::rename(directory, &gone)?;
    match fs::remove_dir_all(gone) {
        // Another `lodge` has swept it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether someone holds the lock.
pub fn is_held(directory: &Path) -> bool {
    File::open(directory.join(LOCK))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Takes the lock of a directory that has one, if it is free.
pub fn try_existing(directory: &Path) -> Option<File> {
    // A directory without a lock is about to get one from who just made it.
    let file = File::options().write(true).open(directory.join(LOCK)).ok()?;
    (file.try_lock().is_ok() && is_there(&file, directory)).then_some(file)
}

/// The lock's device and inode.
fn identity(directory: &Path) -> Option<(u64, u64)> {
    fs::metadata(directory.join(LOCK)).ok().map(|it| (it.dev(), it.ino()))
}

/// Opens the lock's file; `None` if the directory is gone.
fn open(directory: &Path, create: bool) -> Result<Option<File>, Failure> {
    let path = directory.join(LOCK);
    match File::options().create(create).truncate(false).write(true).open(&path) {
        Ok(file) => Ok(Some(file)),
        // Its last owner removed the directory just now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failure::io("open", &path)(error)),
    }
}

/// Locks what `open` opens, again and again if the file goes meanwhile.
fn with_patience(
    directory: &Path,
    mut open: impl FnMut() -> Result<Option<File>, Failure>,
) -> Result<Option<File>, Failure> {
    let deadline = Instant::now() + MOMENT;
    loop {
        let Some(file) = open()? else { continue };
        match file.try_lock() {
            // A lock on a file that was removed meanwhile is worth nothing.
            Ok(()) if is_there(&file, directory) => return Ok(Some(file)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                return Err(failure::io("lock", &directory.join(LOCK))(error));
            }
        }
    }
}

/// Whether this open file is the directory's lock.
fn is_there(file: &File, directory: &Path) -> bool {
    let mine = file.metadata().ok().map(|it| (it.dev(), it.ino()));
    mine.is_some() && mine == identity(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_only_where_there_is_a_guest() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("guests/web");
        assert!(take_existing(&directory).unwrap().is_none());
        assert!(!directory.exists());
        let first = take(&directory).unwrap().unwrap();
        assert!(is_held(&directory) && try_existing(&directory).is_none());
        assert!(take(&directory).unwrap().is_none());
        assert!(take_existing(&directory).unwrap().unwrap().is_none());
        drop(first);
        assert!(!is_held(&directory));
        assert!(take_existing(&directory).unwrap().unwrap().is_some());
    }

    #[test]
    fn a_lock_that_is_removed_is_worth_nothing() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("guests/web");
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        // Each removes what it holds; nobody ever holds it with another.
                        let Some(lock) = take(&directory).unwrap() else { continue };
                        let mark = directory.join("mark");
                        assert!(File::options().create_new(true).write(true).open(mark).is_ok());
                        remove(&directory).unwrap();
                        drop(lock);
                    }
                });
            }
        });
    }
}
