//! Making raw images.

use crate::error::Error;
use crate::partial::PartialFile;
use crate::qcow2::check_size;
use std::path::Path;

/// Makes a raw image for a disk of `size` bytes, a multiple of 512, that reads as zeroes and takes no
/// room.
///
/// Nothing is overwritten: `path` must not exist. It is readable and writable by this user alone.
///
/// # Errors
///
/// [`Cause::Misconfigured`](crate::Cause::Misconfigured) for a size that cannot be and for a file that
/// is there, else the host's.
pub fn create_raw(path: &Path, size: u64) -> Result<(), Error> {
    check_size(path, size)?;
    let partial = PartialFile::create(path)?;
    partial.file.set_len(size).map_err(|e| Error::host(path, "create", e))?;
    partial.put_in_place()
}
