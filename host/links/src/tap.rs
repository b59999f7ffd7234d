//! A tap: a network interface whose cable ends in this process.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::request::Request;
use crate::{Error, Links};

const TUN: &str = "/dev/net/tun";
/// What taps are called: the kernel puts in the first number that is free.
const NAME: &str = "lodge%d";

/// A tap: a network interface whose cable ends in this process. What is read from its descriptor is
/// a frame that the host sends, without FCS and any other header; what is written is one that it
/// receives. Neither blocks.
///
/// A tap that this made is gone when the descriptor is closed, also if this process is killed.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Makes a tap and connects it to a bridge, for a guest's card with the address `mac`.
    ///
    /// # Errors
    ///
    /// No such bridge, not a bridge; no /dev/net/tun, no privilege.
    pub fn on_bridge(bridge: &str, mac: [u8; 6]) -> Result<Self, Error> {
        let links = Links::new()?;
        if links.index(bridge)?.is_none() {
            return Err(Error::Missing(bridge.to_owned()));
        }
        let tap = Self::open(NAME, &format!("connect a guest to the bridge {bridge}"))?;
        // A bridge takes the lowest address of its ports for its own, so that it would change with
        // each guest: ports get a high one (as libvirt does).
        let [_, rest @ ..] = mac;
        let [b, c, d, e, f] = rest;
        links.set_hardware_address(&tap.name, [0xfe, b, c, d, e, f])?;
        links.add_to_bridge(bridge, &tap.name)?;
        links.set_up(&tap.name, true)?;
        Ok(tap)
    }

    /// Opens a tap that somebody has made for this user, with `ip tuntap add`.
    ///
    /// # Errors
    ///
    /// No such tap, or somebody else's; no /dev/net/tun.
    pub fn existing(name: &str) -> Result<Self, Error> {
        // Else the kernel would make one.
        if Links::new()?.index(name)?.is_none() {
            return Err(Error::Missing(name.to_owned()));
        }
        Self::open(name, &format!("open the tap {name}, which is another user's"))
    }

    /// One that another process has made or opened.
    #[must_use]
    pub fn given(descriptor: OwnedFd, name: String) -> Self {
        Self { file: descriptor.into(), name }
    }

    fn open(name: &str, what: &str) -> Result<Self, Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN)
            .map_err(Error::NoTun)?;
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
        let mut request = Request::about(name)?.with(&flags.to_ne_bytes());
        request.call(&file, libc::TUNSETIFF).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => Error::InUse(name.to_owned()),
            Some(libc::EINVAL) => Error::NotATap(name.to_owned()),
            _ => Error::new(what, name, error),
        })?;
        Ok(Self { file, name: request.name() })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// For another process.
impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> Self {
        tap.file.into()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
