//! The host's processor as an oracle for the engine.
//!
//! Random user-mode instructions with random registers and memory run twice: on the host, in a
//! child process that does nothing else ([`host`]), and in a small guest of the interpreter
//! ([`engine`]). Registers, flags, memory and faults must come out the same ([`compare`]).
//! A case follows from a seed and its number alone ([`generate`]), so that each can be repeated
//! on its own.

pub mod blocks;
pub mod case;
pub mod compare;
pub mod encode;
pub mod engine;
pub mod excuse;
pub mod generate;
pub mod host;
mod intel;
pub mod layout;
pub mod random;
pub mod repertoire;
pub mod run;
pub mod sequence;
pub mod skip;
pub mod transcoder;
