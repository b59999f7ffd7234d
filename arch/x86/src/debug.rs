//! Breakpoints and single-stepping (SDM Vol. 3, chapter 17).

use iced_x86::FlowControl;

use crate::CpuState;
use crate::cpu::Cpu;
use crate::decode::Op;
use crate::env::Env;
use crate::exception::{Exception, vector};
use crate::paging::Access;
use crate::state::Cr4;

/// The bits of DR7 that arm breakpoints (SDM Vol. 3, 17.2.4).
pub(crate) const ENABLED: u64 = 0xff;

/// DR6.BS: the exception is a single-step trap.
const BS: u64 = 1 << 14;

/// Bits B0 to B3 for the armed breakpoints of one of `kinds` (DR7.R/W) that touch `len` bytes at
/// `linear`.
fn hits(state: &CpuState, linear: u64, len: u64, kinds: &[u64]) -> u64 {
    let mut hits = 0;
    for i in 0..4 {
        let is_armed = state.dr7 >> (i * 2) & 3 != 0;
        let kind = state.dr7 >> (16 + i * 4) & 3;
        if is_armed && kinds.contains(&kind) {
            // LEN: 1, 2, 8 and 4 bytes, aligned.
            let size = [1, 2, 8, 4][(state.dr7 >> (18 + i * 4) & 3) as usize];
            let start = state.dr[i] & !(size - 1);
            if linear < start.saturating_add(size) && start < linear.saturating_add(len) {
                hits |= 1 << i;
            }
        }
    }
    hits
}

/// Instruction breakpoints at `linear`.
pub(crate) fn execution_hits(state: &CpuState, linear: u64) -> u64 {
    hits(state, linear, 1, &[0])
}

/// Data breakpoints that an access touches.
pub(crate) fn data_hits(state: &CpuState, linear: u64, len: usize, access: Access) -> u64 {
    let kinds: &[u64] = if access == Access::Write { &[1, 3] } else { &[3] };
    hits(state, linear, len as u64, kinds)
}

/// I/O breakpoints that an access to ports touches. Only with CR4.DE are there any.
pub(crate) fn port_hits(state: &CpuState, port: u16, len: usize) -> u64 {
    if state.cr4.contains(Cr4::DE) { hits(state, port.into(), len as u64, &[2]) } else { 0 }
}

/// DR6 after breakpoints `hits`: B0 to B3 are replaced, the rest stays.
pub(crate) fn merge_hits(dr6: u64, hits: u64) -> u64 {
    dr6 & !0xf | hits
}

/// IA32_DEBUGCTL.BTF: single-step on branches.
pub(crate) const BTF: u64 = 1 << 1;

impl<E: Env> Cpu<E> {
    /// With BTF, a step ends at a taken branch only (SDM Vol. 3, 17.4.3).
    pub(crate) fn step_branches_only(&mut self, op: &Op<E>) {
        if self.state.msrs.debugctl & BTF != 0 {
            self.single_step &= match op.insn.flow_control() {
                FlowControl::Next => false,
                FlowControl::ConditionalBranch => {
                    self.state.rip != self.insn_ip.wrapping_add(op.len.into())
                }
                _ => true,
            };
        }
    }

    /// After an instruction: delivers the #DB trap for breakpoints that it hit and for
    /// single-stepping. A load of SS puts them off: those of its breakpoints come after the next
    /// instruction, its single step is lost (SDM Vol. 3, 6.8.3).
    pub(crate) fn debug_trap(&mut self) {
        let single_step = core::mem::take(&mut self.single_step);
        if (self.debug_hits == 0 && !single_step) || self.stack_loaded {
            return;
        }
        self.state.dr6 = merge_hits(self.state.dr6, self.debug_hits);
        if single_step {
            self.state.dr6 |= BS;
        }
        self.debug_hits = 0;
        self.insn_ip = self.state.rip;
        self.raise(Exception::new(vector::DB));
        self.deliver_raised();
    }
}
