//! The address space that a case sees, in the child process and in the guest alike.

/// Size of a page.
pub const PAGE: usize = 0x1000;

/// Two executable pages, filled with INT3; nothing lies before or after them.
pub const CODE: u64 = 0x2000_0000;
/// Size of the code pages.
pub const CODE_SIZE: usize = 2 * PAGE;
/// What code pages are filled with: INT3, which ends a case.
pub const FILL: u8 = 0xcc;

/// A page of data.
#[derive(Clone, Copy, Debug)]
pub struct DataPage {
    /// Where it lies.
    pub linear: u64,
    /// Whether it may be stored to.
    pub is_writable: bool,
}

/// The data pages in the order of their contents: two that may be written, a read-only one next
/// to them, then a hole and one more. Before and after them, nothing is mapped.
pub const DATA: [DataPage; 4] = [
    DataPage { linear: 0x3000_1000, is_writable: true },
    DataPage { linear: 0x3000_2000, is_writable: true },
    DataPage { linear: 0x3000_3000, is_writable: false },
    DataPage { linear: 0x3000_5000, is_writable: true },
];
/// Size of all data pages.
pub const DATA_SIZE: usize = DATA.len() * PAGE;

/// The data pages appear again this far above, where addresses need more than 32 bits.
pub const ALIAS: u64 = 0x2345_0000_0000;

/// The data page and offset into all data that `linear` falls on, in either mapping.
pub fn data_offset(linear: u64) -> Option<usize> {
    let low = if linear >= ALIAS { linear - ALIAS } else { linear };
    DATA.iter()
        .position(|page| page.linear == low & !(PAGE as u64 - 1))
        .map(|i| i * PAGE + low as usize % PAGE)
}

/// Where byte `offset` of all data lies, in the lower mapping.
pub fn data_linear(offset: usize) -> u64 {
    DATA[offset / PAGE].linear + (offset % PAGE) as u64
}

/// Selectors as Linux's GDT has them, which the guest copies.
pub mod selector {
    /// 32-bit user code.
    pub const USER_CODE32: u16 = 0x23;
    /// User data, in all data segment registers.
    pub const USER_DATA: u16 = 0x2b;
    /// 64-bit user code.
    pub const USER_CODE64: u16 = 0x33;
}
