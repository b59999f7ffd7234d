//! The first addresses of BARs, which firmware would otherwise assign.

use std::ops::RangeInclusive;

use crate::description::{Bar, BarKind};

/// Where the bus may place BARs. The machine tells the guest the same ranges in ACPI `_CRS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Memory below 4 GiB.
    pub memory32: RangeInclusive<u64>,
    /// Memory above 4 GiB, taken by 64-bit BARs that the first window has no room for. May be
    /// empty.
    pub memory64: RangeInclusive<u64>,
    /// Ports. May be empty.
    pub io: RangeInclusive<u64>,
}

/// Hands out addresses from the bottom of each window.
#[derive(Debug)]
pub(crate) struct Allocator {
    windows: Windows,
    /// What came back, for others of the same kind and size.
    free: Vec<(BarKind, u64, u64)>,
}

impl Allocator {
    pub fn new(windows: Windows) -> Self {
        Self { windows, free: Vec::new() }
    }

    /// An address for `bar`, or `None` if its windows are full.
    pub fn allocate(&mut self, bar: &Bar) -> Option<u64> {
        let fits = |&(kind, size, _): &(BarKind, u64, u64)| (kind, size) == (bar.kind, bar.size);
        if let Some(at) = self.free.iter().position(fits) {
            return Some(self.free.swap_remove(at).2);
        }
        let windows = &mut self.windows;
        match bar.kind {
            BarKind::Io => take(&mut windows.io, bar.size),
            BarKind::Memory32 => take(&mut windows.memory32, bar.size),
            BarKind::Memory64 { .. } => take(&mut windows.memory32, bar.size)
                .or_else(|| take(&mut windows.memory64, bar.size)),
        }
    }

    /// Takes back what `bar` was given.
    pub fn give_back(&mut self, bar: &Bar, address: u64) {
        self.free.push((bar.kind, bar.size, address));
    }
}

/// Cuts `size` bytes, aligned to `size`, off the bottom of `window`. Address zero means
/// "unassigned" and is not handed out.
fn take(window: &mut RangeInclusive<u64>, size: u64) -> Option<u64> {
    if window.is_empty() {
        return None;
    }
    let start = (*window.start()).max(1).checked_next_multiple_of(size)?;
    let last = start.checked_add(size - 1)?;
    if last > *window.end() {
        return None;
    }
    // Past the last address of all there is nothing: leave an empty window.
    #[allow(clippy::reversed_empty_ranges, reason = "an empty window is meant")]
    let rest = last.checked_add(1).map_or(1..=0, |next| next..=*window.end());
    *window = rest;
    Some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_and_runs_out() {
        let mut window = 0xc000_1000..=0xc001_ffff;
        assert_eq!(take(&mut window, 0x1000), Some(0xc000_1000));
        assert_eq!(take(&mut window, 0x8000), Some(0xc000_8000));
        assert_eq!(take(&mut window, 0x10000), Some(0xc001_0000));
        assert_eq!(take(&mut window, 0x10), None);
        let mut top = u64::MAX - 15..=u64::MAX;
        assert_eq!(take(&mut top, 16), Some(u64::MAX - 15));
        assert_eq!(take(&mut top, 16), None);
        let mut bottom = 0..=0xff;
        assert_eq!(take(&mut bottom, 0x20), Some(0x20));
    }

    #[test]
    fn a_large_64_bit_bar_goes_above_4_gib() {
        let mut a = Allocator::new(Windows {
            memory32: 0xe000_0000..=0xefff_ffff,
            memory64: 0x10_0000_0000..=0x1f_ffff_ffff,
            io: 0xc000..=0xcfff,
        });
        let kind = BarKind::Memory64 { prefetchable: true };
        assert_eq!(a.allocate(&Bar { index: 0, kind, size: 1 << 30 }), Some(0x10_0000_0000));
        assert_eq!(a.allocate(&Bar { index: 0, kind, size: 1 << 14 }), Some(0xe000_0000));
        let too_large = Bar { index: 0, kind: BarKind::Memory32, size: 1 << 30 };
        assert_eq!(a.allocate(&too_large), None);
        let ports = Bar { index: 0, kind: BarKind::Io, size: 32 };
        assert_eq!(a.allocate(&ports), Some(0xc000));
        a.give_back(&ports, 0xc000);
        assert_eq!(a.allocate(&Bar { size: 64, ..ports }), Some(0xc040));
        assert_eq!(a.allocate(&ports), Some(0xc000));
        assert_eq!(a.allocate(&ports), Some(0xc080));
    }
}
