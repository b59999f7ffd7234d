//! Integer arithmetic with flags, done by the host's own instructions.
//!
//! Guest and host are the same architecture, so the host computes each result and its flags,
//! those that the manuals leave undefined included. Flags come back as bits of RFLAGS; only
//! those in [`Rflags::STATUS`](crate::state::Rflags::STATUS) can be set.

use core::arch::asm;

/// The status flags, as bits of RFLAGS.
pub type Flags = u64;

/// Undoes LAHF and SETO: AH holds SF, ZF, AF, PF and CF in their places, AL holds OF.
#[inline(always)]
fn flags_from_ax(ax: u64) -> Flags {
    (ax >> 8 & 0xd5) | (ax & 1) << 11
}

/// The arithmetic of one operand width.
pub trait Alu: Sized {
    /// ADD.
    fn add(self, b: Self) -> (Self, Flags);
    /// ADC; `flags` gives CF.
    fn adc(self, b: Self, flags: Flags) -> (Self, Flags);
    /// SUB, CMP.
    fn sub(self, b: Self) -> (Self, Flags);
    /// SBB; `flags` gives CF.
    fn sbb(self, b: Self, flags: Flags) -> (Self, Flags);
    /// AND, TEST.
    fn and(self, b: Self) -> (Self, Flags);
    /// OR.
    fn or(self, b: Self) -> (Self, Flags);
    /// XOR.
    fn xor(self, b: Self) -> (Self, Flags);
    /// INC; `flags` gives CF, which stays.
    fn inc(self, flags: Flags) -> (Self, Flags);
    /// DEC; `flags` gives CF, which stays.
    fn dec(self, flags: Flags) -> (Self, Flags);
    /// NEG.
    fn neg(self) -> (Self, Flags);
    /// NOT; touches no flags.
    fn not(self) -> Self;
}

macro_rules! binary {
    ($ty:ty, $class:ident, $modifier:literal, $name:ident, $insn:literal) => {
        #[inline(always)]
        fn $name(self, b: Self) -> (Self, Flags) {
            let (result, ax): (Self, u64);
            // SAFETY: register arithmetic only; no memory, no stack.
            unsafe {
                asm!(
                    concat!($insn, " {a", $modifier, "}, {b", $modifier, "}"),
                    "lahf",
                    "seto al",
                    a = inout($class) self => result,
                    b = in($class) b,
                    out("rax") ax,
                    options(pure, nomem, nostack),
                );
            }
            (result, flags_from_ax(ax))
        }
    };
}

macro_rules! binary_with_carry {
    ($ty:ty, $class:ident, $modifier:literal, $name:ident, $insn:literal) => {
        #[inline(always)]
        fn $name(self, b: Self, flags: Flags) -> (Self, Flags) {
            let (result, ax): (Self, u64);
            // SAFETY: register arithmetic only; no memory, no stack.
            unsafe {
                asm!(
                    "bt eax, 0",
                    concat!($insn, " {a", $modifier, "}, {b", $modifier, "}"),
                    "lahf",
                    "seto al",
                    a = inout($class) self => result,
                    b = in($class) b,
                    inout("rax") flags => ax,
                    options(pure, nomem, nostack),
                );
            }
            (result, flags_from_ax(ax))
        }
    };
}

macro_rules! unary_with_carry {
    ($ty:ty, $class:ident, $modifier:literal, $name:ident, $insn:literal) => {
        #[inline(always)]
        fn $name(self, flags: Flags) -> (Self, Flags) {
            let (result, ax): (Self, u64);
            // SAFETY: register arithmetic only; no memory, no stack.
            unsafe {
                asm!(
                    "bt eax, 0",
                    concat!($insn, " {a", $modifier, "}"),
                    "lahf",
                    "seto al",
                    a = inout($class) self => result,
                    inout("rax") flags => ax,
                    options(pure, nomem, nostack),
                );
            }
            (result, flags_from_ax(ax))
        }
    };
}

macro_rules! alu {
    ($ty:ty, $class:ident, $modifier:literal) => {
        impl Alu for $ty {
            binary!($ty, $class, $modifier, add, "add");
            binary!($ty, $class, $modifier, sub, "sub");
            binary!($ty, $class, $modifier, and, "and");
            binary!($ty, $class, $modifier, or, "or");
            binary!($ty, $class, $modifier, xor, "xor");
            binary_with_carry!($ty, $class, $modifier, adc, "adc");
            binary_with_carry!($ty, $class, $modifier, sbb, "sbb");
            unary_with_carry!($ty, $class, $modifier, inc, "inc");
            unary_with_carry!($ty, $class, $modifier, dec, "dec");
            #[inline(always)]
            fn neg(self) -> (Self, Flags) {
                <$ty as Alu>::sub(0, self)
            }
            #[inline(always)]
            fn not(self) -> Self {
                !self
            }
        }
    };
}

alu!(u8, reg_byte, "");
alu!(u16, reg, ":x");
alu!(u32, reg, ":e");
alu!(u64, reg, ":r");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Rflags;

    #[test]
    fn flags_arrive_in_their_places() {
        let (r, f) = Alu::add(0x7fu8, 1);
        assert_eq!(r, 0x80);
        assert_eq!(f, (Rflags::OF | Rflags::SF | Rflags::AF).bits());
        let (r, f) = Alu::sub(0u32, 1);
        assert_eq!(r, u32::MAX);
        assert_eq!(f, (Rflags::CF | Rflags::SF | Rflags::AF | Rflags::PF).bits());
        let (r, f) = Alu::xor(5u64, 5);
        assert_eq!((r, f & !Rflags::AF.bits()), (0, (Rflags::ZF | Rflags::PF).bits()));
    }

    #[test]
    fn carry_goes_in_and_through() {
        assert_eq!(Alu::adc(1u16, 1, Rflags::CF.bits()).0, 3);
        assert_eq!(Alu::sbb(1u16, 1, Rflags::CF.bits()).0, 0xffff);
        assert_eq!(Alu::adc(1u16, 1, !Rflags::CF.bits()).0, 2);
        assert_eq!(Alu::inc(0xffu8, Rflags::CF.bits()).1 & 1, 1);
        assert_eq!(Alu::inc(0xffu8, 0).1 & 1, 0);
    }
}
