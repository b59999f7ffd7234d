//! A guest for tests: smoltcp's stack behind the network's card.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use net::Backend;
use net::user::{UserNetwork, UserNetworkConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, IpCidr};

/// The guest's card.
pub const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// The host as the guest sees it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// The guest's addresses, where DHCP and SLAAC do not give them.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15);

/// Where the guest is before it has any other address.
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x15);

/// How long anything may take before it counts as lost, on a machine that is busy otherwise.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A guest.
pub struct Guest<N: Backend = UserNetwork> {
    pub network: Arc<N>,
    pub sockets: SocketSet<'static>,
    pub interface: Interface,
    card: Card<N>,
    start: Instant,
}

impl Guest {
    /// A guest that has only its link-local address, and asks for others.
    pub fn bare(config: UserNetworkConfig) -> Self {
        let mut guest = Self::with_slaac(config, true);
        guest.interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(LINK_LOCAL.into(), 64)).unwrap();
        });
        guest
    }

    fn with_slaac(config: UserNetworkConfig, slaac: bool) -> Self {
        let mtu = usize::from(config.mtu);
        Self::on(UserNetwork::new(config).unwrap(), mtu, MAC, slaac)
    }

    /// A guest that has the addresses that it would get.
    pub fn new(config: UserNetworkConfig) -> Self {
        let mut guest = Self::with_slaac(config, false);
        guest.interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(ADDRESS.into(), 24)).unwrap();
            addresses.push(IpCidr::new(ADDRESS_V6.into(), 64)).unwrap();
        });
        guest.interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        guest.interface.routes_mut().add_default_ipv6_route(GATEWAY_V6).unwrap();
        guest
    }
}

impl<N: Backend> Guest<N> {
    /// A guest without addresses.
    pub fn on(network: N, mtu: usize, mac: EthernetAddress, slaac: bool) -> Self {
        let network = Arc::new(network);
        let mut card = Card { network: Arc::clone(&network), mtu, buffer: vec![0; mtu + 14] };
        let mut config = Config::new(mac.into());
        config.random_seed = 7;
        config.slaac = slaac;
        let interface = Interface::new(config, &mut card, smoltcp::time::Instant::ZERO);
        Self { network, sockets: SocketSet::new(vec![]), interface, card, start: Instant::now() }
    }

    fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(self.start.elapsed().as_micros() as i64)
    }

    /// Lets the guest's stack work once, and waits a little if there was nothing to do.
    pub fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        let delay = self.interface.poll_delay(now, &self.sockets);
        let nanos = delay.map_or(2_000_000, |delay| delay.total_micros().min(2000) * 1000);
        let timeout = Timespec { tv_sec: 0, tv_nsec: nanos as i64 };
        let mut fds = [PollFd::from_borrowed_fd(self.network.readable(), PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).unwrap();
    }

    /// Lets the guest's stack work until `done` has a result.
    pub fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            self.poll();
        }
    }

    /// A TCP socket.
    pub fn tcp_socket(&mut self, buffer: usize) -> SocketHandle {
        let ring = || tcp::SocketBuffer::new(vec![0; buffer]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_ack_delay(None);
        self.sockets.add(socket)
    }

    /// Begins a connection.
    pub fn connect(&mut self, to: SocketAddr, port: u16, buffer: usize) -> SocketHandle {
        let handle = self.tcp_socket(buffer);
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let address: IpAddr = if to.is_ipv4() { ADDRESS.into() } else { ADDRESS_V6.into() };
        socket.connect(self.interface.context(), to, SocketAddr::new(address, port)).unwrap();
        handle
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// A UDP socket at `port`.
    pub fn udp_socket(&mut self, port: u16) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 1 << 16]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    pub fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Sends all of `data` and then the end, and returns all that comes back.
    pub fn exchange(&mut self, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
        let mut sent = 0;
        let mut received = Vec::new();
        self.until("the end of an exchange", |guest| {
            let socket = guest.tcp(handle);
            if sent < data.len() && socket.can_send() {
                sent += socket.send_slice(&data[sent..]).unwrap();
                if sent == data.len() {
                    socket.close();
                }
            }
            while socket.can_recv() {
                socket
                    .recv(|data| {
                        received.extend_from_slice(data);
                        (data.len(), ())
                    })
                    .unwrap();
            }
            let over = !matches!(
                socket.state(),
                tcp::State::SynSent
                    | tcp::State::Established
                    | tcp::State::FinWait1
                    | tcp::State::FinWait2
            );
            (over && sent == data.len()).then_some(())
        });
        received
    }
}

/// The guest's card.
struct Card<N> {
    network: Arc<N>,
    mtu: usize,
    buffer: Vec<u8>,
}

impl<N: Backend> Device for Card<N> {
    type RxToken<'a>
        = Received<'a>
    where
        N: 'a;
    type TxToken<'a>
        = Room<'a, N>
    where
        N: 'a;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received<'_>, Room<'_, N>)> {
        let len = self.network.receive(&mut self.buffer).unwrap()?;
        Some((Received(&self.buffer[..len]), Room(&*self.network)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Room<'_, N>> {
        Some(Room(&*self.network))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Room<'a, N>(&'a N);

impl<N: Backend> TxToken for Room<'_, N> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.transmit(&frame);
        result
    }
}
