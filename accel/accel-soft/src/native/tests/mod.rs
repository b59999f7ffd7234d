//! Tests of the native unit, alone and under the interpreter.

mod architecture;
mod guest;
mod masks;
mod save;
mod unit;
