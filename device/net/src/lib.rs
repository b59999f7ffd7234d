//! Network back ends: the user-mode network, taps of the host, and DHCP and DNS at their edge.

#![forbid(unsafe_code)]

pub mod edge;
mod tap;
pub mod user;

use std::io;
use std::os::fd::BorrowedFd;

pub use links::Tap;

/// The far end of a guest's network card. Frames are whole Ethernet frames without FCS and
/// without a virtio-net header.
pub trait Backend: Send + Sync {
    /// Takes a frame that the guest sent. Never blocks: one that finds no room is dropped, and `false`
    /// is returned.
    fn transmit(&self, frame: &[u8]) -> bool;

    /// Whether it takes frames as they are before a card has worked on them: TCP and UDP checksums may
    /// be missing, and TCP segments may be as long as IP packets can be.
    fn takes_unfinished(&self) -> bool {
        false
    }

    /// Moves the next frame for the guest into `frame` and returns its length, or `None` if
    /// there is none. A frame longer than `frame` is dropped.
    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>>;

    /// Readable while frames may be waiting; for poll(2) by the receive queue's worker.
    fn readable(&self) -> BorrowedFd<'_>;
}
