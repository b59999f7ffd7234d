//! `struct ifreq`, by which the kernel is asked about an interface (netdevice(7)).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use crate::Error;

/// The longest name, and the zero behind it.
const NAME: usize = libc::IFNAMSIZ;
/// The union behind the name: on 64-bit Linux as long as a `struct ifmap`.
const DATA: usize = 24;

/// `struct ifreq`: an interface's name, and what is asked or answered, at the start of `data`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Request {
    name: [u8; NAME],
    pub data: [u8; DATA],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    /// About the interface of this name. The kernel takes `%d` in it for the first number that is
    /// free where it makes an interface.
    pub fn about(name: &str) -> Result<Self, Error> {
        let bad = |byte: u8| byte == b'/' || byte == b':' || byte <= b' ' || byte == 0x7f;
        if name.is_empty()
            || name.len() >= NAME
            || name.bytes().any(bad)
            || [".", ".."].contains(&name)
        {
            return Err(Error::Name(name.to_owned()));
        }
        let mut request = Self { name: [0; NAME], data: [0; DATA] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }

    /// The name that the kernel has filled in.
    pub fn name(&self) -> String {
        let name = self.name.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }

    /// Puts in bytes, at the start of the union.
    pub fn with(mut self, bytes: &[u8]) -> Self {
        self.data[..bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Puts in an IPv4 address as a `struct sockaddr_in`: family, port, address.
    pub fn with_address(self, address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        let [low, high] = (libc::AF_INET as u16).to_ne_bytes();
        self.with(&[low, high, 0, 0, a, b, c, d])
    }

    /// Makes the call. `number` is one that takes a `struct ifreq` or the name at its start.
    pub fn call(&mut self, fd: impl AsFd, number: libc::Ioctl) -> io::Result<()> {
        // SAFETY: the calls of this crate read and write at most a `struct ifreq`, as large as
        // `self`, which is plain bytes and lives as long as the call.
        let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number, &raw mut *self) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for good in ["br0", "lodge%d", "fifteen-letters", "a.100"] {
            assert_eq!(Request::about(good).unwrap().name(), good);
        }
        for bad in ["", "sixteen-letters!", "a/b", "a:b", "a b", "..", "a\0b"] {
            assert!(Request::about(bad).is_err(), "{bad:?}");
        }
    }
}
