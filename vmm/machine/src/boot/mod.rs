//! Loading what the guest starts with, and the processor state that it expects.
//!
//! The kernel's own bytes tell its type. Nothing runs in the guest before the kernel: compressed
//! kernels are decompressed here, where it takes a fraction of the time.

mod decompress;
mod elf;
mod entry;
mod error;
mod files;
mod linux;
mod multiboot;
mod placement;
mod pvh;
mod source;

use mem::GuestMemory;
use vmm_api::BootConfig;

pub use entry::Entry;
pub use error::BootError;
pub use files::BootFiles;

use crate::{MemoryMap, firmware};
use placement::Placement;
use source::Source;

/// Loads kernel, initial RAM disk, modules and command line into `memory`, which must be fresh
/// (all zero) and laid out as `map` says. `files` are those of `config`; `rsdp` is the address of the ACPI
/// root pointer.
pub fn load(
    config: &BootConfig,
    files: &BootFiles,
    memory: &GuestMemory,
    map: &MemoryMap,
    rsdp: u64,
) -> Result<Entry, BootError> {
    firmware::write_bios_data_area(memory)?;
    let kernel = &files.kernel;
    if config.cmdline.contains('\0') {
        return Err(BootError::CommandLine("it contains a NUL character".to_owned()));
    }
    let mut job = Job { config, files, map, rsdp, ram: Placement::new(memory, map) };

    if let Some(image) = linux::BzImage::detect(kernel)? {
        job.refuse_modules()?;
        return image.load(kernel, &mut job);
    }
    if let Some(header) = multiboot::Header::detect(kernel)? {
        return header.load(kernel, &mut job);
    }
    if let Some(elf) = elf::Elf::parse(kernel)? {
        job.refuse_modules()?;
        return match elf.pvh_entry(kernel)? {
            Some(entry) => pvh::load(kernel, &elf, entry, &mut job),
            None => linux::load_vmlinux(kernel, &elf, &mut job),
        };
    }
    Err(kernel.not_a_kernel("its content is of no known type"))
}

/// What every loader works with.
struct Job<'a> {
    config: &'a BootConfig,
    files: &'a BootFiles,
    map: &'a MemoryMap,
    rsdp: u64,
    ram: Placement<'a>,
}

impl Job<'_> {
    fn refuse_modules(&self) -> Result<(), BootError> {
        if self.config.modules.is_empty() { Ok(()) } else { Err(BootError::ModulesNotWanted) }
    }

    /// Writes the command line, NUL-terminated, and returns its address.
    fn write_cmdline(&mut self, max_len: u64) -> Result<u64, BootError> {
        let cmdline = &self.config.cmdline;
        if cmdline.len() as u64 > max_len {
            return Err(BootError::CommandLine(format!(
                "it has {} bytes and the kernel takes at most {max_len}",
                cmdline.len()
            )));
        }
        self.ram.put_low("the command line", &c_string(cmdline), 16)
    }

    /// Loads the initial RAM disk as high as possible below `limit`; its address and length.
    fn load_initrd(&mut self, limit: u64) -> Result<Option<(u64, u64)>, BootError> {
        let Some(initrd) = &self.files.initrd else { return Ok(None) };
        let limit = limit.min(self.map.low_ram_end());
        let addr = self.ram.claim_highest(initrd.what(), initrd.len(), 4096, limit)?;
        self.ram.copy(initrd, 0, initrd.len(), addr)?;
        Ok(Some((addr, initrd.len())))
    }
}

/// The bytes of `text` with a NUL behind them.
fn c_string(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests;
