//! File systems: what the kernel shows, and the image's disk as the root.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::program::MODULES;
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};
use rustix::system::finit_module;

use super::files::about;

/// The image's disk: the first of the guest's.
const DISK: &str = "/dev/vda";
/// Where it is mounted before it becomes the root.
const NEW_ROOT: &str = "/root";
/// How long its driver may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Mounts what is needed to come by anything else, loads the modules, and mounts the disk.
pub fn prepare() -> io::Result<()> {
    for directory in ["/dev", "/proc", "/sys", NEW_ROOT] {
        fs::create_dir_all(directory).map_err(about(directory))?;
    }
    attach("devtmpfs", "/dev", MountFlags::NOSUID, "mode=755")?;
    attach("proc", "/proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, "")?;
    attach("sysfs", "/sys", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, "")?;
    load_modules()?;
    let begun = Instant::now();
    while !Path::new(DISK).exists() {
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("{DISK}: the guest has no disk")));
        }
        thread::sleep(Duration::from_millis(5));
    }
    mount(DISK, NEW_ROOT, "ext4", MountFlags::empty(), None)
        .map_err(|error| about(DISK)(error.into()))
}

/// Makes the disk the root, with all that programs expect to be mounted.
pub fn enter() -> io::Result<()> {
    for (directory, mode) in
        [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("run", 0o755), ("tmp", 0o1777)]
    {
        let path = Path::new(NEW_ROOT).join(directory);
        if fs::symlink_metadata(&path).is_err() {
            fs::create_dir(&path).map_err(about(directory))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(about(directory))?;
        }
    }
    for directory in ["dev", "proc", "sys"] {
        let target = Path::new(NEW_ROOT).join(directory);
        mount_move(format!("/{directory}"), &target)
            .map_err(|error| about(directory)(error.into()))?;
    }
    // The modules are in the kernel now; files in the initial RAM disk take memory as long as it is
    // there, and nobody can reach it from now on.
    let _ = fs::remove_dir_all("/lodge");
    std::env::set_current_dir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")?;

    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, target, flags, data) in [
        ("devpts", "/dev/pts", quiet, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("tmpfs", "/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777"),
        ("mqueue", "/dev/mqueue", quiet | MountFlags::NODEV, ""),
        ("cgroup2", "/sys/fs/cgroup", quiet | MountFlags::NODEV, ""),
    ] {
        // Few programs need them, and they say so themselves.
        let _ = fs::create_dir_all(target);
        let _ = attach(kind, target, flags, data);
    }
    for (name, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = symlink(target, name);
    }
    Ok(())
}

/// Leaves the disk as one that needs no repair: everything else has ended by now.
pub fn close() {
    rustix::fs::sync();
    // Its last writers may just be ending.
    for _ in 0..100 {
        if mount_remount("/", MountFlags::RDONLY, "").is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn attach(kind: &str, target: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    let data = std::ffi::CString::new(data)?;
    mount(kind, target, kind, flags, Some(data.as_c_str()))
        .map_err(|error| about(target)(error.into()))
}

/// Loads the kernel's modules. What is in the kernel already is no failure.
fn load_modules() -> io::Result<()> {
    let entries = fs::read_dir(MODULES).map_err(about(MODULES))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let name = path.display().to_string();
        let file = File::open(&path).map_err(about(&name))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(about(&name)(error.into())),
        }
    }
    Ok(())
}
