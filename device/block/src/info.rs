//! Looking at an image without opening it as a disk.

use crate::error::Error;
use crate::file::HostFile;
use crate::open::{Format, OpenOptions, guess};
use crate::qcow2::{self, Qcow2Info};

/// What an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// [`Format::Raw`] or [`Format::Qcow2`].
    pub format: Format,
    /// The size of the disk in bytes.
    pub size: u64,
    /// How many bytes the image takes on the host, without its backing files.
    pub allocated: u64,
    /// Somebody writes to it at this moment.
    pub in_use: bool,
    /// What only a qcow2 image has.
    pub qcow2: Option<Qcow2Info>,
}

/// Looks at an image, also while a guest uses it. Its backing files are not opened.
///
/// # Errors
///
/// Those of [`open`](crate::open), as far as the header tells.
pub fn info(options: &OpenOptions) -> Result<Info, Error> {
    let (host, in_use) = HostFile::peek(&options.path)?;
    let format = match options.format {
        Format::Auto => guess(&host)?,
        told => told,
    };
    let (size, qcow2) = match format {
        Format::Qcow2 => {
            let (size, qcow2) = qcow2::info(&host)?;
            (size, Some(qcow2))
        }
        Format::Raw | Format::Auto => (host.measure()?, None),
    };
    Ok(Info { format, size, allocated: host.allocated()?, in_use, qcow2 })
}
