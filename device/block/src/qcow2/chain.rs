//! Opening a qcow2 image with the backing files that it stands on.

use super::check;
use super::create;
use super::disk::{Image, Qcow2Disk};
use super::header::{self, BackingRef, Header};
use super::storage::{ImageFile, WriteOrder};
use crate::disk::SECTOR;
use crate::error::{Cause, Error};
use crate::file::{HostFile, Identity, Opener};
use crate::open::{Format, guess};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatDriverBuilder};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most images that may stand on each other.
const MAX_DEPTH: usize = 64;

/// An image of the chain that has been opened and locked.
struct Layer {
    host: Arc<HostFile>,
    /// Absent for a raw image.
    header: Option<Header>,
}

/// Opens the qcow2 image in `host`, and with `opener` the images that it stands on.
pub(crate) fn open(
    host: HostFile,
    readonly: bool,
    opener: &Opener<'_>,
) -> Result<Qcow2Disk, Error> {
    let path = host.path().to_owned();
    let header = header::read(&host)?;
    let size = disk_size(&path, &header, readonly)?;
    let host = Arc::new(host);
    let mut backing: Option<Image> = None;
    for layer in backing_layers(&host, &header, opener)?.into_iter().rev() {
        let path = layer.host.path().to_owned();
        backing = Some(open_layer(layer, backing, None).map_err(|e| told_of(e, &host, &path))?);
    }
    let backing_size = backing.as_ref().map_or(0, |image| image.size());
    let order = if readonly { None } else { Some(write_order(&host, &header)?) };
    let layer = Layer { host: Arc::clone(&host), header: Some(header.clone()) };
    let image = open_layer(layer, backing, order.clone())?;
    if header.bitmaps && !readonly {
        tracing::warn!(
            image = %path.display(),
            "the image has dirty bitmaps (of incremental backups), which become invalid now that \
             it is written; the next backup must be a full one"
        );
    }
    Ok(Qcow2Disk::new(image, host, &header, (size, backing_size), order))
}

/// Makes the disk of the image in `host` `size` bytes long.
pub(crate) fn resize(host: HostFile, size: u64) -> Result<(), Error> {
    let path = host.path().to_owned();
    let header = header::read(&host)?;
    let hindrance = if header.version < 3 {
        Some("it is of version 2 of the format, which cannot say that a part of it reads as zeroes")
    } else if header.snapshots > 0 {
        Some("it has internal snapshots, which are of the old size")
    } else if header.bitmaps {
        Some("it has dirty bitmaps (of incremental backups), which are of the old size")
    } else {
        None
    };
    if let Some(hindrance) = hindrance {
        return Err(Error::new(
            Cause::Unsupported,
            &path,
            hindrance,
            "make an image without that with `lodge disk convert`, and resize that one",
        ));
    }
    create::check_size(&path, size)?;
    open(host, false, &HostFile::open)?.resize(size).map_err(|e| Error::host(&path, "resize", e))
}

/// The files below the qcow2 image in `host`.
pub(crate) fn backing_files(host: HostFile) -> Result<Vec<PathBuf>, Error> {
    let header = header::read(&host)?;
    let layers = backing_layers(&Arc::new(host), &header, &HostFile::open)?;
    Ok(layers.iter().map(|layer| layer.host.path().to_owned()).collect())
}

/// Requires that the image in `host` stands on `base`, directly or by way of other images.
pub(crate) fn require_backing(host: &HostFile, base: &Path) -> Result<(), Error> {
    let identity = |path: &Path| {
        fs::metadata(path).map(|m| (m.dev(), m.ino())).map_err(|e| Error::host(path, "open", e))
    };
    let wanted = identity(base)?;
    let header = header::read(host)?;
    let mut next = header.backing.clone();
    let mut overlay = host.path().to_owned();
    for _ in 0..MAX_DEPTH {
        let Some(backing) = next else { break };
        let path = resolve(&overlay, &backing.name)?;
        if identity(&path).map_err(|e| e.wanted_by(&overlay))? == wanted {
            return Ok(());
        }
        let layer =
            open_backing(&overlay, &backing, &HostFile::open).map_err(|e| e.wanted_by(&overlay))?;
        next = layer.header.and_then(|header| header.backing);
        overlay = path;
    }
    Err(Error::new(
        Cause::Misconfigured,
        host.path(),
        match header.backing {
            Some(backing) => {
                format!("it is an overlay of '{}', not of '{}'", backing.name, base.display())
            }
            None => format!("it is no overlay of '{}': it has no backing file", base.display()),
        },
        "name another file for the overlay, or remove this one if its contents are not needed",
    ))
}

/// The size of the disk that an image holds; the rule for odd ones is that of raw images.
fn disk_size(path: &Path, header: &Header, readonly: bool) -> Result<u64, Error> {
    match header.size.checked_next_multiple_of(SECTOR) {
        Some(size) if size == header.size || readonly => Ok(size),
        _ => Err(Error::new(
            Cause::Misconfigured,
            path,
            format!("its disk's size of {} bytes is not a multiple of {SECTOR}", header.size),
            format!(
                "open it read-only, or make it larger with `qemu-img resize '{}' +512`",
                path.display()
            ),
        )),
    }
}

/// Opens and locks the backing files below `top`, from the nearest to the deepest.
fn backing_layers(
    top: &Arc<HostFile>,
    header: &Header,
    opener: &Opener<'_>,
) -> Result<Vec<Layer>, Error> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut seen: Vec<Identity> = vec![top.identity()?];
    let mut overlay: PathBuf = top.path().to_owned();
    let mut next = header.backing.clone();
    while let Some(backing) = next {
        let too_deep = seen.len() > MAX_DEPTH;
        let layer = open_backing(&overlay, &backing, opener).map_err(|e| e.wanted_by(&overlay))?;
        let identity = layer.host.identity()?;
        if too_deep || seen.contains(&identity) {
            let problem = if too_deep {
                format!("its chain of backing files is longer than {MAX_DEPTH}")
            } else {
                format!(
                    "its chain of backing files leads back to '{}'",
                    layer.host.path().display()
                )
            };
            return Err(Error::new(
                Cause::Damaged,
                top.path(),
                problem,
                "look at the chain with `qemu-img info --backing-chain`, and flatten it with \
                 `qemu-img convert`",
            ));
        }
        seen.push(identity);
        overlay = layer.host.path().to_owned();
        next = layer.header.as_ref().and_then(|header| header.backing.clone());
        layers.push(layer);
    }
    Ok(layers)
}

fn open_backing(overlay: &Path, backing: &BackingRef, opener: &Opener<'_>) -> Result<Layer, Error> {
    let path = resolve(overlay, &backing.name)?;
    let host = opener(&path, false)?;
    let (format, guessed) = match backing.format.as_deref() {
        // QEMU's protocol drivers: the bytes of the file, as with raw.
        Some("raw" | "file" | "host_device") => (Format::Raw, false),
        Some("qcow2") => (Format::Qcow2, false),
        Some(other) => {
            return Err(Error::new(
                Cause::Unsupported,
                &path,
                format!(
                    "its overlay says that it is of format '{other}', which Lodge does not read"
                ),
                "convert the chain to one image with `qemu-img convert -O qcow2`",
            ));
        }
        None => (guess(&host)?, true),
    };
    let header = match format {
        Format::Qcow2 => Some(header::read(&host)?),
        Format::Raw | Format::Auto => None,
    };
    // This may be a raw disk into which a guest wrote the header of a qcow2 image.
    if guessed && header.as_ref().is_some_and(|header| header.backing.is_some()) {
        return Err(Error::new(
            Cause::Misconfigured,
            &path,
            "it has a backing file of its own, but its overlay does not say that it is a qcow2 image",
            format!(
                "if it is one, record that with `qemu-img rebase -u -F qcow2 -b '{}' '{}'`",
                backing.name,
                overlay.display()
            ),
        ));
    }
    Ok(Layer { host: Arc::new(host), header })
}

/// The path that an overlay means by the name of its backing file.
pub(super) fn resolve(overlay: &Path, name: &str) -> Result<PathBuf, Error> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    // QEMU takes all up to a colon as a protocol unless a slash comes before it.
    let protocol = name.split('/').next().and_then(|first| first.split_once(':'));
    if let Some((protocol, _)) = protocol {
        return Err(Error::new(
            Cause::Unsupported,
            overlay,
            format!("its backing file is reached by '{protocol}:', but Lodge only opens files"),
            "copy the whole chain to one file with `qemu-img convert -O qcow2`",
        ));
    }
    Ok(overlay.parent().unwrap_or(Path::new("")).join(name))
}

/// Checks the tables of an image that will be written.
fn write_order(host: &HostFile, header: &Header) -> Result<Arc<WriteOrder>, Error> {
    check::check(host, header, true)
        .and_then(|tables| WriteOrder::new(host, header, tables))
        .map(Arc::new)
        .map_err(|flaw| flaw.at(host.path()))
}

/// Has imago open a layer: for writing if its tables have been checked and an order is given, else
/// for reading.
fn open_layer(
    layer: Layer,
    backing: Option<Image>,
    order: Option<Arc<WriteOrder>>,
) -> Result<Image, Error> {
    let Layer { host, header } = layer;
    let path = host.path().to_owned();
    let len = host.len().map_err(|e| Error::host(&path, "measure", e))?;
    let opened = match header {
        Some(header) => {
            let writable = order.is_some();
            let file = match order {
                Some(order) => ImageFile::writable(host, len, order),
                None => {
                    check::check(&host, &header, false).map_err(|flaw| flaw.at(&path))?;
                    ImageFile::readonly(host, len)
                }
            };
            catch_unwind(AssertUnwindSafe(|| {
                Qcow2::<ImageFile>::builder(file)
                    .write(writable)
                    .backing(backing)
                    .data_file(None)
                    .open(DenyImplicitOpenGate::default())
                    .map(Image::new)
            }))
        }
        None => Ok(Raw::open_image(ImageFile::readonly(host, len), false).map(Image::new)),
    };
    match opened {
        Ok(Ok(image)) => Ok(image),
        Ok(Err(e)) if e.raw_os_error().is_some() => Err(Error::host(&path, "read", e)),
        Ok(Err(e)) => Err(Error::damaged(&path, format!("it is a damaged qcow2 image: {e}"))),
        Err(_) => {
            Err(Error::damaged(&path, "it is damaged in a way that the qcow2 driver can't stand"))
        }
    }
}

fn told_of(error: Error, top: &HostFile, path: &Path) -> Error {
    if path == top.path() { error } else { error.wanted_by(top.path()) }
}
