//! Copying a disk to an image of another format.

use crate::disk::Disk;
use crate::error::{Cause, Error};
use crate::file::HostFile;
use crate::open::{Format, OpenOptions, open};
use crate::partial::PartialFile;
use crate::qcow2;
use crate::raw::RawDisk;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

/// How much is read at a time.
const PIECE: u64 = 1 << 20;
/// Zeroes are left out where this many come together: the cluster of a new qcow2 image, or a page of
/// most file systems.
const QCOW2_GRAIN: usize = 64 << 10;
const RAW_GRAIN: usize = 4 << 10;

/// Copies the disk in `source`, with what it has of its backing files, to a new image `target`, which
/// takes room for data only. `progress` is told again and again how many bytes are done and of how many,
/// and may have the work given up, which is what the value says.
///
/// Nothing is overwritten: `target` must not exist. It appears under its name only once it is whole
/// and on stable storage.
///
/// # Errors
///
/// Those of [`open`]; [`Cause::Misconfigured`] for a target that is there; the host's.
pub fn convert(
    source: &OpenOptions,
    target: &Path,
    format: Format,
    mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Error> {
    let from = open(&source.clone().readonly(true))?;
    let size = from.size();
    let (partial, to, grain) = begin(target, format, size)?;

    let mut piece = vec![0; PIECE as usize];
    let mut at = 0;
    while let Some(range) = from.next_data(at).map_err(|e| Error::host(&source.path, "read", e))? {
        at = range.start;
        // The last sector of an odd file may be cut short.
        while at < range.end.min(size) {
            if progress(at, size).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let len = (range.end.min(size) - at).min(PIECE) as usize;
            let data = piece.get_mut(..len).unwrap_or_default();
            from.read_at(at, data).map_err(|e| Error::host(&source.path, "read", e))?;
            write_data(&*to, at, data, grain).map_err(|e| Error::host(target, "write", e))?;
            at += len as u64;
        }
    }
    let _ = progress(size, size);
    to.flush().map_err(|e| Error::host(target, "write", e))?;
    drop(to);
    partial.put_in_place()?;
    Ok(ControlFlow::Continue(()))
}

/// An image that reads as zeroes, and where it shall be.
fn begin(
    target: &Path,
    format: Format,
    size: u64,
) -> Result<(PartialFile, Box<dyn Disk>, usize), Error> {
    let mut partial = PartialFile::create(target)?;
    let failed = |e| Error::host(target, "create", e);
    let path = partial.path().to_owned();
    match format {
        Format::Raw => {
            partial.file.set_len(size).map_err(failed)?;
            let disk = RawDisk::new(HostFile::open(&path, true)?, false, false)?;
            Ok((partial, Box::new(disk), RAW_GRAIN))
        }
        Format::Qcow2 => {
            let image = qcow2::empty_image(target, size, None)?;
            partial.file.write_all(&image).map_err(failed)?;
            let disk = qcow2::open(HostFile::open(&path, true)?, false, &HostFile::open)?;
            Ok((partial, Box::new(disk), QCOW2_GRAIN))
        }
        Format::Auto => Err(Error::new(
            Cause::Misconfigured,
            target,
            "its format was not told",
            "say whether that is to be raw or qcow2",
        )),
    }
}

/// Writes the grains of `data` that are not all zeroes, neighbours together. `offset` is a multiple of
/// a sector.
fn write_data(to: &dyn Disk, offset: u64, data: &[u8], grain: usize) -> std::io::Result<()> {
    let mut start = None;
    let mut at = 0;
    while at < data.len() {
        // Grains are those of the disk.
        let end = (at + grain - (offset as usize + at) % grain).min(data.len());
        let piece = data.get(at..end).unwrap_or_default();
        if piece.iter().any(|byte| *byte != 0) {
            start.get_or_insert(at);
        } else if let Some(start) = start.take() {
            to.write_at(offset + start as u64, data.get(start..at).unwrap_or_default())?;
        }
        at = end;
    }
    match start {
        Some(start) => to.write_at(offset + start as u64, data.get(start..).unwrap_or_default()),
        None => Ok(()),
    }
}
