//! Guests of a few instructions, for tests that need a guest but no operating system in it.

/// A flat multiboot kernel that sleeps until it is ended: `hlt; jmp .-1`.
#[must_use]
pub fn sleeper() -> Vec<u8> {
    multiboot(&[0xf4, 0xeb, 0xfd])
}

/// Where the kernels' code begins.
pub(crate) const START: u32 = LOAD + HEADER;
const LOAD: u32 = 0x10_0000;
const HEADER: u32 = 32;

/// A flat multiboot kernel of this 32-bit code (Multiboot 0.6.96, 3.1: header with addresses). It
/// is loaded at 1 MiB, header and all.
#[must_use]
pub fn multiboot(code: &[u8]) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const HAS_ADDRESSES: u32 = 1 << 16;
    let checksum = MAGIC.wrapping_add(HAS_ADDRESSES).wrapping_neg();
    // Where the header is, where to load, until where (0: all), no bss, where to begin.
    let header = [MAGIC, HAS_ADDRESSES, checksum, LOAD, LOAD, 0, 0, START];
    [header.map(u32::to_le_bytes).as_flattened(), code].concat()
}
