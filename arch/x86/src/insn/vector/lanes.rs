//! Memory operands of which a mask selects lanes. Lanes that are not selected are not accessed:
//! they cannot fault, and a store leaves them alone.

use crate::cpu::Cpu;
use crate::env::Env;
use crate::exception::Exec;
use crate::insn::native::MAX_OPERAND;
use crate::paging::Access;

/// A memory operand cut in lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lanes {
    /// Bytes in a lane.
    pub size: usize,
    /// Which lanes are selected, by bits.
    pub selected: u64,
    /// What #AC asks of a lane's address.
    pub alignment: usize,
}

impl Lanes {
    /// `count` lanes of `size` bytes; bits of `mask` above them mean nothing.
    pub fn new(size: usize, count: usize, mask: u64) -> Self {
        let all = if count >= 64 { u64::MAX } else { (1 << count) - 1 };
        Self { size, selected: mask & all, alignment: size }
    }

    /// The end of the last selected lane, in bytes.
    pub fn end(self) -> usize {
        (64 - self.selected.leading_zeros()) as usize * self.size
    }

    /// Runs of selected lanes that lie side by side: byte ranges of the operand.
    fn runs(self) -> impl Iterator<Item = core::ops::Range<usize>> {
        let mut rest = self.selected;
        core::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let first = rest.trailing_zeros();
            let count = (rest >> first).trailing_ones();
            rest &= u64::MAX.checked_shl(first + count).unwrap_or(0);
            let start = first as usize * self.size;
            Some(start..start + count as usize * self.size)
        })
    }
}

impl<E: Env> Cpu<E> {
    /// On Intel's processors, checks the alignment of a masked operand of `len` bytes as a whole, as
    /// if it had no mask (SDM Vol. 1, 14.9): its lanes are not looked at after that. AMD's look at
    /// each lane.
    pub(super) fn check_whole(&mut self, linear: u64, len: usize, lanes: Lanes) -> Exec<Lanes> {
        if self.checks_wide_alignment {
            return Ok(lanes);
        }
        self.check_alignment(linear, len)?;
        Ok(Lanes { alignment: 1, ..lanes })
    }

    /// Loads the selected lanes of an operand of `len` bytes into the operand buffer, whose other
    /// bytes are unspecified.
    pub(super) fn load_lanes(&mut self, linear: u64, len: usize, lanes: Lanes) -> Exec {
        if lanes.selected == 0 {
            return Ok(());
        }
        // Reading too much from RAM that may be read does no harm, and is fast.
        let offset = (linear & 0xfff) as usize;
        if offset + len <= 0x1000 && self.tlb.read(self.mode.fast_view, linear).is_some() {
            return self.load_operand(linear, len);
        }
        for run in lanes.runs() {
            let at = linear.wrapping_add(run.start as u64);
            let mut data = [0; MAX_OPERAND];
            let data = &mut data[..run.len()];
            // Lane by lane, so that a page fault names the lane that it is about.
            for (i, lane) in data.chunks_mut(lanes.size).enumerate() {
                let at = at.wrapping_add((i * lanes.size) as u64);
                self.check_access(at, lanes.alignment, Access::Read)?;
                self.read_bytes(at, lane)?;
            }
            self.native.operand.0[run].copy_from_slice(data);
        }
        Ok(())
    }

    /// Runs `execute`, which fills the selected lanes of the operand buffer, and stores those.
    /// Faults come before `execute` is called.
    pub(super) fn store_lanes(
        &mut self,
        linear: u64,
        lanes: Lanes,
        execute: impl FnOnce(&mut Self) -> Exec,
    ) -> Exec {
        for run in lanes.runs() {
            let at = linear.wrapping_add(run.start as u64);
            self.check_access(at, lanes.alignment, Access::Write)?;
            self.probe_write(at, run.len())?;
        }
        execute(self)?;
        let data = self.native.operand.0;
        for run in lanes.runs() {
            let at = linear.wrapping_add(run.start as u64);
            self.write_bytes(at, &data[run])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn runs_cover_exactly_the_selected_lanes() {
        let runs = |size, count, mask| {
            Lanes::new(size, count, mask).runs().collect::<alloc::vec::Vec<_>>()
        };
        assert_eq!(runs(4, 4, 0b1011), [0..8, 12..16]);
        assert_eq!(runs(8, 8, 0x7f), vec![0..56]);
        assert_eq!(runs(1, 64, u64::MAX), vec![0..64]);
        assert_eq!(runs(1, 64, 1 << 63), vec![63..64]);
        assert_eq!(runs(2, 4, 0xfff0), []);
        assert_eq!(runs(4, 2, u64::MAX), vec![0..8]);
    }
}
