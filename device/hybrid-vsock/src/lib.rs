//! The host's end of a guest's virtio socket device (VIRTIO 1.2, 5.10): streams between programs in
//! the guest and Unix sockets of the host.
//!
//! It is used as Firecracker's is. Who wants to reach a port in the guest connects to one Unix
//! socket, says `CONNECT PORT\n` and reads `OK NUMBER\n`, or the end of the stream if the guest
//! refuses; then the stream is the connection. A connection that the guest makes to port N of the
//! host goes to the Unix socket `vsock.sock_N` in the same directory, if somebody listens there.
//!
//! There is no thread here: the workers of the device's queues call [`Vsock::transmit`] and
//! [`Vsock::receive`]. All that the guest can have the host keep is bounded: [`MAX_CONNECTIONS`]
//! connections with [`BUFFER`] bytes each. A guest that breaks the rules loses the connection, and
//! no other.
//!
//! Connections end with a reset of the device; a pause they survive.
//!
//! The parsing is Lodge's own, not the crate virtio-vsock's: a packet is a header of fixed fields
//! in front of bytes, which descriptor chains as Lodge checks them ([`virtio`]) carry already.
//!
//! [`virtio`]: ../virtio/index.html

#![forbid(unsafe_code)]

mod connection;
mod mux;
mod packet;
mod poller;
mod sockets;

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mux::{Knocks, Mux};
pub use packet::{HEADER, Header, MAX_PAYLOAD, Op, shutdown};
use poller::Poller;
use sockets::Sockets;

/// The guest's address.
pub const GUEST_CID: u64 = 3;
/// The host's address (VIRTIO 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;
/// How many connections there can be at once, those that are just made or ended included.
pub const MAX_CONNECTIONS: usize = 256;
/// How many bytes of a connection may wait for a program of the host.
pub const BUFFER: usize = 128 << 10;
/// The name of the Unix socket by which programs of the host reach the guest.
pub const SOCKET: &str = "vsock.sock";

/// The host's end of one guest's device.
#[derive(Debug)]
pub struct Vsock {
    mux: Mutex<Mux>,
    poller: Arc<Poller>,
    /// Makes the poller readable for what does not come by a socket.
    wake: runtime::Event,
}

impl Vsock {
    /// An end to which no guest is connected yet. `directory` is where the Unix sockets are; what a
    /// killed process left of [`SOCKET`] there is removed. Without one, the guest's connections are
    /// refused, and only [`Vsock::connect`] makes others.
    ///
    /// # Errors
    ///
    /// The socket cannot be made, or the process is out of descriptors.
    pub fn new(directory: Option<OwnedFd>) -> io::Result<Self> {
        let wake = runtime::Event::new()?;
        let poller = Arc::new(Poller::new()?);
        poller.add_edges(&wake, poller::WAKE)?;
        let sockets = directory.map(Sockets::open).transpose()?;
        let mux = Mutex::new(Mux::new(sockets, poller.clone())?);
        Ok(Self { mux, poller, wake })
    }

    fn mux(&self) -> MutexGuard<'_, Mux> {
        self.mux.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest has a driver, so that connections to it get an answer.
    pub fn is_live(&self) -> bool {
        self.mux().is_live
    }

    /// Connects to a port in the guest. The stream begins with the line `OK NUMBER`, or ends at
    /// once if nobody listens there.
    ///
    /// # Errors
    ///
    /// The process is out of descriptors, or there are too many connections.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.write_all(format!("CONNECT {port}\n").as_bytes())?;
        self.mux().adopt(theirs)?;
        Ok(ours)
    }

    /// Has `heard` called when the guest tries to connect to this port of the host, the first time
    /// since a reset; such connections are refused. It is called with locks held, and returns soon.
    pub fn listen_for(&self, port: u32, heard: impl Fn() + Send + 'static) {
        self.mux().knocks = Some(Knocks { port, heard: Box::new(heard), was_heard: false });
    }

    /// The guest's driver is there, and takes packets.
    pub fn start(&self) {
        self.mux().is_live = true;
    }

    /// Ends all connections: the device is reset, or the machine is another one.
    pub fn reset(&self) {
        self.mux().reset();
    }

    /// Keeps all packets from the guest, until it is to [go on](Self::go_on) or [reset](Self::reset).
    pub fn hold(&self) {
        self.mux().is_held = true;
    }

    /// The guest may have packets again.
    pub fn go_on(&self) {
        let mut mux = self.mux();
        mux.is_held = false;
        if mux.has_packets() {
            self.wake.signal();
        }
    }

    /// Takes a packet that the guest sent, with all of its data: at most [`MAX_PAYLOAD`] bytes.
    pub fn transmit(&self, header: &[u8; HEADER], data: &[u8]) {
        let mut mux = self.mux();
        mux.transmit(&Header::read(header), data);
        if mux.has_packets() {
            self.wake.signal();
        }
    }

    /// Looks after the host's sockets. Whether [`Vsock::receive`] may have a packet then.
    pub fn has_packets(&self) -> bool {
        let mut mux = self.mux();
        if mux.poll() {
            self.wake.clear();
        }
        mux.has_packets()
    }

    /// Writes the next packet for the guest to `room`, which has more than [`HEADER`] bytes: as many
    /// more as its data may have. Returns its length; `None`: there is none.
    pub fn receive(&self, room: &mut [u8]) -> Option<usize> {
        self.mux().receive(room)
    }

    /// How much the host keeps for the guest: connections, and bytes that wait.
    pub fn kept(&self) -> (usize, usize) {
        self.mux().kept()
    }
}

/// Readable when there is something to do for [`Vsock::has_packets`].
impl AsFd for Vsock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}
