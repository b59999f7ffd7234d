//! KVM's paravirtual clock (Linux, Documentation/virt/kvm/x86/msr.rst): a page of guest memory
//! that says how to make nanoseconds from the TSC.

use std::time::{SystemTime, UNIX_EPOCH};

use accel::PvClockState;

use crate::ram::Ram;

/// MSRs, the two old ones included.
mod msr {
    pub const WALL_CLOCK: u32 = 0x11;
    pub const SYSTEM_TIME: u32 = 0x12;
    pub const WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
    pub const SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
}

/// pvclock_vcpu_time_info.flags: the clocks of all processors agree.
const TSC_STABLE: u8 = 1;

/// The point from which all of a machine's processors count: a host TSC value, and the guest
/// time in nanoseconds at which it was read.
#[derive(Clone, Copy, Debug)]
pub struct Epoch {
    /// The host's TSC.
    pub host_tsc: u64,
    /// Guest time.
    pub ns: u64,
    /// The TSC's frequency.
    pub tsc_hz: u64,
}

impl Epoch {
    /// Guest time now, by the TSC.
    fn now(&self) -> u64 {
        let ticks = runtime::tsc::read().wrapping_sub(self.host_tsc);
        let ns = u128::from(ticks) * 1_000_000_000 / u128::from(self.tsc_hz);
        self.ns.wrapping_add(ns as u64)
    }
}

/// One processor's paravirtual clock.
#[derive(Debug, Default)]
pub struct PvClock {
    system_time: u64,
    wall_clock: u64,
}

impl PvClock {
    /// RDMSR. `None`: not one of its registers.
    pub fn read_msr(&self, index: u32) -> Option<u64> {
        match index {
            msr::SYSTEM_TIME | msr::SYSTEM_TIME_NEW => Some(self.system_time),
            msr::WALL_CLOCK | msr::WALL_CLOCK_NEW => Some(self.wall_clock),
            _ => None,
        }
    }

    /// WRMSR: publishes the clock at the address that the guest gives.
    pub fn write_msr(
        &mut self,
        index: u32,
        value: u64,
        ram: &Ram,
        epoch: &Epoch,
        tsc_offset: u64,
    ) -> Option<()> {
        match index {
            msr::SYSTEM_TIME | msr::SYSTEM_TIME_NEW => {
                self.system_time = value;
                self.publish(ram, epoch, tsc_offset);
            }
            msr::WALL_CLOCK | msr::WALL_CLOCK_NEW => {
                self.wall_clock = value;
                publish_wall_clock(value, ram, epoch);
            }
            _ => return None,
        }
        Some(())
    }

    /// What the guest wrote.
    pub fn save(&self) -> PvClockState {
        PvClockState { system_time: self.system_time, wall_clock: self.wall_clock }
    }

    /// Takes over what the guest wrote. Its memory has what was published.
    pub fn restore(&mut self, state: PvClockState) {
        let PvClockState { system_time, wall_clock } = state;
        *self = Self { system_time, wall_clock };
    }

    /// Writes `pvclock_vcpu_time_info`, if the guest has enabled it.
    pub fn publish(&self, ram: &Ram, epoch: &Epoch, tsc_offset: u64) {
        const ENABLED: u64 = 1;
        if self.system_time & ENABLED == 0 {
            return;
        }
        let (mul, shift) = scale(epoch.tsc_hz);
        let mut info = [0; 32];
        info[8..16].copy_from_slice(&epoch.host_tsc.wrapping_add(tsc_offset).to_le_bytes());
        info[16..24].copy_from_slice(&epoch.ns.to_le_bytes());
        info[24..28].copy_from_slice(&mul.to_le_bytes());
        info[28] = shift as u8;
        info[29] = TSC_STABLE;
        write_versioned(ram, self.system_time & !ENABLED, &info);
    }
}

/// Multiplier and shift by which TSC ticks become nanoseconds:
/// `ns = ((ticks << shift) * mul) >> 32`, with a negative shift to the right.
fn scale(tsc_hz: u64) -> (u32, i8) {
    let mut shift = 0i8;
    // mul must be below 2^32 and is kept above 2^31, for precision.
    let mut mul = (1_000_000_000u128 << 32) / u128::from(tsc_hz.max(1));
    while mul >= 1 << 32 {
        mul >>= 1;
        shift += 1;
    }
    while mul < 1 << 31 && shift > -31 {
        shift -= 1;
        mul = (1_000_000_000u128 << (32 + u32::from(shift.unsigned_abs())))
            / u128::from(tsc_hz.max(1));
    }
    (mul as u32, shift)
}

/// Writes `pvclock_wall_clock`: the time of day at which guest time was zero.
fn publish_wall_clock(gpa: u64, ram: &Ram, epoch: &Epoch) {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let boot = since_epoch.saturating_sub(std::time::Duration::from_nanos(epoch.now()));
    let mut info = [0; 12];
    info[4..8].copy_from_slice(&(boot.as_secs() as u32).to_le_bytes());
    info[8..12].copy_from_slice(&boot.subsec_nanos().to_le_bytes());
    write_versioned(ram, gpa, &info);
}

/// Writes a structure that begins with a version, which is odd while the rest changes. It must
/// lie in one page of RAM and be aligned to four bytes; anything else is the guest's mistake.
fn write_versioned(ram: &Ram, gpa: u64, info: &[u8]) {
    let offset = (gpa & 0xfff) as usize;
    let Some(page) = ram.page(gpa) else { return };
    if offset + info.len() > 4096 || !offset.is_multiple_of(4) {
        return;
    }
    let version = page.load::<u32>(offset) | 1;
    page.store(offset, version);
    page.store_bytes(offset + 4, &info[4..]);
    page.store(offset, version.wrapping_add(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_ns(ticks: u64, (mul, shift): (u32, i8)) -> u64 {
        let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
        ((u128::from(ticks) * u128::from(mul)) >> 32) as u64
    }

    #[test]
    fn a_second_of_ticks_is_a_second() {
        for hz in [500_000_000, 999_999_999, 1_000_000_000, 2_596_093_000, 5_000_000_000] {
            let ns = to_ns(hz * 100, scale(hz));
            assert!(ns.abs_diff(100_000_000_000) < 100, "{hz} Hz: {ns}");
        }
    }

    #[test]
    fn addresses_outside_ram_are_harmless() {
        let memory = mem::allocate(&[mem::RamRange { start: 0, len: 0x1000 }]).unwrap();
        let ram = Ram::new(&memory);
        let epoch = Epoch { host_tsc: 0, ns: 0, tsc_hz: 1_000_000_000 };
        let mut clock = PvClock::default();
        for gpa in [0xff1u64, 0x1001, u64::MAX, 0x3] {
            assert_eq!(clock.write_msr(0x4b56_4d01, gpa, &ram, &epoch, 0), Some(()));
        }
        assert_eq!(clock.write_msr(0x4b56_4d01, 0x41, &ram, &epoch, 7), Some(()));
        let page = ram.page(0).unwrap();
        assert_eq!(page.load::<u32>(0x40) & 1, 0);
        assert_eq!(page.load::<u64>(0x48), 7);
    }
}
