//! What is done to interfaces.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::Error;
use crate::request::Request;

/// `linux/sockios.h`; libc does not have these everywhere.
const SIOCBRADDBR: libc::Ioctl = 0x89a0;
const SIOCBRDELBR: libc::Ioctl = 0x89a1;
const SIOCBRADDIF: libc::Ioctl = 0x89a2;

/// The interfaces of this process's network namespace.
#[derive(Debug)]
pub struct Links {
    socket: OwnedFd,
}

impl Links {
    /// The interfaces of this process's network namespace.
    ///
    /// # Errors
    ///
    /// A host without IPv4 or descriptors to spare.
    pub fn new() -> Result<Self, Error> {
        let socket =
            socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
                .map_err(|errno| Error::Other {
                    what: "make a socket".into(),
                    source: errno.into(),
                })?;
        Ok(Self { socket })
    }

    /// The number of an interface; `None` if it is not there.
    ///
    /// # Errors
    ///
    /// A name that no interface can have.
    pub fn index(&self, name: &str) -> Result<Option<u32>, Error> {
        let mut request = Request::about(name)?;
        match request.call(&self.socket, libc::SIOCGIFINDEX) {
            Ok(()) => Ok(Some(first_number(&request))),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(Error::new(format!("look for the interface {name}"), name, error)),
        }
    }

    /// Switches an interface on or off. Harmless if it is so already.
    ///
    /// # Errors
    ///
    /// No such interface, no privilege.
    pub fn set_up(&self, name: &str, up: bool) -> Result<(), Error> {
        let mut request = Request::about(name)?;
        let what = || format!("switch the interface {name} {}", if up { "on" } else { "off" });
        let refused = |error| Error::new(what(), name, error);
        request.call(&self.socket, libc::SIOCGIFFLAGS).map_err(refused)?;
        let flags = i16::from_ne_bytes([request.data[0], request.data[1]]);
        let on = libc::IFF_UP as i16;
        let flags = if up { flags | on } else { flags & !on };
        let mut request = Request::about(name)?.with(&flags.to_ne_bytes());
        request.call(&self.socket, libc::SIOCSIFFLAGS).map_err(refused)
    }

    /// Gives an interface its hardware address.
    ///
    /// # Errors
    ///
    /// No such interface, no privilege.
    pub fn set_hardware_address(&self, name: &str, mac: [u8; 6]) -> Result<(), Error> {
        let family = libc::ARPHRD_ETHER.to_ne_bytes();
        let mut request = Request::about(name)?.with(&[&family[..], &mac[..]].concat());
        request.call(&self.socket, libc::SIOCSIFHWADDR).map_err(|error| {
            Error::new(format!("set the address of the interface {name}"), name, error)
        })
    }

    /// Gives an interface its first IPv4 address; another one that it had is gone.
    ///
    /// # Errors
    ///
    /// No such interface, no privilege.
    pub fn set_address(
        &self,
        name: &str,
        address: Ipv4Addr,
        netmask: Ipv4Addr,
    ) -> Result<(), Error> {
        let set = |value, number| {
            Request::about(name)?.with_address(value).call(&self.socket, number).map_err(|error| {
                Error::new(format!("give the interface {name} the address {address}"), name, error)
            })
        };
        set(address, libc::SIOCSIFADDR)?;
        set(netmask, libc::SIOCSIFNETMASK)
    }

    /// Makes a bridge; `false` if there is one of that name.
    ///
    /// # Errors
    ///
    /// No privilege, or an interface of that name that is no bridge.
    pub fn add_bridge(&self, name: &str) -> Result<bool, Error> {
        match Request::about(name)?.call(&self.socket, SIOCBRADDBR) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(Error::new(format!("make the bridge {name}"), name, error)),
        }
    }

    /// Removes a bridge, which is off; its ports stay. `false` if there is none of that name.
    ///
    /// # Errors
    ///
    /// No privilege, not a bridge, or one that is on.
    pub fn remove_bridge(&self, name: &str) -> Result<bool, Error> {
        match Request::about(name)?.call(&self.socket, SIOCBRDELBR) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(false),
            // What br_del_bridge says of an interface that is no bridge, and else nobody.
            Err(error)
                if error.raw_os_error() == Some(libc::EPERM)
                    && rustix::process::geteuid().is_root() =>
            {
                Err(Error::NotABridge(name.to_owned()))
            }
            Err(error) => Err(Error::new(format!("remove the bridge {name}"), name, error)),
        }
    }

    /// Makes an interface a port of a bridge. Harmless if it is one.
    ///
    /// # Errors
    ///
    /// No such bridge, not a bridge, no privilege.
    pub fn add_to_bridge(&self, bridge: &str, port: &str) -> Result<(), Error> {
        let Some(index) = self.index(port)? else { return Err(Error::Missing(port.to_owned())) };
        let mut request = Request::about(bridge)?.with(&index.to_ne_bytes());
        request.call(&self.socket, SIOCBRADDIF).map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY) => {
                Error::NotABridge(bridge.to_owned())
            }
            _ => Error::new(format!("connect a guest to the bridge {bridge}"), bridge, error),
        })
    }
}

fn first_number(request: &Request) -> u32 {
    let [a, b, c, d, ..] = request.data;
    u32::from_ne_bytes([a, b, c, d])
}
