//! Disks.

use std::path::PathBuf;
use std::sync::Arc;

use block::{Disk, Format, OpenOptions};
use virtio::BlockOptions;
use vmm_api::{BlockConfig, DiskFormat};

use super::Board;
use crate::BuildError;

/// A disk that the guest uses.
pub struct AttachedDisk {
    /// The file that takes the guest's writes.
    pub path: PathBuf,
    /// The same, open.
    pub disk: Arc<dyn Disk>,
}

/// Opens the disks and puts them on the bus, in the order of the configuration. Overlays that are
/// made for that are noted in `made`.
pub fn attach(board: &Board, made: &mut MadeFiles) -> Result<Vec<AttachedDisk>, BuildError> {
    let mut disks = Vec::new();
    for config in &board.parts.config.disks {
        let disk = open(config, made)?;
        let options = BlockOptions {
            queues: u16::try_from(board.parts.config.cpus).unwrap_or(u16::MAX),
            serial: config.serial.clone().filter(|serial| !serial.is_empty()),
        };
        let device = virtio::block(disk.clone(), options, board.parts.memory.clone())?;
        board.pci.add(None, Box::new(device))?;
        let path = config.overlay.as_ref().unwrap_or(&config.path).clone();
        disks.push(AttachedDisk { path, disk });
    }
    Ok(disks)
}

fn open(config: &BlockConfig, made: &mut MadeFiles) -> Result<Arc<dyn Disk>, block::Error> {
    let format = match config.format {
        DiskFormat::Auto => Format::Auto,
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    };
    let image = OpenOptions { path: config.path.clone(), format, readonly: config.readonly };
    let Some(overlay) = &config.overlay else { return block::open(&image) };
    let is_there = overlay.symlink_metadata().is_ok();
    let disk = block::open_overlay(overlay, &image)?;
    if !is_there {
        made.0.push(overlay.clone());
    }
    Ok(disk)
}

/// Files that were made for a machine. They are removed again if the machine does not come to be.
#[derive(Debug, Default)]
pub struct MadeFiles(Vec<PathBuf>);

impl MadeFiles {
    /// The machine is there: the files stay.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(e) = std::fs::remove_file(path) {
                tracing::warn!("cannot remove {}, which is not needed: {e}", path.display());
            }
        }
    }
}
