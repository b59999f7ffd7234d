//! The x87 registers apart from the stack, which GDB sees as the FSAVE instruction writes them.

use x86::state::X87State;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Control,
    Status,
    Tags,
    InstructionSegment,
    InstructionOffset,
    OperandSegment,
    OperandOffset,
    Opcode,
}

/// All, in GDB's order and with its names.
pub const FIELDS: [(&str, Field); 8] = [
    ("fctrl", Field::Control),
    ("fstat", Field::Status),
    ("ftag", Field::Tags),
    ("fiseg", Field::InstructionSegment),
    ("fioff", Field::InstructionOffset),
    ("foseg", Field::OperandSegment),
    ("fooff", Field::OperandOffset),
    ("fop", Field::Opcode),
];

impl Field {
    /// Its value.
    pub fn read(self, x87: &X87State) -> u32 {
        match self {
            Self::Control => x87.fcw.into(),
            Self::Status => x87.fsw.into(),
            Self::Tags => full_tags(x87),
            Self::InstructionSegment => (x87.fip >> 32) as u32,
            Self::InstructionOffset => x87.fip as u32,
            Self::OperandSegment => (x87.fdp >> 32) as u32,
            Self::OperandOffset => x87.fdp as u32,
            Self::Opcode => x87.fop.into(),
        }
    }

    /// Writes it, as far as it has a place.
    pub fn write(self, x87: &mut X87State, value: u32) {
        let upper = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        let lower = |old: u64| old & !0xffff_ffff | u64::from(value);
        match self {
            Self::Control => x87.fcw = value as u16,
            Self::Status => x87.fsw = value as u16,
            Self::Tags => {
                let is_full = |register: &u32| value >> (register * 2) & 3 != EMPTY;
                x87.ftw = (0..8).filter(is_full).fold(0, |tags, register| tags | 1 << register);
            }
            Self::InstructionSegment => x87.fip = upper(x87.fip),
            Self::InstructionOffset => x87.fip = lower(x87.fip),
            Self::OperandSegment => x87.fdp = upper(x87.fdp),
            Self::OperandOffset => x87.fdp = lower(x87.fdp),
            Self::Opcode => x87.fop = value as u16 & 0x7ff,
        }
    }
}

const VALID: u32 = 0;
const ZERO: u32 = 1;
const SPECIAL: u32 = 2;
const EMPTY: u32 = 3;

/// The tag word of two bits a physical register (SDM Vol. 1, 8.1.7), from that of one bit.
fn full_tags(x87: &X87State) -> u32 {
    let top = u32::from(x87.fsw >> 11 & 7);
    (0..8u32).fold(0, |tags, register| {
        let [mantissa, sign_and_exponent] = x87.st[(register.wrapping_sub(top) & 7) as usize];
        let tag = match sign_and_exponent & 0x7fff {
            _ if x87.ftw >> register & 1 == 0 => EMPTY,
            0 if mantissa == 0 => ZERO,
            0 | 0x7fff => SPECIAL,
            // Numbers without the leading one are no longer supported.
            _ if mantissa >> 63 == 0 => SPECIAL,
            _ => VALID,
        };
        tags | tag << (register * 2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::state::VectorState;

    #[test]
    fn tags_are_of_physical_registers() {
        let mut x87 = VectorState::default().x87;
        // After FNINIT, FLD1, FLDZ: ST(0) is register 6.
        x87.fsw = 6 << 11;
        x87.ftw = 0b1100_0000;
        x87.st[0] = [0, 0];
        x87.st[1] = [1 << 63, 0x3fff];
        assert_eq!(Field::Tags.read(&x87), 0x1fff);
        Field::Tags.write(&mut x87, 0x1fff);
        assert_eq!(x87.ftw, 0b1100_0000);
        x87.st[1] = [0, 0x7fff];
        assert_eq!(Field::Tags.read(&x87), 0x9fff);
    }
}
