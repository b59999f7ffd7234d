//! The file under a qcow2 image, as imago sees it.
//!
//! imago keeps L2 tables and refcount blocks in caches and writes them in the right order: a
//! cluster counts as used before anything points to it, and nothing points to it any more before it
//! counts as free. So far as it goes, an image whose VMM dies at any moment has leaked clusters at
//! worst. Three things are missing. This file adds two of them:
//!
//! - The order is one of write(2) calls, which a host that loses power need not keep. Here,
//!   whatever the order depends on is synced first.
//! - Entries of the L1 and the refcount table are written at once, while the refcount of the table
//!   that they point to waits in a cache. Here, that refcount is written before the entry. imago
//!   writes the same value again when it flushes its cache.
//!
//! The third is that a new L2 table may be put into a cluster that became free a moment ago, while
//! what says so waits in the cache and the file still has another table point to it. `disk` sees to
//! that; it asks [`WriteOrder::has_l2_table`] where a request needs a new table.

use super::check::{self, Table, Tables};
use super::header::{Flaw, Header};
use super::refcount::Widths;
use crate::file::HostFile;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageOpenOptions};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// One file of a chain of images.
#[derive(Debug)]
pub(super) struct ImageFile {
    host: Arc<HostFile>,
    /// The file's size, which grows as the image does.
    len: AtomicU64,
    /// Present if the image is written.
    order: Option<Arc<WriteOrder>>,
    helper: CommonStorageHelper,
}

impl ImageFile {
    /// A file that is only read.
    pub(super) fn readonly(host: Arc<HostFile>, len: u64) -> Self {
        ImageFile { host, len: len.into(), order: None, helper: Default::default() }
    }

    /// The file of an image that is written.
    pub(super) fn writable(host: Arc<HostFile>, len: u64, order: Arc<WriteOrder>) -> Self {
        ImageFile { order: Some(order), ..ImageFile::readonly(host, len) }
    }

    /// The file itself, to read data from.
    pub(super) fn file(&self) -> &File {
        self.host.file()
    }

    fn write_one(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let Some(order) = &self.order else {
            return Err(crate::disk::readonly());
        };
        let kind = order.classify(offset);
        order.before_write(&self.host, kind, offset, data)?;
        self.host.write_at(offset, data)?;
        self.len.fetch_max(offset.saturating_add(data.len() as u64), Ordering::Relaxed);
        order.after_write(&self.host, kind, data)
    }
}

/// What a write is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Guest data, or a table that nothing points to yet.
    Data,
    RefcountBlock,
    L2,
    /// Entries of the L1 table.
    L1,
    /// Entries of the refcount table.
    Reftable,
    Header,
}

impl Kind {
    fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The kinds that must be on stable storage before this one is written.
    fn depends_on(self) -> u8 {
        match self {
            // A cluster that became free is not written before nothing points to it. (What points
            // to it is written, but not synced, when imago reuses it.)
            Kind::Data => Kind::L2.bit() | Kind::Header.bit(),
            // A cluster is not free before nothing points to it.
            Kind::RefcountBlock => Kind::L2.bit() | Kind::L1.bit() | Kind::Header.bit(),
            // A cluster is in use, and holds what was copied to it, before a table points to it.
            Kind::L2 => Kind::Data.bit() | Kind::RefcountBlock.bit() | Kind::Reftable.bit(),
            // The same for tables.
            Kind::L1 | Kind::Reftable | Kind::Header => u8::MAX,
        }
    }
}

/// What keeps the writes to an image in order.
#[derive(Debug)]
pub(super) struct WriteOrder {
    widths: Widths,
    layout: RwLock<Layout>,
    /// The kinds that were written since the last sync began.
    unsynced: AtomicU8,
    /// The kinds that the sync under way takes to stable storage.
    syncing: AtomicU8,
    /// Held by whoever syncs.
    turn: Mutex<()>,
}

/// Where the image's tables are.
#[derive(Debug)]
struct Layout {
    l1: Range<u64>,
    reftable: Range<u64>,
    tables: Tables,
    /// For each entry of the L1 table, whether it points to a table that this image alone uses.
    writable_l2: Vec<bool>,
}

impl WriteOrder {
    /// For an image with this header, all whose tables are in `tables`.
    pub(super) fn new(host: &HostFile, header: &Header, tables: Tables) -> Result<Self, Flaw> {
        let l1 = check::read_table(host, header.l1_offset, header.l1_entries)?;
        let reftable_len = header.reftable_clusters << header.cluster_bits;
        Ok(WriteOrder {
            widths: Widths {
                cluster_bits: header.cluster_bits,
                refcount_order: header.refcount_order,
            },
            layout: RwLock::new(Layout {
                l1: header.l1_offset..header.l1_offset + header.l1_entries * 8,
                reftable: header.reftable_offset..header.reftable_offset + reftable_len,
                tables,
                writable_l2: l1.into_iter().map(check::is_writable_l2).collect(),
            }),
            unsynced: AtomicU8::new(0),
            syncing: AtomicU8::new(0),
            turn: Mutex::new(()),
        })
    }

    /// How many bytes of the disk an L2 table maps.
    pub(super) fn l2_reach(&self) -> u64 {
        // A cluster of 8-byte entries, each for a cluster.
        1 << (2 * self.widths.cluster_bits - 3)
    }

    /// Whether the mapping of the cluster at `guest_offset` can be changed without a new L2 table.
    pub(super) fn has_l2_table(&self, guest_offset: u64) -> bool {
        let layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        usize::try_from(guest_offset / self.l2_reach())
            .ok()
            .and_then(|index| layout.writable_l2.get(index))
            .is_some_and(|writable| *writable)
    }

    fn classify(&self, offset: u64) -> Kind {
        let layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        match layout.tables.get(&offset) {
            Some(Table::L2) => Kind::L2,
            Some(Table::RefcountBlock) => Kind::RefcountBlock,
            None if offset == 0 => Kind::Header,
            None if layout.l1.contains(&offset) => Kind::L1,
            None if layout.reftable.contains(&offset) => Kind::Reftable,
            None => Kind::Data,
        }
    }

    fn before_write(
        &self,
        host: &HostFile,
        kind: Kind,
        offset: u64,
        data: &[u8],
    ) -> io::Result<()> {
        match kind {
            Kind::L1 | Kind::Reftable => self.count_tables(host, kind, offset, data)?,
            Kind::Header => self.follow_l1(host, data)?,
            _ => {}
        }
        if self.pending() & kind.depends_on() == 0 {
            return Ok(());
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever had the turn before may have done it.
        if self.pending() & kind.depends_on() != 0 { self.sync_in_turn(host) } else { Ok(()) }
    }

    fn after_write(&self, host: &HostFile, kind: Kind, data: &[u8]) -> io::Result<()> {
        // Only now: a sync that began earlier may not have seen the write.
        self.unsynced.fetch_or(kind.bit(), Ordering::SeqCst);
        if kind == Kind::Header { self.follow_reftable(host, data) } else { Ok(()) }
    }

    /// The kinds that are not on stable storage yet.
    fn pending(&self) -> u8 {
        // In this order: a kind is in the second before it leaves the first.
        self.unsynced.load(Ordering::SeqCst) | self.syncing.load(Ordering::SeqCst)
    }

    fn sync(&self, host: &HostFile) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.sync_in_turn(host)
    }

    fn sync_in_turn(&self, host: &HostFile) -> io::Result<()> {
        let kinds = self.pending();
        self.syncing.store(kinds, Ordering::SeqCst);
        self.unsynced.fetch_and(!kinds, Ordering::SeqCst);
        // After a sync that failed, what it was for stays pending for good: no later one succeeds.
        host.sync()?;
        self.syncing.store(0, Ordering::SeqCst);
        Ok(())
    }

    /// Makes the tables that these new entries point to known, and count as used.
    fn count_tables(
        &self,
        host: &HostFile,
        kind: Kind,
        offset: u64,
        data: &[u8],
    ) -> io::Result<()> {
        let mut layout = self.layout.write().unwrap_or_else(PoisonError::into_inner);
        for (i, entry) in data.as_chunks().0.iter().enumerate() {
            let entry = u64::from_be_bytes(*entry);
            let index = (offset - layout.start_of(kind)) / 8 + i as u64;
            if kind == Kind::L1
                && let Some(writable) = layout.writable_l2.get_mut(index as usize)
            {
                *writable = check::is_writable_l2(entry);
            }
            let (table, target) = match kind {
                Kind::L1 => (Table::L2, check::l2_offset(entry)),
                _ => (Table::RefcountBlock, check::refcount_block_offset(entry)),
            };
            if target == 0 || layout.tables.contains_key(&target) {
                continue;
            }
            // A refcount block may be the one that counts itself; then it is correct as it is.
            let counts_itself = kind == Kind::Reftable
                && self.widths.place(target >> self.widths.cluster_bits).table_index == index;
            if !counts_itself {
                self.count(host, &layout.reftable, target)?;
            }
            layout.tables.insert(target, table);
        }
        Ok(())
    }

    /// Writes a refcount of 1 for the cluster at `target` if it is 0.
    fn count(&self, host: &HostFile, reftable: &Range<u64>, target: u64) -> io::Result<()> {
        let place = self.widths.place(target >> self.widths.cluster_bits);
        let entry_at = reftable.start + place.table_index * 8;
        let mut entry = [0; 8];
        if reftable.contains(&entry_at) {
            host.read_at(entry_at, &mut entry)?;
        }
        let block = check::refcount_block_offset(u64::from_be_bytes(entry));
        if block == 0 {
            return Err(io::Error::other(format!(
                "no refcount block counts the table at {target:#x}"
            )));
        }
        let mut bytes = [0; 8];
        let bytes = bytes.get_mut(..place.len).unwrap_or_default();
        host.read_at(block + place.byte, bytes)?;
        if place.get(bytes) == 0 {
            place.set_one(bytes);
            host.write_at(block + place.byte, bytes)?;
            self.unsynced.fetch_or(Kind::RefcountBlock.bit(), Ordering::SeqCst);
        }
        Ok(())
    }

    /// Looks whether a header about to be written points to a new L1 table, as it does when the disk has grown,
    /// and makes that count as used.
    fn follow_l1(&self, host: &HostFile, header: &[u8]) -> io::Result<()> {
        let (Some(entries), Some(offset)) = (be32(header, 36), be64(header, 40)) else {
            return Ok(());
        };
        let table = offset..offset.saturating_add(entries * 8);
        let mut layout = self.layout.write().unwrap_or_else(PoisonError::into_inner);
        if layout.l1 == table {
            return Ok(());
        }
        for cluster in table.clone().step_by(1 << self.widths.cluster_bits) {
            self.count(host, &layout.reftable, cluster)?;
        }
        layout.writable_l2.resize(entries as usize, false);
        layout.l1 = table;
        Ok(())
    }

    /// Looks whether a header just written points to a new refcount table.
    fn follow_reftable(&self, host: &HostFile, header: &[u8]) -> io::Result<()> {
        let (Some(offset), Some(clusters)) = (be64(header, 48), be32(header, 56)) else {
            return Ok(());
        };
        let table = offset..offset.saturating_add(clusters << self.widths.cluster_bits);
        let mut layout = self.layout.write().unwrap_or_else(PoisonError::into_inner);
        if layout.reftable == table {
            return Ok(());
        }
        let entries = check::read_table(host, offset, (table.end - table.start) / 8)
            .map_err(|_| io::Error::other("cannot read the refcount table just written"))?;
        for entry in entries.into_iter().filter(|entry| *entry != 0) {
            layout.tables.insert(check::refcount_block_offset(entry), Table::RefcountBlock);
        }
        layout.reftable = table;
        Ok(())
    }
}

/// Fields of a header.
fn be64(header: &[u8], at: usize) -> Option<u64> {
    header.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

fn be32(header: &[u8], at: usize) -> Option<u64> {
    header.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes).into())
}

impl Layout {
    /// Where the table begins to which entries of this kind belong.
    fn start_of(&self, kind: Kind) -> u64 {
        if kind == Kind::L1 { self.l1.start } else { self.reftable.start }
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.host.path().display().fmt(f)
    }
}

/// The trait's functions are unsafe to call, since they skip the serialisation of unaligned
/// requests that `StorageExt` does. There is none to skip here: alignments are 1.
#[allow(unsafe_code)]
impl Storage for ImageFile {
    fn open(_: StorageOpenOptions) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "files are opened by the chain"))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len.load(Ordering::Relaxed))
    }

    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut part in bufv.into_inner() {
            self.host.read_at(offset, &mut part)?;
            offset = offset.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        for part in bufv.into_inner() {
            self.write_one(offset, &part)?;
            offset = offset.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // imago zeroes only the rest of clusters of data. What lies beyond the end of the file
        // reads as zeroes without being written.
        let Some(order) = &self.order else {
            return Err(crate::disk::readonly());
        };
        order.before_write(&self.host, Kind::Data, offset, &[])?;
        self.host.zero(offset, length, false)?;
        order.after_write(&self.host, Kind::Data, &[])
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        match &self.order {
            Some(order) => order.sync(&self.host),
            None => Ok(()),
        }
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, _: u64, _: PreallocateMode) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "images are not resized while open"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{create_qcow2, header};
    use super::*;
    use crate::file::Event;
    use imago::StorageExt;
    use std::sync::{Barrier, mpsc};
    use std::time::Duration;

    /// A new image, open for writing.
    fn image() -> (tempfile::TempDir, Arc<HostFile>, Arc<WriteOrder>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        create_qcow2(&path, 1 << 20, None).unwrap();
        let host = Arc::new(HostFile::open(&path, true).unwrap());
        let header = header::read(&host).unwrap();
        let order = Arc::new(WriteOrder::new(&host, &header, Tables::new()).unwrap());
        (dir, host, order)
    }

    /// A cluster that became free still has a table point to it until that is synced. It must
    /// not be zeroed before, as it must not be written.
    #[test]
    fn a_cluster_that_became_free_is_zeroed_after_a_sync() {
        let (_dir, host, order) = image();
        let file = ImageFile::writable(host.clone(), host.len().unwrap(), order.clone());
        order.after_write(&host, Kind::L2, &[]).unwrap();
        file.write_zeroes(0x2_0000, 512).unwrap();
        let journal = host.journal.lock().unwrap();
        assert!(matches!(journal[..], [Event::Sync, Event::Write(0x2_0000, _)]), "{journal:?}");
    }

    /// A table that points to new data must not reach the disk before the data, though it is
    /// another thread whose sync takes them there.
    #[test]
    fn what_depends_on_a_sync_waits_until_it_is_done() {
        let (_dir, host, order) = image();
        order.after_write(&host, Kind::Data, &[]).unwrap();
        let gate = Arc::new(Barrier::new(2));
        *host.gate.lock().unwrap() = Some(gate.clone());
        let (done, is_done) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| order.sync(&host).unwrap());
            gate.wait(); // the sync is under way
            scope.spawn(|| {
                order.before_write(&host, Kind::L2, 0x5_0000, &[]).unwrap();
                done.send(()).unwrap();
            });
            let early = is_done.recv_timeout(Duration::from_millis(200));
            gate.wait();
            assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
        });
        is_done.recv().unwrap();
        assert_eq!(order.pending(), 0);
    }
}
