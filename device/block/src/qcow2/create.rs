//! Making qcow2 images.

use super::header::{EXT_BACKING_FORMAT, EXT_END, MAGIC, MAX_BACKING_NAME, MAX_L1_LEN};
use crate::disk::SECTOR;
use crate::error::{Cause, Error};
use crate::open::Format;
use crate::partial::{PartialFile, directory};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The backing file of a new image.
#[derive(Clone, Debug)]
pub struct Backing {
    /// The file. The image records it as an absolute path, unless it is to be `relative`.
    pub path: PathBuf,
    /// The path is recorded relative to the directory of the image, in or below which the file must
    /// lie: both can be moved together, and the file be a link.
    pub relative: bool,
    /// Its format. Recorded in the image, so it must be told: not [`Format::Auto`].
    pub format: Format,
}

/// QEMU's default: clusters of 64 KiB, refcounts of 16 bits.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const REFCOUNT_ORDER: u32 = 4;
/// How many bytes of a disk an entry of the L1 table stands for: an L2 table of clusters.
const PER_L1_ENTRY: u64 = CLUSTER * (CLUSTER / 8);
/// As QEMU writes it: the fields of version 3 and the (default) compression type.
const HEADER_LEN: usize = 112;

/// Makes a qcow2 image for a disk of `size` bytes, a multiple of 512. It reads as `backing`, or as
/// zeroes, until it is written.
///
/// Nothing is overwritten: `path` must not exist. The image appears under its name only once it is
/// whole and on stable storage. It is readable and writable by this user alone.
pub fn create_qcow2(path: &Path, size: u64, backing: Option<&Backing>) -> Result<(), Error> {
    let image = empty_image(path, size, backing)?;
    let mut partial = PartialFile::create(path)?;
    partial.file.write_all(&image).map_err(|e| Error::host(path, "create", e))?;
    partial.put_in_place()
}

/// The bytes of an image without data: header, refcount table, refcount block, L1 table. `path` is where it
/// will be.
pub(crate) fn empty_image(
    path: &Path,
    size: u64,
    backing: Option<&Backing>,
) -> Result<Vec<u8>, Error> {
    let misconfigured = |problem: String, remedy: &str| {
        Err(Error::new(Cause::Misconfigured, path, problem, remedy))
    };
    check_size(path, size)?;
    let (name, format) = match backing {
        None => (String::new(), ""),
        Some(Backing { path: backing, relative, format }) => {
            let absolute =
                std::path::absolute(backing).map_err(|e| Error::host(backing, "find", e))?;
            let format = match format {
                Format::Raw => "raw",
                Format::Qcow2 => "qcow2",
                Format::Auto => {
                    return misconfigured(
                        "the format of its backing file was not told".into(),
                        "say whether that is raw or qcow2",
                    );
                }
            };
            let recorded = if *relative { below(&absolute, path)? } else { absolute.clone() };
            match recorded.to_str() {
                Some(name) if name.len() <= MAX_BACKING_NAME => (name.to_owned(), format),
                _ => {
                    return misconfigured(
                        format!(
                            "it can't record the path '{}' of its backing file",
                            absolute.display()
                        ),
                        "use a path in UTF-8 of at most 1023 bytes",
                    );
                }
            }
        }
    };

    let l1_entries = size.div_ceil(PER_L1_ENTRY);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    let clusters = 3 + l1_clusters;
    let mut image = header(size, l1_entries, &name, format);
    // Refcount table: one block.
    image.resize(CLUSTER as usize, 0);
    image.extend((2 * CLUSTER).to_be_bytes());
    // Refcount block: all of these clusters are used once. There are at most 515, and it counts
    // 32768.
    image.resize(2 * CLUSTER as usize, 0);
    for _ in 0..clusters {
        image.extend(1u16.to_be_bytes());
    }
    image.resize((clusters * CLUSTER) as usize, 0);
    Ok(image)
}

/// Refuses what cannot be the size of a disk in the image `path`.
pub(crate) fn check_size(path: &Path, size: u64) -> Result<(), Error> {
    if size == 0 || !size.is_multiple_of(SECTOR) || size > MAX_L1_LEN / 8 * PER_L1_ENTRY {
        return Err(Error::new(
            Cause::Misconfigured,
            path,
            format!("no disk can have a size of {size} bytes"),
            "choose a multiple of 512 bytes, up to 2 PiB",
        ));
    }
    Ok(())
}

/// The path of `file`, which lies in or below the directory of `image`, from there.
fn below(file: &Path, image: &Path) -> Result<PathBuf, Error> {
    let image = std::path::absolute(image).map_err(|e| Error::host(image, "find", e))?;
    let relative = file.strip_prefix(directory(&image)).map(Path::to_owned);
    relative.map_err(|_| {
        Error::new(
            Cause::Misconfigured,
            &image,
            format!("'{}' is not below its directory", file.display()),
            "put the backing file there",
        )
    })
}

fn header(size: u64, l1_entries: u64, backing: &str, backing_format: &str) -> Vec<u8> {
    let mut extensions = Vec::new();
    if !backing.is_empty() {
        extensions.extend(EXT_BACKING_FORMAT.to_be_bytes());
        extensions.extend((backing_format.len() as u32).to_be_bytes());
        extensions.extend(backing_format.as_bytes());
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    extensions.extend(EXT_END.to_be_bytes());
    extensions.extend(0u32.to_be_bytes());
    let name_at = if backing.is_empty() { 0 } else { HEADER_LEN + extensions.len() };

    let mut h = Vec::new();
    h.extend(MAGIC);
    h.extend(3u32.to_be_bytes()); // version
    h.extend((name_at as u64).to_be_bytes());
    h.extend((backing.len() as u32).to_be_bytes());
    h.extend(CLUSTER_BITS.to_be_bytes());
    h.extend(size.to_be_bytes());
    h.extend(0u32.to_be_bytes()); // crypt_method
    h.extend((l1_entries as u32).to_be_bytes());
    h.extend((3 * CLUSTER).to_be_bytes()); // l1_table_offset
    h.extend(CLUSTER.to_be_bytes()); // refcount_table_offset
    h.extend(1u32.to_be_bytes()); // refcount_table_clusters
    h.extend(0u32.to_be_bytes()); // nb_snapshots
    h.extend(0u64.to_be_bytes()); // snapshots_offset
    h.extend([0; 24]); // incompatible, compatible and autoclear features
    h.extend(REFCOUNT_ORDER.to_be_bytes());
    h.extend((HEADER_LEN as u32).to_be_bytes());
    h.resize(HEADER_LEN, 0); // compression_type
    h.extend(extensions);
    h.extend(backing.as_bytes());
    h
}
