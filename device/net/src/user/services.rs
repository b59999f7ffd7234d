//! The network's thread: it waits for frames, sockets and time, and has each service do its
//! share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use smoltcp::wire::EthernetAddress;

use super::config::{Error, Forward, Resolvers, UserNetworkConfig};
use super::dhcp::DhcpServer;
use super::dns::{Names, Resolver, Upstream};
use super::echo::EchoTable;
use super::forward::ForwardedPort;
use super::frames::{Batch, Inbox, Outbox, Signal};
use super::link::Link;
use super::neighbors::ADVERTISEMENT_INTERVAL;
use super::plan::Plan;
use super::poller::{Event, Poller, Token};
use super::reassembly::Reassembly;
use super::tcp::TcpTable;
use super::udp::UdpTable;

/// How often the tables are searched for what has expired, while they have anything.
const SWEEP: Duration = Duration::from_secs(1);

/// The longest datagram.
const MAX_DATAGRAM: usize = 65535;

/// What services are made from.
#[derive(Debug)]
pub struct Settings {
    /// The network's addresses.
    pub plan: Plan,
    /// The longest IP packet in bytes.
    pub mtu: u16,
    /// The only client that gets a lease, if there is only one.
    pub card: Option<EthernetAddress>,
    /// The name that DHCP gives the guest.
    pub hostname: Option<String>,
    /// The names of other guests: a file as hosts(5) describes it.
    pub hosts: Option<PathBuf>,
    /// Who is asked about names that nobody here has.
    pub resolvers: Resolvers,
    /// Host ports that lead into the guest.
    pub forwards: Vec<Forward>,
}

impl From<UserNetworkConfig> for Settings {
    fn from(config: UserNetworkConfig) -> Self {
        Self {
            plan: Plan::new(&config),
            mtu: config.mtu,
            card: None,
            hostname: config.hostname,
            hosts: None,
            resolvers: config.resolvers,
            forwards: config.forwards,
        }
    }
}

/// What every service works with.
#[derive(Debug)]
pub struct Io {
    /// The guest's side.
    pub link: Link,
    /// The host's side.
    pub poller: Poller,
    /// The time of this round.
    pub now: Instant,
    /// When smoltcp's time began.
    start: Instant,
}

impl Io {
    /// The time of this round in smoltcp's terms.
    pub fn smoltcp_now(&self) -> smoltcp::time::Instant {
        let micros = self.now.saturating_duration_since(self.start).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// smoltcp's time in ours.
    pub fn std_time(&self, time: smoltcp::time::Instant) -> Instant {
        let micros = u64::try_from(time.total_micros()).unwrap_or(0);
        self.start.checked_add(Duration::from_micros(micros)).unwrap_or(self.now)
    }
}

/// The services and their state.
#[derive(Debug)]
pub struct Services {
    pub(super) io: Io,
    pub(super) dhcp: DhcpServer,
    pub(super) resolver: Resolver,
    pub(super) echo: EchoTable,
    pub(super) udp: UdpTable,
    pub(super) tcp: TcpTable,
    pub(super) reassembly: Reassembly,
    forwards: Vec<ForwardedPort>,
    inbox: Arc<Inbox>,
    wake: Arc<Signal>,
    next_sweep: Instant,
    next_advertisement: Instant,
}

impl Services {
    /// Prepares the services, and tells where forwarded ports are open.
    pub fn new(
        settings: Settings,
        inbox: Arc<Inbox>,
        outbox: Arc<Outbox>,
        wake: Arc<Signal>,
    ) -> Result<(Self, Vec<SocketAddr>), Error> {
        let poller = Poller::new().map_err(|error| Error::host("make an epoll", error))?;
        let wait = |error| Error::host("wait for a file descriptor", error);
        poller.add_readable(&*wake, Token::Wake).map_err(wait)?;
        let mut forwards = Vec::new();
        let mut addresses = Vec::new();
        for (id, forward) in (0..).zip(&settings.forwards) {
            let (port, address) = ForwardedPort::listen(forward, &settings.plan)?;
            port.register(&poller, id).map_err(wait)?;
            forwards.push(port);
            addresses.push(address);
        }
        let now = Instant::now();
        let link = Link::new(settings.plan, usize::from(settings.mtu), outbox);
        let upstream = Upstream::new(settings.resolvers, now);
        let names = Names::new(settings.hostname.clone(), settings.hosts);
        let services = Self {
            io: Io { link, poller, now, start: now },
            dhcp: DhcpServer::new(settings.hostname, settings.card),
            resolver: Resolver::new(upstream, names),
            echo: EchoTable::default(),
            udp: UdpTable::default(),
            tcp: TcpTable::default(),
            reassembly: Reassembly::default(),
            forwards,
            inbox,
            wake,
            next_sweep: now + SWEEP,
            next_advertisement: now + ADVERTISEMENT_INTERVAL,
        };
        Ok((services, addresses))
    }

    /// Works until `stop`.
    pub fn run(&mut self, stop: &AtomicBool) {
        let mut batch = Batch::default();
        let mut events = Vec::new();
        let mut buffer = vec![0; MAX_DATAGRAM];
        while !stop.load(Ordering::Acquire) {
            let timeout = if self.inbox.sleep() { self.timeout() } else { Some(Duration::ZERO) };
            if let Err(error) = self.io.poller.wait(timeout, &mut events) {
                // It has worked before: there is no reason that it should not.
                tracing::error!(%error, "the user-mode network cannot wait for its sockets");
                return;
            }
            self.io.now = Instant::now();
            self.inbox.take(&mut batch);
            while let Some(frame) = batch.pop() {
                self.frame_input(frame);
            }
            for event in events.drain(..) {
                self.event(&event, &mut buffer);
            }
            let newcomers = self.io.link.neighbors.take_newcomers();
            if !newcomers.is_empty() {
                self.tcp.greet(&mut self.io, &newcomers);
            }
            self.sweep(&mut buffer);
            self.tcp.pump(&mut self.io);
            self.io.link.flush();
        }
    }

    fn event(&mut self, event: &Event, buffer: &mut [u8]) {
        let io = &mut self.io;
        match event.token {
            Token::Wake => self.wake.clear(),
            Token::Tcp(id) => self.tcp.ready(io, event, id),
            Token::Udp(id) => self.udp.ready(io, id, buffer),
            Token::Echo(id) => self.echo.ready(io, id, buffer),
            Token::Query(id) => self.resolver.ready(io, id, buffer),
            Token::Forward(id) => {
                let forward = usize::try_from(id).ok().and_then(|id| self.forwards.get_mut(id));
                if let Some(forward) = forward {
                    forward.ready(io, &mut self.tcp, &mut self.udp, buffer);
                }
            }
        }
    }

    /// Does what time alone asks for.
    fn sweep(&mut self, buffer: &mut [u8]) {
        let io = &mut self.io;
        self.resolver.expire(io);
        if io.now >= self.next_advertisement {
            self.next_advertisement = io.now + ADVERTISEMENT_INTERVAL;
            io.link.advertise_router();
        }
        if io.now < self.next_sweep {
            return;
        }
        self.next_sweep = io.now + SWEEP;
        self.echo.expire(io.now);
        self.udp.expire(io.now);
        self.tcp.expire(io.now);
        for forward in self.forwards.iter_mut().filter(|forward| forward.stalled) {
            forward.ready(io, &mut self.tcp, &mut self.udp, buffer);
        }
    }

    /// How long nothing has to be done unless something happens.
    fn timeout(&self) -> Option<Duration> {
        let sweeps = !self.echo.is_empty()
            || !self.udp.is_empty()
            || !self.tcp.is_empty()
            || self.forwards.iter().any(|forward| forward.stalled);
        let deadlines = [
            Some(self.next_advertisement),
            sweeps.then_some(self.next_sweep),
            self.resolver.deadline(),
            self.tcp.deadline(&self.io),
        ];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}
