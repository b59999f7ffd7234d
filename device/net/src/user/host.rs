//! The host's sockets, all of them non-blocking.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with, sockopt,
};

/// Why the host does not let a packet through, as far as the guest may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody listens there.
    Refused,
    /// No route leads there.
    Network,
    /// The host there does not answer.
    Host,
    /// The host's policy forbids it.
    Prohibited,
}

impl From<&io::Error> for Refusal {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => Self::Network,
            // No address of the protocol on this host: no way there either.
            io::ErrorKind::AddrNotAvailable => Self::Network,
            io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut => Self::Host,
            io::ErrorKind::PermissionDenied => Self::Prohibited,
            _ => match rustix::io::Errno::from_io_error(error) {
                // A kernel without IPv6.
                Some(rustix::io::Errno::AFNOSUPPORT) => Self::Network,
                _ => Self::Refused,
            },
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn flags() -> SocketFlags {
    SocketFlags::CLOEXEC | SocketFlags::NONBLOCK
}

/// Begins a TCP connection to `to`. It stands, or has failed, when the socket is writable.
pub fn connect_tcp(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket_with(family(to.ip()), SocketType::STREAM, flags(), None)?;
    tune_tcp(&socket)?;
    match connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

/// Prepares an accepted or new TCP socket for a flow.
pub fn tune_tcp(socket: impl std::os::fd::AsFd) -> io::Result<()> {
    // Whatever the guest's stack saw fit to send has waited long enough.
    sockopt::set_tcp_nodelay(&socket, true)?;
    // The guest's own keep-alive probes end here, so the host must send some of its own.
    sockopt::set_socket_keepalive(&socket, true)?;
    Ok(())
}

/// Makes closing `socket` reset the connection instead of ending it in good order.
pub fn reset_on_close(socket: &TcpStream) {
    // If it fails the peer sees an orderly end: nothing better can be done.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// A UDP socket that sends to and receives from `to` alone.
pub fn connect_udp(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket_with(family(to.ip()), SocketType::DGRAM, flags(), None)?;
    connect(&socket, &to)?;
    Ok(UdpSocket::from(socket))
}

/// A socket for ICMP echoes to `to`, which needs no privilege where the sysctl
/// `net.ipv4.ping_group_range` allows it (icmp(7)).
pub fn connect_echo(to: IpAddr) -> io::Result<UdpSocket> {
    let (protocol, any): (_, IpAddr) = match to {
        IpAddr::V4(_) => (ipproto::ICMP, Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(_) => (ipproto::ICMPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket: OwnedFd = socket_with(family(to), SocketType::DGRAM, flags(), Some(protocol))?;
    bind(&socket, &SocketAddr::new(any, 0))?;
    connect(&socket, &SocketAddr::new(to, 0))?;
    Ok(UdpSocket::from(socket))
}
