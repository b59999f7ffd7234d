//! Networks that connect guests: a bridge of the host each, its address, and rules of who may talk to
//! whom, and which address each guest has.
//!
//! What a network is stands in a file of its own below `$LODGE_HOME/networks`; what the host has of it
//! (bridge, address, rules) is made of that file again whenever it is needed, so that neither a reboot
//! nor a kill in the midst of anything leaves more than the next command puts right.

#![forbid(unsafe_code)]

mod host;
mod lease;
mod network;
mod rules;
mod store;
mod subnet;
mod tap;

pub use lease::Lease;
pub use network::{Network, Reach};
pub use store::Store;
pub use subnet::Subnet;
pub use tap::{existing_tap, tap_on_bridge};
