//! A disk that boots Linux on a machine that boots from nothing else.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::system::which;

/// The first sector's program.
const BOOT: &str = include_str!("../../lab/boot.S");
/// Where in the first sector it is told what to load.
const TABLE: usize = 448;
const SECTOR: usize = 512;
/// What is loaded at once.
const CHUNK: usize = 60 * SECTOR;

/// Where the real-mode part of the kernel goes, where its command line goes behind it, and how much
/// there is room for together: two chunks, which end below the BIOS's own data.
const LOW: u32 = 0x9_0000;
const COMMAND_LINE: usize = 0xe000;
const LOW_LEN: usize = 2 * CHUNK;
/// Where the rest of the kernel goes.
const HIGH: u32 = 0x10_0000;
/// Where the initial RAM disk goes, above all that the kernel wants when it unpacks itself.
const INITRD: u32 = 0x0800_0000;

/// Fields of the kernel's header (Linux's Documentation/arch/x86/boot.rst).
mod header {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const MAGIC: std::ops::Range<usize> = 0x202..0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CAN_USE_HEAP: u8 = 0x80;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const HEAP_END_PTR: usize = 0x224;
    pub const CMD_LINE_PTR: usize = 0x228;
}

/// Writes the disk `to`. What is made on the way is in `dir`.
pub fn write(
    to: &Path,
    dir: &Path,
    kernel: &[u8],
    initrd: &[u8],
    cmdline: &str,
) -> anyhow::Result<()> {
    let (low, high) = split(kernel, initrd.len(), cmdline)?;
    let mut first = assemble(dir)?;
    let mut disk = File::create(to).with_context(|| format!("cannot make {}", to.display()))?;
    let parts = [(LOW, &low[..]), (HIGH, high), (INITRD, initrd)];
    let mut sector = 1;
    for (number, (address, contents)) in parts.into_iter().enumerate() {
        let chunks = contents.len().div_ceil(CHUNK);
        for (field, value) in
            [address, u32::try_from(sector)?, u32::try_from(chunks)?].into_iter().enumerate()
        {
            let at = TABLE + number * 12 + field * 4;
            first[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        sector += chunks * CHUNK / SECTOR;
    }
    disk.write_all(&first)?;
    for (_, contents) in parts {
        disk.write_all(contents)?;
        disk.write_all(&vec![0; contents.len().next_multiple_of(CHUNK) - contents.len()])?;
    }
    // Whole cylinders of 16 heads with 63 sectors each.
    let len = (sector * SECTOR).next_multiple_of(16 * 63 * SECTOR);
    disk.set_len(len as u64)?;
    Ok(())
}

/// The part of a bzImage that goes below 1 MiB, with the command line, and the rest.
fn split<'a>(
    kernel: &'a [u8],
    initrd_len: usize,
    cmdline: &str,
) -> anyhow::Result<(Vec<u8>, &'a [u8])> {
    if kernel.get(header::MAGIC) != Some(b"HdrS") {
        bail!("the kernel is no bzImage");
    }
    let sectors = match kernel[header::SETUP_SECTS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let (setup, high) = kernel.split_at_checked((sectors + 1) * SECTOR).context("it is cut off")?;
    if setup.len() > COMMAND_LINE || COMMAND_LINE + cmdline.len() >= LOW_LEN {
        bail!("the kernel's real-mode part and its command line do not fit together");
    }
    let mut low = setup.to_vec();
    low.resize(LOW_LEN, 0);
    low[COMMAND_LINE..][..cmdline.len()].copy_from_slice(cmdline.as_bytes());
    low[header::TYPE_OF_LOADER] = 0xff;
    low[header::LOADFLAGS] |= header::CAN_USE_HEAP;
    let mut set = |at: usize, value: u32| low[at..at + 4].copy_from_slice(&value.to_le_bytes());
    set(header::RAMDISK_IMAGE, INITRD);
    set(header::RAMDISK_SIZE, u32::try_from(initrd_len)?);
    set(header::CMD_LINE_PTR, LOW + COMMAND_LINE as u32);
    // Its end less the 200H that the kernel takes away; the field has two bytes.
    let heap_end = (COMMAND_LINE as u16 - 0x200).to_le_bytes();
    low[header::HEAP_END_PTR..][..2].copy_from_slice(&heap_end);
    Ok((low, high))
}

/// The first sector.
fn assemble(dir: &Path) -> anyhow::Result<Vec<u8>> {
    let path = |name: &str| dir.join(name);
    fs::write(path("boot.S"), BOOT)?;
    let steps = [
        Command::new(which("as")?)
            .arg("--32")
            .arg("-o")
            .arg(path("boot.o"))
            .arg(path("boot.S"))
            .status(),
        Command::new(which("ld")?)
            .args([
                "-m",
                "elf_i386",
                "-Ttext",
                "0x7c00",
                "-e",
                "0x7c00",
                "--oformat",
                "binary",
                "-o",
            ])
            .arg(path("boot.bin"))
            .arg(path("boot.o"))
            .status(),
    ];
    for status in steps {
        if !status.context("cannot run as and ld (of binutils)")?.success() {
            bail!("xtask/lab/boot.S cannot be assembled");
        }
    }
    let sector = fs::read(path("boot.bin"))?;
    for name in ["boot.S", "boot.o", "boot.bin"] {
        fs::remove_file(path(name))?;
    }
    if sector.len() != SECTOR {
        bail!("the first sector has {} bytes", sector.len());
    }
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel whose real-mode part has two sectors, behind the first.
    fn kernel() -> Vec<u8> {
        let mut kernel = vec![0x11; 3 * SECTOR + 7];
        kernel[header::SETUP_SECTS] = 2;
        kernel[header::MAGIC].copy_from_slice(b"HdrS");
        kernel
    }

    #[test]
    fn a_kernel_is_told_what_there_is() {
        let kernel = kernel();
        let (low, high) = split(&kernel, 0x1234, "quiet").unwrap();
        assert_eq!((low.len(), high.len()), (LOW_LEN, 7));
        assert_eq!(low[COMMAND_LINE..][..6], *b"quiet\0");
        assert_eq!(low[header::RAMDISK_SIZE..][..4], 0x1234u32.to_le_bytes());
        assert_eq!(low[header::CMD_LINE_PTR..][..4], 0x9_e000u32.to_le_bytes());
        assert_eq!(low[header::HEAP_END_PTR..][..2], 0xde00u16.to_le_bytes());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = "x".repeat(LOW_LEN - COMMAND_LINE);
        assert!(split(&kernel(), 0, &long).is_err());
        assert!(split(&kernel()[..2 * SECTOR], 0, "").is_err());
        assert!(split(b"MZ", 0, "").is_err());
    }
}
