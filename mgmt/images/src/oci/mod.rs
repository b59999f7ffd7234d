//! Makes images of the store from OCI images.
//!
//! The layers come to a tree ([`oci::Tree`]), the tree becomes an ext4 file system just as that of a
//! built Debian does, and Lodge's kernel and init are put beside it. The image's name in the store
//! follows from what it is made of: the same OCI image again is found there.

mod initrd;
mod kernel;

use std::fs::File;
use std::io::{self, BufWriter};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use agent_protocol::program::Program;
use oci::{Limits, Reference, Tree, Usage};
use rustix::fs::{CWD, FileType, Mode as FileMode};
use sha2::{Digest as _, Sha256};

use crate::build::{DISK, INITRD, KERNEL, Mode, WorkDirectory, process, require_program};
use crate::hash::sha256;
use crate::store::{Staging, free_space, now, require_space};
use crate::{
    Cancel, Error, Image, ImageName, MANIFEST_FORMAT, Manifest, Progress, Quiet, Source, Store,
};
use kernel::Kernel;

/// The most entries of all layers together: some hundred bytes of memory each.
const MAX_ENTRIES: usize = 2_000_000;
/// The least length of the disk, and what guests may write at least.
const MIN_DISK_BYTES: u64 = 4 << 30;
/// A file takes a block, and an inode of which there is one for each 16 KiB (mke2fs.conf(5)).
const BYTES_FOR_NAME: u64 = 32 << 10;
/// Room in which to begin at all.
const WORK_BYTES: u64 = 256 << 20;
/// The console without the kernel's own words, which are not the program's; the image's first disk
/// is mounted by init.
const CMDLINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1";

impl Store {
    /// The image that has been made of this OCI image, if it is there already, else made now. `init` is
    /// the program of Lodge's agent, which is the first program of its guests.
    ///
    /// # Errors
    ///
    /// See [`Error`]; nothing is left behind then.
    pub fn from_oci(
        &self,
        reference: &Reference,
        init: &Path,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Image, Error> {
        let image = oci::Image::open(reference)?;
        let kernel = Kernel::find(self)?;
        let (init_sum, _) = sha256(init, &mut Quiet, cancel)?;
        let name = name(&image, &init_sum, &kernel)?;
        if self.directory(&name).exists() {
            return self.get(&name);
        }
        let mode = Mode::of_this_process();
        require_program("tar", "tar")?;
        require_program("mke2fs", "e2fsprogs")?;
        require_program("debugfs", "e2fsprogs")?;
        mode.require()?;

        progress.note(&format!("Making a guest's disk of {reference}"));
        let staging = Staging::begin(self, &name, progress, cancel)?;
        // Another lodge may have made it while this one waited for the lock.
        if self.directory(&name).exists() {
            return self.get(&name);
        }
        require_space(self.images(), WORK_BYTES, "LODGE_HOME")?;
        require_space(&WorkDirectory::parent(), WORK_BYTES, "TMPDIR")?;
        let tree = unpack(&image, staging.directory(), progress, cancel)?;

        progress.step("Making the disk");
        let work = WorkDirectory::create(staging.directory(), mode)?;
        let usage = tree.usage();
        pack(mode, &work, &tree, usage, &staging.directory().join(DISK), progress, cancel)?;
        drop((tree, work));

        progress.step("Making the initial RAM disk");
        let program = program(&image);
        kernel.copy_to(&staging.directory().join(KERNEL))?;
        let modules = kernel.modules(cancel)?;
        initrd::write(&staging.directory().join(INITRD), init, &program, &modules)?;

        progress.step("Hashing");
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            name: name.to_string(),
            created: now(),
            source: Source::Oci { from: reference.to_string(), digest: image.digest().to_string() },
            disk: staging.seal(DISK, progress, cancel)?,
            disk_format: vmm_api::DiskFormat::Raw,
            kernel: Some(staging.seal(KERNEL, progress, cancel)?),
            initrd: Some(staging.seal(INITRD, progress, cancel)?),
            cmdline: CMDLINE.to_owned(),
            logins: Vec::new(),
            agent: true,
            folders: true,
            program: Some(program),
        };
        staging.commit(self, &manifest)
    }
}

/// The name of the image that is made of all this: 128 bits of its digest.
fn name(image: &oci::Image, init_sum: &str, kernel: &Kernel) -> Result<ImageName, Error> {
    let parts = [&image.digest().to_string(), init_sum, kernel.sum(), CMDLINE];
    let sum = Sha256::digest(parts.join("\n").as_bytes());
    let hex: String = sum.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("oci-{hex}").parse()
}

fn program(image: &oci::Image) -> Program {
    let oci::Config { entrypoint, command, environment, directory, user, stop_signal } =
        image.config().clone();
    Program { entrypoint, command, environment, directory, user, stop_signal }
}

/// Puts the layers together.
fn unpack(
    image: &oci::Image,
    directory: &Path,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<Tree, Error> {
    // All of it is written once more, to the disk.
    let bytes = free_space(directory)? / 2;
    let mut tree = Tree::new(directory, Limits { bytes, entries: MAX_ENTRIES })?;
    for index in 0..image.layers() {
        progress.step(&format!("Unpacking layer {} of {}", index + 1, image.layers()));
        image.add_layer(index, &mut tree, &|| cancel.is_cancelled())?;
    }
    Ok(tree)
}

/// Makes an ext4 file system of a tree.
fn pack(
    mode: Mode,
    work: &WorkDirectory,
    tree: &Tree,
    usage: Usage,
    disk: &Path,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<(), Error> {
    let with_devices = mode == Mode::Root && can_make_devices(work.path());
    if usage.devices > 0 && !with_devices {
        progress
            .note(&format!("{} device nodes are left out: only root makes them", usage.devices));
    }
    let content = usage.bytes.saturating_add(usage.names.saturating_mul(BYTES_FOR_NAME));
    let size = content.saturating_mul(2).max(MIN_DISK_BYTES);
    let file = File::create_new(disk).map_err(Error::io("create", disk))?;
    // A namespace's root opens it anew by way of /proc; the directory around it is open to nobody else.
    file.set_permissions(std::fs::Permissions::from_mode(0o666))
        .map_err(Error::io("open up", disk))?;
    file.set_len(size & !4095).map_err(Error::io("write", disk))?;
    let plumbing = |error: io::Error| Error::io("pack", disk)(error);
    // Duplicates, unlike the file itself, are inherited.
    let inherited = rustix::io::dup(&file).map_err(|errno| plumbing(errno.into()))?;
    let (reader, writer) = io::pipe().map_err(plumbing)?;
    let (root_mode, user, group) = tree.root_mode();

    let mut command = mode.shell();
    command.args(["-c", include_str!("pack.sh"), "pack.sh"]).arg(work.path());
    command.args([
        inherited.as_raw_fd().to_string(),
        format!("{}k", size >> 10),
        format!("{root_mode:o}"),
        format!("{user}:{group}"),
    ]);
    command.stdin(Stdio::from(reader)).stdout(Stdio::null());
    let (ended, written) = thread::scope(|scope| {
        let writer = scope.spawn(move || tree.write(BufWriter::new(writer), with_devices));
        let ended = process::run(&mut command, cancel, |_| ());
        // This end of the pipe goes with it, so that the writer ends if the program has.
        drop(command);
        (ended, writer.join())
    });
    let ended = ended?;
    if !ended.status.success() {
        let step = "Making the disk".into();
        return Err(Error::Build { step, log: ended.complaint() });
    }
    match written {
        Ok(result) => result.map_err(plumbing),
        Err(_) => Err(plumbing(io::Error::other("the archive was not written"))),
    }
}

/// Whether this process may make nodes of devices: root in a container mostly may not.
fn can_make_devices(directory: &Path) -> bool {
    let path = directory.join("null");
    let null = rustix::fs::makedev(1, 3);
    let made = rustix::fs::mknodat(
        CWD,
        &path,
        FileType::CharacterDevice,
        FileMode::from_raw_mode(0o600),
        null,
    );
    let _ = std::fs::remove_file(&path);
    made.is_ok()
}
