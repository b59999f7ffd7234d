//! What is said about disk images.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

use super::hotplug::{ATTACH_DISK, AttachDiskArgs, DETACH_DISK, DetachArgs};
use crate::size;

/// `lodge disk`.
#[derive(Subcommand, Debug)]
pub enum DiskCommand {
    /// Make an empty disk, or one that reads as another until it is written
    #[command(after_help = "\
Examples:
  lodge disk create data.qcow2 20G
  lodge disk create data.raw 20G --format raw
  lodge disk create test.qcow2 --backing golden.qcow2

An empty disk takes next to no room, whatever its size. What is written to a disk with a backing file stays in the
new file; the backing file must stay as it is and where it is.")]
    Create(CreateDiskArgs),
    /// Make a disk larger, or smaller
    #[command(after_help = "\
Examples:
  lodge disk resize data.qcow2 40G
  lodge disk resize data.qcow2 +20G
  lodge disk resize data.qcow2 10G --shrink      what lies beyond 10G is lost

No guest may use the disk. File systems and partitions on it stay as they are: the guest makes them larger (in
Debian with resize2fs or growpart), and must have made them smaller before the disk shrinks.")]
    Resize(ResizeDiskArgs),
    /// Say what a disk image is, also while a guest uses it
    Info(DiskInfoArgs),
    /// Copy a disk to an image of another format
    #[command(after_help = "\
Examples:
  lodge disk convert disk.raw disk.qcow2
  lodge disk convert disk.qcow2 disk.raw --to raw

The copy takes room for data only, and needs no backing files. It appears under its name once it is whole;
after Ctrl-C nothing of it is left.")]
    Convert(ConvertDiskArgs),
    /// Give a running guest a disk
    #[command(after_help = ATTACH_DISK)]
    Attach(AttachDiskArgs),
    /// Take a disk from a running guest
    #[command(after_help = DETACH_DISK)]
    Detach(DetachArgs),
}

#[derive(Args, Debug)]
pub struct CreateDiskArgs {
    /// The file to make
    pub file: PathBuf,
    /// How large the disk is, as in 512M or 20G; a bare number is MiB [default: as large as the backing file's]
    #[arg(value_parser = size::parse_mib, required_unless_present = "backing")]
    pub size: Option<u64>,
    /// Its format
    #[arg(long, value_enum, default_value = "qcow2")]
    pub format: FormatArg,
    /// What the disk reads as until it is written; the file can only be qcow2
    #[arg(long, value_name = "FILE")]
    pub backing: Option<PathBuf>,
    /// The backing file's format [default: as it is found to be]
    #[arg(long, value_enum, value_name = "FORMAT", requires = "backing")]
    pub backing_format: Option<FormatArg>,
    /// Print what was made as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ResizeDiskArgs {
    /// The disk image
    pub file: PathBuf,
    /// How large it is to be, as in 20G, or by how much larger, as in +5G; a bare number is MiB
    pub size: NewSize,
    /// Allow a smaller size: what lies beyond it is lost
    #[arg(long)]
    pub shrink: bool,
    /// The image's format [default: as it is found to be]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    /// Print what the image is then as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct DiskInfoArgs {
    /// The disk image
    pub file: PathBuf,
    /// The image's format [default: as it is found to be]
    #[arg(long, value_enum)]
    pub format: Option<FormatArg>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ConvertDiskArgs {
    /// The disk image to copy
    pub source: PathBuf,
    /// The file to make
    pub target: PathBuf,
    /// The format of the copy
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "qcow2")]
    pub to: FormatArg,
    /// The format of the image to copy [default: as it is found to be]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub from: Option<FormatArg>,
    /// Print what was made as JSON
    #[arg(long)]
    pub json: bool,
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// The bytes of the disk as they are
    Raw,
    /// QEMU's copy-on-write format
    Qcow2,
}

/// How large a disk is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// So many MiB.
    Mib(u64),
    /// So many MiB more than now.
    More(u64),
}

impl FromStr for NewSize {
    type Err = String;

    fn from_str(text: &str) -> Result<NewSize, String> {
        match text.strip_prefix('+') {
            Some(more) => size::parse_mib(more).map(NewSize::More),
            None => size::parse_mib(text).map(NewSize::Mib),
        }
    }
}
