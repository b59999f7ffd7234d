//! One 8259A programmable interrupt controller (Intel 8259A datasheet, 231468).

/// Where the initialisation sequence stands (datasheet, figure 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    /// Powered up and never initialised: no interrupts yet.
    Never,
    /// The next write to A0=1 is ICW2.
    Icw2,
    /// ... is ICW3.
    Icw3,
    /// ... is ICW4.
    Icw4,
    Done,
}

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

    // Wiring: the levels of IR0 to IR7, which no initialisation changes.
    lines: u8,

    // Edge/level control register of the chipset.
    elcr: u8,

    // Interrupt request, mask and in-service registers. For level-sensitive inputs the request
    // is the line itself.
    edges: u8,
    imr: u8,
    isr: u8,

    // Initialisation.
    init: Init,
    wants_icw4: bool,
    single: bool,
    vector_base: u8,
    auto_eoi: bool,
    special_fully_nested: bool,

    // Operation.
    /// The input of the highest priority; 0 unless rotated.
    highest: u8,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

impl Chip {
    pub(super) fn new(cascade_inputs: u8) -> Self {
        Self {
            cascade_inputs,
            lines: 0,
            elcr: 0,
            edges: 0,
            imr: 0,
            isr: 0,
            init: Init::Never,
            wants_icw4: false,
            single: false,
            vector_base: 0,
            auto_eoi: false,
            special_fully_nested: false,
            highest: 0,
            rotate_on_auto_eoi: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::new(self.cascade_inputs) };
    }

    pub(super) fn elcr(&self) -> u8 {
        self.elcr
    }

    pub(super) fn set_elcr(&mut self, value: u8) {
        self.elcr = value;
        self.edges &= !value;
    }

    fn level_inputs(&self) -> u8 {
        self.elcr | self.cascade_inputs
    }

    /// The interrupt request register.
    fn irr(&self) -> u8 {
        self.edges | (self.lines & self.level_inputs())
    }

    /// Drives input `ir`, 0 to 7. An edge is kept until it is acknowledged, even if the line
    /// falls before: a device may pulse its line faster than the processor looks.
    pub(super) fn set_line(&mut self, ir: u8, level: bool) {
        let bit = 1 << (ir & 7);
        if level {
            self.edges |= bit & !self.lines & !self.level_inputs();
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// The input of the highest priority among `inputs`.
    fn first(&self, inputs: u8) -> Option<u8> {
        let rotated = inputs.rotate_right(self.highest.into());
        (rotated != 0).then(|| (rotated.trailing_zeros() as u8 + self.highest) & 7)
    }

    /// How far `ir` is from the highest priority, which is 0.
    fn rank(&self, ir: u8) -> u8 {
        ir.wrapping_sub(self.highest) & 7
    }

    /// The input that interrupts now: requested, not masked, and of a higher priority than what
    /// is in service.
    fn request(&self) -> Option<u8> {
        if self.init != Init::Done {
            return None;
        }
        let ir = self.first(self.irr() & !self.imr)?;
        let mut blocking = self.isr;
        if self.special_mask {
            // Levels whose mask is set no longer hold others back ("Special Mask Mode").
            blocking &= !self.imr;
        }
        match self.first(blocking) {
            None => Some(ir),
            Some(served) if self.rank(ir) < self.rank(served) => Some(ir),
            // A slave's request passes the one it already has in service.
            Some(served)
                if served == ir
                    && self.special_fully_nested
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
        self.edges &= !bit;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.highest = (ir + 1) & 7;
        }
        Some(ir)
    }

    pub(super) fn vector(&self, ir: Option<u8>) -> u8 {
        self.vector_base | ir.unwrap_or(SPURIOUS)
    }

    /// Reads A0=0 (`false`) or A0=1.
    pub(super) fn read(&mut self, a0: bool) -> u8 {
        if core::mem::take(&mut self.poll) {
            // The read is the acknowledge ("Poll Command").
            return self.acknowledge().map_or(0, |ir| 0x80 | ir);
        }
        match (a0, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
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
        *self = Self {
            lines: self.lines,
            elcr: self.elcr,
            init: Init::Icw2,
            wants_icw4: value & ICW1_IC4 != 0,
            single: value & ICW1_SINGLE != 0,
            vector_base: self.vector_base,
            ..Self::new(self.cascade_inputs)
        };
    }

    fn write_data(&mut self, value: u8) {
        self.init = match self.init {
            Init::Never | Init::Done => {
                self.imr = value;
                return;
            }
            Init::Icw2 => {
                self.vector_base = value & 0xf8;
                match (self.single, self.wants_icw4) {
                    (false, _) => Init::Icw3,
                    (true, true) => Init::Icw4,
                    (true, false) => Init::Done,
                }
            }
            // The board has settled who is whose slave.
            Init::Icw3 if self.wants_icw4 => Init::Icw4,
            Init::Icw3 => Init::Done,
            Init::Icw4 => {
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.special_fully_nested = value & ICW4_SPECIAL_FULLY_NESTED != 0;
                Init::Done
            }
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let ir = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(ir) = self.end_highest() {
                    self.highest = (ir + 1) & 7;
                }
            }
            0b011 => self.isr &= !(1 << ir),
            0b111 => {
                self.isr &= !(1 << ir);
                self.highest = (ir + 1) & 7;
            }
            0b110 => self.highest = (ir + 1) & 7,
            // 010: no operation.
            _ => {}
        }
    }

    /// Non-specific EOI. In special mask mode it does not see masked levels.
    fn end_highest(&mut self) -> Option<u8> {
        let visible = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let ir = self.first(visible)?;
        self.isr &= !(1 << ir);
        Some(ir)
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & OCW3_SET_SPECIAL_MASK != 0 {
            self.special_mask = value & OCW3_SPECIAL_MASK != 0;
        }
        self.poll = value & OCW3_POLL != 0;
        if !self.poll && value & OCW3_READ != 0 {
            self.read_isr = value & OCW3_READ_ISR != 0;
        }
    }
}
