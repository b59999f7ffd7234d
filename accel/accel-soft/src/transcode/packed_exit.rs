//! Exits in eight bytes: there is one for nearly every load and store.

use super::translate::Exit;

/// An exit: its kind in bits 2:0, the offset of the instruction in its page in bits 15:3, the
/// rest above.
#[derive(Clone, Copy)]
pub struct PackedExit(u64);

impl PackedExit {
    /// Offsets in code memory have less than 32 bits, so everything fits.
    pub fn pack(exit: Exit) -> Self {
        let (kind, at, rest) = match exit {
            Exit::Attention { at } => (0, at, 0),
            Exit::Chain { at } => (1, at, 0),
            Exit::Branch { at, stack } => (2, at, stack as u32 as u64),
            Exit::Miss { at, retry, size, write } => {
                (3, at, u64::from(retry) | u64::from(size) << 32 | u64::from(write) << 40)
            }
            Exit::Interpret { at, next, resume } => {
                (4, at, u64::from(resume) | u64::from(next) << 32)
            }
        };
        Self(kind | u64::from(at & 0x1fff) << 3 | rest << 16)
    }

    /// The exit.
    pub fn unpack(self) -> Exit {
        let at = (self.0 >> 3 & 0x1fff) as u16;
        let low = (self.0 >> 16) as u32;
        let high = (self.0 >> 48) as u16;
        match self.0 & 7 {
            0 => Exit::Attention { at },
            1 => Exit::Chain { at },
            2 => Exit::Branch { at, stack: low as i32 },
            3 => Exit::Miss { at, retry: low, size: high as u8, write: high & 0x100 != 0 },
            _ => Exit::Interpret { at, next: high, resume: low },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_survive_packing() {
        for exit in [
            Exit::Attention { at: 4095 },
            Exit::Chain { at: 0 },
            Exit::Branch { at: 17, stack: -8 },
            Exit::Branch { at: 4095, stack: 0x1_0007 },
            Exit::Miss { at: 4094, retry: 0x03ff_ffff, size: 64, write: true },
            Exit::Miss { at: 1, retry: 1, size: 1, write: false },
            Exit::Interpret { at: 4095, next: 4096, resume: u32::MAX },
        ] {
            assert_eq!(PackedExit::pack(exit).unpack(), exit);
        }
    }
}
