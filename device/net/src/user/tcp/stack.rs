//! The guest's end of a TCP flow: smoltcp's TCP, on an interface of its own. An interface per
//! flow lets a flow have any address on our side, costs no search among other flows' sockets,
//! and keeps each flow's timers apart.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};

use smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::HardwareAddress;

use crate::user::link::Link;

/// How long the guest's data may wait for an acknowledgement that goes with an answer, or for
/// more data to acknowledge (RFC 9293 section 3.8.6.3 allows half a second).
const ACK_DELAY: Duration = Duration::from_millis(2);

/// How often a silent guest is asked whether it still has the connection: one that restarted
/// answers with a reset (RFC 9293 section 3.8.4).
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// smoltcp's end of a flow.
pub struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    peer: IpAddr,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("socket", self.socket()).finish_non_exhaustive()
    }
}

impl Stack {
    /// An end whose buffers hold `buffer` bytes in each direction, for a flow with `peer`.
    fn new(link: &mut Link, peer: IpAddr, buffer: usize, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        // Initial sequence numbers must not be guessed (RFC 6528).
        config.random_seed = RandomState::new().hash_one(peer);
        let mut port = Port { link, peer, packet: None, full: false };
        let mut interface = Interface::new(config, &mut port, now);
        interface.set_any_ip(true);
        let rings = [(); 2].map(|()| tcp::SocketBuffer::new(vec![0; buffer]));
        let [receive, send] = rings;
        let mut socket = tcp::Socket::new(receive, send);
        // The data has been through a Nagle already, if its sender wanted one.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, peer }
    }

    /// An end that accepts the connection whose SYN comes in next, to `local`.
    pub fn listen(
        link: &mut Link,
        local: SocketAddr,
        peer: IpAddr,
        buffer: usize,
        now: Instant,
    ) -> Option<Self> {
        let mut stack = Self::new(link, peer, buffer, now);
        stack.socket_mut().listen(local).ok()?;
        Some(stack)
    }

    /// An end that connects from `local` to `peer`.
    pub fn connect(
        link: &mut Link,
        local: SocketAddr,
        peer: SocketAddr,
        buffer: usize,
        now: Instant,
    ) -> Option<Self> {
        let mut stack = Self::new(link, peer.ip(), buffer, now);
        let Self { interface, sockets, handle, .. } = &mut stack;
        let socket = sockets.get_mut::<tcp::Socket>(*handle);
        socket.connect(interface.context(), peer, local).ok()?;
        Some(stack)
    }

    /// The socket.
    pub fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    /// The socket.
    pub fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Takes an IP packet of the flow.
    pub fn input(&mut self, link: &mut Link, packet: &[u8], now: Instant) {
        let mut port = Port { link, peer: self.peer, packet: Some(packet), full: false };
        // The result tells whether to look at the socket: the flow does in any case.
        let _: PollIngressSingleResult =
            self.interface.poll_ingress_single(now, &mut port, &mut self.sockets);
    }

    /// Sends what there is to send. Returns false if the link had no room for all of it.
    pub fn output(&mut self, link: &mut Link, now: Instant) -> bool {
        let mut port = Port { link, peer: self.peer, packet: None, full: false };
        while self.interface.poll_egress(now, &mut port, &mut self.sockets)
            == PollResult::SocketStateChanged
        {}
        !port.full
    }

    /// When there is something to send next if nothing happens.
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }

    /// Whether the connection is over and nothing is left to be sent.
    pub fn is_over(&self) -> bool {
        let socket = self.socket();
        !socket.is_open() && socket.remote_endpoint().is_none()
    }
}

/// A device that receives one packet, and sends to the link.
struct Port<'a> {
    link: &'a mut Link,
    peer: IpAddr,
    packet: Option<&'a [u8]>,
    /// There was no room on the link.
    full: bool,
}

impl<'a> Device for Port<'a> {
    type RxToken<'t>
        = Received<'a>
    where
        Self: 't;
    type TxToken<'t>
        = Room<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Room { link: self.link, peer: self.peer }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        if !self.link.has_room() {
            self.full = true;
            return None;
        }
        Some(Room { link: self.link, peer: self.peer })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.link.mtu;
        capabilities.checksum = Link::checksums();
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Room<'a> {
    link: &'a mut Link,
    peer: IpAddr,
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut f = Some(f);
        let mut result = None;
        self.link.send_packet(self.peer, len, |packet| {
            result = f.take().map(|f| f(packet));
        });
        match (result, f) {
            (Some(result), _) => result,
            // The link dropped the packet: nobody will see what is written.
            (None, Some(f)) => f(&mut vec![0; len]),
            (None, None) => unreachable!("the function is gone only once its result is there"),
        }
    }
}
