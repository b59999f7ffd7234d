//! Descriptors and page tables.

/// Access rights of descriptors, bits 15:8 of their upper half (SDM Vol. 3, 3.4.5).
#[allow(dead_code)]
pub mod access {
    pub const PRESENT: u8 = 0x80;
    pub const DPL3: u8 = 0x60;
    pub const DATA: u8 = 0x92;
    pub const DATA_READ_ONLY: u8 = 0x90;
    pub const DATA_DOWN: u8 = 0x96;
    pub const CODE: u8 = 0x9a;
    pub const CODE_EXECUTE_ONLY: u8 = 0x98;
    pub const CODE_CONFORMING: u8 = 0x9e;
    pub const LDT: u8 = 0x82;
    pub const TSS: u8 = 0x89;
    pub const TSS_BUSY: u8 = 0x8b;
    pub const TASK_GATE: u8 = 0x85;
    pub const CALL_GATE16: u8 = 0x84;
    pub const CALL_GATE: u8 = 0x8c;
    pub const INTERRUPT_GATE16: u8 = 0x86;
    pub const INTERRUPT_GATE: u8 = 0x8e;
    pub const TRAP_GATE: u8 = 0x8f;
}

/// Granularity, D/B and L.
pub mod size {
    pub const BITS16: u8 = 0;
    pub const BITS32: u8 = 0x4;
    pub const BITS64: u8 = 0x2;
    pub const PAGES: u8 = 0x8;
}

/// A code, data, TSS or LDT descriptor. `limit` is its 20-bit field.
pub fn segment(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xf) << 48
        | u64::from(flags & 0xf) << 52
        | (base >> 24) << 56
}

/// A gate: its first eight bytes. `extra` is the parameter count or the IST.
pub fn gate(selector: u16, offset: u64, access: u8, extra: u8) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | u64::from(extra) << 32
        | u64::from(access) << 40
        | (offset >> 16 & 0xffff) << 48
}

/// Bits of paging-structure entries.
#[allow(dead_code)]
pub mod pte {
    pub const P: u64 = 1 << 0;
    pub const W: u64 = 1 << 1;
    pub const U: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
}

/// How linear addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    None,
    /// 32-bit entries, two levels.
    Bits32,
    Pae,
    FourLevel,
}

impl Paging {
    /// Levels of page tables, and by level (from 1, the page table) the shift.
    pub fn levels(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::FourLevel => 4,
        }
    }

    /// Bits of the linear address below the index into a table of `level`.
    pub fn shift(self, level: u32) -> u32 {
        match self {
            Self::Bits32 => 12 + 10 * (level - 1),
            _ => 12 + 9 * (level - 1),
        }
    }

    /// Bytes in an entry.
    pub fn entry_size(self) -> u64 {
        if self == Self::Bits32 { 4 } else { 8 }
    }

    /// The entry's index in its table.
    pub fn index(self, level: u32, linear: u64) -> u64 {
        let bits = match self {
            Self::Bits32 => 10,
            Self::Pae if level == 3 => 2,
            _ => 9,
        };
        linear >> self.shift(level) & ((1 << bits) - 1)
    }
}
