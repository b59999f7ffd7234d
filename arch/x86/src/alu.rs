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

/// Flags as SAHF takes them in AH, with OF as bit 0 of AL.
#[inline(always)]
fn ax_from_flags(flags: Flags) -> u64 {
    (flags & 0xd5) << 8 | (flags >> 11 & 1)
}

/// Shifts and rotates. All flags go in, so that a count of zero, and the flags that a rotate
/// leaves alone, come out as the processor would have them.
pub trait Shift: Sized {
    /// SHL.
    fn shl(self, count: u8, flags: Flags) -> (Self, Flags);
    /// SHR.
    fn shr(self, count: u8, flags: Flags) -> (Self, Flags);
    /// SAR.
    fn sar(self, count: u8, flags: Flags) -> (Self, Flags);
    /// ROL.
    fn rol(self, count: u8, flags: Flags) -> (Self, Flags);
    /// ROR.
    fn ror(self, count: u8, flags: Flags) -> (Self, Flags);
    /// RCL.
    fn rcl(self, count: u8, flags: Flags) -> (Self, Flags);
    /// RCR.
    fn rcr(self, count: u8, flags: Flags) -> (Self, Flags);
}

macro_rules! shift {
    ($class:ident, $modifier:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, count: u8, flags: Flags) -> (Self, Flags) {
            let (result, ax): (Self, u64);
            // SAFETY: register arithmetic only; no memory, no stack.
            unsafe {
                asm!(
                    "add al, 0x7f", // OF becomes bit 0
                    "sahf",
                    concat!(stringify!($name), " {a", $modifier, "}, cl"),
                    "lahf",
                    "seto al",
                    a = inout($class) self => result,
                    in("cl") count,
                    inout("rax") ax_from_flags(flags) => ax,
                    options(pure, nomem, nostack),
                );
            }
            (result, flags_from_ax(ax))
        }
    )*};
}

/// What exists for 16, 32 and 64 bits only. All flags go in and out, as with [`Shift`].
pub trait WideAlu: Sized {
    /// SHLD.
    fn shld(self, b: Self, count: u8, flags: Flags) -> (Self, Flags);
    /// SHRD.
    fn shrd(self, b: Self, count: u8, flags: Flags) -> (Self, Flags);
    /// IMUL with two operands.
    fn imul(self, b: Self, flags: Flags) -> (Self, Flags);
    /// BSF; `self` is the destination's old value, which stays if `b` is zero.
    fn bsf(self, b: Self, flags: Flags) -> (Self, Flags);
    /// BSR; likewise.
    fn bsr(self, b: Self, flags: Flags) -> (Self, Flags);
    /// TZCNT, or BSF on a host without BMI1.
    fn tzcnt(self, b: Self, flags: Flags) -> (Self, Flags);
    /// LZCNT, or BSR on a host without it.
    fn lzcnt(self, b: Self, flags: Flags) -> (Self, Flags);
    /// POPCNT.
    fn popcnt(self, b: Self, flags: Flags) -> (Self, Flags);
    /// BT; the result is `self`.
    fn bt(self, b: Self, flags: Flags) -> (Self, Flags);
    /// BTS.
    fn bts(self, b: Self, flags: Flags) -> (Self, Flags);
    /// BTR.
    fn btr(self, b: Self, flags: Flags) -> (Self, Flags);
    /// BTC.
    fn btc(self, b: Self, flags: Flags) -> (Self, Flags);
    /// MUL: low half, high half.
    fn mul_wide(self, b: Self, flags: Flags) -> (Self, Self, Flags);
    /// IMUL with one operand: low half, high half.
    fn imul_wide(self, b: Self, flags: Flags) -> (Self, Self, Flags);
}

macro_rules! wide_binary {
    ($modifier:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, b: Self, flags: Flags) -> (Self, Flags) {
            let (result, ax): (Self, u64);
            // SAFETY: register arithmetic only; no memory, no stack.
            unsafe {
                asm!(
                    "add al, 0x7f",
                    "sahf",
                    concat!(stringify!($name), " {a", $modifier, "}, {b", $modifier, "}"),
                    "lahf",
                    "seto al",
                    a = inout(reg) self => result,
                    b = in(reg) b,
                    inout("rax") ax_from_flags(flags) => ax,
                    options(pure, nomem, nostack),
                );
            }
            (result, flags_from_ax(ax))
        }
    )*};
}

macro_rules! double_shift {
    ($modifier:literal, $($name:ident)*) => {$(
        #[inline(always)]
        fn $name(self, b: Self, count: u8, flags: Flags) -> (Self, Flags) {
            let (result, ax): (Self, u64);
            // SAFETY: register arithmetic only; no memory, no stack.
            unsafe {
                asm!(
                    "add al, 0x7f",
                    "sahf",
                    concat!(stringify!($name), " {a", $modifier, "}, {b", $modifier, "}, cl"),
                    "lahf",
                    "seto al",
                    a = inout(reg) self => result,
                    b = in(reg) b,
                    in("cl") count,
                    inout("rax") ax_from_flags(flags) => ax,
                    options(pure, nomem, nostack),
                );
            }
            (result, flags_from_ax(ax))
        }
    )*};
}

macro_rules! multiply {
    ($modifier:literal, $($name:ident = $insn:literal;)*) => {$(
        #[inline(always)]
        fn $name(self, b: Self, flags: Flags) -> (Self, Self, Flags) {
            let (low, high): (u64, u64);
            let ax: u64;
            // SAFETY: register arithmetic only; no memory, no stack.
            unsafe {
                asm!(
                    "add al, 0x7f",
                    "sahf",
                    "mov rax, {a}",
                    concat!($insn, " {b", $modifier, "}"),
                    "mov {a}, rax",
                    "lahf",
                    "seto al",
                    a = inout(reg) u64::from(self) => low,
                    b = in(reg) b,
                    inout("rax") ax_from_flags(flags) => ax,
                    out("rdx") high,
                    options(pure, nomem, nostack),
                );
            }
            (low as Self, high as Self, flags_from_ax(ax))
        }
    )*};
}

macro_rules! wide_alu {
    ($ty:ty, $modifier:literal) => {
        impl WideAlu for $ty {
            wide_binary!($modifier, imul bsf bsr tzcnt lzcnt popcnt bt bts btr btc);
            double_shift!($modifier, shld shrd);
            multiply!($modifier, mul_wide = "mul"; imul_wide = "imul";);
        }
    };
}

macro_rules! shifts {
    ($ty:ty, $class:ident, $modifier:literal) => {
        impl Shift for $ty {
            shift!($class, $modifier, shl shr sar rol ror rcl rcr);
        }
    };
}

shifts!(u8, reg_byte, "");
shifts!(u16, reg, ":x");
shifts!(u32, reg, ":e");
shifts!(u64, reg, ":r");
wide_alu!(u16, ":x");
wide_alu!(u32, ":e");
wide_alu!(u64, ":r");

/// MUL and IMUL of bytes: AX.
pub fn multiply_bytes(a: u8, b: u8, signed: bool, flags: Flags) -> (u16, Flags) {
    let (product, ax): (u64, u64);
    macro_rules! run {
        ($insn:literal) => {
            // SAFETY: register arithmetic only; no memory, no stack.
            unsafe {
                asm!(
                    "add al, 0x7f",
                    "sahf",
                    "mov eax, {a:e}",
                    concat!($insn, " {b}"),
                    "movzx {a:e}, ax",
                    "lahf",
                    "seto al",
                    a = inout(reg) u64::from(a) => product,
                    b = in(reg_byte) b,
                    inout("rax") ax_from_flags(flags) => ax,
                    options(pure, nomem, nostack),
                );
            }
        };
    }
    if signed {
        run!("imul");
    } else {
        run!("mul");
    }
    (product as u16, flags_from_ax(ax))
}

macro_rules! bmi {
    ($(#[$doc:meta] $name:ident($($arg:ident),*) flags = $insn:literal;)*) => {$(
        #[$doc]
        #[inline]
        pub fn $name<W: crate::Word>($($arg: W,)* flags: Flags) -> (W, Flags) {
            let (result, ax): (u64, u64);
            macro_rules! run {
                ($modifier:literal) => {
                    // SAFETY: register arithmetic only; no memory, no stack.
                    unsafe {
                        asm!(
                            "add al, 0x7f",
                            "sahf",
                            concat!($insn, " {r", $modifier, "}", $(", {", stringify!($arg), $modifier, "}"),*),
                            "lahf",
                            "seto al",
                            r = out(reg) result,
                            $($arg = in(reg) { let wide: u64 = $arg.into(); wide },)*
                            inout("rax") ax_from_flags(flags) => ax,
                            options(pure, nomem, nostack),
                        );
                    }
                };
            }
            if W::SIZE == 8 {
                run!(":r");
            } else {
                run!(":e");
            }
            (W::truncate(result), flags_from_ax(ax))
        }
    )*};
}

// A guest sees these only if the host has them: CPUID hides them otherwise.
bmi! {
    /// ANDN.
    andn(a, b) flags = "andn";
    /// BEXTR.
    bextr(a, control) flags = "bextr";
    /// BLSI.
    blsi(a) flags = "blsi";
    /// BLSMSK.
    blsmsk(a) flags = "blsmsk";
    /// BLSR.
    blsr(a) flags = "blsr";
    /// BZHI.
    bzhi(a, index) flags = "bzhi";
    /// PDEP; flags stay.
    pdep(a, mask) flags = "pdep";
    /// PEXT; flags stay.
    pext(a, mask) flags = "pext";
}

/// One step of CRC32 (SSE4.2) over the `W::SIZE` bytes of `data`.
pub fn crc32<W: crate::Word>(crc: u32, data: W) -> u32 {
    // The reflected Castagnoli polynomial, bit by bit: rare enough not to matter.
    let data: u64 = data.into();
    let mut crc = crc;
    for byte in &data.to_le_bytes()[..W::SIZE] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    crc
}

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
