//! Priorities, acceptance and the end of interrupts (SDM Vol. 3, 11.8); the processor's side.

use super::{Attention, Effects, Lapic, regs};
use crate::message::Trigger;

impl Lapic {
    /// Requests an interrupt; says whether it was accepted and not pending already.
    pub(super) fn request(&mut self, vector: u8, trigger: Trigger) -> bool {
        if !self.software_enabled() {
            return false;
        }
        if vector < 16 {
            self.error(regs::ESR_RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        match trigger {
            Trigger::Edge => self.tmr.remove(vector),
            Trigger::Level => {
                self.tmr.insert(vector);
            }
        }
        self.irr.insert(vector)
    }

    /// The processor priority register (11.8.3.1): only vectors of a higher class interrupt.
    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service }
    }

    /// CR8 as the processor reads it (11.8.6).
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8. The processor has already refused values above 15.
    pub fn set_cr8(&mut self, value: u8) {
        self.tpr = value << 4;
    }

    /// The vector that would interrupt now, if the processor takes interrupts at all.
    pub fn pending(&self) -> Option<u8> {
        self.irr.highest().filter(|vector| vector & 0xf0 > self.ppr() & 0xf0)
    }

    /// Starts the service of the pending interrupt and gives its vector.
    ///
    /// Since asking and taking are one step here, what the processor had to answer with the
    /// spurious vector (11.9) is `None`.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        Some(vector)
    }

    /// Ends the interrupt of the highest priority in service (11.8.5), as writing 0 to the EOI
    /// register does.
    pub fn eoi(&mut self) -> Effects {
        let Some(vector) = self.isr.highest() else { return Effects::default() };
        self.isr.remove(vector);
        self.end_lint(vector);
        let broadcast = self.tmr.contains(vector) && self.svr & regs::SVR_SUPPRESS_EOI == 0;
        Effects { eoi: broadcast.then_some(vector), ..Effects::default() }
    }

    /// What waits for the processor.
    pub fn attention(&self) -> Attention {
        let mut attention = Attention::empty();
        attention.set(Attention::INTERRUPT, self.pending().is_some());
        attention.set(Attention::EXT_INT, self.ext_int || self.lint0_ext_int());
        attention.set(Attention::NMI, self.nmi);
        attention.set(Attention::INIT, self.init);
        attention.set(Attention::STARTUP, self.startup.is_some());
        attention
    }

    /// Takes a pending ExtINT. If `true`, the vector is what the 8259 pair's
    /// [acknowledge](crate::Router::acknowledge_pic) returns.
    pub fn take_ext_int(&mut self) -> bool {
        let pin = self.lint0_ext_int();
        core::mem::take(&mut self.ext_int) || pin
    }

    /// Takes a pending NMI. To be called when NMIs are not blocked.
    pub fn take_nmi(&mut self) -> bool {
        core::mem::take(&mut self.nmi)
    }

    /// Takes a pending INIT, and if there is one puts the local APIC into its state after INIT
    /// (11.4.7.3), which keeps APIC ID, address and mode. The processor resets itself as INIT
    /// does and then, if [`is_waiting`](Self::is_waiting), waits for a start-up IPI. The timer is
    /// stopped.
    pub fn take_init(&mut self) -> bool {
        let init = core::mem::take(&mut self.init);
        if init {
            self.reset_registers();
            self.nmi = false;
            self.ext_int = false;
        }
        init
    }

    /// Takes a start-up IPI: the vector `v` by which a waiting processor starts at `v << 12`, in
    /// real mode with CS selector `v << 8`. Take a pending [INIT](Self::take_init) first.
    pub fn take_startup(&mut self) -> Option<u8> {
        self.startup.take()
    }

    /// Whether the processor waits for a start-up IPI, which has not yet come.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    pub(super) fn signal_init(&mut self) {
        self.init = true;
        self.startup = None;
        self.waiting = !self.config.bootstrap;
    }

    /// Only the first start-up IPI after an INIT counts; software sends two (Vol. 3, 9.4.4).
    pub(super) fn signal_startup(&mut self, vector: u8) -> bool {
        let accepted = self.waiting;
        if accepted {
            self.waiting = false;
            self.startup = Some(vector);
        }
        accepted
    }
}
