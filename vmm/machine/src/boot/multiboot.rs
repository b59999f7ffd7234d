//! Multiboot 1 kernels (Multiboot Specification 0.6.96): flat images that describe themselves,
//! and ELF files of 32 or 64 bits, all entered in 32-bit protected mode.

use super::elf::Elf;
use super::entry::Entry;
use super::source::{Fields, Record};
use super::{BootError, Job, Source, c_string};
use crate::memory_map::{E820Kind, MemoryMap};

/// Multiboot header flags (3.1.2). The lower 16 bits must be understood to load the kernel.
mod flag {
    pub const PAGE_ALIGN: u32 = 1 << 0;
    pub const MEMORY_INFO: u32 = 1 << 1;
    pub const VIDEO_MODE: u32 = 1 << 2;
    pub const ADDRESSES: u32 = 1 << 16;
}
/// Which parts of the boot information are there (3.3).
mod info_flag {
    pub const MEMORY: u32 = 1 << 0;
    pub const CMDLINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const BOOT_LOADER_NAME: u32 = 1 << 9;
}

const MAGIC: u32 = 0x1bad_b002;
/// The header lies within this much of the file's beginning.
const SEARCH: u64 = 8192;
const INFO_LEN: usize = 116;
const MODULE_LEN: usize = 16;
const MEMORY_MAP_ENTRY_LEN: usize = 24;
const MAX_CMDLINE: usize = 64 << 10;

/// A multiboot header (3.1.1).
#[derive(Debug)]
pub(super) struct Header {
    /// Where in the file it lies.
    offset: u64,
    flags: u32,
    addresses: Addresses,
}

/// The address fields, valid if the header says so (3.1.3).
#[derive(Debug)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

impl Header {
    /// Looks for a header with a valid checksum.
    pub(super) fn detect(file: &Source) -> Result<Option<Self>, BootError> {
        let head = file.head(SEARCH)?;
        let found = (0..head.len().saturating_sub(11)).step_by(4).find(|&at| {
            let sum = head.u32(at).wrapping_add(head.u32(at + 4)).wrapping_add(head.u32(at + 8));
            head.u32(at) == MAGIC && sum == 0
        });
        let Some(at) = found else { return Ok(None) };
        let flags = head.u32(at + 4);
        if flags & flag::ADDRESSES != 0 && head.len() < at + 32 {
            return Err(file.damaged("its multiboot header is truncated"));
        }
        let unknown = flags & 0xffff & !(flag::PAGE_ALIGN | flag::MEMORY_INFO | flag::VIDEO_MODE);
        if unknown != 0 {
            return Err(file.not_a_kernel(format!(
                "its multiboot header demands features {unknown:#x}, which are unknown"
            )));
        }
        if flags & flag::VIDEO_MODE != 0 {
            tracing::warn!(
                "{} asks for a video mode, and there is no display",
                file.path().display()
            );
        }
        Ok(Some(Self {
            offset: at as u64,
            flags,
            addresses: Addresses {
                header: head.u32(at + 12),
                load: head.u32(at + 16),
                load_end: head.u32(at + 20),
                bss_end: head.u32(at + 24),
                entry: head.u32(at + 28),
            },
        }))
    }

    /// Loads the kernel, its modules and the boot information.
    pub(super) fn load(&self, file: &Source, job: &mut Job) -> Result<Entry, BootError> {
        let (eip, end) = if self.flags & flag::ADDRESSES != 0 {
            self.load_flat(file, job)?
        } else {
            let elf = Elf::parse(file)?.ok_or_else(|| {
                file.damaged("its multiboot header has no addresses, and it is no ELF file")
            })?;
            let end = elf.load(file, &mut job.ram)?;
            let eip = u32::try_from(elf.physical_entry())
                .map_err(|_| file.damaged("its entry point lies above 4 GiB"))?;
            (eip, end)
        };
        let info = write_info(file, job, end)?;
        Ok(Entry::Multiboot { eip, info })
    }

    /// Loads a flat image by the addresses in its header; entry point and end.
    fn load_flat(&self, file: &Source, job: &mut Job) -> Result<(u32, u64), BootError> {
        let a = &self.addresses;
        let bad = || file.damaged("the addresses in its multiboot header contradict each other");
        // The header's place in the file and in memory tells where the image begins in the file.
        let before = a.header.checked_sub(a.load).ok_or_else(bad)?;
        let start = self.offset.checked_sub(before.into()).ok_or_else(bad)?;
        let load = u64::from(a.load);
        let len = match a.load_end {
            0 => file.len() - start,
            end => u64::from(end).checked_sub(load).ok_or_else(bad)?,
        };
        let end = match a.bss_end {
            0 => load + len,
            end => u64::from(end),
        };
        let total = end.checked_sub(load).filter(|&total| total >= len).ok_or_else(bad)?;
        job.ram.claim("the kernel", load, total)?;
        job.ram.copy(file, start, len, load)?;
        Ok((a.entry, end))
    }
}

/// A file that the kernel finds in memory.
struct Module {
    start: u64,
    end: u64,
    string: u64,
}

/// Loads the modules, an initial RAM disk first, at pages behind the kernel.
fn load_modules(job: &mut Job, kernel_end: u64) -> Result<Vec<Module>, BootError> {
    let (config, files) = (job.config, job.files);
    let initrd = files.initrd.iter().map(|file| (file, ""));
    let strings = config.modules.iter().map(|module| module.cmdline.as_str());
    let mut loaded = Vec::new();
    for (file, string) in initrd.chain(files.modules.iter().zip(strings)) {
        let start = job.ram.claim_lowest(
            "a module",
            file.len(),
            4096,
            kernel_end,
            job.map.low_ram_end(),
        )?;
        job.ram.copy(file, 0, file.len(), start)?;
        let string = job.ram.put_low("a module's string", &c_string(string), 4)?;
        loaded.push(Module { start, end: start + file.len(), string });
    }
    Ok(loaded)
}

/// Writes the boot information (3.3) and everything that it points to.
fn write_info(file: &Source, job: &mut Job, kernel_end: u64) -> Result<u64, BootError> {
    // Everything here lies below 4 GiB: the casts lose nothing.
    let mut info = Record::new(INFO_LEN);
    let mut flags = info_flag::MEMORY | info_flag::CMDLINE | info_flag::MEMORY_MAP;

    let (lower, upper) = memory_kib(job.map);
    info.put_u32(4, lower);
    info.put_u32(8, upper);

    // As from other loaders, the kernel's own name comes first.
    let mut cmdline = file.path().display().to_string();
    if !job.config.cmdline.is_empty() {
        cmdline.push(' ');
        cmdline.push_str(&job.config.cmdline);
    }
    if cmdline.len() > MAX_CMDLINE {
        return Err(BootError::CommandLine(format!("it is longer than {MAX_CMDLINE} bytes")));
    }
    let cmdline = job.ram.put_low("the command line", &c_string(&cmdline), 4)?;
    info.put_u32(16, cmdline as u32);

    let modules = load_modules(job, kernel_end)?;
    if !modules.is_empty() {
        let mut list = Record::new(modules.len() * MODULE_LEN);
        for (i, module) in modules.iter().enumerate() {
            let at = i * MODULE_LEN;
            list.put_u32(at, module.start as u32);
            list.put_u32(at + 4, module.end as u32);
            list.put_u32(at + 8, module.string as u32);
        }
        flags |= info_flag::MODULES;
        info.put_u32(20, modules.len() as u32);
        info.put_u32(24, job.ram.put_low("the module list", &list.0, 4)? as u32);
    }

    let e820 = job.map.e820();
    let mut map = Record::new(e820.len() * MEMORY_MAP_ENTRY_LEN);
    for (i, entry) in e820.iter().enumerate() {
        let at = i * MEMORY_MAP_ENTRY_LEN;
        map.put_u32(at, MEMORY_MAP_ENTRY_LEN as u32 - 4); // the size field does not count itself
        map.put_u64(at + 4, entry.start);
        map.put_u64(at + 12, entry.len);
        map.put_u32(at + 20, entry.kind as u32);
    }
    info.put_u32(44, map.0.len() as u32);
    info.put_u32(48, job.ram.put_low("the memory map", &map.0, 4)? as u32);

    flags |= info_flag::BOOT_LOADER_NAME;
    info.put_u32(64, job.ram.put_low("the loader's name", b"Lodge\0", 4)? as u32);

    info.put_u32(0, flags);
    job.ram.put_low("the boot information", &info.0, 8)
}

/// KiB of usable memory from 0 and from 1 MiB upwards, to the first hole.
fn memory_kib(map: &MemoryMap) -> (u32, u32) {
    let run = |start| {
        map.e820()
            .iter()
            .find(|e| e.start == start && e.kind == E820Kind::Usable)
            .map_or(0, |e| (e.len >> 10) as u32)
    };
    (run(0), run(1 << 20))
}
