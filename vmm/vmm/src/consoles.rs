//! The host's ends of the guest's consoles. They outlive a reset of the machine.

use std::sync::Arc;

use chardev::{Backend, Chardev, RawTerminal};
use vmm_api::{ConsoleConfig, Failure, VmConfig};

use crate::api::Api;
use crate::fds;

/// The open consoles of one guest.
pub struct Consoles {
    /// Where the first serial port leads.
    pub serial: Arc<Chardev>,
    /// Where the second serial port leads.
    pub serial2: Arc<Chardev>,
    /// Where the virtio console leads, if there is one.
    pub virtio: Option<Arc<Chardev>>,
    /// Where the debug console's output goes, if there is one.
    pub debug: Option<Arc<Chardev>>,
    /// Gives the terminal back as it was.
    _terminal: Option<RawTerminal>,
}

impl Consoles {
    /// Opens what the configuration asks for.
    ///
    /// If anybody can ask the API, the first serial port is theirs to attach to, unless the
    /// configuration leads it elsewhere.
    pub fn open(config: &VmConfig, api: &mut Api) -> Result<Self, Failure> {
        let consoles =
            [Some(&config.serial), Some(&config.serial2), config.virtio_console.as_ref()];
        let on_stdio =
            consoles.iter().flatten().filter(|c| matches!(c, ConsoleConfig::Stdio)).count();
        if on_stdio > 1 {
            return Err(Failure::configuration(
                "of serial ports and virtio console, only one can be on standard input and \
                 output: give the others another place",
            ));
        }
        let serial = match &config.serial {
            ConsoleConfig::Api => Backend::Stream(api.open_console(None)?),
            ConsoleConfig::Fd(fd) if api.is_served() => {
                Backend::Stream(api.open_console(Some(inherited(*fd)?))?)
            }
            elsewhere => backend(elsewhere)?,
        };
        let serial2 = backend(&config.serial2)?;
        let virtio = config.virtio_console.as_ref().map(backend).transpose()?;
        let serial = open(serial)?;
        let serial2 = open(serial2)?;
        let virtio = virtio.map(open).transpose()?;
        // The debug console writes to standard output, which a console may have taken.
        let debug = match config.debug.debugcon {
            false => None,
            true if matches!(config.serial, ConsoleConfig::Stdio) => Some(serial.clone()),
            true if matches!(config.serial2, ConsoleConfig::Stdio) => Some(serial2.clone()),
            true if on_stdio > 0 => virtio.clone(),
            true => Some(open(Backend::Stdio)?),
        };
        let terminal = match on_stdio {
            0 => None,
            _ => RawTerminal::enter(std::io::stdin()).map_err(|e| {
                Failure::host(format!("cannot switch the terminal to raw mode: {e}"))
            })?,
        };
        Ok(Self { serial, serial2, virtio, debug, _terminal: terminal })
    }
}

fn open(backend: Backend) -> Result<Arc<Chardev>, Failure> {
    Chardev::open(backend).map(Arc::new).map_err(Failure::host)
}

fn backend(config: &ConsoleConfig) -> Result<Backend, Failure> {
    Ok(match config {
        ConsoleConfig::Null => Backend::Null,
        ConsoleConfig::Stdio => Backend::Stdio,
        ConsoleConfig::Fd(fd) => Backend::Stream(inherited(*fd)?),
        ConsoleConfig::Api => {
            return Err(Failure::configuration(
                "of all consoles, only the first serial port can be attached to by the API: give \
                 the others another place",
            ));
        }
        ConsoleConfig::Pty => Backend::Pty,
        ConsoleConfig::Socket(path) => Backend::Socket(path.clone()),
        ConsoleConfig::Log(path) => Backend::Log(path.clone()),
    })
}

fn inherited(fd: std::os::fd::RawFd) -> Result<std::os::fd::OwnedFd, Failure> {
    fds::inherited(fd).map_err(|e| Failure::host(format!("cannot use descriptor {fd}: {e}")))
}
