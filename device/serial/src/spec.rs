//! Registers of the PC16550D (National Semiconductor data sheet, chapter "Registers").

use bitflags::bitflags;

/// Receiver buffer (read), transmitter holding (write); divisor latch low with DLAB.
pub const RBR_THR_DLL: u64 = 0;
/// Interrupt enable; divisor latch high with DLAB.
pub const IER_DLM: u64 = 1;
/// Interrupt identification (read), FIFO control (write).
pub const IIR_FCR: u64 = 2;
/// Line control.
pub const LCR: u64 = 3;
/// Modem control.
pub const MCR: u64 = 4;
/// Line status.
pub const LSR: u64 = 5;
/// Modem status.
pub const MSR: u64 = 6;
/// Scratch.
pub const SCR: u64 = 7;

/// The depth of each FIFO.
pub const FIFO_DEPTH: usize = 16;

/// The clock of a PC's UARTs: 1.8432 MHz; a bit lasts 16 times the divisor.
pub const CLOCK_HZ: u64 = 1_843_200;

bitflags! {
    /// Interrupt enable.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InterruptEnable: u8 {
        /// Received data available, and timeout.
        const ERBFI = 1 << 0;
        /// Transmitter holding register empty.
        const ETBEI = 1 << 1;
        /// Receiver line status.
        const ELSI = 1 << 2;
        /// Modem status.
        const EDSSI = 1 << 3;
    }

    /// FIFO control.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FifoControl: u8 {
        const ENABLE = 1 << 0;
        const RCVR_RESET = 1 << 1;
        const XMIT_RESET = 1 << 2;
        const DMA_MODE = 1 << 3;
        const TRIGGER_LSB = 1 << 6;
        const TRIGGER_MSB = 1 << 7;
    }

    /// Line control.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LineControl: u8 {
        const WLS0 = 1 << 0;
        const WLS1 = 1 << 1;
        /// Two stop bits.
        const STB = 1 << 2;
        /// Parity enable.
        const PEN = 1 << 3;
        /// Divisor latch access.
        const DLAB = 1 << 7;
        const _ = !0;
    }

    /// Modem control.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ModemControl: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOP = 1 << 4;
    }

    /// Line status.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LineStatus: u8 {
        /// Data ready.
        const DR = 1 << 0;
        /// Overrun error.
        const OE = 1 << 1;
        /// Transmitter holding register (with FIFOs: transmit FIFO) empty.
        const THRE = 1 << 5;
        /// Transmitter empty.
        const TEMT = 1 << 6;
    }

    /// Modem status.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ModemStatus: u8 {
        const DCTS = 1 << 0;
        const DDSR = 1 << 1;
        /// Trailing edge of RI.
        const TERI = 1 << 2;
        const DDCD = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;
        /// What changed since the last read.
        const DELTA = Self::DCTS.bits() | Self::DDSR.bits() | Self::TERI.bits() | Self::DDCD.bits();
    }
}

/// Why the port interrupts, as IIR bits 3 to 0 tell it. From the most urgent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Interrupt {
    /// Receiver line status.
    LineStatus = 0b0110,
    /// The receiver holds as many characters as the trigger level asks for.
    DataAvailable = 0b0100,
    /// The receive FIFO holds characters, and for four character times none came or was read.
    CharacterTimeout = 0b1100,
    /// The transmitter holding register is empty.
    HoldingEmpty = 0b0010,
    /// A modem line changed.
    ModemStatus = 0b0000,
}

/// IIR bit 0: no interrupt is pending.
pub const IIR_NONE: u8 = 0b0001;
/// IIR bits 7 and 6: the FIFOs are enabled.
pub const IIR_FIFOS: u8 = 0b1100_0000;

impl FifoControl {
    /// At how many characters the receiver interrupts (FCR6 and FCR7).
    pub fn trigger_level(self) -> usize {
        match (self.contains(Self::TRIGGER_MSB), self.contains(Self::TRIGGER_LSB)) {
            (false, false) => 1,
            (false, true) => 4,
            (true, false) => 8,
            (true, true) => 14,
        }
    }
}

impl LineControl {
    /// How many bits a character has on the wire, start and stop bits included.
    pub fn bits_per_character(self) -> u64 {
        let data = 5 + u64::from((self & (Self::WLS0 | Self::WLS1)).bits());
        let parity = u64::from(self.contains(Self::PEN));
        let stop = 1 + u64::from(self.contains(Self::STB));
        1 + data + parity + stop
    }
}
