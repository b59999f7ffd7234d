//! A guest that goes on from a snapshot is a copy of what ran before, perhaps beside others: what it
//! draws at random, and what its cards are called, has to be its own.
//!
//! Kernels with a driver for the VM generation ID draw new random numbers by themselves; many of
//! those that are made for clouds have none.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use agent_protocol::{CardChange, Renewal};

use crate::interface::Interface;

/// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` (Linux, include/uapi/linux/random.h).
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// `struct rand_pool_info` with as much as `lodge` sends.
#[repr(C)]
struct Entropy {
    /// How many bits nobody can guess.
    entropy_count: libc::c_int,
    /// How many bytes follow.
    buf_size: libc::c_int,
    buf: [u8; 32],
}

/// Makes the guest another one than that which it was.
///
/// # Errors
///
/// The kernel takes no entropy, or a card keeps its address. All else is done then.
pub fn renew(renewal: &Renewal) -> io::Result<()> {
    let reseeded = reseed(renewal.entropy);
    let changed = renewal.cards.iter().map(change).collect::<Vec<_>>();
    changed.into_iter().fold(reseeded, |first, result| first.and(result))
}

/// Has the kernel's random numbers depend on this as well, from now on.
fn reseed(buf: [u8; 32]) -> io::Result<()> {
    let device = File::options().write(true).open("/dev/random")?;
    let entropy = Entropy { entropy_count: 8 * 32, buf_size: 32, buf };
    // SAFETY: the call reads a `rand_pool_info` and the bytes that it says follow.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &entropy) };
    if result != 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(error.kind(), format!("/dev/random takes nothing: {error}")));
    }
    // Else it would come a minute later, as before Linux 4.14, which does not know the call.
    // SAFETY: the call has no argument.
    unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) };
    Ok(())
}

/// Gives a card another address, and has whatever configures it begin anew. A card that is not there
/// needs none.
fn change(card: &CardChange) -> io::Result<()> {
    for name in Interface::of_cards() {
        let interface = Interface::named(&name)?;
        if interface.hardware_address()? != card.from {
            continue;
        }
        let about = |error: io::Error| {
            io::Error::new(error.kind(), format!("the card {name} keeps its address: {error}"))
        };
        let was_up = interface.is_up();
        interface.down().map_err(about)?;
        let changed = interface.set_hardware_address(card.to).map_err(about);
        if was_up {
            interface.up().map_err(about)?;
        }
        return changed;
    }
    Ok(())
}
