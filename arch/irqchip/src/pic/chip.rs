//! One 8259A programmable interrupt controller (Intel 8259A datasheet, 231468).

use super::state::{PicInit, PicState};

// ICW1.
const ICW1: u8 = 1 << 4;
const ICW1_IC4: u8 = 1 << 0;
const ICW1_SINGLE: u8 = 1 << 1;
// ICW4.
const ICW4_AUTO_EOI: u8 = 1 << 1;
const ICW4_SPECIAL_FULLY_NESTED: u8 = 1 << 4;
// OCW3.
const OCW3: u8 = 1 << 3;
const OCW3_READ_ISR: u8 = 1 << 0;
const OCW3_READ: u8 = 1 << 1;
const OCW3_POLL: u8 = 1 << 2;
const OCW3_SPECIAL_MASK: u8 = 1 << 5;
const OCW3_SET_SPECIAL_MASK: u8 = 1 << 6;

/// What a spurious acknowledge answers with ("default IR7").
const SPURIOUS: u8 = 7;

/// The chip. `cascade` of [`PicPair`](super::PicPair) makes a master or a slave of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chip {
    // Configuration: the inputs that are always level-sensitive, since a slave drives them.
    cascade_inputs: u8,
    /// The rest. For level-sensitive inputs the request is the line itself.
    pub(super) registers: PicState,
}

impl Chip {
    pub(super) fn new(cascade_inputs: u8) -> Self {
        Self { cascade_inputs, registers: PicState::default() }
    }

    pub(super) fn reset(&mut self) {
        self.registers = PicState { lines: self.registers.lines, ..PicState::default() };
    }

    pub(super) fn elcr(&self) -> u8 {
        self.registers.elcr
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        self.registers.elcr = value;
        self.registers.edges &= !value;
    }

    fn level_inputs(&self) -> u8 {
        self.registers.elcr | self.cascade_inputs
    }

    /// The interrupt request register.
    fn irr(&self) -> u8 {
        self.registers.edges | (self.registers.lines & self.level_inputs())
    }

    /// Drives input `ir`, 0 to 7. An edge is kept until it is acknowledged, even if the line
    /// falls before: a device may pulse its line faster than the processor looks.
    pub(super) fn set_line(&mut self, ir: u8, level: bool) {
        let bit = 1 << (ir & 7);
        if level {
            self.registers.edges |= bit & !self.registers.lines & !self.level_inputs();
            self.registers.lines |= bit;
        } else {
            self.registers.lines &= !bit;
        }
    }

    /// The input of the highest priority among `inputs`.
    fn first(&self, inputs: u8) -> Option<u8> {
        let rotated = inputs.rotate_right(self.registers.highest.into());
        (rotated != 0).then(|| (rotated.trailing_zeros() as u8 + self.registers.highest) & 7)
    }

    /// How far `ir` is from the highest priority, which is 0.
    fn rank(&self, ir: u8) -> u8 {
        ir.wrapping_sub(self.registers.highest) & 7
    }

    /// The input that interrupts now: requested, not masked, and of a higher priority than what
    /// is in service.
    fn request(&self) -> Option<u8> {
        if self.registers.init != PicInit::Done {
            return None;
        }
        let ir = self.first(self.irr() & !self.registers.imr)?;
        let mut blocking = self.registers.isr;
        if self.registers.special_mask {
            // Levels whose mask is set no longer hold others back ("Special Mask Mode").
            blocking &= !self.registers.imr;
        }
        match self.first(blocking) {
            None => Some(ir),
            Some(served) if self.rank(ir) < self.rank(served) => Some(ir),
            // A slave's request passes the one it already has in service.
            Some(served)
                if served == ir
                    && self.registers.special_fully_nested
                    && self.cascade_inputs & (1 << ir) != 0 =>
            {
                Some(ir)
            }
            Some(_) => None,
        }
    }

    /// The INT output.
    pub(super) fn output(&self) -> bool {
        self.request().is_some()
    }

    /// The interrupt acknowledge sequence: the input that is now in service, or `None` if no
    /// input requests any more and the answer is spurious.
    pub(super) fn acknowledge(&mut self) -> Option<u8> {
        let ir = self.request()?;
        let bit = 1 << ir;
        self.registers.edges &= !bit;
        if !self.registers.auto_eoi {
            self.registers.isr |= bit;
        } else if self.registers.rotate_on_auto_eoi {
            self.registers.highest = (ir + 1) & 7;
        }
        Some(ir)
    }

    pub(super) fn vector(&self, ir: Option<u8>) -> u8 {
        self.registers.vector_base | ir.unwrap_or(SPURIOUS)
    }

    /// Reads A0=0 (`false`) or A0=1.
    pub(super) fn read(&mut self, a0: bool) -> u8 {
        if core::mem::take(&mut self.registers.poll) {
            // The read is the acknowledge ("Poll Command").
            return self.acknowledge().map_or(0, |ir| 0x80 | ir);
        }
        match (a0, self.registers.read_isr) {
            (true, _) => self.registers.imr,
            (false, true) => self.registers.isr,
            (false, false) => self.irr(),
        }
    }

    /// Writes A0=0 (`false`) or A0=1.
    pub(super) fn write(&mut self, a0: bool, value: u8) {
        if a0 {
            self.write_data(value);
        } else if value & ICW1 != 0 {
            self.write_icw1(value);
        } else if value & OCW3 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    /// ICW1. Its trigger bit is the ELCR's business on a PC.
    fn write_icw1(&mut self, value: u8) {
        let PicState { lines, elcr, vector_base, .. } = self.registers;
        self.registers = PicState {
            lines,
            elcr,
            init: PicInit::Icw2,
            wants_icw4: value & ICW1_IC4 != 0,
            single: value & ICW1_SINGLE != 0,
            vector_base,
            ..PicState::default()
        };
    }

    fn write_data(&mut self, value: u8) {
        self.registers.init = match self.registers.init {
            PicInit::Never | PicInit::Done => {
                self.registers.imr = value;
                return;
            }
            PicInit::Icw2 => {
                self.registers.vector_base = value & 0xf8;
                match (self.registers.single, self.registers.wants_icw4) {
                    (false, _) => PicInit::Icw3,
                    (true, true) => PicInit::Icw4,
                    (true, false) => PicInit::Done,
                }
            }
            // The board has settled who is whose slave.
            PicInit::Icw3 if self.registers.wants_icw4 => PicInit::Icw4,
            PicInit::Icw3 => PicInit::Done,
            PicInit::Icw4 => {
                self.registers.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.registers.special_fully_nested = value & ICW4_SPECIAL_FULLY_NESTED != 0;
                PicInit::Done
            }
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let ir = value & 7;
        match value >> 5 {
            0b000 => self.registers.rotate_on_auto_eoi = false,
            0b100 => self.registers.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(ir) = self.end_highest() {
                    self.registers.highest = (ir + 1) & 7;
                }
            }
            0b011 => self.registers.isr &= !(1 << ir),
            0b111 => {
                self.registers.isr &= !(1 << ir);
                self.registers.highest = (ir + 1) & 7;
            }
            0b110 => self.registers.highest = (ir + 1) & 7,
            // 010: no operation.
            _ => {}
        }
    }

    /// Non-specific EOI. In special mask mode it does not see masked levels.
    fn end_highest(&mut self) -> Option<u8> {
        let visible = if self.registers.special_mask {
            self.registers.isr & !self.registers.imr
        } else {
            self.registers.isr
        };
        let ir = self.first(visible)?;
        self.registers.isr &= !(1 << ir);
        Some(ir)
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & OCW3_SET_SPECIAL_MASK != 0 {
            self.registers.special_mask = value & OCW3_SPECIAL_MASK != 0;
        }
        self.registers.poll = value & OCW3_POLL != 0;
        if !self.registers.poll && value & OCW3_READ != 0 {
            self.registers.read_isr = value & OCW3_READ_ISR != 0;
        }
    }
}
