//! The guests of one user: a directory each, with the disk that a guest of an image writes to and
//! the socket by which a running guest's VMM is asked things.
//!
//! Whoever runs a guest holds the lock in its directory. So a directory whose lock is free and
//! which is not marked to be kept was left by someone who was killed, and is removed.

use std::fmt::Write;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use images::ImageName;
use serde::{Deserialize, Serialize};
use vmm_api::Failure;

use crate::{failure, output, size, socket};

const LOCK: &str = "lock";
const RECORD: &str = "guest.json";
const DISK: &str = "disk.qcow2";

/// What is known of a guest; `guest.json` in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The image that the disk is based on.
    pub image: String,
    /// The sum of the image's disk: on another one, the guest's disk would make no sense.
    pub disk_sha256: String,
    /// Whether the disk outlives the run.
    pub keep: bool,
}

/// A guest that this process runs. Its directory goes with it unless it is kept.
pub struct Guest {
    directory: PathBuf,
    record: Option<Record>,
    /// Released when the file is closed, after the directory is gone.
    _lock: File,
}

impl Guest {
    /// Makes `name` this process's guest, new or kept by an earlier run.
    pub fn claim(home: &Path, name: &str) -> Result<Guest, Failure> {
        let guests = home.join("guests");
        sweep(&guests);
        let directory = guests.join(name);
        // A list that looks whether the guest runs holds the lock for a moment.
        let deadline = Instant::now() + Duration::from_millis(500);
        loop {
            match lock(&directory)? {
                Some(lock) => {
                    let record = read_record(&directory)?.filter(|record| record.keep);
                    return Ok(Guest { directory, record, _lock: lock });
                }
                None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                None => {
                    return Err(Failure::configuration(format!(
                        "a guest named {name} is running already: choose another name with --name"
                    )));
                }
            }
        }
    }

    /// Where the guest's VMM is to listen.
    pub fn listen(&self) -> io::Result<UnixListener> {
        socket::listen(&self.directory)
    }

    /// What an earlier run kept.
    pub fn kept(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Writes down what the guest is made of, and whether it is to be kept.
    pub fn set_record(&mut self, record: Record) -> Result<(), Failure> {
        let path = self.directory.join(RECORD);
        let temporary = self.directory.join(".guest.json.new");
        let text = serde_json::to_vec(&record).map_err(Failure::internal)?;
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(failure::io("write", &path))?;
        self.record = Some(record);
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        if self.record.as_ref().is_some_and(|record| record.keep) {
            let _ = fs::remove_file(self.directory.join(socket::API));
        } else {
            let _ = fs::remove_dir_all(&self.directory);
            // Goes with the last guest.
            let _ = self.directory.parent().map(fs::remove_dir);
        }
    }
}

/// The disk that the guest of that name writes to.
pub fn disk(home: &Path, name: &str) -> PathBuf {
    home.join("guests").join(name).join(DISK)
}

/// The record of a kept guest, without claiming it.
pub fn kept(home: &Path, name: &str) -> Result<Option<Record>, Failure> {
    Ok(read_record(&home.join("guests").join(name))?.filter(|record| record.keep))
}

/// Connects to the VMM of a running guest.
pub fn connect(name: &str) -> Result<UnixStream, Failure> {
    vmm_api::validate_name(name).map_err(failure::config)?;
    let directory = images::home().map_err(failure::image)?.join("guests").join(name);
    let error = match socket::connect(&directory) {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let is_kept = || Ok(read_record(&directory)?.is_some_and(|record| record.keep));
    if is_running(&directory) {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        let why = match error.kind() {
            ConnectionRefused | NotFound => "it is just starting or ending; try again".to_owned(),
            _ => error.to_string(),
        };
        return Err(Failure::host(format!("the guest {name} cannot be asked: {why}")));
    }
    Err(Failure::configuration(match is_kept()? {
        true => format!("the guest {name} does not run: `lodge run --name {name}` starts it"),
        false => format!("there is no guest {name}; `lodge ls` lists guests"),
    }))
}

/// The names of the kept guests whose disks are based on an image.
pub fn based_on(image: &ImageName) -> Result<Vec<String>, Failure> {
    let guests = images::home().map_err(failure::image)?.join("guests");
    let mut names = Vec::new();
    for name in names_in(&guests)? {
        let record = read_record(&guests.join(&name)).ok().flatten();
        if record.is_some_and(|record| record.keep && record.image == image.as_str()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// `lodge ls`.
pub fn print_list() -> Result<u8, Failure> {
    let guests = images::home().map_err(failure::image)?.join("guests");
    sweep(&guests);
    let names = names_in(&guests)?;
    if names.is_empty() {
        eprintln!("There are no guests; `lodge run debian:12` starts one.");
        return Ok(0);
    }
    let mut table = format!("{:<24} {:<9} {:<20} {:>9}\n", "GUEST", "STATE", "IMAGE", "DISK");
    for name in names {
        let directory = guests.join(&name);
        let state = if is_running(&directory) { "running" } else { "kept" };
        let image = read_record(&directory).ok().flatten().map(|record| record.image);
        let disk = fs::metadata(directory.join(DISK)).map_or(0, |disk| disk.blocks() * 512);
        let _ = writeln!(
            table,
            "{name:<24} {state:<9} {:<20} {:>9}",
            image.as_deref().unwrap_or("-"),
            size::format_bytes(disk)
        );
    }
    output::print(table)?;
    Ok(0)
}

/// `lodge rm`.
pub fn remove(name: &str) -> Result<u8, Failure> {
    vmm_api::validate_name(name).map_err(failure::config)?;
    let home = images::home().map_err(failure::image)?;
    let directory = home.join("guests").join(name);
    if !directory.is_dir() {
        return Err(Failure::configuration(format!(
            "there is no guest {name}; `lodge ls` lists guests"
        )));
    }
    if is_running(&directory) {
        return Err(Failure::configuration(format!("the guest {name} is running: stop it first")));
    }
    fs::remove_dir_all(&directory).map_err(failure::io("remove", &directory))?;
    eprintln!("{name} is removed");
    Ok(0)
}

/// Takes the lock of a guest's directory, making both; `None` if someone else has it.
fn lock(directory: &Path) -> Result<Option<File>, Failure> {
    let path = directory.join(LOCK);
    let guests = directory.parent().unwrap_or(directory);
    loop {
        fs::create_dir_all(guests).map_err(|error| {
            Failure::host(format!(
                "{} cannot be created: {error}; choose another place for Lodge's files with \
                 LODGE_HOME",
                guests.display()
            ))
        })?;
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            // Another guest was the last one, and has ended just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failure::io("create", directory)(error));
            }
            _ => {}
        }
        let file = match File::options().create(true).truncate(false).write(true).open(&path) {
            Ok(file) => file,
            // Its last owner removed the directory just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failure::io("open", &path)(error)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(failure::io("lock", &path)(error)),
        }
        // A lock on a file that was removed meanwhile is worth nothing.
        let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        if let (Ok(mine), Ok(there)) = (file.metadata(), fs::metadata(&path))
            && same(mine, there)
        {
            return Ok(Some(file));
        }
    }
}

fn is_running(directory: &Path) -> bool {
    File::open(directory.join(LOCK))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

fn read_record(directory: &Path) -> Result<Option<Record>, Failure> {
    let path = directory.join(RECORD);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failure::io("read", &path)(error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Failure::artifact(format!(
            "{} is damaged: {error}; remove the guest with `lodge rm`",
            path.display()
        ))
    })
}

fn names_in(guests: &Path) -> Result<Vec<String>, Failure> {
    let directory = match fs::read_dir(guests) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failure::io("read", guests)(error)),
    };
    let mut names: Vec<String> = directory
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| vmm_api::validate_name(name).is_ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Removes what killed runs left behind. A directory that cannot be judged stays.
fn sweep(guests: &Path) {
    for name in names_in(guests).unwrap_or_default() {
        let directory = guests.join(name);
        // A directory without a lock is about to get one from the run that just made it.
        let Ok(lock) = File::open(directory.join(LOCK)) else { continue };
        let abandoned = || match read_record(&directory) {
            Ok(record) => !record.is_some_and(|record| record.keep),
            Err(_) => false,
        };
        if lock.try_lock().is_ok() && abandoned() {
            let _ = fs::remove_dir_all(&directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(keep: bool) -> Record {
        Record { image: "debian:12".into(), disk_sha256: "00".into(), keep }
    }

    #[test]
    fn a_guest_goes_with_its_run() {
        let home = tempfile::tempdir().unwrap();
        let mut guest = Guest::claim(home.path(), "web").unwrap();
        guest.set_record(record(false)).unwrap();
        fs::write(disk(home.path(), "web"), b"disk").unwrap();
        drop(guest);
        assert!(!home.path().join("guests/web").exists());
    }

    #[test]
    fn a_kept_guest_is_there_next_time() {
        let home = tempfile::tempdir().unwrap();
        Guest::claim(home.path(), "web").unwrap().set_record(record(true)).unwrap();
        fs::write(disk(home.path(), "web"), b"disk").unwrap();
        let guest = Guest::claim(home.path(), "web").unwrap();
        assert_eq!(guest.kept(), Some(&record(true)));
        assert!(disk(home.path(), "web").exists());
        assert_eq!(kept(home.path(), "web").unwrap(), Some(record(true)));
        assert_eq!(kept(home.path(), "other").unwrap(), None);
    }

    #[test]
    fn one_name_is_one_running_guest() {
        let home = tempfile::tempdir().unwrap();
        let _first = Guest::claim(home.path(), "web").unwrap();
        let Err(second) = Guest::claim(home.path(), "web") else { panic!("claimed twice") };
        assert!(second.message.contains("running already"), "{second}");
        Guest::claim(home.path(), "other").unwrap();
    }

    #[test]
    fn what_a_killed_run_left_is_swept_and_kept_guests_are_not() {
        let home = tempfile::tempdir().unwrap();
        for (name, keep) in [("killed", false), ("kept", true)] {
            let mut guest = Guest::claim(home.path(), name).unwrap();
            guest.set_record(record(keep)).unwrap();
            // As a kill does: the lock is released and nothing is removed.
            let Guest { directory, record, _lock } = &guest;
            assert!(directory.exists() && record.is_some());
            _lock.unlock().unwrap();
            std::mem::forget(guest);
        }
        let running = Guest::claim(home.path(), "running").unwrap();
        sweep(&home.path().join("guests"));
        assert_eq!(names_in(&home.path().join("guests")).unwrap(), ["kept", "running"]);
        drop(running);
    }
}
