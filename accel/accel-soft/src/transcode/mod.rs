//! The transcoder: runs guest code as host code, most of it unchanged.
//!
//! [`translate`] makes blocks of host code from blocks of guest code; [`cache`] keeps them;
//! [`proof`] has each of
//! them checked, [`engine`] runs them and does what they cannot, with the help of the interpreter. What
//! translated code works on is the [`context`].

mod assembler;
pub(crate) mod cache;
mod classify;
pub(crate) mod context;
#[cfg(test)]
mod emission;
pub(crate) mod engine;
pub(crate) mod entry;
mod far_links;
mod flat;
mod journal;
pub mod lockstep;
mod lost_flags;
pub(crate) mod mirror;
mod packed_exit;
mod placed_jumps;
pub(crate) mod proof;
mod registers;
mod second_level;
mod sites;
mod strings;
mod translate;
pub(crate) mod watch;
