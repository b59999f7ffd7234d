//! The local vector table: interrupts from inside of the processor and from its two pins
//! (SDM Vol. 3, 11.5).

use super::timer::{Mode, Now};
use super::{Lapic, LvtState, regs};
use crate::message::{DeliveryMode, Trigger};

/// An interrupt pin of the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lint {
    /// LINT0, on a PC the 8259 pair's output. INTR while the local APIC is disabled.
    Lint0 = 0,
    /// LINT1, on a PC the board's NMI. NMI while the local APIC is disabled.
    Lint1 = 1,
}

impl Lint {
    const ALL: [Self; 2] = [Self::Lint0, Self::Lint1];

    fn register(self) -> u8 {
        match self {
            Self::Lint0 => regs::LVT_LINT0,
            Self::Lint1 => regs::LVT_LINT1,
        }
    }
}

impl Default for LvtState {
    fn default() -> Self {
        Self {
            timer: regs::LVT_MASKED,
            thermal: regs::LVT_MASKED,
            performance: regs::LVT_MASKED,
            lint0: regs::LVT_MASKED,
            lint1: regs::LVT_MASKED,
            error: regs::LVT_MASKED,
        }
    }
}

impl LvtState {
    pub(super) fn timer(&self) -> u32 {
        self.timer
    }

    pub(super) fn set_virtual_wire(&mut self, bootstrap: bool) {
        const EXT_INT: u32 = 7 << 8;
        const NMI: u32 = 4 << 8;
        self.lint0 = if bootstrap { EXT_INT } else { regs::LVT_MASKED };
        self.lint1 = NMI;
    }

    /// The entry of `register`, if it is one of the table's.
    pub(super) fn get(&self, register: u8) -> Option<u32> {
        Some(match register {
            regs::LVT_TIMER => self.timer,
            regs::LVT_THERMAL => self.thermal,
            regs::LVT_PERF => self.performance,
            regs::LVT_LINT0 => self.lint0,
            regs::LVT_LINT1 => self.lint1,
            regs::LVT_ERROR => self.error,
            _ => return None,
        })
    }

    fn get_mut(&mut self, register: u8) -> Option<&mut u32> {
        Some(match register {
            regs::LVT_TIMER => &mut self.timer,
            regs::LVT_THERMAL => &mut self.thermal,
            regs::LVT_PERF => &mut self.performance,
            regs::LVT_LINT0 => &mut self.lint0,
            regs::LVT_LINT1 => &mut self.lint1,
            regs::LVT_ERROR => &mut self.error,
            _ => return None,
        })
    }

    /// Masks everything, as disabling by software does (11.4.7.2).
    pub(super) fn mask_all(&mut self) {
        let Self { timer, thermal, performance, lint0, lint1, error } = self;
        for entry in [timer, thermal, performance, lint0, lint1, error] {
            *entry |= regs::LVT_MASKED;
        }
    }
}

impl Lapic {
    /// The bits of a table entry that software may set.
    pub(super) fn lvt_writable(&self, register: u8) -> u32 {
        use regs::{LVT_DELIVERY, LVT_LEVEL, LVT_MASKED, LVT_POLARITY, LVT_VECTOR};
        let common = LVT_VECTOR | LVT_MASKED;
        match register {
            regs::LVT_TIMER if self.config.tsc_deadline => common | regs::LVT_TIMER_MODE,
            regs::LVT_TIMER => common | (regs::LVT_TIMER_MODE & !regs::LVT_TIMER_TSC_DEADLINE),
            regs::LVT_THERMAL | regs::LVT_PERF => common | LVT_DELIVERY,
            regs::LVT_LINT0 | regs::LVT_LINT1 => common | LVT_DELIVERY | LVT_POLARITY | LVT_LEVEL,
            _ => common,
        }
    }

    pub(super) fn write_lvt(&mut self, register: u8, value: u32, now: Now) {
        if register == regs::LVT_TIMER {
            // What expired until now did so under the old entry.
            self.timer_expired(now);
        }
        let mut new = value & self.lvt_writable(register);
        if !self.software_enabled() {
            new |= regs::LVT_MASKED;
        }
        let Some(entry) = self.lvt.get_mut(register) else { return };
        let old = *entry;
        if new & regs::LVT_LEVEL != 0 {
            new |= old & regs::LVT_REMOTE_IRR;
        }
        *entry = new;
        match register {
            regs::LVT_TIMER => self.timer.change_mode(Mode::of(old), Mode::of(new)),
            regs::LVT_LINT0 => self.sense_lint(Lint::Lint0, false),
            regs::LVT_LINT1 => self.sense_lint(Lint::Lint1, false),
            _ => {}
        }
    }

    /// The timer's interrupt.
    pub(super) fn signal_timer(&mut self) {
        let entry = self.lvt.timer;
        if entry & regs::LVT_MASKED == 0 {
            self.request(entry as u8, Trigger::Edge);
        }
    }

    /// Requests the performance-monitoring interrupt. The processor then masks the entry
    /// (Vol. 3, 11.5.1 and 20.6.3.5.8).
    pub fn signal_performance(&mut self) {
        let entry = self.lvt.performance;
        if entry & regs::LVT_MASKED == 0 {
            self.lvt.performance |= regs::LVT_MASKED;
            self.signal_lvt(entry);
        }
    }

    fn signal_lvt(&mut self, entry: u32) {
        match DeliveryMode::from_bits(entry >> 8) {
            Some(DeliveryMode::Fixed) => {
                self.request(entry as u8, Trigger::Edge);
            }
            Some(DeliveryMode::Nmi) => self.nmi = true,
            Some(DeliveryMode::Init) => self.signal_init(),
            _ => {}
        }
    }

    /// Drives an interrupt pin; `true` is asserted.
    ///
    /// LINT0 follows the 8259 pair's [output](crate::PicPair::output). Let nobody change that
    /// output between reading it and passing it here.
    pub fn set_lint(&mut self, pin: Lint, level: bool) {
        let old = core::mem::replace(&mut self.lint[pin as usize], level);
        let rose = level && !old;
        if self.enabled() {
            self.sense_lint(pin, rose);
        } else if pin == Lint::Lint1 && rose {
            self.nmi = true;
        }
    }

    fn sense_lint(&mut self, pin: Lint, rose: bool) {
        let Some(entry) = self.lvt.get(pin.register()) else { return };
        if entry & regs::LVT_MASKED != 0 {
            return;
        }
        // Only fixed delivery knows levels (11.5.1 "Trigger Mode"); ExtINT is one by nature and
        // is looked at when the processor asks.
        let fixed = DeliveryMode::from_bits(entry >> 8) == Some(DeliveryMode::Fixed);
        if fixed && entry & regs::LVT_LEVEL != 0 {
            if self.lint[pin as usize] && entry & regs::LVT_REMOTE_IRR == 0 {
                if let Some(entry) = self.lvt.get_mut(pin.register()) {
                    *entry |= regs::LVT_REMOTE_IRR;
                }
                self.request(entry as u8, Trigger::Level);
            }
        } else if rose {
            self.signal_lvt(entry);
        }
    }

    /// Lets level-triggered pins with `vector` interrupt again (11.5.1 "Remote IRR Flag").
    pub(super) fn end_lint(&mut self, vector: u8) {
        for pin in Lint::ALL {
            let Some(entry) = self.lvt.get_mut(pin.register()) else { continue };
            if *entry & regs::LVT_REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !regs::LVT_REMOTE_IRR;
                self.sense_lint(pin, false);
            }
        }
    }

    /// Whether LINT0, being ExtINT, asks for an interrupt from the 8259 pair.
    pub(super) fn lint0_ext_int(&self) -> bool {
        let unmasked_ext_int = self.lvt.lint0 & regs::LVT_MASKED == 0
            && DeliveryMode::from_bits(self.lvt.lint0 >> 8) == Some(DeliveryMode::ExtInt);
        self.lint[Lint::Lint0 as usize] && (!self.enabled() || unmasked_ext_int)
    }

    /// Records an error and interrupts if it is the first since the error status register was
    /// written (11.5.3).
    pub(super) fn error(&mut self, bit: u32) {
        let first = self.errors == 0;
        self.errors |= bit;
        let entry = self.lvt.error;
        if !first || entry & regs::LVT_MASKED != 0 {
            return;
        }
        match entry as u8 {
            // An error about the error's own vector would have no end.
            0..16 => self.errors |= regs::ESR_RECEIVE_ILLEGAL_VECTOR,
            vector => {
                self.request(vector, Trigger::Edge);
            }
        }
    }
}
