//! A network of the host: the card's other end is a tap.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use links::Tap;
use rustix::io::{Errno, read, write};

use crate::Backend;

impl Backend for Tap {
    fn transmit(&self, frame: &[u8]) -> bool {
        loop {
            match write(self, frame) {
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                // There is no room, or the interface is off or gone.
                Err(_) => return false,
            }
        }
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match read(self, &mut *frame) {
                Ok(len) => return Ok(Some(len)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                // EBADFD: somebody has removed the interface.
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}
