//! Making a snapshot of a guest that runs, which stands still for a moment meanwhile.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use state::Sections;
use state::memory::{self, Contents};
use vmm_api::{Failure, Snapshot, VmConfig};

use super::contents::{ClockState, Cpuid, Disks, put, section};
use super::{ABOUT, MEMORY, Parent, SNAPSHOTS, STATE};
use crate::api::Shown;
use crate::journal::unix_ms;
use crate::running::Running;

/// Makes a snapshot of this name in the guest's directory. It is there under its name once it is
/// whole and on stable storage, or not at all.
pub fn create(
    name: &str,
    running: &mut Running,
    shown: &Shown,
    directory: &OwnedFd,
) -> Result<(), Failure> {
    let config = &*shown.config;
    vmm_api::validate_name(name).map_err(Failure::configuration)?;
    running.machine().check_disks()?;
    let place = Place::new(directory, name)?;
    let memory = place.create(MEMORY)?;
    let mut parents = running.parents().iter();
    let parent = parents.find(|parent| parent.link_into(&place.directory)).cloned();

    // Most of what is to be written goes to disk while the guest runs.
    running.machine().flush_disks()?;
    let was_paused = running.is_paused();
    let begun = Instant::now();
    running.pause()?;
    let taken = take(running, config, &memory, parent.as_deref(), &id()?);
    if !was_paused {
        running.resume();
    }
    let stood_still = begun.elapsed();
    let Taken { state, memory: contents, layers } = taken?;
    if let Some(parent) = &parent {
        parent.unlink_from(&place.directory, &contents.older);
    }
    tracing::info!(?stood_still, "the guest goes on after a snapshot");

    let about = Snapshot {
        name: name.to_owned(),
        created_ms: unix_ms(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        accelerator: shown.accelerator,
        memory_bytes: config.memory_mib << 20,
        pause_us: stood_still.as_micros().try_into().unwrap_or(u64::MAX),
        layers,
        config: config.clone(),
    };
    let about = serde_json::to_vec_pretty(&about).map_err(Failure::internal)?;
    place.write(STATE, &state.to_bytes())?;
    place.write(ABOUT, &about)?;
    let directory = place.finish(&memory)?;
    match Parent::made(directory, contents, memory, parent.as_deref()) {
        Ok(parent) => running.stand_on(parent),
        // The snapshot is there all the same, and the next one is whole or stands on an older one.
        Err(failure) => tracing::warn!("no snapshot will stand on {name}: {}", failure.message),
    }
    Ok(())
}

/// What a snapshot consists of besides its own memory file.
struct Taken {
    state: Sections,
    /// What the memory files hold.
    memory: Contents,
    /// The names of the layers that disks stood on.
    layers: Vec<Option<String>>,
}

/// Takes the state of a machine that stands still, and has its disks go on in new layers.
fn take(
    running: &mut Running,
    config: &VmConfig,
    memory: &File,
    parent: Option<&Parent>,
    id: &str,
) -> Result<Taken, Failure> {
    // It is off the bus, still in the configuration, and may still store to memory.
    if running.machine().has_removed() {
        return Err(Failure::configuration(
            "the guest has just let go of a device, which is not closed yet: try again",
        ));
    }
    let mut state = Sections::default();
    let clock = ClockState {
        guest_ns: running.clock().now(),
        host_tsc: running.paused_since().unwrap_or_default(),
        tsc_hz: running.tsc_hz(),
    };
    put(&mut state, section::CLOCK, &clock)?;
    put(&mut state, section::CPUID, &Cpuid::of(running.cpuid(), config.hyperv))?;
    for (index, vcpu) in running.save_processors()?.iter().enumerate() {
        put(&mut state, &section::processor(index), vcpu)?;
    }
    put(&mut state, section::CHIPS, &running.save_chips()?)?;
    running.machine().save(&mut state)?;
    let contents = memory::write(running.memory(), memory, parent.map(Parent::memory))
        .map_err(|e| Failure::host(format!("cannot write the guest's memory: {e}")))?;
    put(&mut state, section::MEMORY, &contents)?;
    // Last: all else can be undone by forgetting it.
    let layers = running.machine().freeze_disks(id)?;
    put(&mut state, section::DISKS, &Disks { layers: layers.clone() })?;
    Ok(Taken { state, memory: contents, layers })
}

/// A name that no other layer has, of this guest or another.
fn id() -> Result<String, Failure> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Failure::host(format!("this host gives no random bytes: {e}")))?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

/// The directory of a snapshot that is being made: removed again unless it is finished.
struct Place {
    snapshots: OwnedFd,
    partial: String,
    name: String,
    directory: OwnedFd,
    is_finished: bool,
}

impl Place {
    fn new(guest: &OwnedFd, name: &str) -> Result<Self, Failure> {
        let make = |parent: &OwnedFd, name: &str| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match mkdirat(parent, name, Mode::RWXU) {
                Err(error) if error != Errno::EXIST => Err(error),
                _ => openat(parent, name, flags, Mode::empty()),
            }
            .map_err(cannot("make the directory of", name))
        };
        let snapshots = make(guest, SNAPSHOTS)?;
        if openat(&snapshots, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).is_ok() {
            return Err(Failure::configuration(format!(
                "there is a snapshot {name} already: choose another name, or remove it with \
                 `lodge snapshot rm`"
            )));
        }
        let partial = format!(".{name}.partial");
        remove(&snapshots, &partial);
        let directory = make(&snapshots, &partial)?;
        Ok(Self { snapshots, partial, name: name.to_owned(), directory, is_finished: false })
    }

    fn create(&self, name: &str) -> Result<File, Failure> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(cannot("make", name))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let mut file = self.create(name)?;
        let written = file.write_all(bytes).and_then(|()| settle(&file));
        written.map_err(cannot("write", name))
    }

    /// Everything is there: gives it its name.
    fn finish(mut self, memory: &File) -> Result<OwnedFd, Failure> {
        settle(memory).map_err(cannot("write", MEMORY))?;
        let directory = self.directory.try_clone().map_err(cannot("name", &self.name))?;
        let sync = |directory: &OwnedFd| rustix::fs::fsync(directory);
        sync(&self.directory)
            .and_then(|()| renameat(&self.snapshots, &self.partial, &self.snapshots, &self.name))
            .and_then(|()| sync(&self.snapshots))
            .map_err(cannot("name", &self.name))?;
        self.is_finished = true;
        Ok(directory)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_finished {
            remove(&self.snapshots, &self.partial);
        }
    }
}

/// What is in a file stays so.
fn settle(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o400))?;
    file.sync_all()
}

/// Removes the directory of a snapshot that is not whole.
fn remove(snapshots: &OwnedFd, name: &str) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(directory) = openat(snapshots, name, flags, Mode::empty()) else { return };
    for entry in Dir::read_from(&directory).into_iter().flatten().flatten() {
        // Those of the directory itself and of its parent are no files.
        let _ = unlinkat(&directory, entry.file_name(), AtFlags::empty());
    }
    let _ = unlinkat(snapshots, name, AtFlags::REMOVEDIR);
}

fn cannot<E: std::fmt::Display>(what: &str, name: &str) -> impl FnOnce(E) -> Failure {
    let what = format!("cannot {what} the snapshot's {name}");
    move |error| Failure::host(format!("{what}: {error}; see whether the host has room for it"))
}
