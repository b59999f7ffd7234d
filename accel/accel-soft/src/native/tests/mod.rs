//! Tests of the native unit, alone and under the interpreter.

mod architecture;
mod encodings;
mod guest;
mod masks;
mod random;
mod save;
mod unit;

/// Components of vector registers that this host has.
fn components() -> u64 {
    std::arch::x86_64::__cpuid_count(0xd, 0).eax.into()
}
