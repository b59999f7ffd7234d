//! Linux: bzImage files and bare `vmlinux` (Linux, `Documentation/arch/x86/boot.rst` and
//! `zero-page.rst`).

use super::decompress::decompress;
use super::elf::Elf;
use super::entry::{Entry, boot_gdt};
use super::source::{Fields, Record};
use super::{BootError, Job, Source};

/// Offsets in a bzImage's first sectors, and, from [`SETUP_HEADER`] on, in the zero page.
mod offset {
    pub const ACPI_RSDP_ADDR: usize = 0x70;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const SETUP_HEADER: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const JUMP: usize = 0x200;
    pub const HEADER_MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const CODE32_START: usize = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PAYLOAD_OFFSET: usize = 0x248;
    pub const PAYLOAD_LENGTH: usize = 0x24c;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    pub const E820_TABLE: usize = 0x2d0;
}
use offset::*;

const ZERO_PAGE_LEN: usize = 0x1000;
/// Where the setup header ends at the latest: the zero page's next field begins.
const SETUP_HEADER_END: usize = 0x290;
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
const BOOT_FLAG_MAGIC: u16 = 0xaa55;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// "A boot loader that has no number of its own".
const UNDEFINED_LOADER: u8 = 0xff;
/// What every x86 kernel of the last fifteen years takes (`COMMAND_LINE_SIZE`).
const DEFAULT_CMDLINE_SIZE: u64 = 2047;
const DEFAULT_INITRD_ADDR_MAX: u64 = 0x7fff_ffff;

/// The setup header of a bzImage: the file's bytes up to [`SETUP_HEADER_END`].
pub(super) struct BzImage {
    header: Vec<u8>,
}

impl BzImage {
    /// Recognizes a bzImage. An older Linux image is an error, anything else `None`.
    pub(super) fn detect(file: &Source) -> Result<Option<Self>, BootError> {
        let header = file.head(SETUP_HEADER_END as u64)?;
        if header.u16(BOOT_FLAG) != BOOT_FLAG_MAGIC || header.u32(HEADER_MAGIC) != HDRS {
            return Ok(None);
        }
        if header.len() < SETUP_HEADER_END {
            return Err(file.damaged("its setup header is truncated"));
        }
        // 2.06 (Linux 2.6.22) is the first that tells the longest command line.
        if header.u16(VERSION) < 0x206 || header.u8(LOADFLAGS) & LOADED_HIGH == 0 {
            return Err(file.not_a_kernel("it is a Linux kernel from before 2.6.22"));
        }
        let image = Self { header };
        // A signature may follow, but nothing may be missing, even if it is not needed here.
        let len = image.protected_mode_offset() + u64::from(image.header.u32(SYSSIZE)) * 16;
        if file.len() < len {
            return Err(file.damaged(format!(
                "it is truncated: {} bytes are there, and its header tells of {len}",
                file.len()
            )));
        }
        Ok(Some(image))
    }

    /// Loads the kernel: decompressed where that is possible, else as it is, so that it
    /// decompresses itself.
    pub(super) fn load(self, file: &Source, job: &mut Job) -> Result<Entry, BootError> {
        if self.is_64bit()
            && let Some(vmlinux) = self.decompress(file)?
            && let Some(elf) = Elf::parse(&vmlinux)?
        {
            if !elf.is_64bit {
                return Err(file.damaged("its header and its contents disagree about 64 bits"));
            }
            elf.load(&vmlinux, &mut job.ram)?;
            return self.enter_64(elf.physical_entry(), job);
        }
        let start = self.load_compressed(file, job)?;
        if self.is_64bit() {
            // "startup_64" lies 512 bytes into the protected-mode code.
            return self.enter_64(start + 0x200, job);
        }
        let eip = u32::try_from(start).map_err(|_| file.damaged("it wants to be above 4 GiB"))?;
        let zero_page = self.write_zero_page(job)?;
        let gdt = write_gdt(job, false)?;
        Ok(Entry::Linux32 { eip, zero_page, gdt })
    }

    fn is_64bit(&self) -> bool {
        // `xloadflags` came with 2.12.
        self.header.u16(VERSION) >= 0x20c && self.header.u16(XLOADFLAGS) & XLF_KERNEL_64 != 0
    }

    /// Where the protected-mode code begins in the file.
    fn protected_mode_offset(&self) -> u64 {
        let sectors = match self.header.u8(SETUP_HEADER) {
            0 => 4,
            n => u64::from(n),
        };
        (sectors + 1) * 512
    }

    /// The kernel proper, if its compressor is known here.
    fn decompress(&self, file: &Source) -> Result<Option<Source>, BootError> {
        let offset = self.protected_mode_offset() + u64::from(self.header.u32(PAYLOAD_OFFSET));
        let payload = file.bytes(offset, self.header.u32(PAYLOAD_LENGTH).into())?;
        match decompress(&payload) {
            Ok(Some(vmlinux)) => Ok(Some(file.inner(vmlinux))),
            Ok(None) if payload.starts_with(b"\x7fELF") => Ok(Some(file.inner(payload))),
            Ok(None) => {
                tracing::info!(
                    "{}: unknown compression; the kernel decompresses itself",
                    file.path().display()
                );
                Ok(None)
            }
            Err(why) => Err(file.damaged(why)),
        }
    }

    /// Loads the protected-mode code where it likes to be; returns that address.
    fn load_compressed(&self, file: &Source, job: &mut Job) -> Result<u64, BootError> {
        let header = &self.header;
        let offset = self.protected_mode_offset();
        let len = file
            .len()
            .checked_sub(offset)
            .filter(|&len| len > 0)
            .ok_or_else(|| file.damaged("it ends before its protected-mode code"))?;
        // `pref_address` and `init_size` came with 2.10.
        let has_preference = header.u16(VERSION) >= 0x20a && header.u8(RELOCATABLE_KERNEL) != 0;
        let (start, needed) = if has_preference {
            (header.u64(PREF_ADDRESS), len.max(header.u32(INIT_SIZE).into()))
        } else {
            (header.u32(CODE32_START).into(), len)
        };
        job.ram.claim("the kernel", start, needed)?;
        job.ram.copy(file, offset, len, start)?;
        Ok(start)
    }

    fn enter_64(&self, rip: u64, job: &mut Job) -> Result<Entry, BootError> {
        let zero_page = self.write_zero_page(job)?;
        enter_64(rip, zero_page, job)
    }

    fn write_zero_page(&self, job: &mut Job) -> Result<u64, BootError> {
        let header = &self.header;
        // The header's length is coded in the jump over it.
        let end = (HEADER_MAGIC + usize::from(header.u8(JUMP + 1))).min(SETUP_HEADER_END);
        let setup_header = header.get(SETUP_HEADER..end).unwrap_or_default();
        let initrd_max = u64::from(header.u32(INITRD_ADDR_MAX)) + 1;
        write_zero_page(setup_header, header.u32(CMDLINE_SIZE).into(), initrd_max, job)
    }
}

/// Loads a 64-bit Linux kernel that comes as an ELF file.
pub(super) fn load_vmlinux(file: &Source, elf: &Elf, job: &mut Job) -> Result<Entry, BootError> {
    if !elf.is_64bit {
        return Err(file.not_a_kernel(
            "it is a 32-bit ELF file with neither a PVH note nor a multiboot header",
        ));
    }
    elf.load(file, &mut job.ram)?;
    let mut header = Record::new(SETUP_HEADER_END - SETUP_HEADER);
    let put = |offset: usize| offset - SETUP_HEADER;
    header.put(put(BOOT_FLAG), &BOOT_FLAG_MAGIC.to_le_bytes());
    header.put_u32(put(HEADER_MAGIC), HDRS);
    header.put(put(VERSION), &0x20fu16.to_le_bytes());
    header.put_u8(put(LOADFLAGS), LOADED_HIGH);
    header.put_u32(put(KERNEL_ALIGNMENT), 16 << 20);
    let initrd_max = DEFAULT_INITRD_ADDR_MAX + 1;
    let zero_page = write_zero_page(&header.0, DEFAULT_CMDLINE_SIZE, initrd_max, job)?;
    enter_64(elf.physical_entry(), zero_page, job)
}

/// Writes command line, initial RAM disk and `struct boot_params`; returns the latter's address.
fn write_zero_page(
    setup_header: &[u8],
    cmdline_size: u64,
    initrd_max: u64,
    job: &mut Job,
) -> Result<u64, BootError> {
    let mut page = Record::new(ZERO_PAGE_LEN);
    page.put(SETUP_HEADER, setup_header);
    page.put_u8(TYPE_OF_LOADER, UNDEFINED_LOADER);
    page.put_u64(ACPI_RSDP_ADDR, job.rsdp);

    // Base memory lies below 4 GiB, and so does an initial RAM disk below `initrd_max`.
    page.put_u32(CMD_LINE_PTR, job.write_cmdline(cmdline_size)? as u32);
    if let Some((addr, len)) = job.load_initrd(initrd_max)? {
        page.put_u32(RAMDISK_IMAGE, addr as u32);
        page.put_u32(RAMDISK_SIZE, len as u32);
    }

    let e820 = job.map.e820();
    page.put_u8(E820_ENTRIES, e820.len() as u8); // never more than a handful
    for (i, entry) in e820.iter().enumerate() {
        let at = E820_TABLE + i * 20;
        page.put_u64(at, entry.start);
        page.put_u64(at + 8, entry.len);
        page.put_u32(at + 16, entry.kind as u32);
    }
    job.ram.put_low("the boot parameters", &page.0, 4096)
}

fn enter_64(rip: u64, zero_page: u64, job: &mut Job) -> Result<Entry, BootError> {
    let gdt = write_gdt(job, true)?;
    let page_table = write_identity_map(job)?;
    Ok(Entry::Linux64 { rip, zero_page, page_table, gdt })
}

fn write_gdt(job: &mut Job, long_mode: bool) -> Result<u64, BootError> {
    let table = boot_gdt(long_mode).map(u64::to_le_bytes);
    job.ram.put_low("the descriptor table", table.as_flattened(), 16)
}

/// Maps the first 4 GiB to themselves with 2 MiB pages: a PML4 table, a page directory pointer
/// table, four page directories (Intel SDM Vol. 3, 4.5).
fn write_identity_map(job: &mut Job) -> Result<u64, BootError> {
    const TABLE: u64 = 4096;
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let mut tables = Record::new(6 * TABLE as usize);
    let base = job.ram.put_low("the boot page tables", &tables.0, TABLE)?;
    tables.put_u64(0, (base + TABLE) | PRESENT_WRITABLE);
    for i in 0..4 {
        let directory = base + (2 + i) * TABLE;
        tables.put_u64((TABLE + i * 8) as usize, directory | PRESENT_WRITABLE);
    }
    for page in 0..4 * 512 {
        let entry = (page << 21) | PRESENT_WRITABLE | LARGE;
        tables.put_u64((2 * TABLE + page * 8) as usize, entry);
    }
    job.ram.write(base, &tables.0)?;
    Ok(base)
}
