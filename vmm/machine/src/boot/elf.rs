//! ELF executables (System V ABI, "Object Files"), as far as loading a kernel needs them.

use super::placement::Placement;
use super::source::Fields;
use super::{BootError, Source};

/// An x86 ELF executable's program headers.
#[derive(Debug)]
pub(super) struct Elf {
    /// 64-bit x86-64 code, by the header.
    pub(super) is_64bit: bool,
    entry: u64,
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Segment {
    kind: u32,
    offset: u64,
    virtual_addr: u64,
    physical_addr: u64,
    file_len: u64,
    memory_len: u64,
    align: u64,
}

const PT_LOAD: u32 = 1;
/// Names the program that loads a dynamically linked one.
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// XEN_ELFNOTE_PHYS32_ENTRY: where PVH enters (Xen, `public/elfnote.h`).
const PHYS32_ENTRY: u32 = 18;
/// Notes are small; one that is larger is not read.
const MAX_NOTES: u64 = 1 << 20;

impl Elf {
    /// Reads the headers. `None` if the file is no ELF file at all.
    pub(super) fn parse(file: &Source) -> Result<Option<Self>, BootError> {
        let head = file.head(64)?;
        if !head.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        let is_64bit = match (head.u8(4), head.u8(5)) {
            (1, 1) => false,
            (2, 1) => true,
            _ => return Err(file.not_a_kernel("it is an ELF file of another architecture")),
        };
        if head.len() < if is_64bit { 64 } else { 52 } {
            return Err(file.damaged("its ELF header is truncated"));
        }
        let kind = head.u16(16);
        let machine = head.u16(18);
        if !matches!(machine, EM_386 | EM_X86_64) {
            return Err(file.not_a_kernel("it is an ELF file of another architecture"));
        }
        const ET_EXEC: u16 = 2;
        const ET_DYN: u16 = 3;
        if !matches!(kind, ET_EXEC | ET_DYN) {
            return Err(file.not_a_kernel("it is an ELF file, but not an executable"));
        }
        let (entry, table, entry_len, count) = if is_64bit {
            (head.u64(24), head.u64(32), head.u16(54), head.u16(56))
        } else {
            (head.u32(24).into(), head.u32(28).into(), head.u16(42), head.u16(44))
        };
        let expected = if is_64bit { 56 } else { 32 };
        if count == 0 || entry_len != expected {
            return Err(file.damaged(format!(
                "its ELF header names {count} program headers of {entry_len} bytes"
            )));
        }
        let table = file.bytes(table, u64::from(count) * u64::from(entry_len))?;
        let segments: Vec<_> = table
            .chunks_exact(expected.into())
            .map(if is_64bit { Segment::from_64 } else { Segment::from_32 })
            .collect();
        if segments.iter().any(|s| s.kind == PT_INTERP) {
            return Err(file.not_a_kernel("it is a program that runs under an operating system"));
        }
        Ok(Some(Self { is_64bit, entry, segments }))
    }

    /// Loads every loadable segment at its physical address; returns where the last one ends.
    pub(super) fn load(&self, file: &Source, ram: &mut Placement) -> Result<u64, BootError> {
        let mut end = 0;
        for s in self.loadable() {
            if s.file_len > s.memory_len {
                return Err(file.damaged("one of its segments is longer in the file than loaded"));
            }
            let what = format!("the {}'s segment", file.what());
            ram.claim(&what, s.physical_addr, s.memory_len)?;
            // The rest of a segment, .bss, is zero as all of fresh memory is.
            ram.copy(file, s.offset, s.file_len, s.physical_addr)?;
            end = end.max(s.physical_addr.saturating_add(s.memory_len));
        }
        if end == 0 {
            return Err(file.damaged("it has no segment to load"));
        }
        Ok(end)
    }

    /// The entry point as a physical address. The header has a virtual one if that lies in a
    /// segment that is linked elsewhere than it is loaded.
    pub(super) fn physical_entry(&self) -> u64 {
        self.loadable()
            .find_map(|s| {
                let offset = self.entry.checked_sub(s.virtual_addr)?;
                (offset < s.memory_len).then(|| s.physical_addr.wrapping_add(offset))
            })
            .unwrap_or(self.entry)
    }

    /// The physical address at which PVH enters the kernel, if a note offers that.
    pub(super) fn pvh_entry(&self, file: &Source) -> Result<Option<u32>, BootError> {
        for s in self.segments.iter().filter(|s| s.kind == PT_NOTE && s.file_len <= MAX_NOTES) {
            let notes = file.bytes(s.offset, s.file_len)?;
            let align = if s.align == 8 { 8 } else { 4 };
            if let Some(desc) = find_note(&notes, b"Xen\0", PHYS32_ENTRY, align) {
                // The note has a 32-bit address in a field of 32 or 64 bits.
                return Ok(Some(desc.u32(0)));
            }
        }
        Ok(None)
    }

    fn loadable(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|s| s.kind == PT_LOAD && s.memory_len > 0)
    }
}

impl Segment {
    fn from_64(h: &[u8]) -> Self {
        Self {
            kind: h.u32(0),
            offset: h.u64(8),
            virtual_addr: h.u64(16),
            physical_addr: h.u64(24),
            file_len: h.u64(32),
            memory_len: h.u64(40),
            align: h.u64(48),
        }
    }

    fn from_32(h: &[u8]) -> Self {
        Self {
            kind: h.u32(0),
            offset: h.u32(4).into(),
            virtual_addr: h.u32(8).into(),
            physical_addr: h.u32(12).into(),
            file_len: h.u32(16).into(),
            memory_len: h.u32(20).into(),
            align: h.u32(28).into(),
        }
    }
}

/// The contents of the first note with this name and type.
fn find_note<'a>(notes: &'a [u8], name: &[u8], kind: u32, align: usize) -> Option<&'a [u8]> {
    let mut rest = notes;
    while rest.len() >= 12 {
        let (name_len, desc_len) = (rest.u32(0) as usize, rest.u32(4) as usize);
        let desc_at = 12usize.checked_add(name_len)?.checked_next_multiple_of(align)?;
        let desc_end = desc_at.checked_add(desc_len)?;
        let desc = rest.get(desc_at..desc_end)?;
        if rest.u32(8) == kind && rest.get(12..12 + name_len)? == name {
            return Some(desc);
        }
        rest = rest.get(desc_end.checked_next_multiple_of(align)?..)?;
    }
    None
}
