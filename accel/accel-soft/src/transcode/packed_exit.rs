//! Exits in eight bytes: there is one for nearly every load and store.

use super::translate::{Departure, Exit};

/// An exit: its kind in bits 2:0, the offset of the instruction in its page in bits 15:3, how far
/// back the flags come from in bits 63:56, the rest between them.
#[derive(Clone, Copy)]
pub struct PackedExit(u64);

/// Offsets in code memory have so many bits.
const PLACE: u32 = 26;

impl PackedExit {
    pub fn pack(Departure { exit, back }: Departure) -> Self {
        let (kind, at, rest) = match exit {
            Exit::Attention { at } => (0, at, 0),
            Exit::Chain { at } => (1, at, 0),
            Exit::Branch { at, stack } => (2, at, stack as u32 as u64),
            Exit::Miss { at, retry, size, write, merged } => {
                let kind = u64::from(size) | u64::from(write) << 8 | u64::from(merged) << 9;
                (3, at, u64::from(retry) | kind << PLACE)
            }
            Exit::Interpret { at, next, resume } => {
                (4, at, u64::from(resume) | u64::from(next & 0x1fff) << PLACE)
            }
            Exit::Fault => (5, 0, 0),
            // The stack is moved by a word, if at all.
            Exit::FarChain { at, stack, link } => {
                (6, at, u64::from(link) | u64::from(stack.unsigned_abs()) << PLACE)
            }
        };
        Self(kind | u64::from(at & 0x1fff) << 3 | rest << 16 | u64::from(back) << 56)
    }

    /// The exit.
    pub fn unpack(self) -> Departure {
        let at = (self.0 >> 3 & 0x1fff) as u16;
        let rest = self.0 >> 16;
        let place = rest as u32 & ((1 << PLACE) - 1);
        let more = rest >> PLACE;
        let exit = match self.0 & 7 {
            0 => Exit::Attention { at },
            1 => Exit::Chain { at },
            2 => Exit::Branch { at, stack: rest as i32 },
            3 => {
                let (write, merged) = (more & 0x100 != 0, more & 0x200 != 0);
                Exit::Miss { at, retry: place, size: more as u8, write, merged }
            }
            5 => Exit::Fault,
            6 => Exit::FarChain { at, stack: -i32::from(more as u8), link: place },
            _ => Exit::Interpret { at, next: (more & 0x1fff) as u16, resume: place },
        };
        Departure { exit, back: (self.0 >> 56) as u8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_survive_packing() {
        for exit in [
            Exit::Attention { at: 4095 },
            Exit::Fault,
            Exit::Chain { at: 0 },
            Exit::Branch { at: 17, stack: -8 },
            Exit::Branch { at: 4095, stack: 0x1_0007 },
            Exit::FarChain { at: 4095, stack: -8, link: 0x03ff_ffff },
            Exit::FarChain { at: 0, stack: 0, link: 4 },
            Exit::Miss { at: 4094, retry: 0x03ff_ffff, size: 128, write: true, merged: true },
            Exit::Miss { at: 1, retry: 1, size: 1, write: false, merged: false },
            Exit::Interpret { at: 4095, next: 4096, resume: 0x03ff_ffff },
        ] {
            for back in [0, 255] {
                let departure = Departure { exit, back };
                assert_eq!(PackedExit::pack(departure).unpack(), departure);
            }
        }
    }
}
