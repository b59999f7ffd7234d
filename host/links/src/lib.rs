//! Network interfaces of the host: taps, the bridges that connect them, and their addresses.
//!
//! All of it is done by the ioctls of netdevice(7), `linux/if_tun.h` and `linux/sockios.h`: they are
//! few, need no daemon and no other program, and concern the network namespace of this process.

mod error;
mod links;
mod request;
mod tap;

pub use error::Error;
pub use links::Links;
pub use tap::Tap;
