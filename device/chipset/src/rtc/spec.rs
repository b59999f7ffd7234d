//! Registers of the MC146818A (Motorola data sheet, "Registers"), and the PC's use of its memory.

use bitflags::bitflags;

pub const SECONDS: u8 = 0x00;
pub const SECONDS_ALARM: u8 = 0x01;
pub const MINUTES: u8 = 0x02;
pub const MINUTES_ALARM: u8 = 0x03;
pub const HOURS: u8 = 0x04;
pub const HOURS_ALARM: u8 = 0x05;
pub const DAY_OF_WEEK: u8 = 0x06;
pub const DATE_OF_MONTH: u8 = 0x07;
pub const MONTH: u8 = 0x08;
pub const YEAR: u8 = 0x09;
pub const REGISTER_A: u8 = 0x0a;
pub const REGISTER_B: u8 = 0x0b;
pub const REGISTER_C: u8 = 0x0c;
pub const REGISTER_D: u8 = 0x0d;
/// First byte of memory that the chip itself does not use.
pub const FIRST_FREE: u8 = 0x0e;
/// The century, by convention of PC firmware.
pub const CENTURY: u8 = 0x32;
/// How many bytes there are in all.
pub const SIZE: usize = 128;

/// Hours in 12-hour mode: afternoon.
pub const PM: u8 = 0x80;
/// An alarm byte with both of these bits set matches anything.
pub const ALARM_ANY: u8 = 0xc0;

/// How long before an update the UIP bit is set (t_BUC, "Update cycle"), in ns.
pub const UIP_LEAD: u64 = 244_000;
/// After the divider is released the first update comes half a second later ("Divider control").
pub const DIVIDER_LEAD: u64 = 500_000_000;
/// The time base of the periodic interrupt.
pub const TIME_BASE_HZ: u64 = 32_768;

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegisterA: u8 {
        /// Rate selection.
        const RS = 0x0f;
        /// Divider control: 010 runs from 32.768 kHz, 11x holds the divider in reset.
        const DV = 0x70;
        const DV_RESET = 0x60;
        const DV_32768_HZ = 0x20;
        /// Update in progress; read only.
        const UIP = 0x80;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegisterB: u8 {
        /// Daylight saving; not supported, as in the ICHs.
        const DSE = 1 << 0;
        /// 24-hour mode.
        const HOURS_24 = 1 << 1;
        /// Binary instead of BCD.
        const DM = 1 << 2;
        const SQWE = 1 << 3;
        const UIE = 1 << 4;
        const AIE = 1 << 5;
        const PIE = 1 << 6;
        /// The guest sets the time; updates are held.
        const SET = 1 << 7;
    }

    /// Flags, at the same places as their enables in register B.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegisterC: u8 {
        const UF = 1 << 4;
        const AF = 1 << 5;
        const PF = 1 << 6;
        const IRQF = 1 << 7;
    }
}

/// Register D: the battery is good.
pub const VRT: u8 = 0x80;
