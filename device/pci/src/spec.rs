//! Configuration space as in PCI Local Bus 3.0, chapter 6, and PCI Express Base 5.0, chapter 7.

/// Size of a function's configuration space under PCI Express.
pub const CONFIG_SIZE: usize = 4096;
/// The part that ports 0xCF8 and 0xCFC reach, which holds header and capabilities.
pub const COMPATIBLE_SIZE: usize = 256;

pub const VENDOR_ID: usize = 0x00;
pub const DEVICE_ID: usize = 0x02;
pub const COMMAND: usize = 0x04;
pub const STATUS: usize = 0x06;
pub const REVISION_ID: usize = 0x08;
pub const CLASS_CODE: usize = 0x09;
pub const CACHE_LINE_SIZE: usize = 0x0c;
pub const BAR0: usize = 0x10;
pub const BARS: usize = 6;
pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
pub const SUBSYSTEM_ID: usize = 0x2e;
pub const CAPABILITIES: usize = 0x34;
pub const INTERRUPT_LINE: usize = 0x3c;
pub const INTERRUPT_PIN: usize = 0x3d;
/// Where the first capability goes: the first byte after the type 0 header.
pub const FIRST_CAPABILITY: usize = 0x40;

pub mod command {
    pub const IO_SPACE: u16 = 1 << 0;
    pub const MEMORY_SPACE: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const PARITY_ERROR_RESPONSE: u16 = 1 << 6;
    pub const SERR: u16 = 1 << 8;
    pub const INTX_DISABLE: u16 = 1 << 10;
    pub const WRITABLE: u16 =
        IO_SPACE | MEMORY_SPACE | BUS_MASTER | PARITY_ERROR_RESPONSE | SERR | INTX_DISABLE;
}

pub mod status {
    pub const INTERRUPT: u16 = 1 << 3;
    pub const CAPABILITIES_LIST: u16 = 1 << 4;
}

pub mod bar {
    pub const IO: u32 = 1 << 0;
    pub const MEMORY_64: u32 = 2 << 1;
    pub const PREFETCHABLE: u32 = 1 << 3;
    pub const IO_FLAGS: u64 = 0x3;
    pub const MEMORY_FLAGS: u64 = 0xf;
}

pub mod capability {
    pub const EXPRESS: u8 = 0x10;
    pub const MSIX: u8 = 0x11;
}

/// PCI Express capability (7.5.3), offsets from the start of its body (after ID and next).
pub mod express {
    /// Length of the body: a version 2 structure is 0x3c bytes with ID and next.
    pub const BODY_LEN: usize = 0x3a;
    /// PCI Express Capabilities: version 2, Root Complex Integrated Endpoint (type 9). That is
    /// what an endpoint on bus 0 without a root port above it is (1.3.2.3).
    pub const FLAGS: u16 = 9 << 4 | 2;
    /// Device Capabilities: role-based error reporting, which every device since 1.1 has.
    pub const DEVICE_CAPABILITIES: usize = 0x02;
    pub const ROLE_BASED_ERRORS: u32 = 1 << 15;
    /// Device Control: error reporting enables, relaxed ordering, payload and read sizes, no snoop.
    pub const DEVICE_CONTROL: usize = 0x06;
    pub const DEVICE_CONTROL_WRITABLE: u16 = 0x78ff;
}

/// MSI-X capability (PCI Local Bus 3.0, 6.8.2), offsets from the start of its body.
pub mod msix {
    pub const BODY_LEN: usize = 10;
    pub const CONTROL: usize = 0;
    pub const TABLE: usize = 2;
    pub const PBA: usize = 6;
    pub const FUNCTION_MASK: u16 = 1 << 14;
    pub const ENABLE: u16 = 1 << 15;
    pub const MAX_VECTORS: u16 = 2048;
    /// Size of a table entry: address (8), data (4), vector control (4).
    pub const ENTRY: usize = 16;
    pub const VECTOR_CONTROL: usize = 12;
    pub const VECTOR_MASKED: u8 = 1;
}
