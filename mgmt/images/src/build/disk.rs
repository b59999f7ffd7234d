//! How the disk is laid out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SECTOR: u64 = 512;
/// Where the partition begins: at 1 MiB, as every partitioning program places it.
pub(crate) const PARTITION_OFFSET: u64 = 1 << 20;
/// What the guest's kernel calls the partition.
pub(crate) const PARTITION_DEVICE: &str = "/dev/vda1";

/// Where on the disk the file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    disk_bytes: u64,
    partitioned: bool,
}

impl Layout {
    /// A disk of that length, rounded down to whole MiB.
    pub(super) fn new(disk_bytes: u64, partitioned: bool) -> Layout {
        Layout { disk_bytes: disk_bytes & !((1 << 20) - 1), partitioned }
    }

    pub(super) fn offset_bytes(self) -> u64 {
        if self.partitioned { PARTITION_OFFSET } else { 0 }
    }

    pub(super) fn file_system_kib(self) -> u64 {
        (self.disk_bytes - self.offset_bytes()) >> 10
    }

    /// What the guest's kernel calls the root file system's device.
    pub(super) fn root_device(self) -> &'static str {
        if self.partitioned { PARTITION_DEVICE } else { "/dev/vda" }
    }
}

/// Gives an empty file the disk's length and, if it is to have one, its partition table.
///
/// A master boot record with one Linux partition (type 0x83) and no boot code: the kernel is
/// loaded from outside. Its 32-bit sector numbers reach to 2 TiB; a longer disk's partition ends
/// there.
pub(super) fn write_partition_table(disk: &File, layout: Layout) -> io::Result<()> {
    disk.set_len(layout.disk_bytes)?;
    if !layout.partitioned {
        return Ok(());
    }
    let first = (PARTITION_OFFSET / SECTOR) as u32;
    let sectors = (layout.disk_bytes - PARTITION_OFFSET) / SECTOR;
    let sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
    // Cylinder, head and sector that are out of their range send readers to the sector numbers.
    const NO_CHS: [u8; 3] = [0xfe, 0xff, 0xff];
    const LINUX: u8 = 0x83;
    let mut entry = [0; 16];
    entry[1..4].copy_from_slice(&NO_CHS);
    entry[4] = LINUX;
    entry[5..8].copy_from_slice(&NO_CHS);
    entry[8..12].copy_from_slice(&first.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    disk.write_all_at(&entry, 446)?;
    disk.write_all_at(&[0x55, 0xaa], 510)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(layout: Layout) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        write_partition_table(&File::create(&path).unwrap(), layout).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_plain_disk_is_the_file_system() {
        let layout = Layout::new((4 << 20) + 1, false);
        assert_eq!((layout.offset_bytes(), layout.file_system_kib()), (0, 4096));
        assert_eq!(disk(layout), vec![0; 4 << 20]);
    }

    #[test]
    fn a_partition_fills_the_rest_of_the_disk() {
        let layout = Layout::new(4 << 20, true);
        assert_eq!((layout.offset_bytes(), layout.file_system_kib()), (1 << 20, 3072));
        let bytes = disk(layout);
        assert_eq!(&bytes[510..512], [0x55, 0xaa]);
        assert_eq!(bytes[450], 0x83);
        assert_eq!(bytes[454..458], 2048u32.to_le_bytes());
        assert_eq!(bytes[458..462], 6144u32.to_le_bytes());
        assert_eq!(layout.root_device(), "/dev/vda1");
    }
}
