//! What `lodge` and the agent in a guest say to each other over a virtio socket.
//!
//! A connection is for one task. `lodge` begins with a [`Request`]; both sides then send frames
//! ([`frame`]) until the agent's last [`Reply`]. What the guest says is not trusted: lengths are
//! bounded, and what it sends as files goes where it was asked for and nowhere else ([`archive`]).
//!
//! ```text
//!   exec     Request, Input*, Control*      ->   Started, (Output | Errors | Credit)*, Exited
//!   stat     Request                        ->   Stat
//!   copy     Request, Input*                ->   Started, Output*, Done
//!   connect  Request, bytes                 ->   Started, bytes
//!   renew    Request                        ->   Done
//!                                                or Failed, in any place
//! ```

#![forbid(unsafe_code)]

pub mod archive;
pub mod data;
pub mod frame;
mod message;
pub mod program;

pub use message::{CardChange, Control, Exec, Kind, Renewal, Reply, Request, Size, Task};

/// The port at which the agent listens: below 1024, so that only root can take its place
/// (vsock(7)).
pub const PORT: u32 = 1023;

/// The version of what is said. An agent of another version says so and does nothing.
pub const VERSION: u32 = 1;

/// How many bytes of input `lodge` may send before the command has taken them. So a command that
/// reads nothing holds up neither signals nor its own output.
pub const INPUT_WINDOW: usize = 256 << 10;
