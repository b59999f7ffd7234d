//! The header of a qcow2 image (sections "Header", "Header extensions"), checked.

use crate::error::{Cause, Error};
use crate::file::HostFile;
use std::path::Path;

/// The magic number "QFI\xfb" and the lengths of the headers of versions 2 and 3.
pub(super) const MAGIC: &[u8] = b"QFI\xfb";
pub(super) const V2_LEN: usize = 72;
pub(super) const V3_LEN: usize = 104;

/// Cluster sizes that QEMU (and imago) accept: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// QEMU's limits for the tables, in bytes.
pub(super) const MAX_L1_LEN: u64 = 32 << 20;
const MAX_REFTABLE_LEN: u64 = 8 << 20;
/// QEMU's limits for snapshots.
const MAX_SNAPSHOTS: u32 = 65536;
/// The specification's limit for the backing file's name.
pub(super) const MAX_BACKING_NAME: usize = 1023;
/// Far more header extensions than there are kinds of them.
const MAX_EXTENSIONS: usize = 64;

/// Where the size of the disk is.
pub(super) const SIZE_AT: u64 = 24;

/// Bits of `incompatible_features`.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Types of header extensions.
pub(super) const EXT_END: u32 = 0;
pub(super) const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
const EXT_BITMAPS: u32 = 0x2385_2875;
/// The length of an entry of the feature name table.
const FEATURE_NAME_LEN: usize = 48;

/// What an image says of itself. All tables lie within the file and are aligned to clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// The size of the disk in bytes.
    pub size: u64,
    /// Where the active L1 table starts, and how many entries it has: enough for the whole disk.
    pub l1_offset: u64,
    pub l1_entries: u64,
    /// Where the refcount table starts and how many clusters it has.
    pub reftable_offset: u64,
    pub reftable_clusters: u64,
    /// log2 of the width of a refcount in bits.
    pub refcount_order: u32,
    /// The backing file.
    pub backing: Option<BackingRef>,
    /// Whether there are dirty bitmaps that a write makes stale.
    pub bitmaps: bool,
    /// How many internal snapshots there are, which have L1 tables of their own.
    pub snapshots: u32,
}

/// How an image names its backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackingRef {
    pub name: String,
    /// The format, if the image records it.
    pub format: Option<String>,
}

/// Why an image is refused; what [`Error`] says without knowing the path.
#[derive(Debug)]
pub(super) enum Flaw {
    Damaged(String),
    Unsupported { what: String, remedy: Remedy },
    Misconfigured { what: String, remedy: String },
    Io(std::io::Error),
}

/// What to do about a feature that is not supported.
#[derive(Debug)]
pub(super) enum Remedy {
    /// Converting with qemu-img gives an image without the feature.
    Convert,
    /// Checking and repairing with qemu-img removes the obstacle.
    Repair,
}

impl From<std::io::Error> for Flaw {
    fn from(error: std::io::Error) -> Self {
        Flaw::Io(error)
    }
}

impl Flaw {
    pub(super) fn at(self, path: &Path) -> Error {
        match self {
            Flaw::Damaged(problem) => {
                Error::damaged(path, format!("it is a damaged qcow2 image: {problem}"))
            }
            Flaw::Unsupported { what, remedy } => {
                let remedy = match remedy {
                    Remedy::Convert => format!(
                        "make an image without that with `qemu-img convert -O qcow2 '{}' NEW.qcow2`",
                        path.display()
                    ),
                    Remedy::Repair => format!(
                        "make sure that nothing uses it, then repair it with \
                         `qemu-img check -r all '{}'`",
                        path.display()
                    ),
                };
                Error::new(Cause::Unsupported, path, what, remedy)
            }
            Flaw::Misconfigured { what, remedy } => {
                Error::new(Cause::Misconfigured, path, what, remedy)
            }
            Flaw::Io(e) => Error::host(path, "read", e),
        }
    }
}

fn damaged<T>(problem: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw::Damaged(problem.into()))
}

fn unsupported<T>(what: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw::Unsupported { what: what.into(), remedy: Remedy::Convert })
}

/// Reads and checks the header of `host`.
pub(super) fn read(host: &HostFile) -> Result<Header, Error> {
    let file_len = host.len().map_err(|e| Flaw::Io(e).at(host.path()))?;
    let load = |len: usize| {
        let mut bytes = vec![0; len];
        host.read_at(0, &mut bytes).map(|()| bytes)
    };
    let parsed = load(V3_LEN)
        .map_err(Flaw::from)
        .and_then(|start| cluster_bits(&start))
        .and_then(|bits| Ok(load(1 << bits)?))
        .and_then(|first_cluster| parse(&first_cluster, file_len));
    parsed.map_err(|flaw| flaw.at(host.path()))
}

/// The cluster size's logarithm, from the start of an image.
fn cluster_bits(start: &[u8]) -> Result<u32, Flaw> {
    if !start.starts_with(MAGIC) {
        return Err(Flaw::Misconfigured {
            what: "it is not a qcow2 image".into(),
            remedy: "leave the format to Lodge, or name the right one".into(),
        });
    }
    let version = be32(start, 4)?;
    if version != 2 && version != 3 {
        return unsupported(format!(
            "it is of version {version} of the format; Lodge reads 2 and 3"
        ));
    }
    let bits = be32(start, 20)?;
    if !CLUSTER_BITS.contains(&bits) {
        return damaged(format!("clusters of 2^{bits} bytes"));
    }
    Ok(bits)
}

/// Parses a header from the whole first cluster of an image of `file_len` bytes.
pub(super) fn parse(first_cluster: &[u8], file_len: u64) -> Result<Header, Flaw> {
    let cluster_bits = cluster_bits(first_cluster)?;
    let version = be32(first_cluster, 4)?;
    let cluster_size = 1u64 << cluster_bits;

    match be32(first_cluster, 32)? {
        0 => {}
        1 => return unsupported("it is encrypted with the old AES method"),
        2 => return unsupported("it is encrypted with LUKS"),
        other => return damaged(format!("unknown encryption method {other}")),
    }

    let (incompatible, refcount_order, header_len) = if version == 2 {
        (0, 4, V2_LEN)
    } else {
        let header_len = be32(first_cluster, 100)? as usize;
        if header_len < V3_LEN || header_len as u64 > cluster_size || !header_len.is_multiple_of(8)
        {
            return damaged(format!("a header of {header_len} bytes"));
        }
        (be64(first_cluster, 72)?, be32(first_cluster, 96)?, header_len)
    };
    check_features(incompatible, first_cluster, header_len)?;
    if refcount_order > 6 {
        return damaged(format!("refcounts of 2^{refcount_order} bits"));
    }

    let (backing_format, bitmaps) = extensions(first_cluster, version, header_len)?;
    let backing =
        backing_name(first_cluster)?.map(|name| BackingRef { name, format: backing_format });

    let header = Header {
        version,
        cluster_bits,
        size: be64(first_cluster, SIZE_AT as usize)?,
        l1_offset: be64(first_cluster, 40)?,
        l1_entries: be32(first_cluster, 36)?.into(),
        reftable_offset: be64(first_cluster, 48)?,
        reftable_clusters: be32(first_cluster, 56)?.into(),
        refcount_order,
        backing,
        bitmaps,
        snapshots: be32(first_cluster, 60)?,
    };
    check_tables(&header, file_len)?;

    let snapshots = header.snapshots;
    if snapshots > MAX_SNAPSHOTS {
        return damaged(format!("{snapshots} internal snapshots"));
    }
    if snapshots > 0 {
        // An entry has at least 40 bytes (section "Snapshots").
        let table = be64(first_cluster, 64)?;
        check_extent("snapshot table", table, u64::from(snapshots) * 40, &header, file_len)?;
    }
    Ok(header)
}

fn check_features(bits: u64, first_cluster: &[u8], header_len: usize) -> Result<(), Flaw> {
    if bits & CORRUPT != 0 {
        return Err(Flaw::Unsupported {
            what: "it is marked as corrupt by a program that found it so".into(),
            remedy: Remedy::Repair,
        });
    }
    // With lazy refcounts, an image that was not closed properly has refcounts that can't be
    // trusted until they are counted anew ("must be repaired before accessing"). That is
    // qemu-img's work, and a person should know that it happened, so nothing is repaired here.
    if bits & DIRTY != 0 {
        return Err(Flaw::Unsupported {
            what: "it was not closed properly: its refcounts must be repaired before it is used"
                .into(),
            remedy: Remedy::Repair,
        });
    }
    if bits & EXTERNAL_DATA != 0 {
        return unsupported("its data lie in an external data file");
    }
    if bits & COMPRESSION_TYPE != 0 {
        let name = match first_cluster.get(V3_LEN).filter(|_| header_len > V3_LEN) {
            Some(1) => "zstd",
            _ => "an unknown method",
        };
        return unsupported(format!("it is compressed with {name}; Lodge reads zlib"));
    }
    if bits & EXTENDED_L2 != 0 {
        return unsupported("it has extended L2 entries (subclusters)");
    }
    match bits {
        0 => Ok(()),
        _ => unsupported(format!("it uses unknown features (bits {bits:#x})")),
    }
}

/// The backing file's format, and whether there are bitmaps.
fn extensions(
    first_cluster: &[u8],
    version: u32,
    header_len: usize,
) -> Result<(Option<String>, bool), Flaw> {
    let mut format = None;
    let mut bitmaps = false;
    let mut at = header_len;
    // In version 2 the extensions may end where the backing file's name begins; version 3 has an
    // end marker.
    let name_at = be64(first_cluster, 8)?;
    for _ in 0..MAX_EXTENSIONS {
        if version == 2 && (at as u64 >= name_at && name_at != 0 || at + 8 > first_cluster.len()) {
            return Ok((format, bitmaps));
        }
        let kind = be32(first_cluster, at)?;
        let len = be32(first_cluster, at + 4)? as usize;
        let Some(data) = first_cluster.get(at + 8..).and_then(|rest| rest.get(..len)) else {
            return damaged("header extensions that leave the first cluster");
        };
        match kind {
            EXT_END => return Ok((format, bitmaps)),
            EXT_BACKING_FORMAT => {
                let name = utf8(data, "format of the backing file")?;
                if format.as_ref().is_some_and(|known| *known != name) {
                    return damaged("two formats for one backing file");
                }
                format = Some(name);
            }
            // imago panics on a last entry of one byte.
            EXT_FEATURE_NAMES if !len.is_multiple_of(FEATURE_NAME_LEN) => {
                return damaged("a feature name table that is cut short");
            }
            EXT_BITMAPS => bitmaps = true,
            _ => {}
        }
        at += 8 + len.next_multiple_of(8);
    }
    damaged("too many header extensions")
}

fn backing_name(first_cluster: &[u8]) -> Result<Option<String>, Flaw> {
    let offset = be64(first_cluster, 8)?;
    let len = be32(first_cluster, 16)? as usize;
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    if len > MAX_BACKING_NAME {
        return damaged(format!("a backing file name of {len} bytes"));
    }
    let name = usize::try_from(offset)
        .ok()
        .and_then(|offset| first_cluster.get(offset..)?.get(..len))
        // imago wants the name to end before the cluster does.
        .filter(|_| offset + (len as u64) < first_cluster.len() as u64);
    match name {
        Some(name) => utf8(name, "name of the backing file").map(Some),
        None => damaged("a backing file name outside the first cluster"),
    }
}

fn check_tables(header: &Header, file_len: u64) -> Result<(), Flaw> {
    let Header { cluster_bits, size, l1_entries, reftable_clusters, .. } = *header;
    if size == 0 {
        return Err(Flaw::Misconfigured {
            what: "it holds a disk of no bytes".into(),
            remedy: "give it a size with `qemu-img resize`".into(),
        });
    }
    // An L1 entry stands for an L2 table, which is one cluster of 8-byte entries.
    let per_l1_entry = 1u64 << (2 * cluster_bits - 3);
    if l1_entries < size.div_ceil(per_l1_entry) {
        return damaged(format!(
            "a disk of {size} bytes, but an L1 table of {l1_entries} entries, which is enough for \
             no more than {} bytes",
            l1_entries.saturating_mul(per_l1_entry)
        ));
    }
    if l1_entries * 8 > MAX_L1_LEN {
        return unsupported(format!("its L1 table has {l1_entries} entries"));
    }
    check_extent("L1 table", header.l1_offset, l1_entries * 8, header, file_len)?;

    let reftable_len = reftable_clusters << cluster_bits;
    if reftable_len == 0 {
        return damaged("no refcount table");
    }
    if reftable_len > MAX_REFTABLE_LEN {
        return unsupported(format!("its refcount table has {reftable_clusters} clusters"));
    }
    check_extent("refcount table", header.reftable_offset, reftable_len, header, file_len)
}

fn check_extent(
    what: &str,
    offset: u64,
    len: u64,
    header: &Header,
    file_len: u64,
) -> Result<(), Flaw> {
    let cluster = 1u64 << header.cluster_bits;
    // The last cluster of a file need not be there whole.
    let file_end = file_len.checked_next_multiple_of(cluster).unwrap_or(file_len);
    if offset < cluster || !offset.is_multiple_of(cluster) {
        return damaged(format!("a {what} at the impossible offset {offset:#x}"));
    }
    match offset.checked_add(len) {
        Some(end) if end <= file_end => Ok(()),
        _ => damaged(format!(
            "a {what} at {offset:#x} that is not within the file of {file_len} bytes; the file may \
             have been cut short"
        )),
    }
}

fn utf8(bytes: &[u8], what: &str) -> Result<String, Flaw> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => unsupported(format!("the {what} is not in UTF-8")),
    }
}

fn bytes<const N: usize>(data: &[u8], at: usize) -> Result<[u8; N], Flaw> {
    match data.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(bytes) => Ok(*bytes),
        None => damaged("a header that is cut short"),
    }
}

fn be32(data: &[u8], at: usize) -> Result<u32, Flaw> {
    bytes(data, at).map(u32::from_be_bytes)
}

fn be64(data: &[u8], at: usize) -> Result<u64, Flaw> {
    bytes(data, at).map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE_LEN: u64 = 4 << 16;

    /// A header as `qemu-img create -f qcow2 -b base.raw -F raw x 64M` writes it.
    fn sample() -> Vec<u8> {
        let mut h = vec![0; 1 << 16];
        let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(4, &3u32.to_be_bytes());
        put(8, &0x300u64.to_be_bytes());
        put(16, &8u32.to_be_bytes());
        put(20, &16u32.to_be_bytes());
        put(24, &(64u64 << 20).to_be_bytes());
        put(36, &1u32.to_be_bytes());
        put(40, &0x30000u64.to_be_bytes());
        put(48, &0x10000u64.to_be_bytes());
        put(56, &1u32.to_be_bytes());
        put(96, &4u32.to_be_bytes());
        put(100, &112u32.to_be_bytes());
        put(112, &EXT_BACKING_FORMAT.to_be_bytes());
        put(116, &3u32.to_be_bytes());
        put(120, b"raw");
        put(0x300, b"base.raw");
        h
    }

    fn with(at: usize, bytes: &[u8]) -> Result<Header, Flaw> {
        let mut h = sample();
        h[at..at + bytes.len()].copy_from_slice(bytes);
        parse(&h, FILE_LEN)
    }

    #[test]
    fn a_sound_header_is_understood() {
        let header = parse(&sample(), FILE_LEN).unwrap();
        assert_eq!(header.size, 64 << 20);
        assert_eq!(
            header.backing,
            Some(BackingRef { name: "base.raw".into(), format: Some("raw".into()) })
        );
    }

    #[test]
    fn each_unsupported_feature_is_named() {
        for (bit, word) in [
            (DIRTY, "not closed properly"),
            (CORRUPT, "corrupt"),
            (EXTERNAL_DATA, "external data"),
            (COMPRESSION_TYPE, "compressed"),
            (EXTENDED_L2, "extended L2"),
            (1 << 40, "unknown features"),
        ] {
            let error = with(72, &bit.to_be_bytes()).unwrap_err().at(Path::new("x"));
            assert_eq!(error.cause(), Cause::Unsupported);
            assert!(error.to_string().contains(word), "{error}");
        }
        for (method, word) in [(1u32, "AES"), (2, "LUKS")] {
            let error = with(32, &method.to_be_bytes()).unwrap_err().at(Path::new("x"));
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn damage_is_found() {
        let cases: &[(usize, &[u8])] = &[
            (20, &8u32.to_be_bytes()),               // cluster bits
            (20, &22u32.to_be_bytes()),              // cluster bits
            (20, &u32::MAX.to_be_bytes()),           // cluster bits
            (24, &u64::MAX.to_be_bytes()),           // size
            (24, &(1u64 << 30).to_be_bytes()),       // size that the L1 table does not reach
            (36, &0u32.to_be_bytes()),               // L1 entries
            (40, &0x30001u64.to_be_bytes()),         // L1 offset, unaligned
            (40, &0x50000u64.to_be_bytes()),         // L1 offset, beyond the file
            (40, &0u64.to_be_bytes()),               // L1 offset, on the header
            (40, &(u64::MAX << 16).to_be_bytes()),   // L1 offset, wraps
            (48, &0x40000u64.to_be_bytes()),         // refcount table beyond the file
            (56, &0u32.to_be_bytes()),               // no refcount table
            (56, &4u32.to_be_bytes()),               // refcount table too long for the file
            (60, &u32::MAX.to_be_bytes()),           // snapshots
            (60, &1u32.to_be_bytes()),               // snapshot table on the header
            (96, &7u32.to_be_bytes()),               // refcount order
            (100, &8u32.to_be_bytes()),              // header length
            (100, &u32::MAX.to_be_bytes()),          // header length
            (116, &u32::MAX.to_be_bytes()),          // extension length
            (8, &0xfffeu64.to_be_bytes()),           // backing name leaves the cluster
            (8, &u64::MAX.to_be_bytes()),            // backing name anywhere
            (16, &1024u32.to_be_bytes()),            // backing name too long
            (112, &EXT_FEATURE_NAMES.to_be_bytes()), // a feature name table of 3 bytes
        ];
        for (at, bytes) in cases {
            match with(*at, bytes) {
                Err(Flaw::Damaged(_)) => {}
                other => panic!("{bytes:x?} at {at}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            changes in prop::collection::vec((0usize..160, any::<u8>()), 0..12),
            cut in 0usize..(1 << 16),
            file_len in any::<u64>(),
        ) {
            let mut h = sample();
            for (at, byte) in changes {
                h[at] = byte;
            }
            let _ = parse(&h, FILE_LEN);
            let _ = parse(&h, file_len);
            let _ = parse(&h[..cut], FILE_LEN);
        }
    }
}
