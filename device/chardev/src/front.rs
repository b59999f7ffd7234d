//! The device's side of a console.

use std::sync::{Mutex, PoisonError};

/// A console device as its back end sees it. Called on the back end's worker thread, with no
/// lock of this crate held.
pub trait FrontEnd: Send + Sync {
    /// How many bytes of input the device can take now. When the answer grows, the device calls
    /// [`crate::Chardev::accept_input`].
    fn can_receive(&self) -> usize;

    /// Takes input, at most as much as [`FrontEnd::can_receive`] last said.
    fn receive(&self, data: &[u8]);

    /// After a [`crate::Chardev::write`] that did not take all: there is room now.
    fn room(&self);
}

/// A console device behind a lock of its own, as devices on a bus are: [`FrontEnd`] with the
/// lock held.
pub trait FrontEndMut: Send {
    /// As [`FrontEnd::can_receive`].
    fn can_receive(&mut self) -> usize;

    /// As [`FrontEnd::receive`].
    fn receive(&mut self, data: &[u8]);

    /// As [`FrontEnd::room`].
    fn room(&mut self);
}

impl<T: FrontEndMut + ?Sized> FrontEnd for Mutex<T> {
    fn can_receive(&self) -> usize {
        self.lock().unwrap_or_else(PoisonError::into_inner).can_receive()
    }

    fn receive(&self, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).receive(data);
    }

    fn room(&self) {
        self.lock().unwrap_or_else(PoisonError::into_inner).room();
    }
}
