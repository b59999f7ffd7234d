//! Checks an image's tables before anything is read or written through them.
//!
//! What `qemu-img check` calls an error is refused here; leaked clusters are not looked for. imago
//! relies on this: it hands out clusters whose refcount is 0 without asking what lies there, so an
//! image with one lost refcount block would have its own header and tables overwritten by guest
//! data, and it reads what lies beyond the end of a file that was cut short as zeroes.

use super::header::{Flaw, Header};
use super::refcount::Widths;
use crate::file::HostFile;
use std::collections::HashMap;

/// L2 tables are walked entry by entry if they are no more than this altogether, which is enough
/// for a disk of 2 TiB with clusters of 64 KiB. Beyond, opening would take too long.
const MAX_L2_WALK: u64 = 256 << 20;

/// The most clusters that one bit each is kept for: 32 MiB of bits.
const MAX_CLAIMS: u64 = 1 << 28;

/// How many refcount blocks are kept at a time.
const MAX_BLOCKS: usize = 64;

/// Bits of table entries (sections "L1 table", "Standard Cluster Descriptor").
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1 << 0;
const REFTABLE_RESERVED: u64 = 0x1ff;

/// What a cluster of metadata that other metadata point to holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    L2,
    RefcountBlock,
}

/// The host offsets of all L2 tables and refcount blocks.
pub(super) type Tables = HashMap<u64, Table>;

/// The offset of the table that an entry of the L1 table points to, 0 for none.
pub(super) fn l2_offset(entry: u64) -> u64 {
    entry & OFFSET_MASK
}

/// Whether an entry of the L1 table points to a table that may be written in place: one that no
/// snapshot shares (the flag "copied").
pub(super) fn is_writable_l2(entry: u64) -> bool {
    l2_offset(entry) != 0 && entry >> 63 == 1
}

/// The offset of the block that an entry of the refcount table points to, 0 for none.
pub(super) fn refcount_block_offset(entry: u64) -> u64 {
    entry & !REFTABLE_RESERVED
}

/// Reads `entries` big-endian table entries.
pub(super) fn read_table(host: &HostFile, offset: u64, entries: u64) -> Result<Vec<u64>, Flaw> {
    // The header's limits keep this within 32 MiB.
    let mut bytes = vec![0; entries as usize * 8];
    host.read_at(offset, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

/// Checks the tables of `host`; those that hold refcounts only if the image will be written.
pub(super) fn check(host: &HostFile, header: &Header, writable: bool) -> Result<Tables, Flaw> {
    let file_len = host.len()?;
    let mut check = Check {
        host,
        header,
        file_len,
        claims: Claims::new(header.cluster_bits, file_len),
        tables: Tables::new(),
        refcounts: None,
    };
    let l1 = read_table(host, header.l1_offset, header.l1_entries)?;
    let fixed = [
        ("header", 0, 1),
        ("L1 table", header.l1_offset, header.l1_entries * 8),
        ("refcount table", header.reftable_offset, header.reftable_clusters << header.cluster_bits),
    ];
    for (what, offset, len) in fixed {
        check.claim_extent(what, offset, len)?;
    }
    if writable {
        check.refcount_blocks()?;
        for (what, offset, len) in fixed {
            check.counted_extent(what, offset, len)?;
        }
    }
    check.l2_tables(&l1)?;
    Ok(check.tables)
}

struct Check<'a> {
    host: &'a HostFile,
    header: &'a Header,
    file_len: u64,
    claims: Claims,
    tables: Tables,
    /// Present if the image will be written.
    refcounts: Option<Refcounts<'a>>,
}

impl Check<'_> {
    fn cluster_size(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// An offset that an entry names: aligned, not that of the header, in the file.
    fn inside(&self, what: &str, offset: u64) -> Result<(), Flaw> {
        if offset == 0 || !offset.is_multiple_of(self.cluster_size()) {
            return damaged(format!("{what} at the impossible offset {offset:#x}"));
        }
        if offset >= self.file_len {
            return damaged(format!(
                "{what} at {offset:#x}, beyond the end of the file at {:#x}; the file may have \
                 been cut short",
                self.file_len
            ));
        }
        Ok(())
    }

    fn claim(&mut self, what: &str, offset: u64) -> Result<(), Flaw> {
        if self.claims.claim(offset) {
            return Ok(());
        }
        damaged(format!("{what} at {offset:#x}, where something else lies already"))
    }

    /// Requires that a cluster which is in use counts as such.
    fn counted(&mut self, what: &str, offset: u64) -> Result<(), Flaw> {
        if let Some(refcounts) = &mut self.refcounts
            && refcounts.get(offset)? == 0
        {
            return damaged(format!("{what} at {offset:#x}, which counts as free"));
        }
        Ok(())
    }

    fn clusters(&self, offset: u64, len: u64) -> impl Iterator<Item = u64> + use<> {
        let size = self.cluster_size();
        (0..len.div_ceil(size)).map(move |i| offset + i * size)
    }

    fn claim_extent(&mut self, what: &str, offset: u64, len: u64) -> Result<(), Flaw> {
        for cluster in self.clusters(offset, len) {
            self.claim(&format!("the {what}"), cluster)?;
        }
        Ok(())
    }

    fn counted_extent(&mut self, what: &str, offset: u64, len: u64) -> Result<(), Flaw> {
        for cluster in self.clusters(offset, len) {
            self.counted(&format!("the {what}"), cluster)?;
        }
        Ok(())
    }

    fn table(&mut self, what: &str, offset: u64, table: Table) -> Result<(), Flaw> {
        self.inside(what, offset)?;
        self.claim(what, offset)?;
        if self.tables.insert(offset, table).is_some() {
            return damaged(format!("{what} at {offset:#x} twice"));
        }
        Ok(())
    }

    fn refcount_blocks(&mut self) -> Result<(), Flaw> {
        let header = self.header;
        let entries = (header.reftable_clusters << header.cluster_bits) / 8;
        let reftable = read_table(self.host, header.reftable_offset, entries)?;
        for &entry in &reftable {
            if entry & REFTABLE_RESERVED != 0 {
                return damaged(format!("the refcount table entry {entry:#x}"));
            }
            if entry != 0 {
                self.table("a refcount block", entry, Table::RefcountBlock)?;
            }
        }
        self.refcounts = Some(Refcounts::new(self.host, header, reftable.clone()));
        for entry in reftable.into_iter().filter(|entry| *entry != 0) {
            self.counted("a refcount block", entry)?;
        }
        Ok(())
    }

    fn l2_tables(&mut self, l1: &[u64]) -> Result<(), Flaw> {
        let mut tables = Vec::new();
        for &entry in l1 {
            if entry & L1_RESERVED != 0 {
                return damaged(format!("the L1 table entry {entry:#x}"));
            }
            let offset = l2_offset(entry);
            if offset != 0 {
                self.table("an L2 table", offset, Table::L2)?;
                self.counted("an L2 table", offset)?;
                tables.push(offset);
            }
        }
        if tables.len() as u64 * self.cluster_size() > MAX_L2_WALK {
            tracing::warn!(
                image = %self.host.path().display(),
                "the image is too large to check each cluster when it is opened; `qemu-img check` does"
            );
            return Ok(());
        }
        for table in tables {
            for entry in read_table(self.host, table, self.cluster_size() / 8)? {
                self.l2_entry(entry)?;
            }
        }
        Ok(())
    }

    fn l2_entry(&mut self, entry: u64) -> Result<(), Flaw> {
        if entry & COMPRESSED != 0 {
            return self.compressed(entry);
        }
        if entry & L2_RESERVED != 0 {
            return damaged(format!("the L2 table entry {entry:#x}"));
        }
        let zero = entry & ZERO != 0;
        if zero && self.header.version < 3 {
            return damaged(format!(
                "the L2 table entry {entry:#x}, which version 2 does not have"
            ));
        }
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(());
        }
        // Nothing has been written yet to the cluster that is kept for one that reads as zeroes,
        // so the file may end before it.
        if !zero || !offset.is_multiple_of(self.cluster_size()) {
            self.inside("data", offset)?;
        }
        self.claim("data", offset)?;
        self.counted("data", offset)
    }

    /// Section "Compressed Cluster Descriptor". Several compressed clusters may share a cluster.
    fn compressed(&mut self, entry: u64) -> Result<(), Flaw> {
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let descriptor = entry & (COMPRESSED - 1);
        let start = descriptor & ((1 << offset_bits) - 1);
        let sectors = descriptor >> offset_bits;
        if entry >> 63 != 0 || start & !(OFFSET_MASK | 0x1ff) != 0 {
            return damaged(format!("the L2 table entry {entry:#x}"));
        }
        if start >= self.file_len {
            return damaged(format!("compressed data at {start:#x}, beyond the end of the file"));
        }
        let size = self.cluster_size();
        let last = (start & !0x1ff) + sectors * 512;
        for cluster in (start / size)..=(last / size) {
            let offset = cluster * size;
            if self.is_metadata(offset) {
                return damaged(format!("compressed data at {start:#x}, within a table"));
            }
            self.counted("compressed data", offset)?;
        }
        Ok(())
    }

    fn is_metadata(&self, offset: u64) -> bool {
        let Header { l1_offset, l1_entries, reftable_offset, reftable_clusters, .. } = *self.header;
        offset == 0
            || (l1_offset..l1_offset + l1_entries * 8).contains(&offset)
            || (reftable_offset..reftable_offset + (reftable_clusters << self.header.cluster_bits))
                .contains(&offset)
            || self.tables.contains_key(&offset)
    }
}

/// One bit for each cluster of the file that something lies in.
struct Claims {
    cluster_bits: u32,
    bits: Vec<u64>,
}

impl Claims {
    fn new(cluster_bits: u32, file_len: u64) -> Self {
        let clusters = (file_len >> cluster_bits) + 1;
        // For a larger file the claims are not tracked: its tables are too large to be walked.
        let words = if clusters <= MAX_CLAIMS { clusters / 64 + 1 } else { 0 };
        Claims { cluster_bits, bits: vec![0; words as usize] }
    }

    /// Takes the cluster at `offset`; whether it was free.
    fn claim(&mut self, offset: u64) -> bool {
        let cluster = offset >> self.cluster_bits;
        let bit = 1 << (cluster % 64);
        match usize::try_from(cluster / 64).ok().and_then(|word| self.bits.get_mut(word)) {
            Some(word) => std::mem::replace(word, *word | bit) & bit == 0,
            None => true,
        }
    }
}

/// The refcounts on disk.
struct Refcounts<'a> {
    host: &'a HostFile,
    widths: Widths,
    reftable: Vec<u64>,
    blocks: HashMap<u64, Vec<u8>>,
}

impl<'a> Refcounts<'a> {
    fn new(host: &'a HostFile, header: &Header, reftable: Vec<u64>) -> Self {
        let widths =
            Widths { cluster_bits: header.cluster_bits, refcount_order: header.refcount_order };
        Refcounts { host, widths, reftable, blocks: HashMap::new() }
    }

    fn get(&mut self, offset: u64) -> Result<u64, Flaw> {
        let place = self.widths.place(offset >> self.widths.cluster_bits);
        let block = usize::try_from(place.table_index).ok().and_then(|i| self.reftable.get(i));
        let Some(&block) = block.filter(|block| **block != 0) else {
            return Ok(0);
        };
        if !self.blocks.contains_key(&block) {
            if self.blocks.len() >= MAX_BLOCKS {
                self.blocks.clear();
            }
            let mut bytes = vec![0; 1 << self.widths.cluster_bits];
            self.host.read_at(block, &mut bytes)?;
            self.blocks.insert(block, bytes);
        }
        let bytes = self
            .blocks
            .get(&block)
            .and_then(|bytes| bytes.get(place.byte as usize..)?.get(..place.len));
        Ok(bytes.map_or(0, |bytes| place.get(bytes)))
    }
}

fn damaged<T>(problem: String) -> Result<T, Flaw> {
    Err(Flaw::Damaged(problem))
}
