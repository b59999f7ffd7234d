//! Limits on what a guest's VMM takes of this machine, by a control group of its own (cgroup v2,
//! Documentation/admin-guide/cgroup-v2.rst).
//!
//! Who may make groups, and where, is up to whoever manages the machine. So each group above our own is
//! tried, from the nearest on: in the first that lets us, the guest's is made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use vmm_api::{CpuShare, Limits};

/// The file in a guest's directory that names its group.
const NOTE: &str = "cgroup";
/// Names of groups begin so.
const PREFIX: &str = "lodge-";
/// How long a process may take to end that has been seen to.
const MOMENT: Duration = Duration::from_millis(200);
/// How long a period is in which a group may use its share, in microseconds: the kernel's default.
const PERIOD: u32 = 100_000;

/// A group that was made for a guest, with nobody in it yet.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// Makes a group for a guest with this directory, if its limits call for one, and notes it there. The
    /// error says, for people, why there can be none.
    pub fn make(limits: &Limits, name: &str, directory: &Path) -> Result<Option<Self>, String> {
        remove(directory);
        if limits.cpu.is_none() && limits.memory_mib.is_none() {
            return Ok(None);
        }
        let mount = mount().ok_or("this machine has no cgroup v2 (mount -t cgroup2)")?;
        let own = own(&mount).ok_or("this process is in no group of cgroup v2")?;
        let name = format!("{PREFIX}{name}-{}", std::process::id());
        let mut why = None;
        for parent in places(&mount, &own) {
            match make(&parent.join(&name), limits) {
                Ok(()) => {
                    let path = parent.join(&name);
                    if let Err(error) =
                        fs::write(directory.join(NOTE), path.as_os_str().as_encoded_bytes())
                    {
                        let _ = fs::remove_dir(&path);
                        return Err(format!("its control group cannot be noted: {error}"));
                    }
                    return Ok(Some(Self { path }));
                }
                Err(error) => why = Some(error),
            }
        }
        Err(why.unwrap_or_else(|| "there is no group that others can be made in".to_owned()))
    }

    /// Puts a process in.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }
}

/// Removes the group of the guest with this directory, which does not run any more.
pub fn remove(directory: &Path) {
    let note = directory.join(NOTE);
    let Ok(path) = fs::read_to_string(&note) else { return };
    let path = Path::new(&path);
    let is_ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    let deadline = Instant::now() + MOMENT;
    // Removes nothing but a group that is empty, which it is once the VMM's last thread has ended.
    while is_ours && path.join("cgroup.procs").exists() {
        match fs::remove_dir(path) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(2));
            }
            _ => break,
        }
    }
    let _ = fs::remove_file(note);
}

/// Makes a group with limits. The error says what is missing.
fn make(path: &Path, limits: &Limits) -> Result<(), String> {
    let parent = path.parent().unwrap_or(path);
    let wanted = [("cpu", limits.cpu.is_some()), ("memory", limits.memory_mib.is_some())];
    for (controller, _) in wanted.into_iter().filter(|(_, is_wanted)| *is_wanted) {
        enable(parent, controller)?;
    }
    let cannot =
        |what: &str, error: io::Error| format!("{} cannot be {what}: {error}", path.display());
    fs::create_dir(path).map_err(|error| cannot("made", error))?;
    let limited = [
        limits.cpu.map(|cpu| ("cpu.max", cpu_max(cpu))),
        limits.memory_mib.map(|mib| ("memory.max", (mib << 20).to_string())),
    ]
    .into_iter()
    .flatten()
    .try_for_each(|(file, value)| fs::write(path.join(file), value));
    limited.map_err(|error| {
        let _ = fs::remove_dir(path);
        cannot("limited", error)
    })
}

fn cpu_max(cpu: CpuShare) -> String {
    format!("{} {PERIOD}", u64::from(cpu.thousandths()) * u64::from(PERIOD) / 1000)
}

/// Has a group's members be limited by a controller.
fn enable(group: &Path, controller: &str) -> Result<(), String> {
    let file = group.join("cgroup.subtree_control");
    let has = |file: &Path| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.split_whitespace().any(|word| word == controller)
    };
    if has(&file) {
        return Ok(());
    }
    let place = group.display();
    if !has(&group.join("cgroup.controllers")) {
        return Err(format!("the control group {place} has no {controller} controller"));
    }
    fs::write(file, format!("+{controller}"))
        .map_err(|error| format!("the {controller} controller of {place} cannot be used: {error}"))
}

/// The groups above the one at `own`, and itself, from the nearest: those with processes of their own, as
/// that one, cannot have members that are limited, unless it is the root of all.
fn places<'a>(mount: &'a Path, own: &'a Path) -> impl Iterator<Item = &'a Path> {
    let above = own.ancestors().skip(1).take_while(move |place| place.starts_with(mount));
    above.chain((own == mount).then_some(mount))
}

/// Where cgroup v2 is mounted (proc(5), mountinfo).
fn mount() -> Option<PathBuf> {
    mount_in(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

fn mount_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| fields.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The group that this process is in (cgroups(7), /proc/PID/cgroup).
fn own(mount: &Path) -> Option<PathBuf> {
    own_in(&fs::read_to_string("/proc/self/cgroup").ok()?, mount)
}

fn own_in(cgroup: &str, mount: &Path) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Outside of what this process sees, as "/../x": unless the mount is of another name space.
    let path = Path::new(path);
    let is_within = path.components().all(|it| matches!(it, std::path::Component::Normal(_)));
    is_within.then(|| if path == Path::new("") { mount.to_owned() } else { mount.join(path) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found() {
        let mountinfo = "\
24 30 0:22 / /proc rw,nosuid - proc proc rw
36 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
";
        let mount = mount_in(mountinfo).unwrap();
        assert_eq!(mount, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(mount_in("24 30 0:22 / /proc rw - proc proc rw\n"), None);
        let own = own_in("4:memory:/x\n0::/user.slice/a.scope\n", &mount).unwrap();
        assert_eq!(own, mount.join("user.slice/a.scope"));
        assert_eq!(own_in("0::/\n", &mount).unwrap(), mount);
        assert_eq!(own_in("0::/../other\n", &mount), None);
        assert_eq!(own_in("4:memory:/x\n", &mount), None);
        let tried: Vec<_> = places(&mount, &own).collect();
        assert_eq!(tried, [mount.join("user.slice"), mount.clone()]);
        assert_eq!(places(&mount, &mount).collect::<Vec<_>>(), std::slice::from_ref(&mount));
    }

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let cpu = |text: &str| cpu_max(text.parse().unwrap());
        assert_eq!(cpu("1.5"), "150000 100000");
        assert_eq!(cpu("0.01"), "1000 100000");
        assert_eq!(cpu("64"), "6400000 100000");
    }

    /// A directory instead of a control group, in which limits cannot be set.
    #[test]
    fn a_group_that_cannot_be_limited_is_none() {
        let parent = tempfile::tempdir().unwrap();
        let limits = Limits { cpu: CpuShare::new(1.0), ..Limits::default() };
        let path = parent.path().join("lodge-x");
        let why = make(&path, &limits).unwrap_err();
        assert!(why.contains("no cpu controller"), "{why}");
        fs::write(parent.path().join("cgroup.controllers"), "cpuset cpu io").unwrap();
        make(&path, &limits).unwrap();
        let written = |file| fs::read_to_string(parent.path().join(file)).unwrap();
        assert_eq!(written("cgroup.subtree_control"), "+cpu");
        assert_eq!(written("lodge-x/cpu.max"), "100000 100000");
        let why = make(&path, &limits).unwrap_err();
        assert!(why.contains("cannot be made"), "{why}");
    }

    #[test]
    fn a_process_is_limited() {
        let guest = tempfile::tempdir().unwrap();
        let limits = Limits { cpu: CpuShare::new(0.5), ..Limits::default() };
        let group = match Group::make(&limits, "test", guest.path()) {
            Ok(group) => group.unwrap(),
            Err(why) => return eprintln!("SKIPPED: no control group can be made here: {why}"),
        };
        let mut process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        group.add(process.id()).unwrap();
        let member = fs::read_to_string(format!("/proc/{}/cgroup", process.id())).unwrap();
        let max = fs::read_to_string(group.path.join("cpu.max")).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        let name = group.path.file_name().unwrap().to_str().unwrap();
        assert!(member.contains(name), "{member}");
        assert_eq!(max.trim(), "50000 100000");
        remove(guest.path());
        assert!(!group.path.exists() && !guest.path().join(NOTE).exists());
    }

    #[test]
    fn nothing_but_a_group_is_removed() {
        let guest = tempfile::tempdir().unwrap();
        let other = guest.path().join("precious");
        fs::create_dir(&other).unwrap();
        fs::write(guest.path().join(NOTE), other.to_str().unwrap()).unwrap();
        remove(guest.path());
        assert!(other.exists());
        assert!(!guest.path().join(NOTE).exists());
    }
}
