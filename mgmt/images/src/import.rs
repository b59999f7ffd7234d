//! Takes a disk that exists already into the store.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use vmm_api::DiskFormat;

use crate::store::{Staging, now, require_space};
use crate::{Cancel, Error, Image, ImageName, MANIFEST_FORMAT, Manifest, Progress, Source, Store};
use crate::{Unit, manifest};

const BLOCK: usize = 1 << 16;

/// What to import.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The disk: raw or qcow2, told by its contents.
    pub disk: PathBuf,
    /// The kernel to start it with.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk to start it with.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; by default a console on the serial port and the first disk as
    /// the root file system.
    pub cmdline: Option<String>,
    /// Take the place of an image of the same name.
    pub force: bool,
}

impl Store {
    /// Copies a disk, and what it is started with, into the store.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::Import`] for a file that is no disk, and whatever goes wrong
    /// with the store. Nothing is left behind then.
    pub fn import(
        &self,
        name: &ImageName,
        options: &ImportOptions,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Image, Error> {
        let disk_format = recognize_disk(&options.disk)?;
        let disk_file = match disk_format {
            DiskFormat::Qcow2 => "disk.qcow2",
            DiskFormat::Raw | DiskFormat::Auto => "disk.raw",
        };
        for path in [&options.kernel, &options.initrd].into_iter().flatten() {
            open_regular(path)?;
        }

        let staging = Staging::begin(self, name, progress, cancel)?;
        if !options.force && self.directory(name).exists() {
            return Err(Error::Exists { name: name.to_string() });
        }
        let mut take = |from: &Path, file: &str| -> Result<manifest::Artifact, Error> {
            progress.step(&format!("Copying {}", from.display()));
            copy_sparse(from, &staging.directory().join(file), progress, cancel)?;
            progress.step(&format!("Hashing {file}"));
            staging.seal(file, progress, cancel)
        };
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            name: name.to_string(),
            created: now(),
            source: Source::Imported { from: options.disk.display().to_string() },
            disk: take(&options.disk, disk_file)?,
            disk_format,
            kernel: options.kernel.as_deref().map(|path| take(path, "vmlinuz")).transpose()?,
            initrd: options.initrd.as_deref().map(|path| take(path, "initrd.img")).transpose()?,
            cmdline: options
                .cmdline
                .clone()
                .unwrap_or_else(|| "root=/dev/vda rw console=ttyS0".to_owned()),
            logins: Vec::new(),
            agent: false,
            program: None,
            folders: false,
        };
        staging.commit(self, &manifest)
    }
}

fn open_regular(path: &Path) -> Result<File, Error> {
    let refuse = |why: &str| Error::Import { path: path.to_owned(), why: why.to_owned() };
    let file = File::open(path).map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("look at", path))?;
    if !metadata.is_file() {
        return Err(refuse("it is not a regular file; copy what it holds into one first"));
    }
    if metadata.len() == 0 {
        return Err(refuse("it is empty"));
    }
    Ok(file)
}

/// Tells raw and qcow2 disks, and refuses what would be taken for a raw disk by mistake.
fn recognize_disk(path: &Path) -> Result<DiskFormat, Error> {
    let file = open_regular(path)?;
    let refuse = |why: String| Err(Error::Import { path: path.to_owned(), why });
    let length = file.metadata().map_err(Error::io("look at", path))?.len();
    let mut head = Vec::new();
    (&file).take(512).read_to_end(&mut head).map_err(Error::io("read", path))?;

    if head.starts_with(b"QFI\xfb") {
        return match qcow2_obstacle(&head) {
            Some(why) => refuse(why),
            None => Ok(DiskFormat::Qcow2),
        };
    }
    // A raw disk may begin with anything; these beginnings are no boot sector and no file system.
    let compressed: [(&[u8], &str); 4] = [
        (b"\x1f\x8b", "gunzip"),
        (b"\xfd7zXZ\0", "unxz"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (b"BZh", "bunzip2"),
    ];
    for (magic, tool) in compressed {
        if head.starts_with(magic) {
            return refuse(format!("it is compressed; unpack it first with {tool}"));
        }
    }
    let foreign: [(usize, &[u8], &str); 4] = [
        (0, b"KDMV", "VMDK"),
        (0, b"vhdxfile", "VHDX"),
        (0, b"conectix", "VHD"),
        (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    ];
    for (offset, magic, format) in foreign {
        if head.get(offset..).is_some_and(|rest| rest.starts_with(magic)) {
            return refuse(format!(
                "it is a {format} image; convert it first with `qemu-img convert -O qcow2`"
            ));
        }
    }
    if length % 512 != 0 {
        return refuse(format!(
            "it is neither qcow2 nor a raw disk: its {length} bytes are not a whole number of \
             512-byte sectors; it may be truncated"
        ));
    }
    Ok(DiskFormat::Raw)
}

/// Why a qcow2 image cannot stand alone (QEMU's docs/interop/qcow2.txt, "Header").
fn qcow2_obstacle(header: &[u8]) -> Option<String> {
    let u32_at = |at: usize| {
        let bytes = header.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let u64_at = |at: usize| {
        let bytes = header.get(at..at + 8)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    };
    let truncated = || Some("its qcow2 header is truncated; get the file again".to_owned());
    let (Some(version), Some(backing), Some(encryption)) = (u32_at(4), u64_at(8), u32_at(32))
    else {
        return truncated();
    };
    if version != 2 && version != 3 {
        return Some(format!("it is qcow2 of version {version}, and Lodge knows 2 and 3"));
    }
    if backing != 0 {
        return Some(
            "it depends on a backing file; make it whole first with `qemu-img convert -O qcow2`"
                .to_owned(),
        );
    }
    if encryption != 0 {
        return Some(
            "it is encrypted, which Lodge cannot read; decrypt it first with `qemu-img convert`"
                .to_owned(),
        );
    }
    if version == 3 {
        let Some(incompatible) = u64_at(72) else { return truncated() };
        const EXTERNAL_DATA_FILE: u64 = 1 << 2;
        if incompatible & EXTERNAL_DATA_FILE != 0 {
            return Some(
                "its data is in another file; make it whole first with `qemu-img convert -O qcow2`"
                    .to_owned(),
            );
        }
    }
    None
}

/// Copies a file so that blocks of zeros take no room.
fn copy_sparse(
    from: &Path,
    to: &Path,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<(), Error> {
    let mut source = open_regular(from)?;
    let metadata = source.metadata().map_err(Error::io("look at", from))?;
    let length = metadata.len();
    let mut target = File::create_new(to).map_err(Error::io("create", to))?;
    // Where the file system can share blocks, the copy takes no time and no room.
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let occupied = std::os::unix::fs::MetadataExt::blocks(&metadata).saturating_mul(512);
    if let Some(directory) = to.parent() {
        require_space(directory, occupied.min(length), "LODGE_HOME")?;
    }
    let mut buffer = vec![0; BLOCK];
    let mut done = 0;
    while done < length {
        cancel.check()?;
        let size = (length - done).min(BLOCK as u64) as usize;
        let block = &mut buffer[..size];
        source.read_exact(block).map_err(Error::io("read", from))?;
        let written = if block.iter().all(|&byte| byte == 0) {
            target.seek(SeekFrom::Current(size as i64)).map(|_| ())
        } else {
            target.write_all(block)
        };
        written.map_err(Error::io("write", to))?;
        done += size as u64;
        progress.advance(done, length, Unit::Bytes);
    }
    target.set_len(length).map_err(Error::io("write", to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quiet;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    fn import(contents: &[u8]) -> (tempfile::TempDir, Result<Image, Error>) {
        let home = tempfile::tempdir().unwrap();
        let disk = home.path().join("source");
        fs::write(&disk, contents).unwrap();
        let options =
            ImportOptions { disk, kernel: None, initrd: None, cmdline: None, force: false };
        let result = Store::at(home.path()).import(
            &"web".parse().unwrap(),
            &options,
            &mut Quiet,
            &Cancel::default(),
        );
        (home, result)
    }

    fn refusal(contents: &[u8]) -> String {
        let (home, result) = import(contents);
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Import { .. }), "{error}");
        assert!(!home.path().join("images/web").exists());
        error.to_string()
    }

    fn qcow2(patch: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        patch(&mut bytes);
        bytes
    }

    #[test]
    fn a_raw_disk_is_copied_and_stays_sparse() {
        let mut contents = vec![0; 8 << 20];
        contents[5 << 20..(5 << 20) + 3].copy_from_slice(b"abc");
        let (home, result) = import(&contents);
        let image = result.unwrap();
        assert_eq!(image.manifest().disk_format, DiskFormat::Raw);
        assert_eq!(fs::read(image.disk()).unwrap(), contents);
        assert!(fs::metadata(image.disk()).unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(fs::metadata(image.disk()).unwrap().mode() & 0o222, 0, "read-only");
        drop(home);
    }

    #[test]
    fn a_qcow2_disk_is_known() {
        let (_home, result) = import(&qcow2(|_| ()));
        assert_eq!(result.unwrap().manifest().disk_format, DiskFormat::Qcow2);
    }

    #[test]
    fn what_is_no_disk_is_refused_with_a_remedy() {
        assert!(refusal(b"").contains("empty"));
        assert!(refusal(&[1; 513]).contains("truncated"));
        assert!(refusal(b"\x1f\x8b and more").contains("gunzip"));
        assert!(refusal(b"\xfd7zXZ\0").contains("unxz"));
        assert!(refusal(b"KDMV").contains("qemu-img convert"));
        assert!(refusal(b"QFI\xfb\0\0").contains("truncated"));
        assert!(refusal(&qcow2(|b| b[7] = 9)).contains("version 9"));
        assert!(refusal(&qcow2(|b| b[15] = 200)).contains("backing file"));
        assert!(refusal(&qcow2(|b| b[35] = 2)).contains("encrypted"));
        assert!(refusal(&qcow2(|b| b[79] = 4)).contains("another file"));
        assert!(refusal(&qcow2(|_| ())[..75]).contains("truncated"));
    }

    #[test]
    fn an_image_is_replaced_only_by_force() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::at(home.path());
        let name: ImageName = "web".parse().unwrap();
        let disk = home.path().join("source");
        let mut options = ImportOptions {
            disk: disk.clone(),
            kernel: None,
            initrd: None,
            cmdline: None,
            force: false,
        };
        let mut import = |contents: &[u8], force| {
            fs::write(&disk, contents).unwrap();
            options.force = force;
            store.import(&name, &options, &mut Quiet, &Cancel::default())
        };
        import(&[1; 512], false).unwrap();
        assert!(matches!(import(&[2; 512], false), Err(Error::Exists { .. })));
        let image = import(&[3; 512], true).unwrap();
        assert_eq!(fs::read(image.disk()).unwrap(), [3; 512]);
        image.verify(crate::Check::Full, &mut Quiet, &Cancel::default()).unwrap();
    }

    #[test]
    fn an_import_that_is_given_up_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let disk = home.path().join("source");
        fs::write(&disk, [1; 512]).unwrap();
        let options =
            ImportOptions { disk, kernel: None, initrd: None, cmdline: None, force: false };
        let cancel = Cancel::default();
        cancel.cancel();
        let result =
            Store::at(home.path()).import(&"web".parse().unwrap(), &options, &mut Quiet, &cancel);
        assert!(matches!(result, Err(Error::Cancelled)));
        let left: Vec<_> = fs::read_dir(home.path().join("images"))
            .unwrap()
            .map(|file| file.unwrap().file_name())
            .collect();
        assert_eq!(left, [".web.lock"]);
    }
}
