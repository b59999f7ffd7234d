//! Files that appear under their names only once they are whole.

use crate::error::{Cause, Error};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A new file, readable and writable by this user alone, which has another name until it is put in
/// its place, and is removed if it never is.
pub(crate) struct PartialFile {
    /// The same, open for writing.
    pub file: File,
    /// The name it has now.
    path: PathBuf,
    /// The name it shall have.
    place: PathBuf,
}

impl PartialFile {
    /// An empty file for the name `place`, at which nothing may be yet.
    pub(crate) fn create(place: &Path) -> Result<Self, Error> {
        if place.try_exists().map_err(|e| Error::host(place, "look for", e))? {
            return Err(exists(place));
        }
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        // Another thread may be at the same, or a process of the same number may have been killed.
        for attempt in 0.. {
            let path =
                directory(place).join(format!(".{name}.{}-{attempt}.partial", std::process::id()));
            match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => return Ok(PartialFile { file, path, place: place.to_owned() }),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(e) => return Err(Error::host(place, "create", e)),
            }
        }
        Err(exists(place))
    }

    /// The name that the file has until it is in its place.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name. It is on stable storage then, under that name.
    pub(crate) fn put_in_place(self) -> Result<(), Error> {
        let failed = |e| Error::host(&self.place, "create", e);
        self.file.sync_all().map_err(failed)?;
        match rustix::fs::renameat_with(
            rustix::fs::CWD,
            &self.path,
            rustix::fs::CWD,
            &self.place,
            rustix::fs::RenameFlags::NOREPLACE,
        ) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(exists(&self.place)),
            // The file system can't refuse to replace; it was free a moment ago.
            Err(rustix::io::Errno::INVAL) => {
                fs::rename(&self.path, &self.place).map_err(failed)?;
            }
            Err(e) => return Err(failed(e.into())),
        }
        // The name is on stable storage once the directory is.
        File::open(directory(&self.place))
            .and_then(|directory| directory.sync_all())
            .map_err(failed)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // It is not there any more if it was renamed.
        let _ = fs::remove_file(&self.path);
    }
}

/// The directory that a file lies in.
pub(crate) fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn exists(path: &Path) -> Error {
    Error::new(
        Cause::Misconfigured,
        path,
        "it exists already",
        "name another file, or remove this one if its contents are not needed",
    )
}
