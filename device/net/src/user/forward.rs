//! Host ports that lead into the guest.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use super::Io;
use super::config::{Error, Forward, Transport};
use super::plan::{Destination, Plan};
use super::poller::{Poller, Token};
use super::tcp::TcpTable;
use super::udp::UdpTable;

/// How many connections or datagrams of one port are taken before others get their turn.
const BURST: usize = 64;

/// The ports from which clients seem to come whose own port is taken: the dynamic ones of
/// RFC 6335 section 6.
const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(Arc<UdpSocket>),
}

/// A port of the host that is being listened at.
#[derive(Debug)]
pub struct ForwardedPort {
    socket: Socket,
    guest: SocketAddr,
    /// The host had no room for a connection: try again later.
    pub stalled: bool,
}

impl ForwardedPort {
    /// Listens, and returns the port and the address that it got.
    pub fn listen(forward: &Forward, plan: &Plan) -> Result<(Self, SocketAddr), Error> {
        let guest = SocketAddr::new(plan.guest.into(), forward.guest_port);
        let open = || -> io::Result<(Socket, SocketAddr)> {
            match forward.transport {
                Transport::Tcp => {
                    let listener = TcpListener::bind(forward.host)?;
                    listener.set_nonblocking(true)?;
                    let address = listener.local_addr()?;
                    Ok((Socket::Tcp(listener), address))
                }
                Transport::Udp => {
                    let socket = UdpSocket::bind(forward.host)?;
                    socket.set_nonblocking(true)?;
                    let address = socket.local_addr()?;
                    Ok((Socket::Udp(Arc::new(socket)), address))
                }
            }
        };
        let (socket, address) =
            open().map_err(|error| Error::listen(forward.transport, forward.host, error))?;
        Ok((Self { socket, guest, stalled: false }, address))
    }

    /// Has the poller wait for clients.
    pub fn register(&self, poller: &Poller, id: u64) -> io::Result<()> {
        match &self.socket {
            // By edges: a connection that cannot be taken now must not wake us all the time.
            Socket::Tcp(listener) => poller.add_edges(listener, Token::Forward(id)),
            Socket::Udp(socket) => poller.add_readable(&**socket, Token::Forward(id)),
        }
    }

    /// Takes what has come.
    pub fn ready(
        &mut self,
        io: &mut Io,
        tcp: &mut TcpTable,
        udp: &mut UdpTable,
        buffer: &mut [u8],
    ) {
        match &self.socket {
            Socket::Tcp(listener) => {
                self.stalled = false;
                for _ in 0..BURST {
                    match listener.accept() {
                        Ok((stream, peer)) => tcp.accept(io, stream, peer, self.guest),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                        Err(error) => {
                            tracing::warn!(%error, "cannot take a connection to a forwarded port");
                            break;
                        }
                    }
                }
                self.stalled = true;
            }
            Socket::Udp(socket) => {
                for _ in 0..BURST {
                    match socket.recv_from(buffer) {
                        Ok((len, peer)) => {
                            let data = buffer.get(..len).unwrap_or_default();
                            udp.forward(io, socket, peer, self.guest, data);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                        // What an earlier reply met with; the peer has gone.
                        Err(_) => {}
                    }
                }
            }
        }
    }
}

/// The address from which the guest sees a client of a forwarded port: its own if the guest
/// could answer it, else the gateway, with the client's port if that is free.
pub fn visible_peer(
    plan: &Plan,
    peer: SocketAddr,
    taken: impl Fn(SocketAddr) -> bool,
) -> Option<SocketAddr> {
    let ip = match (peer.ip().to_canonical(), plan.destination(peer.ip().to_canonical())) {
        (ip, Destination::Outside(_)) if ip.is_ipv4() => ip,
        _ => plan.gateway.into(),
    };
    std::iter::once(peer.port())
        .chain(DYNAMIC_PORTS)
        .map(|port| SocketAddr::new(ip, port))
        .find(|&remote| remote.port() != 0 && !taken(remote))
}
