//! Making disks larger or smaller while nobody uses them.

use crate::error::{Cause, Error};
use crate::file::HostFile;
use crate::open::{Format, OpenOptions, guess};
use crate::qcow2;

/// Makes the disk in an image `size` bytes long, a multiple of 512. What is new reads as zeroes, what
/// is cut off is lost. The file systems and partitions on it are not touched.
///
/// # Errors
///
/// Those of [`open`](crate::open); [`Cause::Misconfigured`] for a size that cannot be, and for a block
/// device; [`Cause::Unsupported`] for an image that holds more than the disk.
pub fn resize(options: &OpenOptions, size: u64) -> Result<(), Error> {
    let path = &options.path;
    let host = HostFile::open(path, true)?;
    let format = match options.format {
        Format::Auto => guess(&host)?,
        told => told,
    };
    if format == Format::Qcow2 {
        return qcow2::resize(host, size);
    }
    qcow2::check_size(path, size)?;
    if !host.is_file()? {
        return Err(Error::new(
            Cause::Misconfigured,
            path,
            "it is a block device",
            "use the tools that made the device, such as lvresize",
        ));
    }
    host.set_len(size).map_err(|e| Error::host(path, "resize", e))
}
