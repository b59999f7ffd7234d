//! Tests of the native unit, alone and under the interpreter.

mod architecture;
mod encodings;
mod guest;
mod masks;
mod random;
mod save;
mod unit;
