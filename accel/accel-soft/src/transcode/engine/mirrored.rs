//! Code for mirrored memory is entered, and its faults are looked after.

use x86::Cpu;
use x86::state::gpr;

use super::state::status_to_ax;
use super::{Next, Transcoder};
use crate::env::SoftEnv;
use crate::transcode::entry;
use crate::transcode::sites::Site;
use crate::transcode::translate::Status;

impl Transcoder {
    /// Enters translated code for mirrored memory.
    pub(super) fn enter_mirrored(&mut self, at: u64) {
        self.counters.entered += 1;
        self.context().target = at;
        // SAFETY: as in `enter`; the mirror was prepared for this thread when `run` began.
        unsafe { entry::enter_mirrored(self.context.get()) };
    }

    /// Goes on at the access to mirrored memory that faulted.
    pub(super) fn repeat_mirrored(&mut self) {
        let context = self.context();
        context.target = context.fault.rip;
        context.status = context.fault.status;
        // SAFETY: as in `enter_mirrored`: translated code was left at `fault.rip`, with the registers
        // that are in the context again.
        unsafe { entry::repeat_mirrored(self.context.get()) };
    }

    /// An access to mirrored memory faulted: mirrors the memory, or has the interpreter do it. Or the block
    /// was about to be entered while there was something else to do.
    pub(super) fn after_fault(&mut self, cpu: &mut Cpu<SoftEnv>) -> Next {
        let fault = self.context().fault;
        if fault.linear == 0
            && let Some(Site { is_poll: true, at, .. }) = self.cache.site(fault.rip)
        {
            self.context().status = status_to_ax(fault.rflags);
            self.store_state(cpu, at.into());
            return Next::Look;
        }
        if fault.has_address
            && let Some(mirror) = &mut self.mirror
            && mirror.fill(cpu, fault.linear, fault.write)
        {
            self.counters.mirrored += 1;
            return Next::Repeat;
        }
        self.counters.not_mirrored += 1;
        let Some(site) = self.cache.site(fault.rip) else {
            unreachable!("translated code faulted at {:#x}, where it accesses nothing", fault.rip);
        };
        self.context().status = match site.status {
            Status::Host | Status::Both => status_to_ax(fault.rflags),
            Status::Kept | Status::Lost if site.is_spilled => fault.status,
            Status::Kept | Status::Lost => fault.rax,
        };
        let rsp = &mut self.context().gpr[gpr::RSP];
        *rsp = rsp.wrapping_add_signed(8 * i64::from(site.stack));
        self.recover_flags(cpu, site.at, site.back);
        self.store_state(cpu, site.at.into());
        cpu.execute(1);
        Next::LookUp
    }
}
