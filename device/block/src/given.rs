//! Images whose files are opened by one process and used by another, which may open none itself.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::Disk;
use crate::error::{Cause, Error};
use crate::file::{HostFile, open_file};
use crate::open::{OpenOptions, backing_files, open_by};

/// A file of an image, open and not locked, and the path by which the image knows it.
#[derive(Debug)]
pub struct GivenFile {
    /// The path.
    pub path: PathBuf,
    /// The file.
    pub file: File,
}

/// Opens the files of which an image is made, for another process that calls [`open_given`]: the image itself
/// and all that it stands on, for reading but for the first.
///
/// # Errors
///
/// One of them cannot be opened, is in use, or makes no sense.
pub fn files(options: &OpenOptions) -> Result<Vec<GivenFile>, Error> {
    let open =
        |path: PathBuf, writable| open_file(&path, writable).map(|file| GivenFile { path, file });
    let backing = backing_files(&options.path, options.format)?;
    let mut files = vec![open(options.path.clone(), !options.readonly)?];
    for path in backing {
        files.push(open(path, false)?);
    }
    Ok(files)
}

/// Does what [`open`](crate::open()) does with files that are open. The locks are taken here: they belong to
/// what was opened, whoever has it.
///
/// # Errors
///
/// As [`open`](crate::open()) has them; or the image stands on a file that was not given.
pub fn open_given(options: &OpenOptions, files: Vec<GivenFile>) -> Result<Arc<dyn Disk>, Error> {
    let files: HashMap<PathBuf, File> = files.into_iter().map(|it| (it.path, it.file)).collect();
    let files = Mutex::new(files);
    open_by(options, &|path: &Path, writable| {
        let file = files.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        let file = file.ok_or_else(|| {
            Error::new(
                Cause::Misconfigured,
                path,
                "it was not handed over with the image that stands on it",
                "try again: somebody may have changed the image's backing file just now",
            )
        })?;
        HostFile::given(file, path, writable)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, Format, create_qcow2, open};
    use std::fs;

    #[test]
    fn a_chain_is_used_without_opening_anything() {
        let dir = tempfile::tempdir().unwrap();
        let (base, top) = (dir.path().join("base.raw"), dir.path().join("top.qcow2"));
        fs::write(&base, vec![7; 1 << 20]).unwrap();
        let backing = Backing { path: base.clone(), relative: true, format: Format::Raw };
        create_qcow2(&top, 1 << 20, Some(&backing)).unwrap();
        let options = OpenOptions::new(&top);
        let given = files(&options).unwrap();
        assert_eq!(given.iter().map(|it| &it.path).collect::<Vec<_>>(), [&top, &base]);
        let unlocked = open(&options).unwrap();
        drop(unlocked);
        // Nothing is found by its name any more.
        let moved = dir.path().join("moved");
        fs::create_dir(&moved).unwrap();
        fs::rename(&top, moved.join("top.qcow2")).unwrap();
        fs::rename(&base, moved.join("base.raw")).unwrap();
        let disk = open_given(&options, given).unwrap();
        disk.write_at(0, &[1; 512]).unwrap();
        let mut sectors = [0; 1024];
        disk.read_at(0, &mut sectors).unwrap();
        assert_eq!([sectors[0], sectors[512]], [1, 7]);

        // It is locked as ever, until it is closed.
        let again = OpenOptions::new(moved.join("top.qcow2"));
        assert_eq!(open(&again).err().unwrap().cause(), Cause::Busy);
        assert!(files(&again).is_err());
        drop(disk);
        let given = files(&again).unwrap();
        let other = files(&again).unwrap();
        let first = open_given(&again, given).unwrap();
        assert_eq!(open_given(&again, other).err().unwrap().cause(), Cause::Busy);
        drop(first);

        // One is missing, or is no file.
        let mut given = files(&again).unwrap();
        given.truncate(1);
        let error = open_given(&again, given).err().unwrap();
        assert!(error.to_string().contains("handed over"), "{error}");
        let directory =
            GivenFile { path: again.path.clone(), file: File::open(dir.path()).unwrap() };
        assert!(open_given(&again.clone().readonly(true), vec![directory]).is_err());
    }

    #[test]
    fn what_was_opened_for_reading_takes_no_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        fs::write(&path, vec![0; 4096]).unwrap();
        let options = OpenOptions::new(&path);
        let given = files(&options.clone().readonly(true)).unwrap();
        let disk = open_given(&options, given).unwrap();
        assert!(disk.write_at(0, &[1; 512]).is_err());
    }
}
