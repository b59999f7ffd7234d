//! The local APIC's registers and their bits (SDM Vol. 3, table 11-1 and table 11-6).
//!
//! A register's number is its offset in the xAPIC page divided by 16, which is also its MSR's
//! distance from `0x800` in x2APIC mode.

/// The MSR that holds the page's address and the mode.
pub(super) const MSR_APIC_BASE: u32 = 0x1b;
/// The MSR that arms the timer in TSC-deadline mode.
pub(super) const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The first and last MSR of the x2APIC range.
pub(super) const MSR_X2APIC_FIRST: u32 = 0x800;
pub(super) const MSR_X2APIC_LAST: u32 = 0x8ff;

pub(super) const ID: u8 = 0x02;
pub(super) const VERSION: u8 = 0x03;
pub(super) const TPR: u8 = 0x08;
pub(super) const APR: u8 = 0x09;
pub(super) const PPR: u8 = 0x0a;
pub(super) const EOI: u8 = 0x0b;
pub(super) const RRD: u8 = 0x0c;
pub(super) const LDR: u8 = 0x0d;
pub(super) const DFR: u8 = 0x0e;
pub(super) const SVR: u8 = 0x0f;
pub(super) const ISR: u8 = 0x10;
pub(super) const ISR_LAST: u8 = 0x17;
pub(super) const TMR: u8 = 0x18;
pub(super) const TMR_LAST: u8 = 0x1f;
pub(super) const IRR: u8 = 0x20;
pub(super) const IRR_LAST: u8 = 0x27;
pub(super) const ESR: u8 = 0x28;
pub(super) const ICR: u8 = 0x30;
pub(super) const ICR_HIGH: u8 = 0x31;
pub(super) const LVT_TIMER: u8 = 0x32;
pub(super) const LVT_THERMAL: u8 = 0x33;
pub(super) const LVT_PERF: u8 = 0x34;
pub(super) const LVT_LINT0: u8 = 0x35;
pub(super) const LVT_LINT1: u8 = 0x36;
pub(super) const LVT_ERROR: u8 = 0x37;
pub(super) const INITIAL_COUNT: u8 = 0x38;
pub(super) const CURRENT_COUNT: u8 = 0x39;
pub(super) const DIVIDE: u8 = 0x3e;
pub(super) const SELF_IPI: u8 = 0x3f;

// IA32_APIC_BASE (11.4.4, 11.12.1).
pub(super) const BASE_BSP: u64 = 1 << 8;
pub(super) const BASE_X2APIC: u64 = 1 << 10;
pub(super) const BASE_ENABLE: u64 = 1 << 11;
pub(super) const BASE_DEFAULT: u64 = 0xfee0_0000;
pub(super) const BASE_ADDRESS: u64 = !0xfff;

/// Version 0x14, the integrated APIC; six LVT entries; EOI-broadcast suppression (11.4.8).
pub(super) const VERSION_VALUE: u32 = 0x14 | (5 << 16) | (1 << 24);

// Spurious-interrupt vector register (11.9).
pub(super) const SVR_ENABLE: u32 = 1 << 8;
pub(super) const SVR_SUPPRESS_EOI: u32 = 1 << 12;
/// Vector, enable, focus checking, suppression: what software may set.
pub(super) const SVR_WRITABLE: u32 = 0xff | SVR_ENABLE | (1 << 9) | SVR_SUPPRESS_EOI;

// Local vector table (11.5.1).
pub(super) const LVT_VECTOR: u32 = 0xff;
pub(super) const LVT_DELIVERY: u32 = 7 << 8;
pub(super) const LVT_STATUS: u32 = 1 << 12;
pub(super) const LVT_POLARITY: u32 = 1 << 13;
pub(super) const LVT_REMOTE_IRR: u32 = 1 << 14;
pub(super) const LVT_LEVEL: u32 = 1 << 15;
pub(super) const LVT_MASKED: u32 = 1 << 16;
pub(super) const LVT_TIMER_MODE: u32 = 3 << 17;
pub(super) const LVT_TIMER_TSC_DEADLINE: u32 = 1 << 18;

// Error status register (11.5.3).
pub(super) const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
pub(super) const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
pub(super) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

// Interrupt command register (11.6.1, 11.12.9).
pub(super) const ICR_LOGICAL: u64 = 1 << 11;
pub(super) const ICR_STATUS: u64 = 1 << 12;
pub(super) const ICR_ASSERT: u64 = 1 << 14;
pub(super) const ICR_LEVEL: u64 = 1 << 15;
/// Bits of the low half that hold something.
pub(super) const ICR_LOW_WRITABLE: u64 = 0x000c_cfff;
pub(super) const ICR_X2APIC_RESERVED: u64 = 0xfff3_2000;
