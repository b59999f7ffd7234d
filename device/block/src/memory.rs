//! Disks that are in memory.

use crate::disk::{Disk, SECTOR, check_range, readonly};
use std::io;

/// A disk of a few bytes that are in memory and are only read.
pub struct MemoryDisk(Vec<u8>);

impl MemoryDisk {
    /// A disk of these bytes, and zeroes to the end of a sector.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        MemoryDisk(bytes)
    }
}

impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn is_readonly(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        check_range(offset, data.len() as u64, self.size())?;
        let bytes = self.0.get(offset as usize..).and_then(|rest| rest.get(..data.len()));
        data.copy_from_slice(bytes.unwrap_or_default());
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(readonly())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(readonly())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> io::Result<()> {
        Err(readonly())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_whole_sectors_that_are_only_read() {
        let disk = MemoryDisk::new(vec![7; 513]);
        assert_eq!((disk.size(), disk.is_readonly()), (1024, true));
        let mut data = [1; 512];
        disk.read_at(512, &mut data).unwrap();
        assert!(data[0] == 7 && data[1..] == [0; 511]);
        assert!(disk.read_at(513, &mut data).is_err());
        assert!(disk.read_at(u64::MAX, &mut data).is_err());
        assert!(disk.write_at(0, &data).is_err());
    }
}
