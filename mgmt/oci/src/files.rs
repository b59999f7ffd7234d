//! The files of an image on this machine: those in a directory, or those in an archive of one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType};

use crate::Error;

/// The most members of an archive. An image has a few for each layer.
const MAX_MEMBERS: usize = 100_000;
/// The longest name that is read.
const MAX_NAME: u64 = 4096;
/// How many links lead to a member, at most.
const MAX_LINKS: usize = 8;
/// O_NONBLOCK (open(2)): so that a pipe in the place of a file is not waited for.
const NONBLOCK: i32 = 0o4000;

/// Files, by their names within the image.
#[derive(Debug)]
pub(crate) struct Files {
    path: PathBuf,
    /// `None`: it is a directory.
    members: Option<HashMap<String, Member>>,
}

#[derive(Debug)]
enum Member {
    /// A part of the archive.
    File { offset: u64, length: u64 },
    /// The same as another one, as old versions of docker save what two images share.
    Link(String),
}

impl Files {
    /// The files below a directory or in an archive.
    pub(crate) fn open(path: &Path) -> Result<Files, Error> {
        let metadata = fs::metadata(path).map_err(Error::io("open", path))?;
        let members = if metadata.is_dir() { None } else { Some(index(path)?) };
        Ok(Files { path: path.to_owned(), members })
    }

    /// Where they are.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file; its contents, and how many bytes there are. `None`: there is none of that name.
    pub(crate) fn get(&self, name: &str) -> Result<Option<(impl Read + use<>, u64)>, Error> {
        let (path, offset, length) = match &self.members {
            None => {
                let Some(name) = plain(name) else { return Ok(None) };
                (self.path.join(name), 0, None)
            }
            Some(members) => match find(members, name) {
                Some((offset, length)) => (self.path.clone(), offset, Some(length)),
                None => return Ok(None),
            },
        };
        let mut file = match open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(Error::io("open", &path))?,
        };
        let length = match length {
            Some(length) => length,
            None => file.metadata().map_err(Error::io("look at", &path))?.len(),
        };
        file.seek(SeekFrom::Start(offset)).map_err(Error::io("read", &path))?;
        Ok(Some((file.take(length), length)))
    }
}

/// Opens a file that is one.
fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no file")) }
}

/// A name that leads to nothing outside; `None` if it would.
fn plain(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let is_inside = !name.starts_with('/') && !parts.contains(&"..") && !parts.is_empty();
    is_inside.then(|| parts.join("/"))
}

fn find(members: &HashMap<String, Member>, name: &str) -> Option<(u64, u64)> {
    let mut name = plain(name)?;
    for _ in 0..MAX_LINKS {
        match members.get(&name)? {
            Member::File { offset, length } => return Some((*offset, *length)),
            Member::Link(target) => name.clone_from(target),
        }
    }
    None
}

/// Finds what is in an archive.
fn index(path: &Path) -> Result<HashMap<String, Member>, Error> {
    let not_an_image = |why: String| Error::NotAnImage { path: path.to_owned(), why };
    let mut file = open(path).map_err(Error::io("open", path))?;
    let end = file.metadata().map_err(Error::io("look at", path))?.len();
    let mut first = Vec::new();
    (&file).take(6).read_to_end(&mut first).map_err(Error::io("read", path))?;
    let compressed: [(&[u8], &str); 4] = [
        (b"\x1f\x8b", "gunzip"),
        (b"\xfd7zXZ\0", "unxz"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (b"BZh", "bunzip2"),
    ];
    if let Some((_, tool)) = compressed.iter().find(|(magic, _)| first.starts_with(magic)) {
        return Err(not_an_image(format!("it is compressed; unpack it first with {tool}")));
    }
    file.rewind().map_err(Error::io("read", path))?;

    let unreadable = |error: io::Error| {
        not_an_image(format!("it is neither a directory nor a whole tar archive ({error})"))
    };
    let mut members = HashMap::new();
    let mut long_name = None;
    let mut archive = Archive::new(file);
    for entry in archive.entries_with_seek().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        let length = entry.header().entry_size().map_err(unreadable)?;
        let kind = entry.header().entry_type();
        match kind {
            // Names of more than a hundred bytes; of links' targets there are none that long.
            EntryType::GNULongName => {
                let mut bytes = Vec::new();
                entry.by_ref().take(MAX_NAME).read_to_end(&mut bytes).map_err(unreadable)?;
                bytes.retain(|byte| *byte != 0);
                long_name = Some(bytes);
                continue;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::Symlink | EntryType::Link => {}
            EntryType::GNULongLink => continue,
            _ => {
                long_name = None;
                continue;
            }
        }
        let offset = entry.raw_file_position();
        let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        let Some(name) = String::from_utf8(name).ok().as_deref().and_then(plain) else { continue };
        let member = match kind {
            EntryType::Symlink | EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                match resolve(&name, &String::from_utf8_lossy(&target), kind) {
                    Some(target) => Member::Link(target),
                    None => continue,
                }
            }
            _ if offset.checked_add(length).is_none_or(|behind| behind > end) => {
                return Err(not_an_image(format!(
                    "it is truncated within {name:?}; get the file again"
                )));
            }
            _ => Member::File { offset, length },
        };
        members.insert(name, member);
        if members.len() > MAX_MEMBERS {
            return Err(not_an_image(format!("it has more than {MAX_MEMBERS} files")));
        }
    }
    Ok(members)
}

/// The member to which a link leads: a symbolic link from where it is, a hard link from the root.
fn resolve(name: &str, target: &str, kind: EntryType) -> Option<String> {
    if kind == EntryType::Link {
        return plain(target);
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    plain(&parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, Header};

    fn read(files: &Files, name: &str) -> Option<String> {
        let (mut reader, length) = files.get(name).unwrap()?;
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text.len() as u64, length);
        Some(text)
    }

    #[test]
    fn directories_and_archives_are_alike() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("image");
        let long = "n".repeat(120);
        fs::create_dir_all(directory.join("a")).unwrap();
        fs::write(directory.join("a/b"), "contents").unwrap();
        fs::write(directory.join(&long), "long").unwrap();
        let mut builder = Builder::new(Vec::new());
        builder.append_dir_all(".", &directory).unwrap();
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "c/link", "../a/b").unwrap();
        builder.append_link(&mut header, "c/out", "../../etc/passwd").unwrap();
        builder.append_link(&mut header, "loop", "loop").unwrap();
        let archive = home.path().join("image.tar");
        let bytes = builder.into_inner().unwrap();
        fs::write(&archive, &bytes).unwrap();
        fs::write(home.path().join("secret"), "secret").unwrap();

        let archive_files = Files::open(&archive).unwrap();
        for files in [Files::open(&directory).unwrap(), Files::open(&archive).unwrap()] {
            assert_eq!(read(&files, "a/b").as_deref(), Some("contents"));
            assert_eq!(read(&files, "./a//b").as_deref(), Some("contents"));
            assert_eq!(read(&files, &long).as_deref(), Some("long"));
            for none in ["", "missing", "../secret", "/etc/passwd", "a/../../secret"] {
                assert!(files.get(none).unwrap().is_none(), "{none}");
            }
        }
        assert_eq!(read(&archive_files, "c/link").as_deref(), Some("contents"));
        assert!(archive_files.get("loop").unwrap().is_none());
        assert!(archive_files.get("c/out").unwrap().is_none());

        for length in [bytes.len() / 2, 600, 512] {
            fs::write(&archive, &bytes[..length]).unwrap();
            match Files::open(&archive) {
                Err(Error::NotAnImage { .. }) => {}
                // It ends between two members.
                Ok(_) => assert_eq!(length % 512, 0),
                Err(error) => panic!("{error}"),
            }
        }
        fs::write(&archive, b"\x1f\x8b\x08 and so on").unwrap();
        assert!(Files::open(&archive).unwrap_err().to_string().contains("gunzip"));
        fs::write(&archive, b"no archive at all, but a text ".repeat(100)).unwrap();
        assert!(matches!(Files::open(&archive), Err(Error::NotAnImage { .. })));
        assert!(matches!(Files::open(&home.path().join("no")), Err(Error::Io { .. })));
    }
}
