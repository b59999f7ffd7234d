//! Disk image back ends: raw and qcow2.
//!
//! A [`Disk`] is what a block device reads and writes. Calls block, so they come from a queue's
//! worker thread, never from a vCPU.

#![forbid(unsafe_code)]

use std::io;

/// An open disk image. Offsets and lengths are in bytes; a request that leaves the disk is an
/// error, not a truncation. Several workers may call at once.
pub trait Disk: Send + Sync {
    /// The size of the disk in bytes; a multiple of 512.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn is_readonly(&self) -> bool;

    /// Fills `data` from `offset`.
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Returns once all writes that were complete before are on stable storage.
    fn flush(&self) -> io::Result<()>;

    /// Gives `len` bytes at `offset` back to the host; they may read as anything afterwards.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes `len` bytes at `offset` read as zeroes; with `unmap`, gives the room back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}
