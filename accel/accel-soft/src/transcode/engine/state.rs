//! The processor's state changes hands between the interpreter and translated code.

use x86::Cpu;
use x86::state::{Rflags, SegReg};

use super::{MAX_INSTRUCTION_BYTES, Transcoder};
use crate::env::SoftEnv;
use crate::transcode::{flat, lost_flags};

impl Transcoder {
    /// Gives the processor's state to translated code.
    pub(in crate::transcode) fn load_state(&mut self, cpu: &mut Cpu<SoftEnv>) {
        let vectors = std::ptr::from_mut(&mut cpu.state.vector);
        let state = &cpu.state;
        let context = self.context();
        context.gpr = state.gpr;
        context.code_base = state.rip & !0xfff;
        context.status = status_to_ax(state.rflags);
        context.rflags = state.rflags;
        context.fs_base = state.segment(SegReg::Fs).base;
        context.gs_base = state.segment(SegReg::Gs).base;
        let limited = [SegReg::Fs, SegReg::Gs].map(|reg| !flat::is_unlimited(state.segment(reg)));
        context.is_limited = limited.map(u32::from);
        context.kernel_gs_base = state.msrs.kernel_gs_base;
        context.cr2 = state.cr2;
        context.selectors = state.seg.map(|segment| segment.selector.into());
        context.tsc_aux = state.msrs.tsc_aux as u32;
        context.tsc_offset = state.msrs.tsc_offset;
        context.vectors = vectors;
    }

    /// Takes the processor's state back. The next instruction is at `at` in the page of code.
    pub(in crate::transcode) fn store_state(&mut self, cpu: &mut Cpu<SoftEnv>, at: u64) {
        let context = self.context();
        let state = &mut cpu.state;
        state.gpr = context.gpr;
        state.rip = context.code_base.wrapping_add(at);
        state.seg[SegReg::Gs as usize].base = context.gs_base;
        state.msrs.kernel_gs_base = context.kernel_gs_base;
        state.rflags = context.rflags & !Rflags::STATUS.bits() | status_from_ax(context.status);
    }

    /// Computes the status flags that were given up before the instruction at `at`: those that
    /// the one `back` bytes before it left.
    pub(in crate::transcode) fn recover_flags(
        &mut self,
        cpu: &mut Cpu<SoftEnv>,
        at: u16,
        back: u8,
    ) {
        if back == 0 {
            return;
        }
        cpu.state.rip = self.context().code_base;
        let from = usize::from(at - u16::from(back));
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        let bytes = &mut bytes[..MAX_INSTRUCTION_BYTES.min(0x1000 - from)];
        if let Some((_, page)) = cpu.code_place() {
            page.load_bytes(from, bytes);
            let insn = cpu.decode(bytes, from as u64);
            let context = self.context();
            if let Some(flags) = insn.and_then(|insn| lost_flags::recover(&insn, &context.gpr)) {
                context.status = status_to_ax(flags);
            }
        }
    }
}

/// The status flags as LAHF and SETO leave them in AX.
pub(super) fn status_to_ax(rflags: u64) -> u64 {
    (rflags & 0xd5 | 2) << 8 | rflags >> 11 & 1
}

/// The status flags from AX.
pub(in crate::transcode) fn status_from_ax(ax: u64) -> u64 {
    ax >> 8 & 0xd5 | (ax & 1) << 11
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_flags_survive_ax() {
        for bits in 0..64u64 {
            let flags = [0, 2, 4, 6, 7, 11]
                .iter()
                .enumerate()
                .map(|(i, flag)| (bits >> i & 1) << flag)
                .sum::<u64>();
            assert_eq!(status_from_ax(status_to_ax(flags)), flags);
        }
    }
}
