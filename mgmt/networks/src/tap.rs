//! Taps for cards of guests that run already.

use std::os::fd::OwnedFd;

use links::Tap;
use vmm_api::Failure;

/// Makes a tap on a bridge, for a card with the address `mac`: its name, and its descriptor, which it is gone
/// with.
///
/// # Errors
///
/// No such bridge, no privilege.
pub fn tap_on_bridge(bridge: &str, mac: [u8; 6]) -> Result<(String, OwnedFd), Failure> {
    Tap::on_bridge(bridge, mac).map(parts).map_err(failure)
}

/// Opens a tap that somebody has made.
///
/// # Errors
///
/// No such tap, in use, or somebody else's.
pub fn existing_tap(name: &str) -> Result<(String, OwnedFd), Failure> {
    Tap::existing(name).map(parts).map_err(failure)
}

fn parts(tap: Tap) -> (String, OwnedFd) {
    (tap.name().to_owned(), tap.into())
}

fn failure(error: links::Error) -> Failure {
    if error.is_configuration() { Failure::configuration(error) } else { Failure::host(error) }
}
