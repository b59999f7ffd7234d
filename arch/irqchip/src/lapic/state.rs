//! The local APIC's registers and signals as plain data.

use serde::{Deserialize, Serialize};

use super::{Lapic, regs};
use crate::BadState;

/// The state of a [`Lapic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LapicState {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// Task priority register.
    pub tpr: u8,
    /// Logical destination register of xAPIC mode, as its high byte.
    pub logical_id: u8,
    /// Destination format register.
    pub dfr: u32,
    /// Spurious-interrupt vector register.
    pub svr: u32,
    /// In-service register.
    pub isr: [u32; 8],
    /// Trigger mode register.
    pub tmr: [u32; 8],
    /// Interrupt request register.
    pub irr: [u32; 8],
    /// Error status register as software reads it.
    pub esr: u32,
    /// Errors since it was last written.
    pub errors: u32,
    /// Interrupt command register.
    pub icr: u64,
    /// Local vector table.
    pub lvt: LvtState,
    /// The timer.
    pub timer: TimerState,
    /// The levels of LINT0 and LINT1.
    pub lint: [bool; 2],
    /// An NMI that the processor has not yet taken.
    pub nmi: bool,
    /// An INIT that it has not yet taken.
    pub init: bool,
    /// A start-up IPI that it has not yet taken.
    pub startup: Option<u8>,
    /// An ExtINT that it has not yet taken.
    pub ext_int: bool,
    /// The processor waits for a start-up IPI.
    pub waiting: bool,
}

/// The local vector table: its entries, each masked after reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // the names are those of SDM Vol. 3, figure 11-8
pub struct LvtState {
    pub timer: u32,
    pub thermal: u32,
    pub performance: u32,
    pub lint0: u32,
    pub lint1: u32,
    pub error: u32,
}

/// The timer. While it runs, everything follows from the moment when it will next be zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimerState {
    /// Divide configuration register.
    pub divide: u32,
    /// Initial count register.
    pub initial: u32,
    /// When the count reaches zero, in ns of guest time; `None` if it stands at zero.
    pub due: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 if disarmed.
    pub tsc_deadline: u64,
}

impl Lapic {
    /// Its state now.
    pub fn save(&self) -> LapicState {
        LapicState {
            base: self.base,
            tpr: self.tpr,
            logical_id: self.logical_id,
            dfr: self.dfr,
            svr: self.svr,
            isr: self.isr.0,
            tmr: self.tmr.0,
            irr: self.irr.0,
            esr: self.esr,
            errors: self.errors,
            icr: self.icr,
            lvt: self.lvt,
            timer: self.timer,
            lint: self.lint,
            nmi: self.nmi,
            init: self.init,
            startup: self.startup,
            ext_int: self.ext_int,
            waiting: self.waiting,
        }
    }

    /// Takes over a state of a local APIC that had the same ID and was one of the same processor.
    ///
    /// # Errors
    ///
    /// If this one cannot have such a state.
    pub fn restore(&mut self, state: &LapicState) -> Result<(), BadState> {
        let fresh = Self::new(self.config);
        // What software may set, in steps that are allowed.
        let (bsp, x2apic) = (state.base & regs::BASE_BSP, state.base & regs::BASE_X2APIC);
        let mut next = fresh.clone();
        let placed = next
            .set_base(state.base & !regs::BASE_X2APIC & !regs::BASE_BSP)
            .and_then(|_| if x2apic == 0 { Ok(()) } else { next.set_base(state.base).map(drop) });
        if placed.is_err() || bsp != fresh.base & regs::BASE_BSP {
            return Err(BadState("a local APIC has a base that it cannot have"));
        }
        let entry = |register, value: u32| {
            let kept = regs::LVT_REMOTE_IRR & if self.is_pin(register) { !0 } else { 0 };
            value & (self.lvt_writable(register) | kept)
        };
        let lvt = LvtState {
            timer: entry(regs::LVT_TIMER, state.lvt.timer),
            thermal: entry(regs::LVT_THERMAL, state.lvt.thermal),
            performance: entry(regs::LVT_PERF, state.lvt.performance),
            lint0: entry(regs::LVT_LINT0, state.lvt.lint0),
            lint1: entry(regs::LVT_LINT1, state.lvt.lint1),
            error: entry(regs::LVT_ERROR, state.lvt.error),
        };
        *self = Self {
            tpr: state.tpr,
            logical_id: state.logical_id,
            dfr: state.dfr,
            svr: state.svr & regs::SVR_WRITABLE,
            isr: super::VectorSet(state.isr),
            tmr: super::VectorSet(state.tmr),
            irr: super::VectorSet(state.irr),
            esr: state.esr,
            errors: state.errors,
            icr: state.icr,
            lvt,
            timer: TimerState { divide: state.timer.divide & 0b1011, ..state.timer },
            lint: state.lint,
            nmi: state.nmi,
            init: state.init,
            startup: state.startup,
            ext_int: state.ext_int,
            waiting: state.waiting,
            ..next
        };
        Ok(())
    }

    fn is_pin(&self, register: u8) -> bool {
        [regs::LVT_LINT0, regs::LVT_LINT1].contains(&register)
    }
}
