//! A guest's disk in layers: what a snapshot has of it stays as it is, and the guest writes to an
//! overlay.
//!
//! ```text
//! disk.qcow2 ──▶ layer-B-0.qcow2 ──▶ layer-A-0.qcow2 ──▶ the image
//! ```
//!
//! Layers lie beside the overlay, and know what they stand on by its name there. So a guest's directory
//! can be moved, and a clone has links to the same files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Backing, Disk, Format, OpenOptions};

use crate::BuildError;
use crate::wiring::storage::{self, AttachedDisk};

/// An overlay that is not in its place yet.
pub struct Overlay {
    /// The same, open.
    pub disk: Arc<dyn Disk>,
    /// Where it is.
    pub file: PathBuf,
}

/// Makes an overlay of a layer, which shall take the place of the overlay `place`.
pub fn begin(place: &Path, layer: &str) -> Result<Overlay, block::Error> {
    let layer = place.with_file_name(layer);
    let file = place.with_extension("next");
    // One that was left by someone who was killed.
    let _ = fs::remove_file(&file);
    let format = Format::Qcow2;
    let base = OpenOptions { path: layer.clone(), format, readonly: true };
    let size = block::open(&base)?.size();
    block::create_qcow2(&file, size, Some(&Backing { path: layer, relative: true, format }))?;
    match block::open(&OpenOptions::new(&file).format(format)) {
        Ok(disk) => Ok(Overlay { disk, file }),
        Err(error) => {
            let _ = fs::remove_file(&file);
            Err(error)
        }
    }
}

/// Puts a file in the place of another, also if the host's power fails.
pub fn put_in_place(file: &Path, place: &Path) -> io::Result<()> {
    fs::rename(file, place)?;
    File::open(place.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Makes what the guest has written until now a layer named `layer`, and has it write to an overlay
/// from now on. The guest stands still. If that fails, it goes on as before.
pub fn freeze(attached: &AttachedDisk, layer: &str) -> Result<(), BuildError> {
    let AttachedDisk { path, disk, config, .. } = attached;
    disk.flush().map_err(|source| BuildError::Flush { path: path.clone(), source })?;
    let failed = match disk.exchange(|| layered(path, layer)) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    // A link to what the guest writes to is no layer.
    let _ = fs::remove_file(path.with_file_name(layer));
    disk.exchange(|| block::open_overlay(path, &storage::image(config)))?;
    Err(failed)
}

fn layered(path: &Path, layer: &str) -> Result<Arc<dyn Disk>, BuildError> {
    let at = |source| BuildError::Place { path: path.to_owned(), source };
    fs::hard_link(path, path.with_file_name(layer)).map_err(at)?;
    let Overlay { disk, file } = begin(path, layer)?;
    put_in_place(&file, path).map_err(|error| {
        let _ = fs::remove_file(&file);
        at(error)
    })?;
    Ok(disk)
}

/// The name of the layer of a disk in what is called `id`.
pub fn name(id: &str, disk: usize) -> String {
    format!("layer-{id}-{disk}.qcow2")
}

/// Whether this can be a layer's name: no other file has it.
pub fn is_name(name: &str) -> bool {
    let name = name.strip_prefix("layer-").and_then(|name| name.strip_suffix(".qcow2"));
    name.is_some_and(|name| {
        name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}
