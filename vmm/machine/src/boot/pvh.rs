//! PVH kernels: an ELF file with a note that names its 32-bit entry (Xen,
//! `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`).

use super::elf::Elf;
use super::entry::Entry;
use super::source::Record;
use super::{BootError, Job, Source};

const START_INFO_MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const START_INFO_VERSION: u32 = 1;
const START_INFO_LEN: usize = 56;
const MODULE_LEN: usize = 32;
const MEMORY_MAP_ENTRY_LEN: usize = 24;
const MAX_CMDLINE: u64 = 64 << 10;

pub(super) fn load(file: &Source, elf: &Elf, eip: u32, job: &mut Job) -> Result<Entry, BootError> {
    elf.load(file, &mut job.ram)?;
    let cmdline = job.write_cmdline(MAX_CMDLINE)?;
    let initrd = job.load_initrd(1 << 32)?;

    let mut info = Record::new(START_INFO_LEN);
    info.put_u32(0, START_INFO_MAGIC);
    info.put_u32(4, START_INFO_VERSION);
    if let Some((addr, len)) = initrd {
        let mut module = Record::new(MODULE_LEN);
        module.put_u64(0, addr);
        module.put_u64(8, len);
        info.put_u32(12, 1);
        info.put_u64(16, job.ram.put_low("the module list", &module.0, 8)?);
    }
    info.put_u64(24, cmdline);
    info.put_u64(32, job.rsdp);

    let e820 = job.map.e820();
    let mut map = Record::new(e820.len() * MEMORY_MAP_ENTRY_LEN);
    for (i, entry) in e820.iter().enumerate() {
        let at = i * MEMORY_MAP_ENTRY_LEN;
        map.put_u64(at, entry.start);
        map.put_u64(at + 8, entry.len);
        map.put_u32(at + 16, entry.kind as u32);
    }
    info.put_u64(40, job.ram.put_low("the memory map", &map.0, 8)?);
    info.put_u32(48, e820.len() as u32);
    let start_info = job.ram.put_low("the start information", &info.0, 8)?;
    Ok(Entry::Pvh { eip, start_info })
}
