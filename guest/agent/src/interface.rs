//! A network interface, by the kernel's ioctls (netdevice(7), rtnetlink's elder sister).

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};

/// ARPHRD_ETHER (Linux, include/uapi/linux/if_arp.h).
const ETHERNET: &str = "1";

/// A network interface.
pub struct Interface {
    name: String,
    /// Any socket serves to speak about interfaces.
    socket: OwnedFd,
}

impl Interface {
    /// The interface of that name, which must have room for a zero behind it.
    pub fn named(name: &str) -> io::Result<Interface> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        Ok(Interface { name: name.to_owned(), socket })
    }

    /// The interfaces of the kernel's Ethernet devices, in the order of their names.
    pub fn of_cards() -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
            let kind = fs::read_to_string(entry.path().join("type")).unwrap_or_default();
            // Not bridges and the like, which are made of others.
            if kind.trim() == ETHERNET && entry.path().join("device").exists() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        names
    }

    /// Switches it on.
    pub fn up(&self) -> io::Result<()> {
        // Both flags are below 2^15.
        self.change_flags(|flags| flags | (libc::IFF_UP | libc::IFF_RUNNING) as i16)
    }

    /// Switches it off: what it knew of its network is gone.
    pub fn down(&self) -> io::Result<()> {
        self.change_flags(|flags| flags & !(libc::IFF_UP as i16))
    }

    /// Whether it is switched on.
    pub fn is_up(&self) -> bool {
        self.flags().is_ok_and(|flags| i32::from(flags) & libc::IFF_UP != 0)
    }

    fn flags(&self) -> io::Result<i16> {
        let mut request = self.request();
        self.ioctl(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: all members of the union are plain numbers, valid whatever they are; the kernel has
        // just written this one.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    fn change_flags(&self, change: impl Fn(i16) -> i16) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_flags = change(self.flags()?);
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Its Ethernet address.
    pub fn hardware_address(&self) -> io::Result<[u8; 6]> {
        let mut request = self.request();
        self.ioctl(libc::SIOCGIFHWADDR, &mut request)?;
        // SAFETY: as above.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        let [a, b, c, d, e, f, ..] = address.sa_data.map(|byte| byte as u8);
        Ok([a, b, c, d, e, f])
    }

    /// Gives it another Ethernet address. Some drivers want it to be off.
    pub fn set_hardware_address(&self, address: [u8; 6]) -> io::Result<()> {
        let mut request = self.request();
        let mut data = [0; 14];
        for (to, from) in data.iter_mut().zip(address) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_hwaddr =
            libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
        self.ioctl(libc::SIOCSIFHWADDR, &mut request)
    }

    /// Gives it an address in the place of the one that it has.
    pub fn set_address(&self, address: Ipv4Addr, netmask: Ipv4Addr) -> io::Result<()> {
        for (call, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, netmask)] {
            let mut request = self.request();
            request.ifr_ifru.ifru_addr = socket_address(value);
            self.ioctl(call, &mut request)?;
        }
        Ok(())
    }

    /// Leads all that has no other way by this router.
    pub fn add_default_route(&self, router: Ipv4Addr) -> io::Result<()> {
        // SAFETY: all of it are numbers and one pointer, for which zero means none.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(router);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: the call reads a `rtentry`, which this is, and it has no device's name to point to.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT, &route) };
        check(result)
    }

    /// A socket for datagrams of this interface, which also sends to everybody.
    pub fn udp_socket(&self, port: u16) -> io::Result<OwnedFd> {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        sockopt::set_socket_broadcast(&socket, true)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        let name = self.name.as_bytes();
        // SAFETY: the option takes a name and its length, and only reads it (socket(7)).
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BINDTODEVICE,
                name.as_ptr().cast(),
                name.len() as libc::socklen_t,
            )
        };
        check(result)?;
        bind(&socket, &std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        Ok(socket)
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: a name and a union of numbers and a pointer, all of which may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(self.name.bytes()) {
            *to = from as libc::c_char;
        }
        request
    }

    fn ioctl(&self, call: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the calls of this file read and write one `ifreq`, and follow no pointer in it.
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), call, request) })
    }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An IPv4 address in the general form: family, port, address (ip(7)).
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets().map(|byte| byte as libc::c_char);
    let mut data = [0; 14];
    data[2..6].copy_from_slice(&[a, b, c, d]);
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_understood() {
        assert!(Interface::named("").is_err() && Interface::named(&"x".repeat(16)).is_err());
        let loopback = Interface::named("lo").unwrap();
        assert_eq!(loopback.hardware_address().unwrap(), [0; 6]);
        assert!(!Interface::of_cards().contains(&"lo".to_owned()), "it is no card");
        let address = socket_address(Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(
            address.sa_data[..6].iter().map(|&b| b as u8).collect::<Vec<_>>(),
            [0, 0, 10, 0, 2, 15]
        );
    }
}
