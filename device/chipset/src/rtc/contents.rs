//! What firmware leaves in CMOS memory.

use super::spec::{self, RegisterA, RegisterB};

/// What CMOS memory tells of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CmosConfig {
    /// Where RAM below 4 GiB ends.
    pub low_ram_end: u64,
    /// How many bytes of RAM there are above 4 GiB.
    pub high_ram: u64,
}

/// The bytes of CMOS memory, in the layout of the IBM AT (RBIL, CMOS.LST) and, for large memory,
/// of Bochs' and QEMU's firmware.
pub(super) fn initial(config: CmosConfig) -> [u8; spec::SIZE] {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let mut memory = [0; spec::SIZE];
    let mut put = |index: usize, value: u64, bytes: usize| {
        memory[index..index + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    };
    put(spec::REGISTER_A.into(), (RegisterA::DV_32768_HZ.bits() | 6).into(), 1); // 1024 Hz
    put(spec::REGISTER_B.into(), RegisterB::HOURS_24.bits().into(), 1);
    put(0x14, 0x02, 1); // equipment: an FPU; no floppies, no display
    put(0x15, 640, 2); // base memory in KiB
    let extended = (config.low_ram_end.saturating_sub(MIB) / KIB).min(63 * 1024);
    put(0x17, extended, 2); // memory above 1 MiB in KiB, as set up
    put(0x30, extended, 2); // and as found
    put(0x34, (config.low_ram_end.saturating_sub(16 * MIB) / (64 * KIB)).min(0xffff), 2);
    put(0x5b, (config.high_ram / (64 * KIB)).min(0xff_ffff), 3);
    let sum: u16 = memory[0x10..=0x2d].iter().map(|byte| u16::from(*byte)).sum();
    memory[0x2e..=0x2f].copy_from_slice(&sum.to_be_bytes());
    memory
}
