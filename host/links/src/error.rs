//! Why an interface is not to be had.

use std::io;

/// Why an interface is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no taps for this process.
    #[error(
        "/dev/net/tun cannot be opened: {0}; a guest is connected to a bridge through it: load it with \
         `modprobe tun`, and in a container give it to the container (--device /dev/net/tun)"
    )]
    NoTun(io::Error),
    /// What only root may do.
    #[error(
        "this user may not {0}: that needs root (CAP_NET_ADMIN). Run lodge as root, or have root make \
         a tap for you once, `ip tuntap add dev tap0 mode tap user $USER && ip link set tap0 master \
         BRIDGE up`, and use --net tap=tap0"
    )]
    NoPrivilege(String),
    /// There is no such interface.
    #[error("there is no network interface {0} on this host; `ip link` lists them")]
    Missing(String),
    /// Something else by that name.
    #[error("the network interface {0} is not a bridge; `ip link show type bridge` lists bridges")]
    NotABridge(String),
    /// Something else by that name.
    #[error("the network interface {0} is not a tap; `ip tuntap` lists taps")]
    NotATap(String),
    /// Another process has it.
    #[error("the tap {0} is in use, by another guest perhaps: each card needs a tap of its own")]
    InUse(String),
    /// A name that no interface can have.
    #[error("{0:?} is no interface's name: it has 1 to 15 characters without '/', ':' and spaces")]
    Name(String),
    /// Anything else.
    #[error("cannot {what}: {source}")]
    Other {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// Whether something else was asked for than is there, rather than this host refusing it.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Missing(_)
            | Self::NotABridge(_)
            | Self::NotATap(_)
            | Self::InUse(_)
            | Self::Name(_) => true,
            Self::NoTun(_) | Self::NoPrivilege(_) | Self::Other { .. } => false,
        }
    }

    /// What the kernel's error means wherever it comes from; `what` was tried with `name`.
    pub(crate) fn new(what: impl Into<String>, name: &str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::NoPrivilege(what.into()),
            Some(libc::ENODEV | libc::ENXIO) => Self::Missing(name.to_owned()),
            _ => Self::Other { what: what.into(), source },
        }
    }
}
