//! A wake-up that poll(2) sees.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// A flag that one thread raises and another waits for, alone or together with other file
/// descriptors (it is readable while raised). An eventfd(2); any thread may call.
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
}

impl Event {
    /// An event that is not raised. Fails when the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Raises the event. Raising it again before it is cleared changes nothing.
    pub fn signal(&self) {
        // The one failure is a counter at its limit: it is raised all the same.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Clears the event and says whether it was raised.
    pub fn clear(&self) -> bool {
        rustix::io::read(&self.fd, &mut [0u8; 8]).is_ok()
    }

    /// Waits until the event is raised, and clears it.
    pub fn wait(&self) {
        while !self.clear() {
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                // Out of kernel memory: no wait is possible, so come back in a little.
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn signals_merge_and_clear() {
        let event = Event::new().unwrap();
        assert!(!event.clear());
        event.signal();
        event.signal();
        assert!(event.clear());
        assert!(!event.clear());
    }

    #[test]
    fn wait_returns_for_a_signal_from_another_thread() {
        let event = Arc::new(Event::new().unwrap());
        let waiter = std::thread::spawn({
            let event = event.clone();
            move || event.wait()
        });
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(!waiter.is_finished());
        event.signal();
        waiter.join().unwrap();
        assert!(!event.clear());
    }
}
