//! Opening a disk, whatever its format.

use crate::disk::Disk;
use crate::error::{Cause, Error};
use crate::file::{HostFile, Opener};
use crate::probe::{PROBE_LEN, Probed, probe};
use crate::qcow2::{self, Backing};
use crate::raw::RawDisk;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format of a disk image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// What the first bytes say: qcow2, or else raw. Safe only under the rule that the crate's
    /// documentation gives.
    #[default]
    Auto,
    /// The bytes of the disk as they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// What to open, and how.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The image file or block device.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Refuse writes. Several users may then share the image.
    pub readonly: bool,
}

impl OpenOptions {
    /// Opens `path` for reading and writing, in the format that it is found to have.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        OpenOptions { path: path.into(), format: Format::Auto, readonly: false }
    }

    /// Sets the format.
    pub fn format(self, format: Format) -> Self {
        OpenOptions { format, ..self }
    }

    /// Sets whether writes are refused.
    pub fn readonly(self, readonly: bool) -> Self {
        OpenOptions { readonly, ..self }
    }
}

/// Opens a disk image and, for a qcow2 image, its backing files. All are locked until the disk is
/// dropped: against all other users where it is writable, against writers where it is not.
///
/// An image that is damaged, or that uses what can't be served safely, is refused here, before
/// anything is written to it.
///
/// A raw disk has the size of its file. If that is not a multiple of 512, the disk may only be
/// opened read-only, and its last sector is filled with zeroes.
pub fn open(options: &OpenOptions) -> Result<Arc<dyn Disk>, Error> {
    open_by(options, &HostFile::open)
}

pub(crate) fn open_by(options: &OpenOptions, opener: &Opener<'_>) -> Result<Arc<dyn Disk>, Error> {
    let host = opener(&options.path, !options.readonly)?;
    let (format, guessed) = match options.format {
        Format::Auto => (guess(&host)?, true),
        format => (format, false),
    };
    Ok(match format {
        Format::Qcow2 => Arc::new(qcow2::open(host, options.readonly, opener)?),
        Format::Raw | Format::Auto => Arc::new(RawDisk::new(host, options.readonly, guessed)?),
    })
}

/// Opens `overlay`, a qcow2 image that takes a guest's writes and whose backing file is `base`,
/// and makes it if there is none. `base` is only read; `base.readonly` is of no account.
///
/// An overlay that exists must belong to `base`, if need be by way of other overlays.
pub fn open_overlay(overlay: &Path, base: &OpenOptions) -> Result<Arc<dyn Disk>, Error> {
    let exists = overlay.try_exists().map_err(|e| Error::host(overlay, "look for", e))?;
    if !exists {
        let format = match base.format {
            Format::Auto => guess(&HostFile::open(&base.path, false)?)?,
            format => format,
        };
        let backing = Backing { path: base.path.clone(), relative: false, format };
        let size = open(&base.clone().format(format).readonly(true))?.size();
        qcow2::create_qcow2(overlay, size, Some(&backing))?;
    }
    let host = HostFile::open(overlay, true)?;
    qcow2::require_backing(&host, &base.path)?;
    Ok(Arc::new(qcow2::open(host, false, &HostFile::open)?))
}

/// The files that an image stands on, from the nearest to the deepest: none below a raw image.
///
/// # Errors
///
/// The image or one of them cannot be opened, or makes no sense.
pub fn backing_files(image: &Path, format: Format) -> Result<Vec<PathBuf>, Error> {
    let host = HostFile::open(image, false)?;
    let format = match format {
        Format::Auto => guess(&host)?,
        format => format,
    };
    match format {
        Format::Qcow2 => qcow2::backing_files(host),
        Format::Raw | Format::Auto => Ok(Vec::new()),
    }
}

/// The format of an image that nobody told.
pub(crate) fn guess(host: &HostFile) -> Result<Format, Error> {
    let mut first = [0; PROBE_LEN];
    host.read_at(0, &mut first).map_err(|e| Error::host(host.path(), "read", e))?;
    match probe(&first) {
        Probed::Qcow2 => Ok(Format::Qcow2),
        Probed::Raw => Ok(Format::Raw),
        Probed::Foreign(name) => Err(Error::new(
            Cause::Unsupported,
            host.path(),
            format!("it is a {name} image, which Lodge does not read"),
            format!(
                "convert it with `qemu-img convert -O qcow2 '{}' NEW.qcow2`, or, if these really \
                 are the bytes of the disk, say that the format is raw",
                host.path().display()
            ),
        )),
    }
}
