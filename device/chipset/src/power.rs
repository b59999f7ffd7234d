//! What a guest asks of its machine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use runtime::Event;

/// A guest's request that its machine has to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Soft off (ACPI S5): end the guest in good order.
    PowerOff,
    /// Reset the whole machine.
    Reset,
    /// End the guest, whose only program has ended with this status.
    Exit {
        /// What the guest wrote.
        status: u8,
    },
    /// A test kernel ends the VMM with a result: see [`PowerRequest::debug_exit_status`].
    DebugExit {
        /// What the guest wrote.
        value: u32,
    },
}

impl PowerRequest {
    /// The exit status that QEMU's isa-debug-exit gives for a written value: `(value << 1) | 1`,
    /// of which the host keeps the low 8 bits.
    pub fn debug_exit_status(value: u32) -> u8 {
        (value << 1 | 1) as u8
    }
}

#[derive(Debug)]
struct Channel {
    first: Mutex<Option<PowerRequest>>,
    event: Event,
}

/// The devices' end: says what the guest asks for. Any thread may call; never blocks.
#[derive(Clone, Debug)]
pub struct PowerSender(Arc<Channel>);

/// The machine's end. Its file descriptor is readable while a request waits.
#[derive(Debug)]
pub struct PowerRequests(Arc<Channel>);

/// Makes both ends. Fails when the process is out of file descriptors.
pub fn power_channel() -> io::Result<(PowerSender, PowerRequests)> {
    let channel = Arc::new(Channel { first: Mutex::default(), event: Event::new()? });
    Ok((PowerSender(channel.clone()), PowerRequests(channel)))
}

impl PowerSender {
    /// Passes a request on. While one waits, further ones are dropped: a processor may run on a
    /// little before the machine stops it, and what it asks for then is moot.
    pub fn send(&self, request: PowerRequest) {
        let mut first = self.0.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            *first = Some(request);
            self.0.event.signal();
        }
    }
}

impl PowerRequests {
    /// Takes the request that waits, if one does.
    pub fn take(&self) -> Option<PowerRequest> {
        let mut first = self.0.first.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.event.clear();
        first.take()
    }

    /// Waits for a request.
    pub fn wait(&self) -> PowerRequest {
        loop {
            self.0.event.wait();
            if let Some(request) = self.take() {
                return request;
            }
        }
    }
}

impl AsFd for PowerRequests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_counts() {
        let (sender, requests) = power_channel().unwrap();
        assert_eq!(requests.take(), None);
        sender.send(PowerRequest::Reset);
        sender.clone().send(PowerRequest::PowerOff);
        assert_eq!(requests.wait(), PowerRequest::Reset);
        assert_eq!(requests.take(), None);
        sender.send(PowerRequest::PowerOff);
        assert_eq!(requests.take(), Some(PowerRequest::PowerOff));
    }

    #[test]
    fn debug_exit_status_is_odd_and_eight_bits() {
        assert_eq!(PowerRequest::debug_exit_status(0), 1);
        assert_eq!(PowerRequest::debug_exit_status(0x10), 0x21);
        assert_eq!(PowerRequest::debug_exit_status(u32::MAX), 0xff);
    }
}
