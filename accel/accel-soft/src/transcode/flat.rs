//! Segments that 32-bit code is translated for.
//!
//! Systems of 32 bits hardly use segmentation: all of memory is in each segment, but that FS and GS
//! have bases for what belongs to a thread or processor. Translated code counts on it; code that
//! has other segments is interpreted.

use x86::CpuState;
use x86::state::{SegReg, Segment};

/// Whether all of 4 GiB may be loaded from and stored to through a data segment (SDM Vol. 3, 5.3).
pub fn is_unlimited(segment: &Segment) -> bool {
    let attributes = segment.attributes;
    segment.limit == u32::MAX
        && !attributes.is_unusable()
        && attributes.is_writable()
        && !attributes.is_expand_down()
}

/// Whether CS, SS, DS and ES begin at 0 and have no limit, and the stack pointer 32 bits.
pub fn is_flat(state: &CpuState) -> bool {
    let code = state.segment(SegReg::Cs);
    let is_data_flat = |reg: &SegReg| {
        let segment = state.segment(*reg);
        segment.base as u32 == 0 && is_unlimited(segment)
    };
    state.is_protected()
        && code.base as u32 == 0
        && code.limit == u32::MAX
        && state.segment(SegReg::Ss).attributes.is_big()
        && [SegReg::Ss, SegReg::Ds, SegReg::Es].iter().all(is_data_flat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::state::SegmentAttributes;

    /// Present, writable data of 4 GiB for programs.
    const DATA: Segment =
        Segment { selector: 0x2b, base: 0, limit: u32::MAX, attributes: SegmentAttributes(0xc0f3) };

    fn flat() -> CpuState {
        let mut state = CpuState::reset(0);
        state.cr0 |= x86::state::Cr0::PE;
        state.seg = [DATA; 6];
        state.seg[SegReg::Cs as usize].attributes = SegmentAttributes(0xc0fb);
        state
    }

    #[test]
    fn flat_segments_are_flat() {
        assert!(is_flat(&flat()));
    }

    #[test]
    fn whatever_is_not_flat_is_told_apart() {
        type Change = fn(&mut Segment);
        let changes: [Change; 6] = [
            |segment| segment.base = 0x1000,
            |segment| segment.limit = 0xffff_efff,
            |segment| segment.attributes = SegmentAttributes::UNUSABLE,
            // Read-only; expand-down; code, which is not written to.
            |segment| segment.attributes = SegmentAttributes(0xc0f1),
            |segment| segment.attributes = SegmentAttributes(0xc0f7),
            |segment| segment.attributes = SegmentAttributes(0xc0fb),
        ];
        for reg in [SegReg::Ss, SegReg::Ds, SegReg::Es] {
            for (i, change) in changes.iter().enumerate() {
                let mut state = flat();
                change(&mut state.seg[reg as usize]);
                assert!(!is_flat(&state), "{reg:?} with change {i}");
                assert_eq!(is_unlimited(state.segment(reg)), i == 0);
            }
        }
        for change in &changes[..2] {
            let mut state = flat();
            change(&mut state.seg[SegReg::Cs as usize]);
            assert!(!is_flat(&state), "CS");
        }
        let mut state = flat();
        // A stack pointer of 16 bits.
        state.seg[SegReg::Ss as usize].attributes = SegmentAttributes(0x80f3);
        assert!(!is_flat(&state));
        let mut state = flat();
        state.cr0 = x86::state::Cr0::ET;
        assert!(!is_flat(&state), "real mode");
    }
}
