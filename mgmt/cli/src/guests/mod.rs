//! The guests of one user: a directory each in `$LODGE_HOME/guests`.
//!
//! | file | what |
//! |---|---|
//! | `lock` | held by whoever runs the guest or changes its files ([`lock`]) |
//! | `guest.toml` | what the guest is made of, for `lodge start` ([`definition`](crate::run::definition)) |
//! | `guest.json` | what else is known of it ([`Record`]) |
//! | `disk.qcow2` | where the guest of an image writes to |
//! | `snapshots`, `layer-*.qcow2` | its snapshots, and what was on its disk then ([`snapshot`](crate::snapshot)) |
//! | `api.sock`, `vmm.pid` | while it runs: its VMM's API and process number |
//! | `vsock.sock` | while it runs: where programs connect to ports in the guest |
//! | `events.jsonl`, `console.log`, `vmm.log` | what happened; written by its VMM |
//!
//! A directory whose lock is free and which is not marked to be kept was left by someone who was
//! killed, and is removed.

pub mod lock;
mod record;
pub mod state;

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use images::ImageName;
use vmm_api::Failure;
use vmm_client::Client;

use crate::run::cgroup;
use crate::{failure, socket};
pub use record::{Record, write_whole};

const DISK: &str = "disk.qcow2";
const PID: &str = "vmm.pid";
/// Where programs connect to ports in the guest; its VMM makes it.
const VSOCK: &str = "vsock.sock";
/// What the guest is made of, as TOML.
pub const DEFINITION: &str = "guest.toml";
/// What the guest wrote to its console.
pub const CONSOLE_LOG: &str = "console.log";
/// What a detached VMM says besides.
pub const VMM_LOG: &str = "vmm.log";

/// A guest that this process runs, or changes. Its directory goes with it unless it is kept.
pub struct Guest {
    directory: PathBuf,
    record: Option<Record>,
    /// Its VMM goes on without this process.
    handed_over: bool,
    /// Released when the file is closed, after the directory is gone.
    lock: File,
}

impl Guest {
    /// Makes `name` this process's guest, new or kept by an earlier run.
    pub fn claim(home: &Path, name: &str) -> Result<Guest, Failure> {
        let guests = home.join("guests");
        sweep(&guests);
        let directory = guests.join(name);
        let lock = lock::take(&directory)?.ok_or_else(|| {
            Failure::configuration(format!(
                "a guest named {name} is running already: choose another name with --name"
            ))
        })?;
        let record = Record::read(&directory)?.filter(|record| record.keep);
        Ok(Guest { directory, record, handed_over: false, lock })
    }

    /// Makes the guest `name`, which must be there and not run, this process's.
    pub fn claim_existing(name: &str) -> Result<Guest, Failure> {
        let directory = directory_of(name)?;
        sweep(directory.parent().unwrap_or(&directory));
        match lock::take_existing(&directory)? {
            None => Err(no_such_guest(name)),
            Some(None) => Err(Failure::configuration(format!(
                "the guest {name} is running: `lodge stop {name}` stops it"
            ))),
            Some(Some(lock)) => {
                // Whatever its record says, it is there on purpose.
                let record = Some(Record::read(&directory).ok().flatten().unwrap_or_default());
                let record = record.map(|record| Record { keep: true, ..record });
                Ok(Guest { directory, record, handed_over: false, lock })
            }
        }
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The lock, for its VMM to hold as well.
    pub fn lock(&self) -> &File {
        &self.lock
    }

    /// Where the guest's VMM is to listen.
    pub fn listen(&self) -> io::Result<UnixListener> {
        socket::listen(&self.directory)
    }

    /// What an earlier run kept.
    pub fn kept(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// Writes down what is known of the guest, and whether it is to be kept.
    pub fn set_record(&mut self, record: Record) -> Result<(), Failure> {
        record.write(&self.directory)?;
        self.record = Some(record);
        Ok(())
    }

    /// Writes down the process number of its VMM.
    pub fn set_pid(&self, pid: u32) -> Result<(), Failure> {
        let start = process_start(pid).unwrap_or_default();
        record::write_for_now(&self.directory, PID, format!("{pid} {start}").as_bytes())
    }

    /// Leaves the guest to its VMM, which holds the lock.
    pub fn hand_over(mut self) {
        self.handed_over = true;
    }

    /// Removes the guest and everything of it.
    pub fn remove(mut self) -> Result<(), Failure> {
        self.record = None;
        remove(&self.directory).map_err(failure::io("remove", &self.directory))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.handed_over {
            return;
        }
        // What cannot be removed now is swept by the next run.
        if self.record.as_ref().is_some_and(|record| record.keep) {
            remove_remains(&self.directory);
        } else {
            let _ = remove(&self.directory);
            // Goes with the last guest.
            let _ = self.directory.parent().map(fs::remove_dir);
        }
    }
}

/// Where guests are.
pub fn all() -> Result<PathBuf, Failure> {
    Ok(images::home().map_err(failure::image)?.join("guests"))
}

/// Where the guest of that name is, or would be.
pub fn directory_of(name: &str) -> Result<PathBuf, Failure> {
    vmm_api::validate_name(name).map_err(failure::config)?;
    Ok(all()?.join(name))
}

/// Where the guest of that name is.
pub fn existing(name: &str) -> Result<PathBuf, Failure> {
    let directory = directory_of(name)?;
    let abandoned = !lock::is_held(&directory) && !is_kept(&directory)?;
    if abandoned || !directory.is_dir() { Err(no_such_guest(name)) } else { Ok(directory) }
}

/// What a person is told who asks for a guest that is not there.
pub fn no_such_guest(name: &str) -> Failure {
    Failure::configuration(format!("there is no guest {name}; `lodge ls` lists guests"))
}

fn is_kept(directory: &Path) -> Result<bool, Failure> {
    Ok(Record::read(directory)?.is_some_and(|record| record.keep))
}

/// The disk that the guest of that name writes to.
pub fn disk(home: &Path, name: &str) -> PathBuf {
    home.join("guests").join(name).join(DISK)
}

/// The record of a kept guest, without claiming it.
pub fn kept(home: &Path, name: &str) -> Result<Option<Record>, Failure> {
    Ok(Record::read(&home.join("guests").join(name))?.filter(|record| record.keep))
}

/// Asks the VMM of a running guest.
pub fn client(name: &str) -> Result<Client, Failure> {
    let directory = directory_of(name)?;
    let error = match socket::connect(&directory) {
        Ok(stream) => match Client::new(stream) {
            Ok(client) => return Ok(client),
            Err(error) => return Err(error.about(name)),
        },
        Err(error) => error,
    };
    if lock::is_held(&directory) {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        let why = match error.kind() {
            ConnectionRefused | NotFound => "it is just starting or ending; try again".to_owned(),
            _ => error.to_string(),
        };
        return Err(Failure::host(format!("the guest {name} cannot be asked: {why}")));
    }
    if is_kept(&directory)? {
        return Err(Failure::configuration(format!(
            "the guest {name} does not run: `lodge start {name}` starts it, and \
             `lodge run --name {name}` does so in this terminal"
        )));
    }
    Err(no_such_guest(name))
}

/// The names of the kept guests whose disks are based on an image.
pub fn based_on(image: &ImageName) -> Result<Vec<String>, Failure> {
    let guests = all()?;
    let mut names = Vec::new();
    for name in names_in(&guests)? {
        let record = Record::read(&guests.join(&name)).ok().flatten();
        let is_its =
            |record: Record| record.keep && record.image.as_deref() == Some(image.as_str());
        if record.is_some_and(is_its) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The names of all guests, in order, after what killed runs left was removed.
pub fn names() -> Result<Vec<String>, Failure> {
    let guests = all()?;
    sweep(&guests);
    names_in(&guests)
}

/// Removes what guests that have ended left behind.
pub fn clean() {
    if let Ok(guests) = all() {
        sweep(&guests);
    }
}

/// The process that runs a guest, if the number that was written down is still its: it was started when
/// that was. (That it has the guest's lock open, only root could see: it lets nobody look into it.)
pub fn vmm(directory: &Path) -> Option<rustix::process::Pid> {
    let text = fs::read_to_string(directory.join(PID)).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    let pid = pid.parse().ok()?;
    let is_same = process_start(pid).is_some_and(|it| it.to_string() == start);
    is_same.then(|| rustix::process::Pid::from_raw(pid.try_into().ok()?))?
}

/// When a process was started, in clock ticks since the host was (proc(5), stat: the 22nd field).
fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The third field is the first behind the name, which is in brackets and may contain anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(22 - 3)?.parse().ok()
}

/// How much room the disk of the guest with this directory takes, in bytes.
pub fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(directory.join(DISK)).map_or(0, |disk| disk.blocks().saturating_mul(512))
}

/// The time of day in milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
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
    // Whoever removed these was killed, or is at work: two do no harm.
    for entry in fs::read_dir(guests).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(lock::REMOVED_PREFIX) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    for name in names_in(guests).unwrap_or_default() {
        let directory = guests.join(name);
        let Some(_lock) = lock::try_existing(&directory) else { continue };
        match is_kept(&directory) {
            Ok(false) => drop(remove(&directory)),
            // A VMM that was killed leaves these.
            Ok(true) => remove_remains(&directory),
            Err(_) => {}
        }
    }
}

/// Removes a guest's directory, whose lock the caller holds, and what is elsewhere because of it.
fn remove(directory: &Path) -> io::Result<()> {
    cgroup::remove(directory);
    lock::remove(directory)
}

/// Removes what is there only while a guest runs.
fn remove_remains(directory: &Path) {
    cgroup::remove(directory);
    for name in [socket::API, VSOCK, PID] {
        let _ = fs::remove_file(directory.join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(keep: bool) -> Record {
        let image = Some("debian:12".to_owned());
        Record { image, disk_sha256: Some("00".to_owned()), keep, created_ms: 1 }
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
        guest.remove().unwrap();
        assert!(!home.path().join("guests").exists());
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
            drop(guest.listen().unwrap());
            // As a kill does: the lock is released and nothing is removed.
            guest.hand_over();
            assert!(home.path().join("guests").join(name).join(socket::API).exists());
        }
        let running = Guest::claim(home.path(), "running").unwrap();
        sweep(&home.path().join("guests"));
        assert_eq!(names_in(&home.path().join("guests")).unwrap(), ["kept", "running"]);
        assert!(!home.path().join("guests/kept").join(socket::API).exists());
        drop(running);
    }

    #[test]
    fn the_process_that_runs_a_guest_is_found() {
        let home = tempfile::tempdir().unwrap();
        let guest = Guest::claim(home.path(), "web").unwrap();
        assert_eq!(vmm(guest.directory()), None);
        guest.set_pid(std::process::id()).unwrap();
        assert_eq!(vmm(guest.directory()), Some(rustix::process::getpid()));
        // A number that has become another process's.
        let start = process_start(std::process::id()).unwrap() + 1;
        let another = format!("{} {start}", std::process::id());
        fs::write(guest.directory().join(PID), another).unwrap();
        assert_eq!(vmm(guest.directory()), None);
    }
}
