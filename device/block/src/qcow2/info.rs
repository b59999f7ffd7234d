//! What a qcow2 image says of itself.

use super::chain::resolve;
use super::header;
use crate::error::Error;
use crate::file::HostFile;
use std::path::PathBuf;

/// What a qcow2 image says of itself, beyond the size of its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Info {
    /// The version of the format, 2 or 3.
    pub version: u32,
    /// The cluster size in bytes.
    pub cluster_size: u64,
    /// The backing file.
    pub backing: Option<BackingInfo>,
    /// How many internal snapshots it holds.
    pub snapshots: u32,
}

/// How an image names its backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingInfo {
    /// The path that is meant, relative to where this process is. There need not be such a file.
    pub path: PathBuf,
    /// The format, if the image records it.
    pub format: Option<String>,
}

/// Reads the size of the disk, and the rest.
pub(crate) fn info(host: &HostFile) -> Result<(u64, Qcow2Info), Error> {
    let header = header::read(host)?;
    let backing = match header.backing {
        None => None,
        Some(backing) => {
            let path = resolve(host.path(), &backing.name)?;
            Some(BackingInfo { path, format: backing.format })
        }
    };
    let info = Qcow2Info {
        version: header.version,
        cluster_size: 1 << header.cluster_bits,
        backing,
        snapshots: header.snapshots,
    };
    Ok((header.size, info))
}
