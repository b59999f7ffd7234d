//! Stores of the guest that are nothing but a wake-up.

use std::io;

use crate::Event;

/// Whoever can raise an event for a store of the guest, in the place of the device whose register
/// it goes to and sooner: an accelerator, if it has that to offer.
pub trait Doorbells: Send + Sync {
    /// Has each store to the guest physical address `address`, of any length and value, raise
    /// `event`. The device is not told of it any more.
    ///
    /// # Errors
    ///
    /// The host's, if it has no room for more or something is there already. The device is told of
    /// stores as before.
    fn attach(&self, address: u64, event: &Event) -> io::Result<()>;

    /// Ends what [`attach`](Self::attach) began with the same address and event.
    fn detach(&self, address: u64, event: &Event);
}
