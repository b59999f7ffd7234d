//! The local APIC (SDM Vol. 3, chapter 11), one per processor.
//!
//! Its registers are reached through a page of memory ([`Lapic::mmio_base`]) or, in x2APIC mode,
//! through MSRs. The owner serialises all calls to one local APIC. What a call makes necessary
//! elsewhere comes back as [`Effects`]; what the processor itself has to do next is shown by
//! [`Lapic::attention`], which changes only during calls that take `&mut self`, so that an owner
//! may keep a copy in an atomic.

mod access;
mod interrupts;
mod ipi;
mod lvt;
mod regs;
mod state;
mod timer;
mod vectors;

#[cfg(test)]
mod tests;

use bitflags::bitflags;

use crate::message::Message;
use timer::Mode;
use vectors::VectorSet;

pub use lvt::Lint;
pub use state::{LapicState, LvtState, TimerState};
pub use timer::{Deadline, Now, TIMER_HZ};

/// What distinguishes one local APIC from another, and what the processor's CPUID promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LapicConfig {
    /// The APIC ID. In xAPIC mode software sees only its low 8 bits.
    pub id: u32,
    /// Whether this is the bootstrap processor, which does not wait for a start-up IPI.
    pub bootstrap: bool,
    /// Whether x2APIC mode exists (CPUID.01H:ECX.21).
    pub x2apic: bool,
    /// Whether TSC-deadline mode exists (CPUID.01H:ECX.24).
    pub tsc_deadline: bool,
    /// The width of physical addresses (CPUID.80000008H:EAX), which bounds where the page can be.
    pub physical_address_bits: u8,
}

/// What a register access makes necessary outside of the local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Effects {
    /// A message to deliver. It is for this local APIC too, if this one accepts it.
    pub message: Option<Message>,
    /// The end of a level-triggered interrupt with this vector, to be told to the I/O APIC.
    pub eoi: Option<u8>,
    /// [`Lapic::next_deadline`] may have changed.
    pub timer_changed: bool,
    /// [`Lapic::mmio_base`] may have changed.
    pub page_changed: bool,
}

/// The access raises a general-protection exception, #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

bitflags! {
    /// What waits for the processor. Empty: nothing, the common case.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Attention: u8 {
        /// A maskable interrupt; see [`Lapic::acknowledge`].
        const INTERRUPT = 1 << 0;
        /// A maskable interrupt whose vector the 8259 pair has; see [`Lapic::take_ext_int`].
        const EXT_INT = 1 << 1;
        /// See [`Lapic::take_nmi`].
        const NMI = 1 << 2;
        /// See [`Lapic::take_init`].
        const INIT = 1 << 3;
        /// See [`Lapic::take_startup`].
        const STARTUP = 1 << 4;
    }
}

/// A local APIC. It is plain data: a clone is a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lapic {
    // Configuration.
    config: LapicConfig,

    // Wiring: the levels of LINT0 and LINT1, which no reset changes.
    lint: [bool; 2],

    // Registers.
    base: u64,
    tpr: u8,
    /// Logical destination register of xAPIC mode, as its high byte.
    logical_id: u8,
    /// Destination format register.
    dfr: u32,
    svr: u32,
    isr: VectorSet,
    tmr: VectorSet,
    irr: VectorSet,
    /// Error status register as software reads it.
    esr: u32,
    /// Errors since it was last written.
    errors: u32,
    icr: u64,
    lvt: LvtState,
    timer: TimerState,

    // Signals that the processor has not yet taken.
    nmi: bool,
    init: bool,
    startup: Option<u8>,
    ext_int: bool,
    /// The processor waits for a start-up IPI.
    waiting: bool,
}

impl Lapic {
    /// A local APIC as it is after power-up.
    pub fn new(config: LapicConfig) -> Self {
        Self {
            config,
            lint: [false; 2],
            base: Self::base_at_reset(&config),
            tpr: 0,
            logical_id: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            irr: VectorSet::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: LvtState::default(),
            timer: TimerState::default(),
            nmi: false,
            init: false,
            startup: None,
            ext_int: false,
            waiting: !config.bootstrap,
        }
    }

    fn base_at_reset(config: &LapicConfig) -> u64 {
        let bsp = if config.bootstrap { regs::BASE_BSP } else { 0 };
        regs::BASE_DEFAULT | regs::BASE_ENABLE | bsp
    }

    /// Power-up or RESET (11.4.7.1). An armed timer is gone.
    pub fn reset(&mut self) {
        *self = Self { lint: self.lint, ..Self::new(self.config) };
    }

    /// Puts the registers, but neither mode nor signals, into their state after power-up.
    fn reset_registers(&mut self) {
        let Self { config, lint, base, nmi, init, startup, ext_int, waiting, .. } = *self;
        *self = Self { lint, base, nmi, init, startup, ext_int, waiting, ..Self::new(config) };
    }

    /// Leaves the local APIC as a PC's firmware does: enabled, LINT0 as ExtINT on the bootstrap
    /// processor, LINT1 as NMI (MultiProcessor Specification 1.4, 3.6.2.2 "Virtual Wire Mode").
    /// For machines that start a kernel without firmware.
    pub fn set_virtual_wire(&mut self) {
        self.svr |= regs::SVR_ENABLE;
        self.lvt.set_virtual_wire(self.config.bootstrap);
    }

    /// The APIC ID.
    pub fn id(&self) -> u32 {
        self.config.id
    }

    /// The physical address of the 4 KiB register page; `None` while there is none, since the
    /// local APIC is disabled or in x2APIC mode.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.enabled() && !self.x2apic_mode()).then_some(self.base & regs::BASE_ADDRESS)
    }

    /// Enabled by IA32_APIC_BASE (11.4.3).
    fn enabled(&self) -> bool {
        self.base & regs::BASE_ENABLE != 0
    }

    /// In x2APIC mode (11.12.1).
    pub fn x2apic_mode(&self) -> bool {
        self.base & regs::BASE_X2APIC != 0
    }

    /// Enabled by the spurious-interrupt vector register (11.4.3); else only NMI, INIT and
    /// start-up IPIs are taken.
    fn software_enabled(&self) -> bool {
        self.enabled() && self.svr & regs::SVR_ENABLE != 0
    }

    /// IA32_APIC_BASE.
    fn set_base(&mut self, value: u64) -> Result<Effects, GeneralProtection> {
        let width = self.config.physical_address_bits.clamp(32, 52);
        let address = regs::BASE_ADDRESS & ((1 << width) - 1);
        let mode = regs::BASE_ENABLE | if self.config.x2apic { regs::BASE_X2APIC } else { 0 };
        if value & !(address | mode | regs::BASE_BSP) != 0 {
            return Err(GeneralProtection);
        }
        // The transitions of figure 11-27.
        let (was_enabled, was_x2apic) = (self.enabled(), self.x2apic_mode());
        let enable = value & regs::BASE_ENABLE != 0;
        let x2apic = value & regs::BASE_X2APIC != 0;
        let forbidden = match (enable, x2apic) {
            (false, false) => false,
            (true, false) => was_x2apic,
            (true, true) => !was_enabled,
            (false, true) => true,
        };
        if forbidden {
            return Err(GeneralProtection);
        }
        // Which processor is the bootstrap processor was settled before software ran.
        self.base = (value & !regs::BASE_BSP) | (self.base & regs::BASE_BSP);
        if was_enabled && !enable {
            self.reset_registers();
        }
        if x2apic && !was_x2apic {
            // The destination moves to the upper half's other bits (11.12.9).
            self.icr &= u64::from(u32::MAX);
        }
        Ok(Effects { timer_changed: true, page_changed: true, ..Effects::default() })
    }

    fn timer_mode(&self) -> Mode {
        Mode::of(self.lvt.timer())
    }

    /// When [`timer_expired`](Self::timer_expired) has to be called next; `None` if the timer is
    /// stopped or masked. A deadline may lie in the past.
    pub fn next_deadline(&self) -> Option<Deadline> {
        if !self.software_enabled() || self.lvt.timer() & regs::LVT_MASKED != 0 {
            return None;
        }
        self.timer.deadline(self.timer_mode())
    }

    /// Requests the timer's interrupt if its deadline has come, and starts the next period.
    /// Calling it early or twice is harmless. Ask for the [next deadline](Self::next_deadline)
    /// afterwards.
    pub fn timer_expired(&mut self, now: Now) {
        let mode = self.timer_mode();
        if self.timer.expire(mode, now) {
            self.signal_timer();
        }
    }
}
