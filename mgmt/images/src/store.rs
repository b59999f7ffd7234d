//! Where images are kept: a directory of directories, one image each, every one of them whole.
//!
//! An image is made in a directory whose name begins with a dot and renamed when it is complete.
//! Whoever makes or removes an image holds the lock of its name; so a dot directory that is found
//! while the lock is held was left by someone who was killed, and is removed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};

use crate::hash::sha256;
use crate::{Artifact, Cancel, Error, ImageName, Manifest, Progress};

const MANIFEST_FILE: &str = "manifest.json";
const VERIFIED_FILE: &str = "verified.json";

/// Where Lodge keeps its files: `$LODGE_HOME`, else `$XDG_DATA_HOME/lodge`, else
/// `~/.local/share/lodge`.
///
/// # Errors
///
/// [`Error::NoHome`] if none of these is known.
pub fn home() -> Result<PathBuf, Error> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    home_from(variable("LODGE_HOME"), variable("XDG_DATA_HOME"), variable("HOME"))
}

fn home_from(
    lodge: Option<OsString>,
    data: Option<OsString>,
    user: Option<OsString>,
) -> Result<PathBuf, Error> {
    let home = match (lodge, data, user) {
        (Some(lodge), _, _) => PathBuf::from(lodge),
        // The XDG specification has relative paths ignored.
        (_, Some(data), _) if Path::new(&data).is_absolute() => Path::new(&data).join("lodge"),
        (_, _, Some(user)) => Path::new(&user).join(".local/share/lodge"),
        _ => return Err(Error::NoHome),
    };
    std::path::absolute(&home).map_err(Error::io("find", &home))
}

/// The images of one user.
#[derive(Clone, Debug)]
pub struct Store {
    images: PathBuf,
}

/// One image in the store.
#[derive(Clone, Debug)]
pub struct Image {
    name: ImageName,
    directory: PathBuf,
    manifest: Manifest,
}

/// One line of the store's list: an image, or why there is none in its place.
#[derive(Debug)]
pub struct Entry {
    /// The name.
    pub name: ImageName,
    /// The image, if its manifest can be read.
    pub image: Result<Image, Error>,
}

/// How thoroughly an image is compared with its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Files whose length and time are as they were when last hashed are taken to be unchanged.
    Quick,
    /// Every byte.
    Full,
}

impl Store {
    /// The store of whoever runs this program; see [`home`].
    ///
    /// # Errors
    ///
    /// [`Error::NoHome`].
    pub fn open() -> Result<Store, Error> {
        Ok(Store::at(&home()?))
    }

    /// The store under Lodge's home directory `home`. Nothing is created until an image is.
    #[must_use]
    pub fn at(home: &Path) -> Store {
        Store { images: home.join("images") }
    }

    /// All images by name, also those that are damaged.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the store cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let directory = match fs::read_dir(&self.images) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", &self.images)(error)),
        };
        let mut entries = Vec::new();
        for file in directory {
            let file = file.map_err(Error::io("read", &self.images))?;
            if let Some(name) = file.file_name().to_str().and_then(ImageName::from_directory) {
                let image = self.get(&name);
                entries.push(Entry { name, image });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The image of that name. Its files are not looked at: see [`Image::verify`].
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Damaged`], [`Error::OtherVersion`], [`Error::Io`].
    pub fn get(&self, name: &ImageName) -> Result<Image, Error> {
        let directory = self.directory(name);
        if !directory.is_dir() {
            let hint = if crate::releases().any(|known| known == name.as_str()) {
                format!("build it with `lodge image build {name}`")
            } else {
                "`lodge image ls` shows what there is".to_owned()
            };
            return Err(Error::NotFound { name: name.to_string(), hint });
        }
        let path = directory.join(MANIFEST_FILE);
        let manifest = match fs::read(&path) {
            Ok(bytes) => Manifest::parse(name.as_str(), &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Damaged {
                    name: name.to_string(),
                    what: "its manifest.json is missing".into(),
                });
            }
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        Ok(Image { name: name.clone(), directory, manifest })
    }

    /// Removes an image, whole or damaged. A guest that runs from it keeps its open files.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Cancelled`], [`Error::Unwritable`], [`Error::Io`].
    pub fn remove(
        &self,
        name: &ImageName,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        if !self.directory(name).is_dir() {
            return self.get(name).map(|_| ());
        }
        let staging = Staging::begin(self, name, progress, cancel)?;
        let directory = self.directory(name);
        // The staging directory is empty, so that the image can take its place and go with it.
        fs::rename(&directory, &staging.directory).map_err(Error::io("remove", &directory))
    }

    pub(crate) fn images(&self) -> &Path {
        &self.images
    }

    pub(crate) fn directory(&self, name: &ImageName) -> PathBuf {
        self.images.join(name.directory())
    }
}

impl Image {
    /// The image's name.
    #[must_use]
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// What is known of it.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.directory.join(&self.manifest.disk.file)
    }

    /// The kernel, if the image has one.
    #[must_use]
    pub fn kernel(&self) -> Option<PathBuf> {
        self.manifest.kernel.as_ref().map(|kernel| self.directory.join(&kernel.file))
    }

    /// The initial RAM disk, if the image has one.
    #[must_use]
    pub fn initrd(&self) -> Option<PathBuf> {
        self.manifest.initrd.as_ref().map(|initrd| self.directory.join(&initrd.file))
    }

    /// How many bytes the image takes on the host; a sparse disk takes less than its length.
    #[must_use]
    pub fn bytes_on_host(&self) -> u64 {
        self.manifest
            .artifacts()
            .filter_map(|artifact| fs::metadata(self.directory.join(&artifact.file)).ok())
            .map(|metadata| metadata.blocks().saturating_mul(512))
            .sum()
    }

    /// Checks that the image's files are what its manifest says.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`], [`Error::Cancelled`], [`Error::Io`].
    pub fn verify(
        &self,
        check: Check,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let mut stamps = Vec::new();
        for artifact in self.manifest.artifacts() {
            stamps.push(self.stamp(artifact)?);
        }
        let stamp_file = self.directory.join(VERIFIED_FILE);
        if check == Check::Quick {
            let known: Option<Vec<Stamp>> =
                fs::read(&stamp_file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            if known.as_ref() == Some(&stamps) {
                return Ok(());
            }
        }
        for artifact in self.manifest.artifacts() {
            progress.step(&format!("Checking {} of {}", artifact.file, self.name));
            let (sum, _) = sha256(&self.directory.join(&artifact.file), progress, cancel)?;
            if sum != artifact.sha256 {
                // Or else the next quick check would let it pass.
                let _ = fs::remove_file(&stamp_file);
                return Err(self.damaged(format!(
                    "the contents of {} have changed (SHA-256 {sum} instead of {})",
                    artifact.file, artifact.sha256
                )));
            }
        }
        // Without the stamp the next check takes longer; that is all.
        if let Ok(bytes) = serde_json::to_vec(&stamps) {
            let _ = fs::write(&stamp_file, bytes);
        }
        Ok(())
    }

    fn stamp(&self, artifact: &Artifact) -> Result<Stamp, Error> {
        let path = self.directory.join(&artifact.file);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.damaged(format!("{} is missing", artifact.file)));
            }
            Err(error) => return Err(Error::io("look at", &path)(error)),
        };
        if metadata.len() != artifact.bytes {
            return Err(self.damaged(format!(
                "{} has {} bytes instead of {}",
                artifact.file,
                metadata.len(),
                artifact.bytes
            )));
        }
        Ok(Stamp {
            file: artifact.file.clone(),
            sha256: artifact.sha256.clone(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    fn damaged(&self, what: String) -> Error {
        Error::Damaged { name: self.name.to_string(), what }
    }
}

/// What a file looked like when its sum was last found right.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    file: String,
    sha256: String,
    inode: u64,
    modified: (i64, i64),
}

/// An image in the making. Dropped without [`Staging::commit`], it leaves nothing behind.
pub(crate) struct Staging {
    name: ImageName,
    directory: PathBuf,
    target: PathBuf,
    /// Released when the file is closed, after the directory is gone.
    _lock: File,
}

impl Staging {
    /// Takes the lock of that name, waiting for whoever has it, and makes an empty directory.
    pub(crate) fn begin(
        store: &Store,
        name: &ImageName,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Staging, Error> {
        let images = &store.images;
        let unwritable = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::NotADirectory
            // As in /proc, where nobody can make anything.
            | io::ErrorKind::NotFound
            | io::ErrorKind::AlreadyExists => Error::Unwritable { dir: images.clone(), source },
            _ => Error::io("create", images)(source),
        };
        fs::create_dir_all(images).map_err(unwritable)?;
        let lock_path = images.join(format!(".{}.lock", name.directory()));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(unwritable)?;
        wait_for_lock(&lock, name, progress, cancel).map_err(|error| match error {
            LockError::Cancelled => Error::Cancelled,
            LockError::Io(error) => Error::io("lock", &lock_path)(error),
        })?;
        let directory = images.join(format!(".new-{}", name.directory()));
        remove_tree(&directory)?;
        fs::DirBuilder::new().mode(0o700).create(&directory).map_err(unwritable)?;
        Ok(Staging { name: name.clone(), directory, target: store.directory(name), _lock: lock })
    }

    /// Where the image's files are to be made.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Hashes a finished file of the image and makes it read-only.
    pub(crate) fn seal(
        &self,
        file: &str,
        progress: &mut dyn Progress,
        cancel: &Cancel,
    ) -> Result<Artifact, Error> {
        let path = self.directory.join(file);
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444))
            .map_err(Error::io("protect", &path))?;
        let (sha256, bytes) = sha256(&path, progress, cancel)?;
        Ok(Artifact { file: file.to_owned(), bytes, sha256 })
    }

    /// Puts the finished image into the store, in the place of one of the same name.
    pub(crate) fn commit(self, store: &Store, manifest: &Manifest) -> Result<Image, Error> {
        let path = self.directory.join(MANIFEST_FILE);
        let mut text = serde_json::to_string_pretty(manifest)
            .map_err(|error| Error::io("write", &path)(error.into()))?;
        text.push('\n');
        File::create(&path)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .map_err(Error::io("write", &path))?;
        let image = Image {
            name: self.name.clone(),
            directory: self.directory.clone(),
            manifest: manifest.clone(),
        };
        // The sums were just made from these very files.
        let mut stamps = Vec::new();
        for artifact in manifest.artifacts() {
            stamps.push(image.stamp(artifact)?);
        }
        if let Ok(bytes) = serde_json::to_vec(&stamps) {
            let _ = fs::write(self.directory.join(VERIFIED_FILE), bytes);
        }
        let failed = || Error::io("put into place", &self.target);
        if self.target.exists() {
            // Both at once where the file system can; the old image then goes with `self`.
            let swapped = rustix::fs::renameat_with(
                CWD,
                &self.directory,
                CWD,
                &self.target,
                RenameFlags::EXCHANGE,
            );
            if swapped.is_err() {
                remove_tree(&self.target)?;
                fs::rename(&self.directory, &self.target).map_err(failed())?;
            }
        } else {
            fs::rename(&self.directory, &self.target).map_err(failed())?;
        }
        File::open(&store.images).and_then(|dir| dir.sync_all()).map_err(failed())?;
        Ok(Image { directory: self.target.clone(), ..image })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Whatever cannot be removed now is removed by the next one who holds the lock.
        let _ = remove_tree(&self.directory);
    }
}

enum LockError {
    Cancelled,
    Io(io::Error),
}

fn wait_for_lock(
    lock: &File,
    name: &ImageName,
    progress: &mut dyn Progress,
    cancel: &Cancel,
) -> Result<(), LockError> {
    let mut waiting = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        if !waiting {
            progress.step(&format!("Waiting for another lodge that works on {name}"));
            waiting = true;
        }
        cancel.check().map_err(|_| LockError::Cancelled)?;
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn remove_tree(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

/// Refuses work for which there is too little room.
pub(crate) fn require_space(dir: &Path, need: u64, variable: &'static str) -> Result<(), Error> {
    let have = free_space(dir)?;
    if have < need {
        return Err(Error::Space { dir: dir.to_owned(), need, have, variable });
    }
    Ok(())
}

/// How many bytes can be written to the file system of a directory.
pub(crate) fn free_space(dir: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::statvfs(dir)
        .map_err(|errno| Error::io("look at", dir)(io::Error::from(errno)))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImportOptions, Quiet};

    fn name(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    fn store_with_image() -> (tempfile::TempDir, Store, Image) {
        let home = tempfile::tempdir().unwrap();
        let disk = home.path().join("source.raw");
        fs::write(&disk, vec![7; 4096]).unwrap();
        let kernel = home.path().join("source.kernel");
        fs::write(&kernel, b"kernel").unwrap();
        let store = Store::at(home.path());
        let options =
            ImportOptions { disk, kernel: Some(kernel), initrd: None, cmdline: None, force: false };
        let image =
            store.import(&name("debian:12"), &options, &mut Quiet, &Cancel::default()).unwrap();
        (home, store, image)
    }

    fn files(store: &Store) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&store.images)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Overwrites one byte and puts the times back, as failing hardware would.
    fn corrupt(path: &Path) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        let file = File::options().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 100).unwrap();
        file.set_modified(modified).unwrap();
    }

    #[test]
    fn the_places_for_images_in_their_order() {
        let some = |text: &str| Some(OsString::from(text));
        let at = |a, b, c| home_from(a, b, c).unwrap();
        assert_eq!(at(some("/l"), some("/x"), some("/h")), Path::new("/l"));
        assert_eq!(at(None, some("/x"), some("/h")), Path::new("/x/lodge"));
        assert_eq!(at(None, some("x"), some("/h")), Path::new("/h/.local/share/lodge"));
        assert!(at(some("l"), None, None).is_absolute());
        assert!(matches!(home_from(None, None, None), Err(Error::NoHome)));
    }

    #[test]
    fn an_empty_store_needs_no_directory() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::at(&home.path().join("none"));
        assert!(store.list().unwrap().is_empty());
        let error = store.get(&name("debian:12")).unwrap_err().to_string();
        assert!(error.contains("lodge image build debian:12"), "{error}");
        let error = store.get(&name("web")).unwrap_err().to_string();
        assert!(error.contains("lodge image ls"), "{error}");
    }

    #[test]
    fn an_image_is_listed_verified_and_removed() {
        let (_home, store, image) = store_with_image();
        let list = store.list().unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].name.as_str(), "debian:12");
        assert_eq!(image.manifest().disk.bytes, 4096);
        for check in [Check::Quick, Check::Full] {
            image.verify(check, &mut Quiet, &Cancel::default()).unwrap();
        }
        store.remove(image.name(), &mut Quiet, &Cancel::default()).unwrap();
        assert!(store.list().unwrap().is_empty());
        assert_eq!(files(&store), [".debian@12.lock"]);
        assert!(matches!(
            store.remove(image.name(), &mut Quiet, &Cancel::default()),
            Err(Error::NotFound { .. })
        ));
    }

    #[test]
    fn a_changed_byte_is_found() {
        let (_home, _store, image) = store_with_image();
        corrupt(&image.disk());
        image.verify(Check::Quick, &mut Quiet, &Cancel::default()).unwrap();
        let error = image.verify(Check::Full, &mut Quiet, &Cancel::default()).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        // Once found, the quick check no longer lets it pass.
        assert!(image.verify(Check::Quick, &mut Quiet, &Cancel::default()).is_err());
    }

    #[test]
    fn a_touched_file_is_hashed_again() {
        let (_home, _store, image) = store_with_image();
        corrupt(&image.disk());
        File::options().append(true).open(image.disk()).unwrap().set_modified(UNIX_EPOCH).unwrap();
        assert!(image.verify(Check::Quick, &mut Quiet, &Cancel::default()).is_err());
    }

    #[test]
    fn missing_and_shortened_files_are_damage() {
        let (_home, store, image) = store_with_image();
        fs::set_permissions(image.disk(), fs::Permissions::from_mode(0o644)).unwrap();
        File::options().write(true).open(image.disk()).unwrap().set_len(512).unwrap();
        let error = image.verify(Check::Quick, &mut Quiet, &Cancel::default()).unwrap_err();
        assert!(error.to_string().contains("512 bytes instead of 4096"), "{error}");
        fs::remove_file(image.disk()).unwrap();
        let error = image.verify(Check::Quick, &mut Quiet, &Cancel::default()).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        fs::remove_file(image.directory.join(MANIFEST_FILE)).unwrap();
        assert!(matches!(store.list().unwrap()[0].image, Err(Error::Damaged { .. })));
        // A damaged image can still be removed.
        store.remove(image.name(), &mut Quiet, &Cancel::default()).unwrap();
    }

    #[test]
    fn what_a_killed_build_left_is_swept() {
        let (_home, store, image) = store_with_image();
        let stale = store.images.join(".new-debian@12");
        fs::create_dir(&stale).unwrap();
        fs::write(stale.join("disk.raw"), b"half").unwrap();
        assert_eq!(store.list().unwrap().len(), 1, "half an image is not listed");
        let staging = Staging::begin(&store, image.name(), &mut Quiet, &Cancel::default()).unwrap();
        assert_eq!(fs::read_dir(staging.directory()).unwrap().count(), 0);
        drop(staging);
        assert_eq!(files(&store), [".debian@12.lock", "debian@12"]);
    }

    #[test]
    fn two_cannot_make_one_image_at_once() {
        let (_home, store, image) = store_with_image();
        let first = Staging::begin(&store, image.name(), &mut Quiet, &Cancel::default()).unwrap();
        let cancel = Cancel::default();
        let second = {
            let (store, name, cancel) = (store.clone(), image.name().clone(), cancel.clone());
            std::thread::spawn(move || Staging::begin(&store, &name, &mut Quiet, &cancel).map(drop))
        };
        std::thread::sleep(Duration::from_millis(150));
        assert!(!second.is_finished(), "the second waits");
        // Another image is not in the way.
        drop(Staging::begin(&store, &name("web"), &mut Quiet, &cancel).unwrap());
        drop(first);
        second.join().unwrap().unwrap();

        let _first = Staging::begin(&store, image.name(), &mut Quiet, &cancel).unwrap();
        cancel.cancel();
        let refused = Staging::begin(&store, image.name(), &mut Quiet, &cancel).map(drop);
        assert!(matches!(refused, Err(Error::Cancelled)));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, b"").unwrap();
        let store = Store::at(&file);
        let error = Staging::begin(&store, &name("web"), &mut Quiet, &Cancel::default())
            .map(drop)
            .unwrap_err();
        assert!(matches!(error, Error::Unwritable { .. }), "{error}");
        assert!(error.to_string().contains("LODGE_HOME"), "{error}");
    }

    #[test]
    fn too_little_room_is_said_beforehand() {
        let home = tempfile::tempdir().unwrap();
        let error = require_space(home.path(), u64::MAX, "LODGE_HOME").unwrap_err();
        assert!(error.to_string().contains("MiB are needed"), "{error}");
        require_space(home.path(), 1, "LODGE_HOME").unwrap();
    }
}
