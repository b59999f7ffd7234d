//! A network that needs no privilege, as QEMU's slirp and passt make them: whatever the guest
//! sends ends here, and goes on through ordinary sockets of the host.
//!
//! The guest gets an IPv4 address by DHCP and an IPv6 prefix by router advertisements, and a
//! resolver with either. TCP, UDP and ICMP echo to the outside are carried on; to the gateway
//! they reach the host's loopback interface. Ports of the host can lead into the guest.
//!
//! One thread does all the work. It shares two bounded queues of frames with the guest's card
//! ([`frames`]), and owns everything else. What a guest can fill, it can fill for itself alone:
//! each table has a bound and makes room by giving up what has been quiet longest.

mod config;
mod dhcp;
mod dns;
mod echo;
mod errors;
mod forward;
mod frames;
mod host;
mod input;
mod link;
mod neighbors;
mod plan;
mod poller;
mod reassembly;
mod services;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

pub use config::{Error, Forward, MAX_MTU, MIN_MTU, Resolvers, Transport, UserNetworkConfig};
pub(crate) use dhcp::{CLIENT_PORT as DHCP_CLIENT, SERVER_PORT as DHCP_SERVER};
use frames::{Inbox, Outbox, Signal};
use runtime::thread::{Role, spawn};
use services::{Io, Services};
pub(crate) use {plan::Plan, services::Settings};

use crate::Backend;

/// A user-mode network. Dropping it closes all connections and ends its thread.
#[derive(Debug)]
pub struct UserNetwork {
    inbox: Arc<Inbox>,
    outbox: Arc<Outbox>,
    wake: Arc<Signal>,
    stop: Arc<AtomicBool>,
    forwarded: Vec<SocketAddr>,
    thread: Option<JoinHandle<()>>,
}

impl UserNetwork {
    /// Makes a network and starts its thread. All forwarded ports are open when this returns.
    ///
    /// # Errors
    ///
    /// An invalid configuration, a host port that cannot be opened, or a host without file
    /// descriptors or threads to spare.
    pub fn new(config: UserNetworkConfig) -> Result<Self, Error> {
        config.validate()?;
        Self::start(config.into())
    }

    /// Starts the thread of a network that was checked.
    pub(crate) fn start(settings: Settings) -> Result<Self, Error> {
        let mtu = usize::from(settings.mtu);
        let signal = || Signal::new().map_err(|error| Error::host("make an eventfd", error));
        let wake = Arc::new(signal()?);
        let inbox = Arc::new(Inbox::new(mtu, Arc::clone(&wake)));
        let outbox = Outbox::new(mtu, Arc::clone(&wake))
            .map_err(|error| Error::host("make an eventfd", error))?;
        let outbox = Arc::new(outbox);
        let (mut services, forwarded) =
            Services::new(settings, Arc::clone(&inbox), Arc::clone(&outbox), Arc::clone(&wake))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = spawn(Role::Network, "user-network", move || services.run(&stopped))
            .map_err(|error| Error::host("start a thread", error))?;
        Ok(Self { inbox, outbox, wake, stop, forwarded, thread: Some(thread) })
    }

    /// Whether [`Backend::receive`] has something.
    pub(crate) fn has_frames(&self) -> bool {
        self.outbox.has_frames()
    }

    /// The host addresses at which the configuration's forwards are open, in its order.
    pub fn forwarded(&self) -> &[SocketAddr] {
        &self.forwarded
    }
}

impl Backend for UserNetwork {
    fn transmit(&self, frame: &[u8]) -> bool {
        self.inbox.put(frame)
    }

    /// Checksums are not looked at: no wire could have damaged anything. Nor does anybody ask for the
    /// length of a segment, whose data goes on by a socket.
    fn takes_unfinished(&self) -> bool {
        true
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(self.outbox.receive(frame))
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.outbox.readable()
    }
}

impl Drop for UserNetwork {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.raise();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the user-mode network's thread had panicked");
        }
    }
}
