//! Which host register stands for which of the guest's.
//!
//! Three host registers serve translated code itself: RAX keeps the status flags, RBX and RBP
//! form addresses. RSP points at the context. The guest's registers of these four names live in R8 to
//! R11, and its own R8 to R11, which compilers use least, in the context.

use iced_x86::Register;

use super::assembler::Reg;

/// Where a guest register lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In a host register.
    Host(Reg),
    /// In the context, by number.
    Memory(usize),
}

/// The guest's RAX.
pub const GUEST_RAX: Reg = Reg::R8;
/// The guest's RBX.
pub const GUEST_RBX: Reg = Reg::R9;
/// The guest's RSP.
pub const GUEST_RSP: Reg = Reg::R10;
/// The guest's RBP.
pub const GUEST_RBP: Reg = Reg::R11;

/// The home of general-purpose register `number`.
pub fn home(number: usize) -> Home {
    match number {
        0 => Home::Host(GUEST_RAX),
        3 => Home::Host(GUEST_RBX),
        4 => Home::Host(GUEST_RSP),
        5 => Home::Host(GUEST_RBP),
        8..=11 => Home::Memory(number),
        _ => Home::Host(Reg(number as u8)),
    }
}

/// The number of a general-purpose register of any size.
pub fn number(reg: Register) -> usize {
    reg.full_register() as usize - Register::RAX as usize
}

/// Whether it is AH, CH, DH or BH.
pub fn is_high_byte(reg: Register) -> bool {
    matches!(reg, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Host register `to` in the size of `like`, which is no high byte.
pub fn sized(to: Reg, like: Register) -> Register {
    let n = u32::from(to.0);
    match like.size() {
        // SPL to DIL come after BH in iced's order.
        1 if n < 4 => Register::AL + n,
        1 => Register::SPL + (n - 4),
        2 => Register::AX + n,
        4 => Register::EAX + n,
        _ => Register::RAX + n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_keep_their_size() {
        assert_eq!(sized(Reg(8), Register::AL), Register::R8L);
        assert_eq!(sized(Reg(6), Register::SIL), Register::SIL);
        assert_eq!(sized(Reg(3), Register::R9L), Register::BL);
        assert_eq!(sized(Reg(11), Register::EBP), Register::R11D);
        assert_eq!(number(Register::R10W), 10);
        assert_eq!(number(Register::BH), 3);
    }

    #[test]
    fn every_guest_register_has_a_home_of_its_own() {
        let homes: Vec<Home> = (0..16).map(home).collect();
        for (i, a) in homes.iter().enumerate() {
            assert!(!homes[..i].contains(a));
            assert!(!matches!(a, Home::Host(r) if [0, 3, 4, 5].contains(&r.0)));
        }
    }
}
