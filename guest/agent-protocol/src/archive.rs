//! Files and directories as tar archives: packed on one side, unpacked on the other.
//!
//! Kept are contents, permissions (but for set-user-ID and the like), times and symbolic links. What
//! is no file, directory or link is left out. Unpacked, all of it belongs to whoever unpacks.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Component, Path};

use tar::{Archive, Builder, EntryType, Header, HeaderMode};

/// The most directories of an archive: they are kept in memory to its end.
const MAX_DIRECTORIES: usize = 200_000;

/// Packs what is at `path`, under `name`; with an empty name, what is in the directory. Returns how
/// many things were left out, because they were none that can be packed.
///
/// # Errors
///
/// What the system refuses, with the path.
pub fn pack(path: &Path, name: &str, archive: impl Write) -> io::Result<u64> {
    let mut builder = Builder::new(archive);
    builder.follow_symlinks(false);
    let mut left_out = 0;
    if name.is_empty() {
        pack_inside(&mut builder, path, Path::new(""), &mut left_out)?;
    } else {
        pack_one(&mut builder, path, Path::new(name), &mut left_out)?;
    }
    builder.into_inner()?.flush()?;
    Ok(left_out)
}

fn pack_one(
    builder: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    left_out: &mut u64,
) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path).map_err(about(path))?;
    let mut header = header(&metadata);
    if metadata.is_dir() {
        builder.append_data(&mut header, name, io::empty())?;
        pack_inside(builder, path, name, left_out)
    } else if metadata.is_symlink() {
        let target = fs::read_link(path).map_err(about(path))?;
        builder.append_link(&mut header, name, target)
    } else if metadata.is_file() {
        // As long as it is now, whatever happens to it meanwhile.
        let contents = File::open(path).map_err(about(path))?.chain(io::repeat(0));
        builder.append_data(&mut header, name, contents.take(metadata.len()))
    } else {
        *left_out += 1;
        Ok(())
    }
}

fn pack_inside(
    builder: &mut Builder<impl Write>,
    directory: &Path,
    name: &Path,
    left_out: &mut u64,
) -> io::Result<()> {
    for entry in fs::read_dir(directory).map_err(about(directory))? {
        let entry = entry.map_err(about(directory))?;
        match pack_one(builder, &entry.path(), &name.join(entry.file_name()), left_out) {
            // It was there a moment ago.
            Err(error) if error.kind() == ErrorKind::NotFound => *left_out += 1,
            result => result?,
        }
    }
    Ok(())
}

fn header(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(metadata, HeaderMode::Complete);
    if !metadata.is_file() {
        header.set_size(0);
    }
    header
}

/// Unpacks an archive in `directory`, where nothing leaves it: not by its names and not by links.
/// `name`: all there is has to be this, or in this.
///
/// # Errors
///
/// What the system refuses, with the path; an archive that is none, or that has something else.
pub fn unpack(archive: impl Read, directory: &Path, name: Option<&str>) -> io::Result<()> {
    let mut archive = Archive::new(archive);
    archive.set_preserve_mtime(true);
    // A directory that may not be written to is to be filled first.
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let first = path.components().find(|part| *part != Component::CurDir);
        if let Some(name) = name
            && first != Some(Component::Normal(name.as_ref()))
        {
            return Err(refused(&path));
        }
        match entry.header().entry_type() {
            EntryType::Directory => {
                if directories.len() >= MAX_DIRECTORIES {
                    let text = format!("there are more than {MAX_DIRECTORIES} directories");
                    return Err(io::Error::other(text));
                }
                directories.push(entry);
                continue;
            }
            EntryType::Regular
            | EntryType::Symlink
            | EntryType::Link
            | EntryType::Continuous
            | EntryType::GNUSparse => {}
            // Nodes and pipes belong to the system that they come from.
            _ => continue,
        }
        if !entry.unpack_in(directory).map_err(about(&path))? {
            return Err(refused(&path));
        }
    }
    directories.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    for mut entry in directories {
        let path = entry.path()?.into_owned();
        if !entry.unpack_in(directory).map_err(about(&path))? && path != Path::new("") {
            return Err(refused(&path));
        }
    }
    Ok(())
}

fn refused(path: &Path) -> io::Error {
    let text = format!("{} does not belong there, and is refused", path.display());
    io::Error::new(ErrorKind::InvalidData, text)
}

fn about(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let path = path.display().to_string();
    move |error| {
        // What the library tar says itself, in one layer or two, leaves the cause out.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        io::Error::new(error.kind(), format!("{path}: {cause}"))
    }
}
