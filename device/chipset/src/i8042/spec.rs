//! The keyboard controller's commands and registers (IBM PS/2 Hardware Interface Technical
//! Reference, "Keyboard and Auxiliary Device Controller").

use bitflags::bitflags;

pub const TEST_PASSWORD: u8 = 0xa4;
pub const DISABLE_AUX: u8 = 0xa7;
pub const ENABLE_AUX: u8 = 0xa8;
pub const TEST_AUX: u8 = 0xa9;
pub const SELF_TEST: u8 = 0xaa;
pub const TEST_KEYBOARD: u8 = 0xab;
pub const DISABLE_KEYBOARD: u8 = 0xad;
pub const ENABLE_KEYBOARD: u8 = 0xae;
pub const READ_INPUT_PORT: u8 = 0xc0;
pub const READ_OUTPUT_PORT: u8 = 0xd0;
pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
pub const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
pub const WRITE_AUX_BUFFER: u8 = 0xd3;
pub const WRITE_AUX: u8 = 0xd4;
pub const DISABLE_A20: u8 = 0xdd;
pub const ENABLE_A20: u8 = 0xdf;
pub const PULSE: u8 = 0xf0;

pub const NO_PASSWORD: u8 = 0xf1;
pub const INTERFACE_GOOD: u8 = 0x00;
pub const SELF_TEST_PASSED: u8 = 0x55;
/// The input port: the keyboard lock is open.
pub const INPUT_UNLOCKED: u8 = 0x80;
pub const RESEND: u8 = 0xfe;

bitflags! {
    /// Port 64h, read.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        const OUTPUT_FULL = 1 << 0;
        /// Passed its self-test.
        const SYS = 1 << 2;
        /// The last write went to port 64h.
        const COMMAND = 1 << 3;
        const UNLOCKED = 1 << 4;
        const AUX_FULL = 1 << 5;
        const TIMEOUT = 1 << 6;
    }

    /// The command byte.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandByte: u8 {
        const KEYBOARD_INTERRUPT = 1 << 0;
        const AUX_INTERRUPT = 1 << 1;
        const SYS = 1 << 2;
        const KEYBOARD_DISABLE = 1 << 4;
        const AUX_DISABLE = 1 << 5;
        /// Scan code set 2 becomes set 1.
        const TRANSLATE = 1 << 6;
    }

    /// The output port.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OutputPort: u8 {
        const NOT_RESET = 1 << 0;
        const A20 = 1 << 1;
        const KEYBOARD_FULL = 1 << 4;
        const AUX_FULL = 1 << 5;
        /// Clock and data lines that rest high.
        const IDLE = 0b1100_1100;
    }
}
