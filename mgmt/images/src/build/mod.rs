//! Builds images of Debian from its archive.
//!
//! mmdebstrap installs the packages into a directory and hands over a tar archive; `pack.sh` makes
//! an ext4 file system of that with `mke2fs -d`, which needs no mount. As root both run as they
//! are; otherwise in a user namespace, where they are root. All output goes to files that this
//! process opened, so that the namespace's root needs no right to the store.

mod archive;
mod debian;
pub(crate) mod disk;
mod package;
pub(crate) mod process;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

pub use package::PackageName;

use crate::store::{Staging, now, require_space};
use crate::{
    Cancel, Error, Image, ImageName, Login, MANIFEST_FORMAT, Manifest, Progress, Source, Store,
};

/// The length of a built disk, if nothing else is said: 4 GiB.
pub const DEFAULT_DISK_BYTES: u64 = 4 << 30;
/// Less than this does not hold the packages with room to work.
const MIN_DISK_BYTES: u64 = 1 << 30;
const MAX_DISK_BYTES: u64 = 16 << 40;

/// Room for the installed packages while the disk is made of them, and for the archive and disk.
const WORK_BYTES: u64 = 1 << 30;
const STORE_BYTES: u64 = 1200 << 20;

/// A release of Debian that can be built.
struct Release {
    name: &'static str,
    version: &'static str,
    codename: &'static str,
}

const RELEASES: [Release; 1] = [Release { name: "debian:12", version: "12", codename: "bookworm" }];

impl Release {
    /// The release, its updates and its security updates.
    fn suites(&self) -> [String; 3] {
        ["", "-updates", "-security"].map(|suffix| format!("{}{suffix}", self.codename))
    }

    /// What an image with these additional packages is, for its manifest.
    fn describe(&self, packages: &[PackageName]) -> String {
        let mut text = format!("Debian {} ({})", self.version, self.codename);
        if !packages.is_empty() {
            let names: Vec<&str> = packages.iter().map(PackageName::as_str).collect();
            text.push_str(" with ");
            text.push_str(&names.join(", "));
        }
        text
    }
}

/// The names of all images that can be built.
pub fn releases() -> impl Iterator<Item = &'static str> {
    RELEASES.iter().map(|release| release.name)
}

/// How to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The disk's length in bytes, 1 GiB to 16 TiB. Sparse: it takes what is in it.
    pub disk_bytes: u64,
    /// Give the disk a partition table, with the file system in the only partition, instead of
    /// making the whole disk the file system.
    pub partitioned: bool,
    /// The program of Lodge's agent, to be installed as well. `None`: nobody will run commands in
    /// guests or copy files from outside.
    pub agent: Option<PathBuf>,
    /// Debian packages to install besides the usual ones, with all that they depend on.
    pub packages: Vec<PackageName>,
    /// Build even if there is such an image, and take its place.
    pub force: bool,
}

impl Default for BuildOptions {
    fn default() -> BuildOptions {
        BuildOptions {
            disk_bytes: DEFAULT_DISK_BYTES,
            partitioned: false,
            agent: None,
            packages: Vec::new(),
            force: false,
        }
    }
}

impl Store {
    /// Builds an image from Debian's archive, or returns the one that is there already.
    ///
    /// # Errors
    ///
    /// See [`Error`]; nothing is left behind then.
    pub fn build(
        &self,
        name: &ImageName,
        options: &BuildOptions,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Image, Error> {
        let release =
            RELEASES.iter().find(|release| release.name == name.as_str()).ok_or_else(|| {
                Error::UnknownRelease {
                    name: name.to_string(),
                    known: releases().collect::<Vec<_>>().join(", "),
                }
            })?;
        if !(MIN_DISK_BYTES..=MAX_DISK_BYTES).contains(&options.disk_bytes) {
            return Err(Error::DiskSize { bytes: options.disk_bytes });
        }
        let present = || !options.force && self.directory(name).exists();
        if present() {
            return self.get(name);
        }
        let mode = Mode::of_this_process();
        require_tools(mode)?;

        progress.note(&format!("Building {name} from Debian's archive"));
        let staging = Staging::begin(self, name, progress, cancel)?;
        // Another lodge may have built it while this one waited for the lock.
        if present() {
            return self.get(name);
        }
        require_space(self.images(), STORE_BYTES, "LODGE_HOME")?;
        require_space(&WorkDirectory::parent(), WORK_BYTES, "TMPDIR")?;
        let work = WorkDirectory::create(staging.directory(), mode)?;

        let layout = disk::Layout::new(options.disk_bytes, options.partitioned);
        let archives = archive::for_release(release, staging.directory(), progress);
        let tar = staging.directory().join("root.tar");
        let mut job = Job { mode, work: &work.path, progress: &mut *progress, cancel };
        debian::install(&mut job, release, options, &archives, layout, &tar)?;

        progress.step("Making the disk");
        let outputs = Outputs::create(staging.directory())?;
        disk::write_partition_table(&outputs.disk, layout)
            .map_err(Error::io("write", &staging.directory().join(DISK)))?;
        pack(mode, &work.path, &tar, &outputs, layout, cancel)?;
        outputs.close(staging.directory())?;
        remove_file(&tar)?;
        drop(work);

        progress.step("Hashing");
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            name: name.to_string(),
            created: now(),
            source: Source::Built {
                what: release.describe(&options.packages),
                archives: archive::to_lines(&archives),
            },
            disk: staging.seal(DISK, progress, cancel)?,
            disk_format: vmm_api::DiskFormat::Raw,
            kernel: Some(staging.seal(KERNEL, progress, cancel)?),
            initrd: Some(staging.seal(INITRD, progress, cancel)?),
            cmdline: format!("root={} rw console=ttyS0", layout.root_device()),
            logins: ["root", "lodge"]
                .map(|user| Login { user: user.into(), password: "lodge".into() })
                .to_vec(),
            agent: options.agent.is_some(),
            program: None,
            folders: true,
        };
        staging.commit(self, &manifest)
    }
}

pub(crate) const DISK: &str = "disk.raw";
pub(crate) const KERNEL: &str = "vmlinuz";
pub(crate) const INITRD: &str = "initrd.img";

/// How and where packages are installed.
struct Job<'a> {
    mode: Mode,
    work: &'a Path,
    progress: &'a mut dyn Progress,
    cancel: &'a Cancel,
}

/// How the build comes by the rights of root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It has them.
    Root,
    /// In a user namespace.
    Namespace,
}

impl Mode {
    pub(crate) fn of_this_process() -> Mode {
        if rustix::process::geteuid().is_root() { Mode::Root } else { Mode::Namespace }
    }

    fn mmdebstrap_name(self) -> &'static str {
        match self {
            Mode::Root => "root",
            Mode::Namespace => "unshare",
        }
    }

    /// A command that runs mmdebstrap. What it mounts in the guest's directory is seen by nobody
    /// else and is gone with it, in whichever way it ends; as root it does not see to that itself.
    fn mmdebstrap(self) -> Command {
        let unshared = self == Mode::Root
            && host_command("unshare")
                .args(["--mount", "true"])
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success());
        // Root that may not do that, in a container, may not mount either; mmdebstrap says so.
        if unshared {
            let mut command = host_command("unshare");
            command.args(["--mount", "mmdebstrap"]);
            command
        } else {
            host_command("mmdebstrap")
        }
    }

    /// Refuses work for which there are not the rights of root.
    pub(crate) fn require(self) -> Result<(), Error> {
        if self == Mode::Root {
            return Ok(());
        }
        require_program("mmdebstrap", "mmdebstrap")?;
        let tried = self.shell().args(["-c", "exit 0"]).output();
        let detail = match tried {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        Err(Error::NoUserNamespace { detail })
    }

    /// A command that runs the shell as root or as a namespace's root.
    pub(crate) fn shell(self) -> Command {
        match self {
            Mode::Root => host_command("sh"),
            Mode::Namespace => {
                let mut command = host_command("mmdebstrap");
                command.args(["--unshare-helper", "sh"]);
                command
            }
        }
    }
}

/// A command with the environment that builds are to see, whatever the user's is.
pub(crate) fn host_command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// The user's PATH and where Debian keeps administrators' programs such as mke2fs.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

fn require_tools(mode: Mode) -> Result<(), Error> {
    let tools =
        [("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("tar", "tar"), ("apt-get", "apt")];
    for (tool, package) in tools {
        require_program(tool, package)?;
    }
    if !Path::new(archive::KEYRING).is_file() {
        return Err(Error::Tool {
            tool: "the keyring of Debian's archive",
            package: "debian-archive-keyring",
        });
    }
    mode.require()
}

/// Refuses work that a program is missing for, which Debian has in `package`.
pub(crate) fn require_program(tool: &'static str, package: &'static str) -> Result<(), Error> {
    if search_path().split(':').any(|dir| Path::new(dir).join(tool).is_file()) {
        return Ok(());
    }
    Err(Error::Tool { tool, package })
}

/// Where packages are unpacked. Outside of the store: a namespace's root is a stranger there.
pub(crate) struct WorkDirectory {
    path: PathBuf,
    mode: Mode,
}

impl WorkDirectory {
    /// Where work directories are made.
    pub(crate) fn parent() -> PathBuf {
        std::env::var_os("TMPDIR")
            .filter(|dir| !dir.is_empty())
            .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
    }

    /// Makes the work directory that belongs to `staging`, after removing what a killed build
    /// left there. The caller holds the lock of `staging`.
    pub(crate) fn create(staging: &Path, mode: Mode) -> Result<WorkDirectory, Error> {
        let parent = WorkDirectory::parent();
        let sum = Sha256::digest(staging.as_os_str().as_encoded_bytes());
        let tag: String = sum.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let user = rustix::process::geteuid();
        let path = parent.join(format!("lodge-build-{}-{tag}", user.as_raw()));
        // The name can be guessed: only what is this user's is taken for a remainder.
        if fs::symlink_metadata(&path).is_ok_and(|found| found.uid() == user.as_raw()) {
            remove_work(&path, mode);
            if path.exists() {
                return Err(Error::Leftover { dir: path });
            }
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| Error::Unwritable { dir: parent, source })?;
        // A namespace's root is someone else, and makes its own directories in here.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777))
            .map_err(Error::io("open up", &path))?;
        Ok(WorkDirectory { path, mode })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        remove_work(&self.path, self.mode);
    }
}

/// Removes a work directory and all in it, but never goes into what is mounted there: a build of
/// root's that could not hide its mounts may have left the host's /proc or /dev in it.
fn remove_work(path: &Path, mode: Mode) {
    let remove = |mut shell: Command| {
        let _ = shell
            .args(["-c", "rm -rf --one-file-system \"$1\"/*", "sh"])
            .arg(path)
            .stderr(Stdio::null())
            .status();
    };
    // Some of it is this user's, and some belongs to a namespace's root, which only it can remove.
    if mode == Mode::Namespace {
        remove(mode.shell());
    }
    remove(host_command("sh"));
    let _ = fs::remove_dir(path);
}

/// The files that packing writes to.
struct Outputs {
    disk: File,
    kernel: File,
    initrd: File,
}

impl Outputs {
    /// Makes the files. A namespace's root opens them anew by way of /proc, so that anyone may
    /// write to them; the directory around them is open to nobody else.
    fn create(directory: &Path) -> Result<Outputs, Error> {
        let create = |name: &str| {
            let path = directory.join(name);
            let file = File::create_new(&path).map_err(Error::io("create", &path))?;
            file.set_permissions(fs::Permissions::from_mode(0o666))
                .map_err(Error::io("open up", &path))?;
            Ok::<_, Error>(file)
        };
        Ok(Outputs { disk: create(DISK)?, kernel: create(KERNEL)?, initrd: create(INITRD)? })
    }

    /// Checks that all were written.
    fn close(self, directory: &Path) -> Result<(), Error> {
        for (file, name) in [(self.disk, DISK), (self.kernel, KERNEL), (self.initrd, INITRD)] {
            let path = directory.join(name);
            if file.metadata().map_err(Error::io("look at", &path))?.len() == 0 {
                return Err(Error::Build {
                    step: "Making the disk".into(),
                    log: format!("{name} is empty"),
                });
            }
        }
        Ok(())
    }
}

fn pack(
    mode: Mode,
    work: &Path,
    tar: &Path,
    outputs: &Outputs,
    layout: disk::Layout,
    cancel: &Cancel,
) -> Result<(), Error> {
    let archive = File::open(tar).map_err(Error::io("open", tar))?;
    // Duplicates, unlike the files themselves, are inherited.
    let inherited: Vec<OwnedFd> = [&outputs.disk, &outputs.kernel, &outputs.initrd]
        .into_iter()
        .map(rustix::io::dup)
        .collect::<Result<_, _>>()
        .map_err(|errno| Error::io("open", tar)(io::Error::from(errno)))?;
    let mut command = mode.shell();
    command.args(["-c", include_str!("pack.sh"), "pack.sh"]).arg(work);
    command.args(inherited.iter().map(|fd| fd.as_raw_fd().to_string()));
    command.args([layout.offset_bytes().to_string(), layout.file_system_kib().to_string()]);
    command.stdin(Stdio::from(archive)).stdout(Stdio::null());
    let ended = process::run(&mut command, cancel, |_| ())?;
    if ended.status.success() {
        Ok(())
    } else {
        Err(Error::Build { step: "Making the disk".into(), log: ended.complaint() })
    }
}

fn remove_file(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(Error::io("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quiet;

    fn build(name: &str, disk_bytes: u64) -> Error {
        let home = tempfile::tempdir().unwrap();
        let options = BuildOptions { disk_bytes, ..BuildOptions::default() };
        let cancel = Cancel::default();
        let result =
            Store::at(home.path()).build(&name.parse().unwrap(), &options, &mut Quiet, &cancel);
        assert!(!home.path().join("images").exists(), "nothing is left behind");
        result.unwrap_err()
    }

    #[test]
    fn what_nobody_can_build_is_refused_at_once() {
        let error = build("debian:1", DEFAULT_DISK_BYTES).to_string();
        assert!(error.contains("it can build: debian:12"), "{error}");
        assert!(matches!(build("debian:12", 1), Error::DiskSize { .. }));
        assert!(matches!(build("debian:12", u64::MAX), Error::DiskSize { .. }));
    }

    #[test]
    fn the_work_directory_is_swept_and_goes() {
        let staging = tempfile::tempdir().unwrap();
        let first = WorkDirectory::create(staging.path(), Mode::Root).unwrap();
        let path = first.path.clone();
        fs::write(path.join("left"), b"").unwrap();
        std::mem::forget(first);
        let second = WorkDirectory::create(staging.path(), Mode::Root).unwrap();
        assert_eq!(second.path, path);
        assert!(!path.join("left").exists());
        drop(second);
        assert!(!path.exists());
    }
}
