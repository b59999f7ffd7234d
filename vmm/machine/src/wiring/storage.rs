//! Disks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Disk, Format, MemoryDisk, OpenOptions, Switch};
use mem::GuestMemory;
use virtio::{BlockCounters, BlockLimits, BlockOptions, VirtioPci};
use vmm_api::{BlockConfig, DiskFormat, Failure, OnFull};

use super::{Board, rate};
use crate::cloud_init;
use crate::full::FullDisks;
use crate::layers::{self, Overlay};
use crate::{BuildError, Parts};

/// A disk that the guest uses.
#[derive(Clone)]
pub struct AttachedDisk {
    /// The file that takes the guest's writes.
    pub path: PathBuf,
    /// The same, open.
    pub disk: Arc<Switch>,
    /// What it is made of.
    pub config: BlockConfig,
}

/// Puts the disks on the bus, in the order of the configuration. What they count.
pub fn attach(board: &Board) -> Result<Vec<Arc<BlockCounters>>, BuildError> {
    let Parts { config, files, memory, .. } = board.parts;
    let mut all = Vec::new();
    for disk in &files.disks {
        let (device, counters) = device(disk, config.cpus, &board.full, memory)?;
        board.pci.add(disk.config.slot, Box::new(device))?;
        all.push(counters);
    }
    Ok(all)
}

/// A disk, to be put on the bus, and what it counts.
pub fn device(
    AttachedDisk { path, disk, config }: &AttachedDisk,
    cpus: u32,
    full: &Arc<FullDisks>,
    memory: &GuestMemory,
) -> Result<(VirtioPci, Arc<BlockCounters>), BuildError> {
    let counters = Arc::<BlockCounters>::default();
    let options = BlockOptions {
        queues: u16::try_from(cpus).unwrap_or(u16::MAX),
        serial: config.serial.clone().filter(|serial| !serial.is_empty()),
        when_full: match config.on_full {
            OnFull::Pause => Some(full.watch(path)),
            OnFull::Report => None,
        },
        limits: BlockLimits {
            bytes: config.limits.bandwidth.map(rate),
            requests: config.limits.requests.map(rate),
        },
        counters: counters.clone(),
    };
    Ok((virtio::block(disk.clone(), options, memory.clone())?, counters))
}

impl AttachedDisk {
    /// Writes what the guest has written to stable storage.
    pub fn flush(&self) -> Result<(), Failure> {
        let failed = |source| BuildError::Flush { path: self.path.clone(), source };
        if self.disk.is_readonly() { Ok(()) } else { Ok(self.disk.flush().map_err(failed)?) }
    }
}

/// Opens a disk. Overlays that are made for that are noted in `made`, and in `backing` the images that the
/// disk's overlay stands on.
pub fn open(
    config: &BlockConfig,
    layer: Option<&str>,
    made: &mut MadeFiles,
    backing: &mut Vec<PathBuf>,
) -> Result<AttachedDisk, BuildError> {
    let path = config.overlay.as_ref().unwrap_or(&config.path).clone();
    if config.overlay.is_some() {
        // Before they are locked.
        let (top, format) = match layer {
            Some(layer) => (path.with_file_name(layer), Format::Qcow2),
            None if path.exists() => (path.clone(), Format::Qcow2),
            None => (config.path.clone(), image(config).format),
        };
        backing.push(config.path.clone());
        backing.extend(block::backing_files(&top, format)?);
    }
    let disk = Arc::new(Switch::new(open_image(config, layer, made)?));
    Ok(AttachedDisk { path, disk, config: config.clone() })
}

/// The disk for cloud-init, if there is to be one. It comes after all others, whose names in the guest do
/// not depend on it.
pub fn attach_seed(board: &Board) -> Result<(), BuildError> {
    let config = board.parts.config;
    let Some(cloud_init) = &config.cloud_init else { return Ok(()) };
    let disk = Arc::new(MemoryDisk::new(cloud_init::seed(config, cloud_init)?));
    let options = BlockOptions { serial: Some("cloud-init".into()), ..BlockOptions::default() };
    board.pci.add(None, Box::new(virtio::block(disk, options, board.parts.memory.clone())?))?;
    Ok(())
}

/// How the configuration wants its image opened.
pub fn image(config: &BlockConfig) -> OpenOptions {
    let format = match config.format {
        DiskFormat::Auto => Format::Auto,
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Qcow2 => Format::Qcow2,
    };
    OpenOptions { path: config.path.clone(), format, readonly: config.readonly }
}

fn open_image(
    config: &BlockConfig,
    layer: Option<&str>,
    made: &mut MadeFiles,
) -> Result<Arc<dyn Disk>, block::Error> {
    let image = image(config);
    let Some(overlay) = &config.overlay else { return block::open(&image) };
    if let Some(layer) = layer {
        let Overlay { disk, file } = layers::begin(overlay, layer)?;
        made.replacing.push((file, overlay.clone()));
        return Ok(disk);
    }
    let is_there = overlay.symlink_metadata().is_ok();
    let disk = block::open_overlay(overlay, &image)?;
    if !is_there {
        made.new.push(overlay.clone());
    }
    Ok(disk)
}

/// Files that were made for a machine. They are removed again if the machine does not come to be.
#[derive(Debug, Default)]
pub struct MadeFiles {
    new: Vec<PathBuf>,
    /// A file, and what it is to replace.
    replacing: Vec<(PathBuf, PathBuf)>,
}

impl MadeFiles {
    /// The machine is there: the files stay, and take the places of others.
    pub fn keep(mut self) -> Result<(), BuildError> {
        self.new.clear();
        while let Some((file, old)) = self.replacing.pop() {
            layers::put_in_place(&file, &old).map_err(|source| {
                remove(&file);
                BuildError::Place { path: old, source }
            })?;
        }
        Ok(())
    }
}

impl Drop for MadeFiles {
    fn drop(&mut self) {
        self.new.iter().for_each(|path| remove(path));
        self.replacing.iter().for_each(|(path, _)| remove(path));
    }
}

fn remove(path: &Path) {
    if let Err(e) = std::fs::remove_file(path) {
        tracing::warn!("cannot remove {}, which is not needed: {e}", path.display());
    }
}
